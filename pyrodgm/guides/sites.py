"""What a guide has to know of a program: its latent sites, read from one trace, and the plates of each call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pyrodgm.guides.reading import Call, Site, first_trace, plates_of, read_site, up_to_plate
from pyrodgm.traces import sample_sites

__all__ = ["Sites", "check_sites", "first_tensor", "local_features", "readable"]


def first_tensor(*args: Any, **kwargs: Any) -> Tensor:
    """The first tensor among the arguments: what a guide reads where it is not told otherwise.

    Raises: ValueError if there is none.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim():
            return value
    raise ValueError("expected a tensor of rows among the program's arguments, got none; pass observed= to Sites")


class Sites:
    r"""The latent sites of any Pyro program, read from one trace of it; every guide for programs is built on this.

    A site inside the plate of the data is *local*: it belongs to a row, and a guide reads its posterior off that row.
    All others are *global*. Sites, shapes, supports and plates are those of the trace; the size of the data plate and
    its subsample are read anew at each call, so minibatches and ``size``-scaled plates need nothing more. The trace
    leaves no mark: neither Pyro's parameter store nor the random state changes.

    Where a latent site is masked, or discrete (and so observed in some calls and not in others), each call of the
    guide runs the whole program once more to see which; otherwise only up to the data plate. Discrete sites that the
    program itself marks for enumeration (``config_enumerate``) are left to ``TraceEnum_ELBO``.

    Args:
        program: any Pyro program with a fixed set of latent sites.
        args: its positional arguments for the trace: a batch of data.
        kwargs: its keyword arguments for the trace.
        plate: name of the data plate; default: the subsampled one, else the one with as many rows as ``observed``.
        observed: what the guide reads, ``observed(*args, **kwargs) -> (rows, ...)``; default the first tensor among
            the arguments. It is flattened to (rows, F). A module (an encoder) becomes a part of the guide and trains.
    Raises: ValueError if the program has no latent site, a discrete one that cannot be enumerated, a subsampled plate
        besides the data's, or several plates that may be the data's; TypeError if the arguments are no tuple.
    Example:
        >>> import pyro.distributions as dist
        >>> def program(x):
        ...     scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, scale), obs=x)
        >>> sites = Sites(program, (torch.zeros(5),))
        >>> [s.name for s in sites.global_sites], [s.name for s in sites.local_sites]
        (['scale'], ['z'])
    """

    def __init__(
        self,
        program: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        plate: str | None = None,
        observed: Callable[..., Tensor] = first_tensor,
    ) -> None:
        if not callable(program):
            raise TypeError(f"expected a Pyro program, got {type(program).__name__}")
        if not isinstance(args, (tuple, list)):
            raise TypeError(f"expected the program's arguments as a tuple, (x,), got {type(args).__name__}")
        self.program, self.observed = program, observed
        trace = first_trace(program, args, dict(kwargs or {}))
        # What the program enumerates itself, TraceEnum_ELBO sums out: no guide samples it.
        latents = {
            k: s for k, s in sample_sites(trace).items() if not s["is_observed"] and not s["infer"].get("enumerate")
        }
        if not latents:
            raise ValueError("expected a program with latent sites, got one with none; use EmptyGuide")
        self.plate, self.frames = plate, plates_of(latents)
        if plate is None:
            self.plate = self._find_plate(trace, args, dict(kwargs or {}))
        elif plate not in {f.name for s in sample_sites(trace).values() for f in s["cond_indep_stack"]}:
            raise ValueError(f"expected plate as the name of one of the program's plates, got {plate!r}")
        for name, frame in self.frames.items():
            if name != self.plate and frame.full_size not in (None, frame.size):
                raise ValueError(
                    f"expected only the data plate subsampled, got {name!r} with {frame.size} of {frame.full_size}; "
                    f"pass plate={name!r} if its rows are the data"
                )
        found = [read_site(name, site, self.plate) for name, site in latents.items()]
        self.continuous = [s for s in found if s.family is None]
        self.discrete = [s for s in found if s.family is not None]
        self.global_sites = [s for s in self.continuous if s.rows is None]
        self.local_sites = [s for s in self.continuous if s.rows is not None]
        self.global_size, self.local_size = _total(self.global_sites), _total(self.local_sites)
        self.like = found[0].start.new_empty(0) if found[0].start.is_floating_point() else torch.empty(0)
        self.row_dim = next((s.rows for s in found if s.rows is not None), None)
        masked = any(isinstance(s["mask"], Tensor) for s in latents.values())
        self._whole = masked or bool(self.discrete)
        self.features = 0
        if self.row_dim is not None:
            with torch.no_grad():
                features = self.call(args, dict(kwargs or {})).features
            self.features = 0 if features is None else features.shape[-1]

    def _find_plate(self, trace: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """The subsampled plate around an observed site, or the one with as many rows as the data."""
        frames = plates_of({k: s for k, s in sample_sites(trace).items() if s["is_observed"]})
        found = [f.name for f in frames.values() if f.full_size not in (None, f.size)]
        if not found:
            if not set(frames) & set(self.frames):
                return None
            with torch.no_grad():
                rows = len(self.observed(*args, **kwargs))
            found = [f.name for f in frames.values() if f.size == rows]
        if len(found) > 1:
            raise ValueError(f"expected one plate of the data, got {found}; pass plate= to choose")
        return found[0] if found else None

    def start(self) -> Tensor:
        """The unconstrained global sites in the middle of their prior, (G,)."""
        parts = [biject_to(s.support).inv(s.start).reshape(-1) for s in self.global_sites]
        return torch.cat(parts) if parts else self.like

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Plates, masks and features of one call."""
        found = {n: pyro.plate(n, f.size, dim=f.dim) for n, f in self.frames.items() if n != self.plate}
        call = Call(found)
        name = str(self.plate)
        plate: tuple[Any, Any] | None = None
        if self._whole:
            with poutine.block(), torch.no_grad():
                trace = poutine.trace(self.program).get_trace(*args, **kwargs)
            for site in (*self.continuous, *self.discrete):
                self._look(trace, site, call)
            # The masks are of these very rows, so a subsample that was drawn at random is kept.
            node = trace.nodes.get(name)
            plate = None if node is None else (node["fn"], node["value"])
        elif self.row_dim is not None:
            plate = up_to_plate(self.program, name, args, kwargs)
        if self.row_dim is None or plate is None:
            return call
        fn, given = plate
        count = {"subsample_size": fn.subsample_size} if given is None else {"subsample": given}
        opened = call.plates[name] = pyro.plate(name, fn.size, dim=self.row_dim, **count)
        call.rows = opened.subsample_size
        call.features = self._features(args, kwargs, opened)
        return call

    def _look(self, trace: Any, site: Site, call: Call) -> None:
        seen = trace.nodes.get(site.name)
        if seen is None:
            raise ValueError(f"expected the program to have the site {site.name!r}, as in the first trace; got none")
        if isinstance(seen["mask"], Tensor):
            call.masks[site.name] = seen["mask"]
        if seen["is_observed"]:
            call.observed[site.name] = seen["value"]

    def _features(self, args: tuple[Any, ...], kwargs: dict[str, Any], plate: Any) -> Tensor:
        """The rows at hand as the guide reads them, (B, 1, ..., 1, F)."""
        x = self.observed(*args, **kwargs)
        if len(x) == plate.size and plate.subsample_size != plate.size:
            x = x[plate.indices.to(x.device)]
        if len(x) != plate.subsample_size:
            raise ValueError(
                f"expected what the guide reads to have the {plate.subsample_size} rows of plate {self.plate!r}, "
                f"got {tuple(x.shape)}; pass observed= to Sites"
            )
        flat = x.reshape(len(x), -1)  # (B, *event) -> (B, F)
        if self.features and flat.shape[-1] != self.features:
            raise ValueError(
                f"expected rows of {self.features} numbers for the guide to read, as in the first trace, got "
                f"{tuple(x.shape)}"
            )
        return flat.reshape(len(x), *[1] * (-(self.row_dim or -1) - 1), flat.shape[-1])


def check_sites(sites: Any) -> None:
    """Raises: TypeError if a guide is given something else, such as the program."""
    if not isinstance(sites, Sites):
        got = getattr(sites, "__name__", type(sites).__name__)
        raise TypeError(f"expected Sites(program, (arguments,)) as a guide's first argument, got {got}")


def _total(sites: list[Site]) -> int:
    return sum(site.size for site in sites)


def readable(sites: Sites) -> list[Site]:
    """The local discrete sites that continuous ones may read: one value a row."""
    return [s for s in sites.discrete if s.rows is not None and not any(n > 1 for n in s.beside)]


def local_features(sites: Sites, conditional: bool) -> int:
    """How many numbers a row's posterior reads: features, discrete sites, and the global ones if ``conditional``."""
    return sites.features + _total(readable(sites)) + (sites.global_size if conditional else 0)
