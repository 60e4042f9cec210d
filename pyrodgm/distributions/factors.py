"""Distributions over vectors taken apart into their independent dimensions."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from pyrodgm.distributions.normal import StandardNormalDistribution

__all__ = ["dimension_kl", "factors"]


def factors(distribution: Distribution) -> TorchDistribution:
    """The univariate distributions of the dimensions: batch shape B, event shape E -> batch shape (*B, *E), event ().

    Raises: TypeError if the dimensions are not independent by construction.
    Example:
        >>> import torch
        >>> factors(dist.Normal(torch.zeros(5, 2), 1.0).to_event(1)).batch_shape
        torch.Size([5, 2])
    """
    if isinstance(distribution, StandardNormalDistribution):
        return dist.Normal(distribution.mean, distribution.variance.sqrt(), validate_args=False)
    if isinstance(distribution, Independent) and not distribution.base_dist.event_shape:
        return distribution.base_dist
    if not distribution.event_shape:
        return distribution  # type: ignore[return-value]
    raise TypeError(
        f"expected independent dimensions (such as Normal(...).to_event(1)), got {type(distribution).__name__}; "
        "its dimensions have no densities of their own"
    )


def dimension_kl(q: Distribution, p: Distribution, value: Tensor | None = None) -> Tensor:
    r"""KL of each dimension, :math:`KL(q_d \| p_d)`, or its one-sample estimate where there is no closed form.

    Args:
        q, p: distributions of one event shape with independent dimensions.
        value: a draw of q; given, it makes the estimate :math:`\log q_d(z_d) - \log p_d(z_d)` instead.
    Shapes: returns (*B, *event) in nats.
    Raises: TypeError if the dimensions are not independent; NotImplementedError without a closed form or a value.
    Example:
        >>> import torch
        >>> q, p = dist.Normal(torch.ones(2), 1.0).to_event(1), dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> dimension_kl(q, p)
        tensor([0.5000, 0.5000])
    """
    q, p = factors(q), factors(p)
    return kl_divergence(q, p) if value is None else q.log_prob(value) - p.log_prob(value)
