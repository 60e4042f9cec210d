"""Latent sites as one trace of a program shows them, and the data plate as one call shows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.scale_messenger import ScaleMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from pyrodgm.core import evaluating
from pyrodgm.shapes import is_real

__all__ = [
    "Call",
    "Site",
    "at_rest",
    "bounds_of",
    "check_supports",
    "first_trace",
    "plates_of",
    "read_site",
    "unmarked",
    "up_to_plate",
]

_DISCRETE = (dist.Bernoulli, dist.Categorical, dist.OneHotCategorical)
_MEDIAN_OF = 15  # draws of a site whose median starts the globals, in the middle of the prior's bulk


@dataclass(frozen=True)
class Site:
    """One latent site.

    Attributes:
        name: of the sample site.
        support: its constraint in the trace that was read.
        event_dim: its event dimensions.
        batch: its batch shape, plates and all.
        free: shape of one unconstrained event.
        plates: names of the vectorised plates around it, outermost first.
        start: a value in the bulk of its prior.
        rows: dimension (negative) of the data plate; None for a global site.
        family: for a discrete site, Bernoulli, Categorical or OneHotCategorical; else None.
        choices: its number of categories.
        scaled: whether a ``poutine.scale`` is about it.
    """

    name: str
    support: Any
    event_dim: int
    batch: tuple[int, ...]
    free: tuple[int, ...]
    plates: tuple[str, ...]
    start: Tensor
    rows: int | None = None
    family: Any = None
    choices: int = 1
    scaled: bool = False

    @property
    def beside(self) -> tuple[int, ...]:
        """The batch shape without the data plate's dimension."""
        if self.rows is None:
            return self.batch
        return self.batch[: len(self.batch) + self.rows] + self.batch[len(self.batch) + self.rows + 1 :]

    @property
    def size(self) -> int:
        """Unconstrained numbers of the site: of one row of data if it is local, of all of it if not."""
        return math.prod(self.beside) * math.prod(self.free)

    @property
    def real(self) -> bool:
        """Whether the site is unconstrained, so that it needs no transform."""
        return is_real(self.support)

    def unpack(self, packed: Tensor) -> Tensor:
        """Numbers in a row become the site's shape.

        Shapes: global (*K, size) -> (*K, *batch, *free); local (*K, B, 1, ..., 1, size), with the row where the data
        plate has it, -> (*K, *batch, *free); leading dimensions (particles, enumeration) stay on the left.
        """
        lead = packed.shape[:-1]
        if self.rows is None:
            return packed.reshape((*lead[: max(0, len(lead) - len(self.batch))], *self.batch, *self.free))
        outer = self.batch[: len(self.batch) + self.rows]
        rows = lead[self.rows]
        keep = lead[: max(0, len(lead) + self.rows - len(outer))]
        at = len(keep)
        value = packed.reshape((*keep, rows, *self.beside, *self.free))
        return value.movedim(at, at + len(outer)) if outer else value


@dataclass
class Call:
    """What one call of the program says of its plates and sites.

    Attributes:
        plates: by name, to be entered around the guide's sites.
        rows: rows of the data plate at hand.
        features: what the guide reads, (B, 1, ..., 1, F) with the row where the data plate has it; None where
            there is nothing to read.
        masks: of the latent sites that are masked.
        scales: of ``poutine.scale``, of the sites under one; the plates' own are not in it.
        supports: of the local sites whose support has bounds of its own in each call.
        observed: values of latent sites that this call observes.
        absent: continuous latent sites that this call observes or does not have: the guide leaves them out.
    """

    plates: dict[str, Any]
    rows: int = 0
    features: Tensor | None = None
    masks: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, Any] = field(default_factory=dict)
    supports: dict[str, Any] = field(default_factory=dict)
    observed: dict[str, Tensor] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)

    def support(self, site: Site) -> Any:
        """The site's constraint in this call."""
        return self.supports.get(site.name, site.support)

    @contextmanager
    def around(self, site: Site, masked: bool = True) -> Iterator[None]:
        """Inside the site's plates and scale and, unless told otherwise, under its mask."""
        with ExitStack() as stack:
            for name in site.plates:
                stack.enter_context(self.plates[name])
            if site.name in self.scales:
                stack.enter_context(poutine.scale(scale=self.scales[site.name]))
            if masked and site.name in self.masks:
                stack.enter_context(poutine.mask(mask=self.masks[site.name]))
            yield


def _owner(program: Callable[..., Any]) -> nn.Module | None:
    """The module that a program is, or is a method of."""
    owner = program if isinstance(program, nn.Module) else getattr(program, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


@contextmanager
def at_rest(program: Callable[..., Any]) -> Iterator[None]:
    """For runs that only look: no gradients, nothing seen by handlers outside, and modules in eval mode.

    In train mode a batch norm would take the statistics of draws from the prior for those of the data.
    """
    owner = _owner(program)
    with poutine.block(), torch.no_grad(), nullcontext() if owner is None else evaluating(owner):
        yield


@contextmanager
def unmarked(
    program: Callable[..., Any], observed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[None]:
    """:func:`at_rest` for both, with Pyro's store and the random state as they were before it."""
    store, owners = pyro.get_param_store(), (_owner(program), _owner(observed))
    held = (*args, *kwargs.values(), *(p for owner in owners if owner is not None for p in owner.parameters()))
    devices = {t.device for t in held if isinstance(t, Tensor) and t.is_cuda}
    with torch.random.fork_rng(list(devices)), store.scope(store.get_state()), at_rest(program), at_rest(observed):
        yield


class _Found(Exception):  # noqa: N818  it ends a run early, nothing is wrong
    """The data plate is open: the rest of the program need not run."""


class _StopAtPlate(Messenger):
    def __init__(self, name: str | None) -> None:
        super().__init__()
        self.name = name
        self.found: tuple[Any, Any] | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.name and site_is_subsample(msg):
            self.found = msg["fn"], msg["value"]
            raise _Found


def up_to_plate(
    program: Callable[..., Any], plate: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """Run the program until it opens the data plate: (the plate's distribution of indices, the indices if given)."""
    with at_rest(program), _StopAtPlate(plate) as watch, suppress(_Found):
        program(*args, **kwargs)
    if watch.found is None:
        raise ValueError(f"expected the program to open the plate {plate!r}, as in the first trace; it did not")
    return watch.found


class _StartAtMedian(Messenger):
    """Continuous latents take the median of a few draws in unconstrained space, which is in the support.

    A mark tells what is under a ``poutine.scale``, whose factor may well be 1 in this run.
    """

    def _pyro_sample(self, msg: Any) -> None:
        msg["infer"]["_scaled"] = any(isinstance(handler, ScaleMessenger) for handler in _PYRO_STACK)
        if msg["done"] or msg["is_observed"] or site_is_subsample(msg) or _is_discrete(msg["fn"]):
            return
        if not isinstance(msg["fn"], dist.TorchDistribution):
            return
        try:
            transform = biject_to(msg["fn"].support)
        except NotImplementedError as error:
            raise ValueError(
                f"expected site {msg['name']!r} of a support that can be made unconstrained, got {msg['fn'].support}; "
                "give it a guide of its own"
            ) from error
        draws = msg["fn"].sample((_MEDIAN_OF,))
        msg["value"], msg["done"] = transform(transform.inv(draws).median(0).values), True


def first_trace(program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A trace of the program whose continuous latents are in the bulk of their priors."""
    return poutine.trace(_StartAtMedian()(program)).get_trace(*args, **kwargs)


def bounds_of(support: Any) -> list[Tensor]:
    """The tensors that a support is made of."""
    found: list[Tensor] = []
    for value in vars(support).values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, Tensor):
                found.append(part)
            elif isinstance(part, constraints.Constraint):
                found += bounds_of(part)
    return found


def check_supports(
    program: Callable[..., Any], trace: Any, sites: Sequence[Site], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """By a second run on the rows of the first, see that no site's support hangs on what other sites draw.

    Raises: ValueError if one does: the guide's transform would be that of the first draw.
    """
    bounded = [site for site in sites if site.family is None and bounds_of(site.support)]
    if not bounded:
        return
    rows = {k: s["value"] for k, s in trace.nodes.items() if s["type"] == "sample" and site_is_subsample(s)}
    again: Any = poutine.trace(poutine.condition(program, data=rows)).get_trace(*args, **kwargs)
    for site in bounded:
        other = again.nodes[site.name]["fn"].support
        if not all(torch.equal(a, b) for a, b in zip(bounds_of(site.support), bounds_of(other), strict=True)):
            raise ValueError(
                f"expected a support that is fixed by the arguments, got that of {site.name!r}, {other}, which moves "
                "with other latent sites; write it as a * u with u ~ Uniform(0, 1)"
            )


def _is_discrete(fn: Any) -> bool:
    return bool(getattr(fn.support, "is_discrete", False))


def plates_of(sites: Mapping[str, Any]) -> dict[str, Any]:
    """The vectorised plates around some sites.

    Raises: ValueError if a loop over a subsample is among them.
    """
    found = {}
    for name, site in sites.items():
        for frame in site["cond_indep_stack"]:
            if frame.vectorized:
                found[frame.name] = frame
            elif frame.full_size not in (None, frame.size):
                raise ValueError(
                    f"expected a vectorised plate around {name!r}, got the loop {frame.name!r} over a subsample; "
                    "write it as `with pyro.plate(...)`"
                )
    return found


def read_site(name: str, site: Any, plate: str | None) -> Site:
    """A latent site of a trace; it is local where it lies in the data plate.

    Raises: ValueError if it is discrete and cannot be enumerated.
    """
    fn, value = site["fn"], site["value"].detach()
    frames = [f for f in site["cond_indep_stack"] if f.vectorized]
    rows = next((f.dim for f in frames if f.name == plate), None)
    batch, family, choices = tuple(fn.batch_shape), None, 1
    if _is_discrete(fn):
        base = fn
        while not isinstance(base, _DISCRETE) and hasattr(base, "base_dist"):
            base = base.base_dist
        family = next((f for f in _DISCRETE if isinstance(base, f)), None)
        if family is None:
            raise ValueError(
                f"expected site {name!r} as Bernoulli, Categorical or OneHotCategorical, got {type(base).__name__}; "
                "sum it out of the program, or give it a guide of its own"
            )
        choices = 1 if family is dist.Bernoulli else base.param_shape[-1]
        free = tuple(fn.event_shape) if family is not dist.Categorical else (*fn.event_shape, choices)
    else:
        free = tuple(biject_to(fn.support).inv(value).shape[len(batch) :])
    start = value if rows is None else value.new_empty(0)
    plates = tuple(f.name for f in frames)
    scaled = bool(site["infer"].get("_scaled"))
    return Site(name, fn.support, fn.event_dim, batch, free, plates, start, rows, family, choices, scaled)
