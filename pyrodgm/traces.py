"""Reading Pyro's traces: their sites, what they drew and how they scored it, and what a guide may be."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import is_validation_enabled, scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent

__all__ = [
    "SiteRecord",
    "check_guide_sites",
    "check_reparameterised",
    "is_deterministic",
    "is_unnormalised",
    "latent_rows",
    "mask_of",
    "plain",
    "refuse_auxiliary",
    "refuse_masked",
    "refuse_unnormalised",
    "sample_sites",
    "site_log_prob",
]


class SiteRecord(Messenger):
    """Notes the sample sites of a run: of a Pyro trace what most readers want, in fewer steps.

    Attributes:
        nodes: the sites by name, as those of a Pyro trace; it can be replayed like one.
    Raises: RuntimeError for two sites of one name.
    Example:
        >>> import pyro
        >>> with SiteRecord() as run:
        ...     z = pyro.sample("z", Delta(torch.zeros(2)))
        >>> run.nodes["z"]["value"]
        tensor([0., 0.])
    """

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.nodes

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["infer"].get("_do_not_trace"):
            return
        if msg["name"] in self.nodes:
            raise RuntimeError(f"expected a name for each site, got {msg['name']!r} twice; use poutine.scope")
        self.nodes[msg["name"]] = msg.copy()


def sample_sites(trace: Any) -> dict[str, Any]:
    """The sample sites of a Pyro trace by name, without the plates' bookkeeping."""
    return {k: s for k, s in trace.nodes.items() if s["type"] == "sample" and not site_is_subsample(s)}


def plain(distribution: Any) -> Any:
    """A distribution without its masks, expansions and declared event dimensions."""
    while isinstance(distribution, (MaskedDistribution, ExpandedDistribution, Independent)):
        distribution = distribution.base_dist
    return distribution


def is_deterministic(site: Any) -> bool:
    """Whether a site's value follows from others: ``pyro.deterministic``, or what ``poutine.reparam`` leaves of it."""
    return bool(site["infer"].get("_deterministic")) or (site["is_observed"] and isinstance(plain(site["fn"]), Delta))


def is_unnormalised(site: Any) -> bool:
    """Whether the density of a site lacks its normaliser, as an energy model's does."""
    d = site["fn"]
    while d is not None:
        if getattr(d, "normalized", True) is False:
            return True
        d = getattr(d, "base_dist", None)
    return False


def latent_rows(trace: Any, rows: int) -> Tensor:
    """The latents of a trace whose sites lie in the data plate, one flat vector a row: (B, Z).

    What a guide draws on the way to its sites (auxiliary sites) is left out. The sites stand in the order of their
    names, since a guide may draw them in another order than the program.
    """
    found = sorted(sample_sites(trace).items())
    sites = [s for _, s in found if not s["is_observed"] and not s["infer"].get("is_auxiliary")]
    # other plates lie to the left of the data's: their places go with the event, (T, B, *event) -> (B, T * event)
    rows_first = [s["value"].movedim(s["value"].dim() - s["fn"].event_dim - 1, 0) for s in sites]
    return torch.cat([value.reshape(rows, -1) for value in rows_first], -1)


def mask_of(site: Any) -> Any:
    """What of a site counts, by ``poutine.mask`` and by its distribution's own mask; None where nothing masks it.

    Shapes: returns a bool, or a mask that broadcasts against the site's batch shape.
    Raises: ValueError, under Pyro's validation, if a mask leaves out a part of an event.
    """
    mask, fn, event_dim = site["mask"], site["fn"], 0
    while isinstance(fn, (MaskedDistribution, ExpandedDistribution, Independent)):
        if isinstance(fn, MaskedDistribution):
            own = fn._mask if isinstance(fn._mask, bool) else _of_events(fn._mask, event_dim, site["name"])
            mask = own if mask is None else mask & own
        elif isinstance(fn, Independent):
            event_dim += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    return mask


def _of_events(mask: Tensor, event_dim: int, name: str) -> Tensor:
    """A mask whose last dimensions were declared an event, as a mask of the events."""
    event_dim = min(event_dim, mask.dim())
    if not event_dim:
        return mask
    parts = mask.flatten(mask.dim() - event_dim)
    if is_validation_enabled() and not bool((parts.all(-1) == parts.any(-1)).all()):
        raise ValueError(
            f"expected a mask of whole events at {name!r}, got one that leaves out a part of some; mask before "
            "to_event() only what is the same over the event, or sample the parts as sites of their own"
        )
    return parts.all(-1)


def site_log_prob(site: Any) -> Tensor:
    """log p of a site's value, 0 where the site is masked and without its scale: the site's batch shape."""
    return scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])  # by choosing: -inf * 0 is nan


def check_guide_sites(guide_trace: Any, program_trace: Any) -> None:
    """Under Pyro's validation, see that the guide samples exactly the program's latent sites, auxiliary ones apart.

    Raises: ValueError if it does not: what the two have not in common would count in no bound, or in a wrong one.
    """
    if not is_validation_enabled():
        return
    drawn = {k for k, site in sample_sites(guide_trace).items() if not site["infer"].get("is_auxiliary")}
    latents = {k for k, site in sample_sites(program_trace).items() if not site["is_observed"]}
    if drawn != latents:
        raise ValueError(
            f"expected a guide that samples the program's latent sites {sorted(latents)}, got {sorted(drawn)}; rename "
            'them, and mark what the program does not have by infer={"is_auxiliary": True}'
        )


def check_reparameterised(guide_trace: Any) -> None:
    """See that a gradient by way of a guide's draws is the whole gradient.

    Raises: TypeError if a site has no ``rsample``: what it draws has no gradient, so that of the guide would be wrong.
    """
    for name, site in sample_sites(guide_trace).items():
        if not site["fn"].has_rsample:
            raise TypeError(
                f"expected a guide with reparameterised sites, got {name!r} without rsample; use ReweightedWakeSleep, "
                "or ELBO, which has score-function terms for it"
            )


def refuse_auxiliary(guide_trace: Any, user: str) -> None:
    """Raise TypeError, in the name of ``user``, for a guide that draws something beside the program's latents."""
    names = [name for name, site in sample_sites(guide_trace).items() if site["infer"].get("is_auxiliary")]
    if names:
        raise TypeError(
            f"expected a guide with a density at each latent site for {user}, got the auxiliary sites {names}; use a "
            "guide without them, such as MeanField"
        )


def refuse_masked(program_trace: Any, user: str) -> None:
    """Raise TypeError, in the name of ``user``, where latent sites are masked: it compares draws of all rows."""
    sites = sample_sites(program_trace).items()
    names = [name for name, site in sites if not site["is_observed"] and mask_of(site) is not None]
    if names:
        raise TypeError(
            f"expected latent sites without a mask for {user}, which compares the draws of all rows, got the masked "
            f"{names}; use ELBO, or give it the rows that count"
        )


def refuse_unnormalised(program_trace: Any, what: str) -> None:
    """Raise ValueError where data are scored by an energy: ``what`` asks for the log Z that it leaves out."""
    for name, site in sample_sites(program_trace).items():
        if site["is_observed"] and is_unnormalised(site):
            raise ValueError(
                f"expected data with a normalised density for {what}, got {name!r} known up to its log Z; score it by "
                "the model's log_prob or log_partition, or take a tractable model"
            )
