"""Distributions over vectors taken apart into their independent dimensions."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from pyrodgm.distributions.normal import StandardNormalDistribution

__all__ = ["dimension_kl", "factors", "kl_or_draw"]


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


def kl_or_draw(q: Distribution, p: Distribution, value: Tensor, analytic: bool = True) -> Tensor:
    r"""KL(q || p) in closed form where there is one, else its estimate by a draw, :math:`\log q(z) - \log p(z)`.

    Args:
        q, p: distributions of one event shape.
        value: z, a draw of q.
        analytic: False for the draw in any case.
    Shapes: returns a shape that broadcasts against the draw's batch shape, in nats.
    Example:
        >>> import torch
        >>> kl_or_draw(dist.Normal(1.0, 1.0), dist.Normal(0.0, 1.0), torch.tensor(0.2))
        tensor(0.5000)
    """
    if analytic:
        try:
            return kl_divergence(q, p)
        except NotImplementedError:
            pass  # no closed form for this pair
    return q.log_prob(value) - p.log_prob(value)


def dimension_kl(q: Distribution, p: Distribution, value: Tensor, analytic: bool = True) -> Tensor:
    r"""KL of each dimension, :math:`KL(q_d \| p_d)`, in closed form or by the draw as :func:`kl_or_draw`.

    Args:
        q, p: distributions of one event shape with independent dimensions.
        value: a draw of q.
        analytic: False for the draw in any case.
    Shapes: returns (*B, *event) in nats.
    Raises: TypeError if the dimensions are not independent.
    Example:
        >>> import torch
        >>> q, p = dist.Normal(torch.ones(2), 1.0).to_event(1), dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> dimension_kl(q, p, torch.zeros(2))
        tensor([0.5000, 0.5000])
    """
    return kl_or_draw(factors(q), factors(p), value, analytic)
