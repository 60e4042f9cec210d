"""How far a guide may be trusted, and its expectations corrected, by importance weights; for any Pyro program."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyrodgm.engine.surroundings import quiet
from pyrodgm.evaluation.pareto import pareto_k, smooth_weights
from pyrodgm.traces import check_guide_sites, is_deterministic, sample_sites

__all__ = ["GuideFit", "guide_fit"]


class GuideFit(NamedTuple):
    """What the importance weights of a guide say, in nats where it is no count.

    Attributes:
        khat: Pareto shape of the weights' tail: above :func:`khat_threshold` the guide misses mass of the posterior.
        elbo: mean log-weight.
        log_z: log of the mean weight; reliable while khat is below that.
        effective: effective number of the draws.
        log_weights: (K,).
        draws: the guide's draws of the program's latent sites, and its deterministic sites, (K, *site shape) by name;
            without those whose shape depends on the draw.
    """

    khat: float
    elbo: float
    log_z: float
    effective: float
    log_weights: Tensor
    draws: dict[str, Tensor]

    @property
    def weights(self) -> Tensor:
        """Of the draws, Pareto-smoothed: (K,), which sum to 1."""
        return smooth_weights(self.log_weights)

    def mean(self, function: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        r"""The posterior's expectation of a function, :math:`\sum_k w_k f(z_k)`; reliable while khat is low.

        Args:
            function: of ``draws``, (K, ...) in their order.
        Shapes: returns (...) in float64.
        Raises: ValueError if the function gives another number of rows.
        Source: Vehtari et al. (2024), arXiv:1507.02646, section 2 and algorithm 1.
        """
        return torch.tensordot(self.weights, self._values(function), 1)

    def standard_error(self, function: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        r"""That of :meth:`mean` by the finite number of draws, :math:`\sqrt{\sum_k w_k^2 (f(z_k) - \bar f)^2}`.

        Source: Owen (2013), Monte Carlo theory, methods and examples, section 9.2.
        """
        weights, values = self.weights, self._values(function)
        return torch.tensordot(weights.square(), (values - torch.tensordot(weights, values, 1)).square(), 1).sqrt()

    def resample(self, n: int) -> dict[str, Tensor]:
        """n of the draws, drawn again with their weights: nearly draws from the posterior, (n, *site shape) by name."""
        rows = torch.multinomial(self.weights, n, replacement=True)
        return {name: values[rows] for name, values in self.draws.items()}

    def _values(self, function: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        values = torch.as_tensor(function(self.draws))
        if values.shape[:1] != self.log_weights.shape:
            raise ValueError(
                f"expected a function with a row for each of the {len(self.log_weights)} draws, got shape "
                f"{tuple(values.shape)}; let it keep their first dimension"
            )
        return values.double()


@torch.no_grad()
def guide_fit(
    program: Callable[..., Any], guide: Callable[..., Any], *args: Any, particles: int = 1000, **kwargs: Any
) -> GuideFit:
    r"""Pareto-smoothed importance sampling's diagnosis of a (program, guide) pair.

    .. math:: \log w_k = \log p(x, z_k) - \log q(z_k), \quad z_k \sim q

    The pair is as for Pyro's SVI, one weight for the program as a whole; a latent model's rows have weights of their
    own, for which there is :func:`~pyrodgm.evaluation.importance_estimate`. Too wide a guide has bounded weights, so
    it shows in ``effective`` and the gap between ``elbo`` and ``log_z``, not in ``khat``. Where ``khat`` is below
    :func:`khat_threshold`, the same weights correct what the guide has wrong: :meth:`GuideFit.mean` and ``resample``.
    Give all rows: under a plate that subsamples, weights are noise of the rows, too.

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
        >>> fit.draws["z"].shape, fit.resample(7)["z"].shape
        (torch.Size([100]), torch.Size([7]))
        >>> far = (fit.mean(lambda z: z["z"]) - 0.5) / fit.standard_error(lambda z: z["z"])  # the posterior's mean
        >>> bool(far.abs() < 5)
        True
    """
    if particles < 25:
        raise ValueError(f"expected at least 25 particles to judge the weights by, got {particles}")
    weights, draws = [], []
    with quiet(program, guide), poutine.block():
        for _ in range(particles):
            drawn = poutine.trace(guide).get_trace(*args, **kwargs)
            scored = poutine.trace(poutine.replay(program, trace=drawn)).get_trace(*args, **kwargs)
            check_guide_sites(drawn, scored)
            weights.append(torch.as_tensor(scored.log_prob_sum() - drawn.log_prob_sum()))
            draws.append(_unobserved(scored))
    log_weights = torch.stack(weights).double()
    total = log_weights.logsumexp(0)
    return GuideFit(
        pareto_k(log_weights).item(),
        log_weights.mean().item(),
        total.item() - math.log(particles),
        (2 * total - (2 * log_weights).logsumexp(0)).exp().item(),
        log_weights,
        _stack(draws),
    )


def _unobserved(trace: Any) -> dict[str, Tensor]:
    sites = sample_sites(trace).items()
    return {name: s["value"] for name, s in sites if not s["is_observed"] or is_deterministic(s)}


def _stack(draws: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The sites that every draw has in one shape."""
    found = {}
    for name in draws[0]:
        values = [draw[name] for draw in draws if name in draw]
        if len(values) == len(draws) and len({value.shape for value in values}) == 1:
            found[name] = torch.stack(values)
    return found
