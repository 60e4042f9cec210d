"""Squeeze: pixels of an image moved into its channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pyrodgm.bijectors.base import BijectiveTransform, Bijector
from pyrodgm.bijectors.events import IMAGE, ImageShape, check_size, image_shape

__all__ = ["Squeeze"]


class _SqueezeTransform(BijectiveTransform):
    domain = codomain = IMAGE

    def __init__(self, squeeze: Squeeze) -> None:
        super().__init__()
        self.squeeze = squeeze

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_size(x, self.squeeze.channels, 3)
        y = F.pixel_unshuffle(x, self.squeeze.factor)
        if not x.numel():  # torch's leaves an empty batch in its shape
            y = x.reshape(*x.shape[:-3], *self.forward_shape(x.shape[-3:]))
        return y, x.new_zeros(x.shape[:-3])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        check_size(y, self.squeeze.channels * self.squeeze.factor**2, 3)
        x = F.pixel_shuffle(y, self.squeeze.factor)
        if not y.numel():
            x = y.reshape(*y.shape[:-3], *self.inverse_shape(y.shape[-3:]))
        return x, y.new_zeros(y.shape[:-3])

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return self.squeeze.forward_shape(shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self.squeeze.inverse_shape(shape)


class Squeeze(Bijector):
    r"""Space to depth: each block of :math:`f \times f` places becomes the channels of one place; ladj 0.

    A fixed rearrangement, which has nothing for a context to move.

    Args:
        features: (C, H, W) of x, with H and W multiples of the factor.
        factor: f.
    Shapes: x (*B, C, H, W) -> y (*B, f² C, H / f, W / f).
    Raises: ValueError if the factor does not divide height and width.
    Source: Dinh et al. (2017), arXiv:1605.08803, section 3.6.
    Example:
        >>> Squeeze((1, 4, 4)).condition()(torch.zeros(5, 1, 4, 4)).shape
        torch.Size([5, 4, 2, 2])
    """

    volume_preserving = True

    def __init__(self, features: ImageShape, factor: int = 2) -> None:
        super().__init__()
        channels, height, width = image_shape(features)
        if factor < 1 or height % factor or width % factor:
            raise ValueError(
                f"expected height and width to be multiples of {factor}, got {height} x {width}; pad or crop the images"
            )
        self.channels, self.factor = channels, factor

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        *lead, channels, height, width = shape
        return torch.Size([*lead, channels * self.factor**2, height // self.factor, width // self.factor])

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        *lead, channels, height, width = shape
        return torch.Size([*lead, channels // self.factor**2, height * self.factor, width * self.factor])

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _SqueezeTransform(self)
