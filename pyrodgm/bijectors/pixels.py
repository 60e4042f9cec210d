"""Real numbers as pixel values."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from pyrodgm.bijectors.base import BijectiveTransform, Bijector
from pyrodgm.bijectors.events import IMAGE

__all__ = ["Pixels"]


class _PixelsTransform(BijectiveTransform):
    domain = IMAGE

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        margin = alpha / (1 - 2 * alpha)
        self.codomain = constraints.independent(constraints.interval(-margin, 1 + margin), 3)

    def _ladj(self, z: Tensor) -> Tensor:
        steep = F.logsigmoid(z) + F.logsigmoid(-z)
        return steep.sum((-3, -2, -1)) - z.shape[-3:].numel() * math.log1p(-2 * self.alpha)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (torch.sigmoid(x) - self.alpha) / (1 - 2 * self.alpha), self._ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        eps = torch.finfo(y.dtype).eps
        x = torch.logit((self.alpha + (1 - 2 * self.alpha) * y).clamp(eps, 1 - eps))
        return x, -self._ladj(x)


class Pixels(Bijector):
    r"""Real numbers as pixel values: :math:`y = (\sigma(x) - \alpha) / (1 - 2 \alpha)`.

    Its inverse, :math:`\mathrm{logit}(\alpha + (1 - 2 \alpha) y)`, is how a flow reads dequantized pixels in [0, 1)
    without infinities at the ends. The range of y is a margin of :math:`\alpha / (1 - 2 \alpha)` wider than the
    pixels' at both ends; what a flow puts there is lost to it. A fixed map, which takes no context.

    Args:
        alpha: the margin, 0 < alpha < 1/2: the logit is taken of numbers that end so far from 0 and 1.
    Shapes: x (*B, C, H, W) -> y (*B, C, H, W), ladj (*B,) in nats.
    Raises: ValueError for another alpha.
    Source: Dinh et al. (2017), arXiv:1605.08803, section 4.1.
    Example:
        >>> Pixels().condition()(torch.zeros(1, 1, 1, 2))
        tensor([[[[0.5000, 0.5000]]]])
    """

    triangular = True

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"expected 0 < alpha < 0.5, got {alpha}")
        self.alpha = float(alpha)

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _PixelsTransform(self.alpha)
