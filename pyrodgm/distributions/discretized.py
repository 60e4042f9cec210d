"""Distributions over levels: the discretized logistic, and codes as floating-point numbers."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn import functional as F

__all__ = ["Codes", "DiscretizedLogistic"]


class _Levels(constraints.Constraint):
    """The numbers 0, 1 / (L - 1), ..., 1."""

    is_discrete = True
    event_dim = 0

    def __init__(self, levels: Tensor) -> None:
        self.levels = levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        level = value * (self.levels - 1)
        # what float32 makes of a level: some 1e-5 of one where there are 256, a hundredth where there are 2^16
        tolerance = (4 * torch.finfo(torch.float32).eps * self.levels).clamp(min=1e-3)
        return (value >= 0) & (value <= 1) & ((level - level.round()).abs() < tolerance)


class DiscretizedLogistic(TorchDistribution):
    r"""A logistic distribution in L bins, whose values are the levels :math:`x \in \{0, \frac1{L-1}, \dots, 1\}`.

    .. math:: p(x) = \sigma\left(\frac{x + h - \mu}{s}\right) - \sigma\left(\frac{x - h - \mu}{s}\right),
        \quad h = \frac{1}{2 (L - 1)}

    with the lowest bin open below and the highest open above, so the L probabilities sum to one. It
    is evaluated as :math:`\log\sigma(a) + \log\sigma(-b) + \log(1 - e^{b - a})`, exact in the tails.

    Args:
        loc: :math:`\mu`, (*B).
        scale: :math:`s > 0`, (*B).
        levels: L >= 2.
    Shapes: x (*S, *B) -> log_prob (*S, *B) in nats.
    Source: Kingma et al. (2016), arXiv:1606.04934, eq. 26; Salimans et al. (2017), arXiv:1701.05517, eq. 2.
    Example:
        >>> d = DiscretizedLogistic(torch.tensor(0.3), torch.tensor(0.1), 256)
        >>> d.log_prob(torch.arange(256) / 255).exp().sum().round(decimals=4)
        tensor(1.)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "levels": constraints.positive_integer,
    }
    has_rsample = False

    def __init__(
        self, loc: Tensor, scale: Tensor, levels: Tensor | float = 256, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.levels = torch.as_tensor(levels, dtype=self.loc.dtype, device=self.loc.device)
        super().__init__(self.loc.shape, torch.Size(), validate_args=validate_args)

    @property
    def support(self) -> Any:
        return _Levels(self.levels)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        shape = torch.Size(batch_shape)
        return DiscretizedLogistic(
            self.loc.expand(shape), self.scale.expand(shape), self.levels, validate_args=self._validate_args
        )

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 / (self.levels - 1)
        centred = value - self.loc
        below = F.logsigmoid((centred + half) / self.scale)  # log P(X <= x)
        above = F.logsigmoid(-(centred - half) / self.scale)  # log P(X >= x)
        inner = below + above + torch.log(-torch.expm1(-2 * half / self.scale))
        return torch.where(value < half, below, torch.where(value > 1 - half, above, inner))

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        uniform = uniform.clamp(min=torch.finfo(self.loc.dtype).tiny)  # rand may be 0, whose logit is not finite
        top = self.levels - 1
        return ((self.loc + self.scale * uniform.logit()) * top).round().clamp(min=0).minimum(top) / top

    @property
    def mean(self) -> Tensor:
        r""":math:`\frac{1}{L-1} \sum_{l<L-1} P(X > l / (L - 1))`, (*B)."""
        top = int(self.levels.max()) - 1
        mean = torch.zeros_like(self.loc)
        for level in range(top):
            mean = mean + torch.sigmoid((self.loc - (level + 0.5) / top) / self.scale)
        return mean / top


class Codes(dist.Categorical):
    """A categorical distribution whose draws are floating-point codes 0.0, 1.0, ..., as data are.

    Args:
        probs, logits: (*B, K), one of them.
    Shapes: x (*S, *B) -> log_prob (*S, *B) in nats.
    Example:
        >>> Codes(logits=torch.zeros(3, 5)).sample().dtype
        torch.float32
    """

    @property
    def mean(self) -> Tensor:
        """The mean of the codes as numbers, (*B)."""
        return (self.probs * self._codes).sum(-1)

    @property
    def variance(self) -> Tensor:
        """The variance of the codes as numbers, (*B)."""
        return (self.probs * (self._codes - self.mean.unsqueeze(-1)).square()).sum(-1)

    @property
    def _codes(self) -> Tensor:
        return torch.arange(self.probs.shape[-1], dtype=self.probs.dtype, device=self.probs.device)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Codes:
        return super().expand(batch_shape, self._get_checked_instance(Codes, _instance))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return super().sample(sample_shape).to(self.logits.dtype)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return super().enumerate_support(expand).to(self.logits.dtype)
