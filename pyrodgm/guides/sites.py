"""What a guide has to know of a program: its latent sites, read from one trace, and the plates of each call."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import biject_to

from pyrodgm.guides.reading import (
    Call,
    Site,
    at_rest,
    bounds_of,
    check_supports,
    first_trace,
    plates_of,
    read_site,
    unmarked,
    up_to_plate,
)
from pyrodgm.traces import mask_of, sample_sites

__all__ = ["Sites", "check_sites", "first_tensor", "local_features", "readable", "refuse_scaled"]


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
    All others are *global*. Sites, shapes and plates are those of the trace; the size of the data plate and its
    subsample are read anew at each call, so minibatches and ``size``-scaled plates need nothing more. The trace leaves
    no mark: neither Pyro's parameter store nor the random state changes, and where the program is a module (or a method
    of one), it runs in eval mode, so that no batch norm takes draws from the prior for data.

    Where a latent site is masked, scaled (``poutine.scale``), discrete or of an ``obs_mask`` (and so observed in some
    calls and not in others), or local with bounds of its own in each call, each call of the guide runs the whole
    program once more to see; otherwise only up to the data plate. Discrete sites that the program itself marks for
    enumeration (``config_enumerate``) are left to ``TraceEnum_ELBO``. Guides hold the program by its sites: a deep copy
    or a pickle of one takes the program along.

    Args:
        program: any Pyro program with a fixed set of latent sites.
        args: its positional arguments for the trace: a batch of data.
        kwargs: its keyword arguments for the trace.
        plate: name of the data plate; default: of those around latent and observed sites the subsampled one, else the
            one with as many rows as ``observed``. False for none: then all sites are global.
        observed: what the guide reads, ``observed(*args, **kwargs) -> (rows, ...)``; default the first tensor among
            the arguments, in the order of the program's parameters. It is flattened to (rows, F). A module (an encoder)
            becomes a part of the guide and trains; where it does not take all the arguments, it is given that tensor.
    Raises: ValueError if the program has no latent site, a discrete one that cannot be enumerated, a subsampled plate
        besides the data's, several plates that may be the data's, or a support that hangs on other latent sites;
        TypeError if the arguments are no tuple.
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
        plate: str | bool | None = None,
        observed: Callable[..., Tensor] = first_tensor,
    ) -> None:
        if not callable(program):
            raise TypeError(f"expected a Pyro program, got {type(program).__name__}")
        if not isinstance(args, (tuple, list)):
            raise TypeError(f"expected the program's arguments as a tuple, (x,), got {type(args).__name__}")
        self.program, self.observed = program, observed
        with unmarked(program, observed, args, dict(kwargs or {})):
            self._read(tuple(args), dict(kwargs or {}), plate)

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any], plate: str | bool | None) -> None:
        trace = first_trace(self.program, args, kwargs)
        # What the program enumerates itself, TraceEnum_ELBO sums out: no guide samples it.
        latents = {
            k: s for k, s in sample_sites(trace).items() if not s["is_observed"] and not s["infer"].get("enumerate")
        }
        if not latents:
            raise ValueError("expected a program with latent sites, got one with none; use EmptyGuide")
        self.frames = plates_of(latents)
        self.plate = plate if isinstance(plate, str) else None
        if plate is None:
            self.plate = self._find_plate(trace, args, kwargs)
        elif plate is not False and plate not in _plate_names(trace):
            raise ValueError(f"expected plate as the name of one of the program's plates, got {plate!r}")
        for name, frame in self.frames.items():
            if name != self.plate and frame.full_size not in (None, frame.size):
                raise ValueError(
                    f"expected only the data plate subsampled, got {name!r} with {frame.size} of {frame.full_size}; "
                    f"pass plate={name!r} if its rows are the data"
                )
        found = [read_site(name, site, self.plate) for name, site in latents.items()]
        check_supports(self.program, trace, found, args, kwargs)
        self.continuous = [s for s in found if s.family is None]
        self.discrete = [s for s in found if s.family is not None]
        self.global_sites = [s for s in self.continuous if s.rows is None]
        self.local_sites = [s for s in self.continuous if s.rows is not None]
        self.global_size, self.local_size = _total(self.global_sites), _total(self.local_sites)
        floating = [s.start for s in found if s.start.is_floating_point()]
        self.like = floating[0].new_empty(0) if floating else torch.empty(0, device=found[0].start.device)
        self.row_dim = next((s.rows for s in found if s.rows is not None), None)
        varied = (
            bool(self.discrete),
            any(site.scaled for site in found),
            any(mask_of(site) is not None for site in latents.values()),
            any(bounds_of(site.support) for site in self.local_sites),
        )
        self._whole = any(varied)
        self.features = 0
        if self.row_dim is not None:
            features = self.call(args, kwargs).features
            self.features = 0 if features is None else features.shape[-1]

    def _find_plate(self, trace: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Of the plates around latent and observed sites the subsampled one, or one with as many rows as the data."""
        seen = _plate_names(trace, observed=True)
        frames = [frame for name, frame in self.frames.items() if name in seen]
        found = [f.name for f in frames if f.full_size not in (None, f.size)]
        if frames and not found:
            rows = len(self._observe(args, kwargs))
            found = [f.name for f in frames if f.size == rows]
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
            with at_rest(self.program):
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
        if site.family is None and (seen is None or seen["is_observed"]):
            call.absent.add(site.name)
            return
        if seen is None:
            raise ValueError(f"expected the program to have the site {site.name!r}, as in the first trace; got none")
        mask = mask_of(seen)
        if mask is not None:
            call.masks[site.name] = torch.as_tensor(mask, device=seen["value"].device)
        if site.scaled:
            sizes = [(f.full_size or f.size) / f.size for f in seen["cond_indep_stack"]]
            call.scales[site.name] = seen["scale"] / math.prod(sizes)
        if site.rows is not None and bounds_of(site.support):
            call.supports[site.name] = seen["fn"].support
        if seen["is_observed"]:
            call.observed[site.name] = seen["value"]

    def _observe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """What the guide reads of a call, (rows, ...)."""
        if self.observed is first_tensor:
            return first_tensor(*_in_order(self.program, args, kwargs))
        if not isinstance(self.observed, nn.Module):
            return self.observed(*args, **kwargs)
        forward = self.observed.forward
        taken = inspect.signature(forward).parameters
        known = {k: v for k, v in kwargs.items() if k in taken}  # n= is no matter of an encoder's
        for given in (kwargs, known):
            if _bound(forward, args, given) is not None:
                return self.observed(*args, **given)
        return self.observed(first_tensor(*_in_order(self.program, args, kwargs)))

    def _features(self, args: tuple[Any, ...], kwargs: dict[str, Any], plate: Any) -> Tensor:
        """The rows at hand as the guide reads them, (B, 1, ..., 1, F)."""
        x = self._observe(args, kwargs)
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


def _plate_names(trace: Any, observed: bool = False) -> set[str]:
    """The plates around the sites of a trace, or around the observed ones alone."""
    sites = sample_sites(trace).values()
    return {f.name for s in sites if s["is_observed"] or not observed for f in s["cond_indep_stack"]}


def _bound(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments | None:
    """The arguments by the function's parameters, None where it does not take them."""
    try:
        return inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None


def _in_order(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """All arguments in the order of the program's parameters, however they are given."""
    found = _bound(program.forward if isinstance(program, nn.Module) else program, args, kwargs)
    return (*args, *kwargs.values()) if found is None else (*found.args, *found.kwargs.values())


def check_sites(sites: Any) -> None:
    """Raises: TypeError if a guide is given something else, such as the program."""
    if not isinstance(sites, Sites):
        got = getattr(sites, "__name__", type(sites).__name__)
        raise TypeError(f"expected Sites(program, (arguments,)) as a guide's first argument, got {got}")


def refuse_scaled(sites: Sites, guide: str) -> None:
    """Raises: ValueError, in the name of a guide that draws sites together, if one is under a ``poutine.scale``."""
    names = [site.name for site in sites.continuous if site.scaled]
    if names:
        raise ValueError(
            f"expected latent sites without poutine.scale for a {guide}, which has one density for all, got {names}; "
            "use MeanField, or weigh the latents by ELBO(beta=)"
        )


def _total(sites: list[Site]) -> int:
    return sum(site.size for site in sites)


def readable(sites: Sites) -> list[Site]:
    """The local discrete sites that continuous ones may read: one value a row."""
    return [s for s in sites.discrete if s.rows is not None and not any(n > 1 for n in s.beside)]


def local_features(sites: Sites, conditional: bool) -> int:
    """How many numbers a row's posterior reads: features, discrete sites, and the global ones if ``conditional``."""
    return sites.features + _total(readable(sites)) + (sites.global_size if conditional else 0)
