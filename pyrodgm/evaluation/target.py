"""How well a density stands in for an unnormalised target: importance weights of its own draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyrodgm.core import Energy, Tractable, evaluating
from pyrodgm.distributions.flow import FlowDistribution
from pyrodgm.evaluation.pareto import pareto_k
from pyrodgm.objectives.reverse_kl import log_target

__all__ = ["TargetEstimate", "target_estimate"]


class TargetEstimate(NamedTuple):
    """Importance sampling from a fitted density.

    Attributes:
        log_z: log of the target's normaliser in nats; the mean weight is an unbiased estimate of Z.
        standard_error: of log_z, by the delta method.
        effective: effective number of the draws (Kish).
        khat: tail of the weights; above :func:`khat_threshold` the density misses mass and the other figures
            cannot be trusted.
        draws: (N, *event).
        log_weights: (N,), normalised: their exponentials sum to 1.
    """

    log_z: float
    standard_error: float
    effective: float
    khat: float
    draws: Tensor
    log_weights: Tensor

    def mean(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The target's expectation of a function (N, *event) -> (N, ...), by self-normalised weights."""
        values = function(self.draws)
        return torch.tensordot(self.log_weights.exp().to(values.dtype), values, 1)

    def resample(self, n: int) -> Tensor:
        """n rows drawn again with their weights: nearly draws from the target, (n, *event)."""
        return self.draws[torch.multinomial(self.log_weights.exp(), n, replacement=True)]


def target_estimate(
    model: Tractable,
    target: Energy | Callable[..., Tensor],
    draws: int = 10_000,
    context: Tensor | None = None,
    batch_size: int = 10_000,
) -> TargetEstimate:
    r"""Weights :math:`w_i = \tilde p(x_i) / q(x_i)`, :math:`x_i \sim q`: the normaliser, and how far q can be trusted.

    Args:
        model: q.
        target: an energy, or log of the unnormalised density as for :class:`~pyrodgm.objectives.ReverseKL`.
        draws: N >= 25.
        context: one context (C,).
        batch_size: draws scored at once.
    Raises: ValueError for fewer than 25 draws or several contexts.
    Source: Mueller et al. (2019), arXiv:1808.03856, section 5; Vehtari et al. (2024), arXiv:1507.02646.
    Example:
        >>> from pyrodgm.tractable import StandardNormal
        >>> found = target_estimate(StandardNormal(2), lambda x: -0.5 * x.square().sum(-1), draws=100)
        >>> abs(found.log_z - math.log(2 * math.pi)) < 1e-5, round(found.effective)
        (True, 100)
    """
    if draws < 25:
        raise ValueError(f"expected at least 25 draws (a fifth of them is the tail that is looked at), got {draws}")
    if context is not None and context.dim() != 1:
        raise ValueError(f"expected one context of shape ({model.context},), got {tuple(context.shape)}; ask for each")
    parts, weights = [], []
    with evaluating(model), evaluating(target) if isinstance(target, nn.Module) else nullcontext():
        q = model.condition(context)
        for start in range(0, draws, batch_size):
            shape = torch.Size([min(batch_size, draws - start)])
            if isinstance(q, FlowDistribution) and q.has_rsample:  # drawn and scored in one pass
                x, log_q = q.rsample_and_log_prob(shape)
            else:
                x = q.sample(shape)
                log_q = q.log_prob(x)
            parts.append(x)
            weights.append((log_target(target, x, context) - log_q).double())
    log_weights = torch.cat(weights)
    log_z = log_weights.logsumexp(0) - math.log(draws)
    relative = (log_weights - log_z).exp()  # w / mean(w)
    normalised = log_weights.log_softmax(0)
    return TargetEstimate(
        log_z.item(),
        (relative.std() / math.sqrt(draws)).item(),
        torch.exp(-torch.logsumexp(2 * normalised, 0)).item(),
        pareto_k(log_weights).item(),
        torch.cat(parts),
        normalised,
    )
