"""How far a guide may be trusted: Pareto k-hat of its importance weights, for any Pyro program."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyrodgm.engine.surroundings import quiet
from pyrodgm.evaluation.pareto import pareto_k
from pyrodgm.traces import check_guide_sites

__all__ = ["GuideFit", "guide_fit"]


class GuideFit(NamedTuple):
    """What the importance weights of a guide say, in nats where it is no count.

    Attributes:
        khat: Pareto shape of the weights' tail: above :func:`khat_threshold` the guide misses mass of the posterior.
        elbo: mean log-weight.
        log_z: log of the mean weight; reliable while khat is below that.
        effective: effective number of the draws.
        log_weights: (K,).
    """

    khat: float
    elbo: float
    log_z: float
    effective: float
    log_weights: Tensor


@torch.no_grad()
def guide_fit(
    program: Callable[..., Any], guide: Callable[..., Any], *args: Any, particles: int = 1000, **kwargs: Any
) -> GuideFit:
    r"""Pareto-smoothed importance sampling's diagnosis of a (program, guide) pair.

    .. math:: \log w_k = \log p(x, z_k) - \log q(z_k), \quad z_k \sim q

    The pair is as for Pyro's SVI, one weight for the program as a whole; a latent model's rows have weights of their
    own, for which there is :func:`~pyrodgm.evaluation.importance_estimate`. Too wide a guide has bounded weights, so
    it shows in ``effective`` and the gap between ``elbo`` and ``log_z``, not in ``khat``.

    Args:
        program: conditioned, as SVI takes it.
        guide: samples the program's latent sites.
        args, kwargs: of both; an argument that is called ``particles`` goes in by ``functools.partial``.
        particles: K >= 25.
    Raises: ValueError for fewer than 25 particles, and under Pyro's validation for a guide of other sites.
    Source: Yao et al. (2018), Yes, but did it work?, arXiv:1802.02538, algorithm 1; Vehtari et al. (2024),
        arXiv:1507.02646.
    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.5, 0.5 ** 0.5))
        >>> fit = guide_fit(program, guide, particles=100)  # the posterior itself: all weights are p(x)
        >>> round(fit.effective), round(fit.log_z, 3)
        (100, -1.516)
    """
    if particles < 25:
        raise ValueError(f"expected at least 25 particles to judge the weights by, got {particles}")
    weights = []
    with quiet(program, guide), poutine.block():
        for _ in range(particles):
            drawn = poutine.trace(guide).get_trace(*args, **kwargs)
            scored = poutine.trace(poutine.replay(program, trace=drawn)).get_trace(*args, **kwargs)
            check_guide_sites(drawn, scored)
            weights.append(torch.as_tensor(scored.log_prob_sum() - drawn.log_prob_sum()))
    log_weights = torch.stack(weights).double()
    total = log_weights.logsumexp(0)
    return GuideFit(
        pareto_k(log_weights).item(),
        log_weights.mean().item(),
        total.item() - math.log(particles),
        (2 * total - (2 * log_weights).logsumexp(0)).exp().item(),
        log_weights,
    )
