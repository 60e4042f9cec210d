"""The standard normal vector, in as few operations as it has."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, Normal, constraints, register_kl

from pyrodgm.distributions.features import IndependentNormal
from pyrodgm.shapes import expand_to

__all__ = ["StandardNormalDistribution"]


class StandardNormalDistribution(TorchDistribution):
    r"""N(0, I) over a tensor of ``event_shape``.

    .. math:: \log p(x) = -\tfrac12 \sum_i x_i^2 - \tfrac D2 \log 2\pi

    Args:
        like: a tensor whose dtype and device the samples take.
        event_shape: shape of one x.
    Example:
        >>> StandardNormalDistribution(torch.zeros(0), (3,)).log_prob(torch.zeros(3))
        tensor(-2.7568)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(
        self,
        like: Tensor,
        event_shape: tuple[int, ...],
        batch_shape: tuple[int, ...] = (),
        validate_args: bool | None = None,
    ) -> None:
        self._like = like
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return self._like.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        return self._like.new_ones(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StandardNormalDistribution:
        return StandardNormalDistribution(self._like, self.event_shape, batch_shape, validate_args=self._validate_args)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return torch.randn(self._extended_shape(sample_shape), dtype=self._like.dtype, device=self._like.device)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        squares = (value * value).flatten(value.dim() - len(self.event_shape)).sum(-1)
        constant = -0.5 * self.event_shape.numel() * math.log(2 * math.pi)
        return expand_to(constant - 0.5 * squares, self.batch_shape)

    def entropy(self) -> Tensor:
        return self._like.new_full(self.batch_shape, 0.5 * self.event_shape.numel() * (1 + math.log(2 * math.pi)))


@register_kl(Independent, StandardNormalDistribution)
def _kl_normal_standard(q: Independent, p: StandardNormalDistribution) -> Tensor:
    lean = isinstance(q, IndependentNormal)
    normal: Any = q if lean else q.base_dist
    if not (lean or isinstance(normal, Normal)) or q.event_shape != p.event_shape:
        raise NotImplementedError
    mean, scale = normal.loc, normal.scale
    twice = torch.addcmul(scale * scale, mean, mean).sub(normal.log_scale if lean else scale.log(), alpha=2)
    twice = twice.flatten(mean.dim() - len(p.event_shape)).sum(-1)
    return expand_to(0.5 * (twice - p.event_shape.numel()), p.batch_shape)
