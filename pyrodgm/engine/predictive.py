"""A program run anew at draws of its latent sites: likelihoods, predictions, the prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyrodgm.engine.subsampled import ReadRows, subsampled_plates
from pyrodgm.engine.surroundings import quiet, validation
from pyrodgm.seeding import random_state
from pyrodgm.traces import (
    is_deterministic,
    is_unnormalised,
    plain,
    refuse_unnormalised,
    sample_sites,
    site_log_prob,
)

__all__ = ["Observed", "check_ancestral", "log_likelihood", "observed_data", "posterior_predictive", "prior"]

_NUMBERS_AT_ONCE = 2**22  # of the program's values in flight


class Observed(dict[str, Tensor]):
    """Observed values by site.

    Attributes:
        complete: whether the draws hold every latent site, so that the observed ones are independent of the rest.
        normalised: whether every site has a density with its normaliser, so that there is a likelihood.
    """

    complete: bool = True
    normalised: bool = True


def _observed_sites(trace: Any) -> dict[str, Any]:
    """Those with data: a ``pyro.factor`` has none."""
    sites = sample_sites(trace).items()
    return {
        k: s for k, s in sites if s["is_observed"] and not is_deterministic(s) and not isinstance(plain(s["fn"]), Unit)
    }


def check_ancestral(trace: Any) -> None:
    """See that a program's draws have its own prior.

    Raises: ValueError where a reparameterisation draws from another law and keeps the prior's density at a point.
    """
    for name, site in sample_sites(trace).items():
        log_density = getattr(plain(site["fn"]), "log_density", None) if is_deterministic(site) else None
        if log_density is not None and bool((torch.as_tensor(log_density) != 0).any()):
            raise ValueError(
                f"expected a program that draws from its own prior, got {name!r} with the prior's density at a value "
                "that a reparameterisation (such as NeuTra) draws from another law; take the program as it was before"
            )


def _first(samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v[0, 0] for k, v in samples.items()}


def _trace_at(
    program: Callable[..., Any], row: dict[str, Tensor], args: Any, kwargs: Any, read: dict[str, Tensor] | None = None
) -> Any:
    """The trace of a program whose latent sites are at ``row``; they do not count as observed.

    Subsampled plates read the rows ``read``.
    """
    with poutine.block(), ReadRows(read or {}):
        return poutine.trace(_Replay(row)(program)).get_trace(*args, **kwargs)


class _Replay(Messenger):
    def __init__(self, row: dict[str, Tensor]) -> None:
        super().__init__()
        self.row = row

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.row and not msg["is_observed"]:
            msg["value"], msg["done"] = self.row[msg["name"]], True


class _Redraw(Messenger):
    """Draws observed sites anew, as Pyro's ``uncondition``, but leaves deterministic ones as they are.

    Raises: NotImplementedError for a site that only scores.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not is_deterministic(msg):
            try:
                value = msg["fn"](*msg["args"], **msg["kwargs"])
            except NotImplementedError as error:
                raise NotImplementedError(
                    f"expected data that can be drawn anew, got {msg['name']!r} of {type(plain(msg['fn'])).__name__}, "
                    "which has a log_prob alone; give it a sample method"
                ) from error
            msg["is_observed"], msg["value"], msg["done"] = False, value, True


def _over_draws(
    function: Callable[[dict[str, Tensor]], dict[str, Tensor]], rows: dict[str, Tensor]
) -> dict[str, Tensor]:
    """``function`` of every row, by vmap in pieces that fit memory; row by row where the program does not batch."""
    n = len(next(iter(rows.values())))
    one = function({k: v[0] for k, v in rows.items()})
    size = max(1, _NUMBERS_AT_ONCE // max(1, sum(v.numel() for v in one.values())))
    batched = torch.func.vmap(function, randomness="different", chunk_size=size)
    with validation(False):
        try:
            return batched(rows)
        except (RuntimeError, NotImplementedError, ValueError):  # a sampler or a branch that vmap has no rule for
            parts = [function({k: v[i] for k, v in rows.items()}) for i in range(n)]
    return {k: torch.stack([p[k] for p in parts]) for k in parts[0]}


_Reading = Callable[[dict[str, Tensor]], dict[str, Tensor]]  # rows of the plates -> values of the observed sites


def _all_rows(trace: Any, run: _Reading, device: torch.device, of_events: bool = False) -> dict[str, Tensor]:
    """``run`` over all the rows of the subsampled plate of ``trace``, block by block, its results side by side.

    Args:
        trace: of the program, which says where the plate is.
        run: see above; its results have the plate's dimension where the site has it.
        device: of the rows.
        of_events: whether the results have the sites' event dimensions, as values have and likelihoods have not.
    Raises: ValueError for several subsampled plates.
    """
    plates = subsampled_plates(trace)
    if not plates:
        return run({})
    if len(plates) > 1:
        raise ValueError(
            f"expected one subsampled plate to read row by row, got {sorted(plates)}; drop the others' sizes"
        )
    ((name, rows),) = plates.items()
    parts = [(run({name: block.to(device)}), seen) for block, seen in rows.blocks()]
    found = {}
    for key, site in _observed_sites(trace).items():
        dims = [frame.dim for frame in site["cond_indep_stack"] if frame.name == name]
        if dims:
            dim = dims[0] - (len(site["fn"].event_shape) if of_events else 0)
            pieces = [part[key].narrow(dim, seen, rows.read - seen) for part, seen in parts]
            found[key] = torch.cat(pieces, dim)
        else:
            found[key] = parts[0][0][key]
    return found


def _flat(samples: Mapping[str, Tensor], device: torch.device) -> tuple[dict[str, Tensor], torch.Size]:
    lead = next(iter(samples.values())).shape[:2]
    return {k: v.flatten(0, 1).to(device) for k, v in samples.items()}, lead


def _device(args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device | None) -> torch.device:
    """Where the program runs: where its chains ran, or else where its arguments are."""
    tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
    return device or (tensors[0].device if tensors else torch.device("cpu"))


@torch.no_grad()
def observed_data(
    program: Callable[..., Any],
    samples: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device | None = None,
) -> Observed:
    """What the program is conditioned on, over all the rows of a subsampled plate."""
    device = _device(args, kwargs, device)
    row = {k: v.to(device) for k, v in _first(samples).items()}

    def values(read: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: s["value"] for k, s in _observed_sites(_trace_at(program, row, args, kwargs, read)).items()}

    with quiet(program):
        trace = _trace_at(program, row, args, kwargs)
        found = Observed(_all_rows(trace, values, device, of_events=True))
    latent = {k for k, s in sample_sites(trace).items() if not s["is_observed"]}
    found.complete = latent <= set(samples)
    found.normalised = not any(is_unnormalised(site) for site in _observed_sites(trace).values())
    return found


@torch.no_grad()
def log_likelihood(
    program: Callable[..., Any],
    samples: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """log p of every observed site given the draws' sites, (chains, draws, *batch shape), in nats.

    Raises: ValueError if the draws lack a latent site (one that was summed out), or if a site's density lacks its
        normaliser.
    """
    device = _device(args, kwargs, device)
    _need_all(program, samples, args, kwargs, device)
    rows, lead = _flat(samples, device)

    def scores(read: dict[str, Tensor]) -> dict[str, Tensor]:
        def score(row: dict[str, Tensor]) -> dict[str, Tensor]:
            trace = _trace_at(program, row, args, kwargs, read)
            return {k: site_log_prob(s) for k, s in _observed_sites(trace).items()}

        return _over_draws(score, rows)

    with quiet(program):
        trace = _trace_at(program, {k: v[0] for k, v in rows.items()}, args, kwargs)
        refuse_unnormalised(trace, "the likelihood")
        return {k: v.unflatten(0, lead).cpu() for k, v in _all_rows(trace, scores, device).items()}


@torch.no_grad()
def posterior_predictive(
    program: Callable[..., Any],
    samples: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seed: int,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """The observed sites drawn anew at every draw, (chains, draws, *site shape).

    Raises: ValueError if the draws lack a latent site (one that was summed out).
    """
    device = _device(args, kwargs, device)
    names = list(_need_all(program, samples, args, kwargs, device))
    rows, lead = _flat(samples, device)

    def draws(read: dict[str, Tensor]) -> dict[str, Tensor]:
        def draw(row: dict[str, Tensor]) -> dict[str, Tensor]:
            return _values(_trace_at(_Redraw()(program), row, args, kwargs, read), names)

        return _over_draws(draw, rows)

    with quiet(program):
        trace = _trace_at(program, {k: v[0] for k, v in rows.items()}, args, kwargs)
        with random_state(device, seed):
            return {k: v.unflatten(0, lead).cpu() for k, v in _all_rows(trace, draws, device, of_events=True).items()}


@torch.no_grad()
def prior(
    program: Callable[..., Any],
    names: list[str],
    draws: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seed: int,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """The sites ``names`` drawn from the program without its data, (1, draws, *site shape).

    Raises: ValueError for a reparameterised program whose draws do not have its prior.
    """

    def draw() -> Any:
        with poutine.block():
            return poutine.trace(_Redraw()(program)).get_trace(*args, **kwargs)

    with quiet(program), random_state(_device(args, kwargs, device), seed):
        check_ancestral(draw())
        parts = [_values(draw(), names) for _ in range(draws)]
    return {k: torch.stack([p[k] for p in parts]).unsqueeze(0).cpu() for k in names}


def _values(trace: Any, names: list[str]) -> dict[str, Tensor]:
    return {k: trace.nodes[k]["value"] for k in names}


def _need_all(
    program: Callable[..., Any], samples: Mapping[str, Tensor], args: Any, kwargs: Any, device: torch.device
) -> Observed:
    observed = observed_data(program, samples, args, kwargs, device)
    if not observed.complete:
        raise ValueError(
            "expected draws of every latent site, got none of the discrete ones that were summed out; "
            "rows depend on each other given the rest, so they have no likelihood each"
        )
    return observed
