"""What a program has to be before chains run on it: its device, its data, its plates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrodgm.engine.subsampled import Rows
from pyrodgm.shapes import base_constraint
from pyrodgm.traces import mask_of, plain

__all__ = ["check_data", "check_one_device", "check_plates", "check_subsampling", "inside"]


def check_one_device(sites: dict[str, Any]) -> None:
    """Raise ValueError where values lie on different devices: batched over chains a lone number mixes with none."""
    places = dict[str, str]()
    for name, site in sites.items():
        value = site["value"]
        if isinstance(value, Tensor) and (value.dim() or not site["is_observed"]):
            places.setdefault(value.device.type, name)
    if len(places) > 1:
        found = " and ".join(f"{name!r} on {place}" for place, name in places.items())
        raise ValueError(
            f"expected the program's values on one device, got {found}; make its tensors there, the numbers of its "
            "priors too: torch.tensor(0.0, device=...)"
        )


def _shapes(site: Any) -> tuple[torch.Size, torch.Size, bool]:
    """Batch shapes of a site's values and of their scores, and whether one of the latter has no plate."""
    fn, value = site["fn"], site["value"]
    batch = value.shape[: max(0, value.dim() - len(fn.event_shape))]
    scored = torch.broadcast_shapes(batch, fn.batch_shape)
    own = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    return batch, scored, any(n > 1 and d not in own for d, n in enumerate(scored, -len(scored)))


def check_data(name: str, site: Any, again: Callable[[], Any]) -> None:
    """See that what counts of an observed site's values lies in its support, and meets parameters of its own shape.

    A support whose bounds other sites set is left to the energy.

    Args:
        again: a trace of the program at other values of the latent sites.
    Raises: ValueError naming the site and the first bad place, for values outside; for values that meet the
        parameters in all pairs, (N,) beside (N, 1), without a plate for them.
    """
    fn, value = site["fn"], site["value"]
    if not isinstance(value, Tensor):
        return
    batch, scored, spare = _shapes(site)
    if spare and batch.numel() > 1 and scored.numel() > batch.numel():
        raise ValueError(
            f"expected at {name!r} a distribution of the shape of its data, {tuple(batch)}, got {tuple(fn.batch_shape)}"
            f", which pairs them to {tuple(scored)}; reshape one of them, or declare the dimensions by pyro.plate"
        )
    try:
        mask, good = mask_of(site), fn.support.check(value)
    except (NotImplementedError, ValueError):  # a support that nobody wrote down, a mask of parts of an event
        return
    good = good if good.shape == batch else good.reshape(*batch, -1).all(-1)
    bad = ~good if mask is None else ~good & torch.as_tensor(mask, device=good.device)
    if not bool(bad.any()) or _moving(fn.support, lambda: again().nodes[name]["fn"].support):
        return
    place = bad.nonzero()[0].tolist()
    got = value.expand(*bad.shape, *value.shape[len(batch) :])[tuple(place)]
    shown = f"{got.tolist() if got.numel() <= 8 else f'{got.numel()} numbers'}{f' at {place}' if place else ''}"
    raise ValueError(
        f"expected data in the support of {type(plain(fn)).__name__} at {name!r}, got {shown}, {int(bad.sum())} such "
        "in all; recode the data, or leave rows out by poutine.mask(mask=...)"
    )


def _moving(support: Any, again: Callable[[], Any]) -> bool:
    """Whether the bounds of a support are others in another run."""

    def bounds(support: Any) -> list[Tensor]:
        return [v for v in vars(base_constraint(support)).values() if isinstance(v, Tensor)]

    first = bounds(support)
    return bool(first) and not all(map(torch.equal, first, bounds(again())))


def check_plates(sites: dict[str, Any]) -> None:
    """See that plates declare every batch dimension: beside discrete sites another would be taken for a value of one.

    Raises: ValueError for a dimension without a plate.
    """
    for name, site in sites.items():
        _, scored, spare = _shapes(site)
        if spare:
            raise ValueError(
                f"expected every batch dimension in a plate beside discrete sites that are summed out, got {name!r} of "
                f"batch shape {tuple(scored)}; use .to_event(), or declare it by pyro.plate"
            )


def inside(plates: dict[str, Rows], site: Any) -> list[str]:
    """Which of the plates a site lies in."""
    return [f.name for f in site["cond_indep_stack"] if f.name in plates]


def check_subsampling(plates: dict[str, Rows], given: set[str], sites: dict[str, Any], enumerated: bool) -> None:
    """What has no unbiased gradient, or none that one graph gives."""
    for name in given & set(plates):
        raise ValueError(
            f"expected plates over all their rows, or with subsample_size= and reading the rows that they give, got "
            f"subsample= with {plates[name].read} of {plates[name].size} in {name!r}, the same at every step"
        )
    if plates and enumerated:
        raise ValueError(
            f"expected no discrete latent sites beside the subsampled plate {next(iter(plates))!r}: the log of a sum "
            "has no unbiased estimate; sum them out by hand (MixtureSameFamily), or drop subsample_size="
        )
    for name, site in sites.items():
        for frame in site["cond_indep_stack"]:
            if frame.name in plates and not frame.vectorized:
                raise ValueError(
                    f"expected a vectorised plate, with pyro.plate({frame.name!r}, ...) as rows:, got a loop over a "
                    "subsample"
                )
        if not site["is_observed"] and inside(plates, site):
            raise ValueError(
                f"expected latent sites outside the subsampled plate {inside(plates, site)[0]!r}, got {name!r} in it, "
                "which has a value for each row; drop subsample_size=, or sum it out by hand"
            )
