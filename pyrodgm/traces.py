"""Reading Pyro's traces: their sites, what they drew and how they scored it, and what a guide may be."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import is_validation_enabled, scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent

__all__ = [
    "check_guide_sites",
    "check_reparameterised",
    "is_deterministic",
    "latent_rows",
    "plain",
    "refuse_auxiliary",
    "sample_sites",
    "site_log_prob",
]


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


def latent_rows(trace: Any, rows: int) -> Tensor:
    """The latents of a trace whose sites lie in the data plate, one flat vector a row: (B, Z).

    What a guide draws on the way to its sites (auxiliary sites) is left out.
    """
    sites = [s for s in sample_sites(trace).values() if not s["is_observed"] and not s["infer"].get("is_auxiliary")]
    return torch.cat([site["value"].reshape(rows, -1) for site in sites], -1)


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
