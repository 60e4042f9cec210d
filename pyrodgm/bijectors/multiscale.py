"""Multi-scale flows: part of the channels leaves at each scale, and the rest is transformed further."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pyrodgm.bijectors.base import BijectiveTransform, Bijector, Compose
from pyrodgm.bijectors.events import IMAGE, ImageShape, check_size, image_shape
from pyrodgm.bijectors.squeeze import Squeeze

__all__ = ["MultiScale", "Split"]


class _SplitTransform(BijectiveTransform):
    domain = codomain = IMAGE

    def __init__(self, transform: BijectiveTransform, channels: int, split: int) -> None:
        super().__init__()
        self.transform, self.channels, self.split = transform, channels, split

    def _apply(self, x: Tensor, way: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        leaves, stays = check_size(x, self.channels, 3).split((self.split, self.channels - self.split), -3)
        stays, ladj = way(stays)
        if leaves.shape[:-3] != stays.shape[:-3]:  # one x under many contexts
            leaves = leaves.expand(*stays.shape[:-3], *leaves.shape[-3:])
        return torch.cat((leaves, stays), -3), ladj

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply(x, self.transform.call_and_ladj)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply(y, self.transform.inverse_and_ladj)


class Split(Bijector):
    """The first half of the channels leaves for the base as it is; a bijector goes on with the rest.

    Args:
        features: (C, H, W) with C >= 2; the first C // 2 channels leave.
        bijector: of the rest's shape, which it keeps.
    Shapes: x (*B, C, H, W) -> y (*B, C, H, W), ladj (*B,) in nats.
    Raises: ValueError if C < 2.
    Source: Dinh et al. (2017), arXiv:1605.08803, eq. 13-15.
    Example:
        >>> from pyrodgm.bijectors import Affine
        >>> Split((4, 2, 2), Affine((2, 2, 2))).condition()(torch.zeros(3, 4, 2, 2)).shape
        torch.Size([3, 4, 2, 2])
    """

    def __init__(self, features: ImageShape, bijector: Bijector) -> None:
        super().__init__()
        channels = image_shape(features)[0]
        if channels < 2:
            raise ValueError(f"expected two channels or more to split, got {channels}; squeeze first")
        self.channels, self.split = channels, channels // 2
        self.bijector, self.context = bijector, bijector.context
        self.triangular, self.volume_preserving = bijector.triangular, bijector.volume_preserving

    def initialize(self, rows: Tensor, context: Tensor | None = None, *, inverse: bool = False) -> Tensor:
        leaves, stays = check_size(rows, self.channels, 3).split((self.split, self.channels - self.split), -3)
        return torch.cat((leaves, self.bijector.initialize(stays, context, inverse=inverse)), -3)

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _SplitTransform(self.bijector.condition(context), self.channels, self.split)


class MultiScale(Compose):
    r"""The multi-scale architecture, from images to latents: at each scale squeeze, move, let half of the channels go.

    .. math:: h_0 = x, \quad (z_i, h_i) = f_i(\mathrm{squeeze}(g_i(h_{i-1}))), \quad z = (z_1, \dots, z_L, h_L)

    The latents of all scales are laid out as one image of the shape of x (each scale's are squeezed back in place),
    so a base of that shape, an N(0, I) say, stands under the whole flow. A flow samples by its ``inv``.

    Args:
        features: (C, H, W), with H and W multiples of 2^scales.
        scales: L, how often the images are squeezed.
        squeezed: makes :math:`f_i` from its shape (4 C, H / 2, W / 2).
        full: makes :math:`g_i` from its shape (C, H, W); default nothing.
        last: what goes on with the half that stays at the last scale, from its shape; by default, nothing is split
            there.
    Shapes: x (*B, C, H, W) -> z (*B, C, H, W), ladj (*B,) in nats.
    Raises: ValueError if scales < 1 or the images cannot be halved so often.
    Source: Dinh et al. (2017), arXiv:1605.08803, section 3.6; Kingma and Dhariwal (2018), arXiv:1807.03039, figure 2b.
    Example:
        >>> from pyrodgm.bijectors import ActNorm
        >>> flow = MultiScale((1, 4, 4), 2, lambda shape: [ActNorm(shape)])
        >>> [tuple(m.event) for m in flow.modules() if isinstance(m, ActNorm)]
        [(4, 2, 2), (8, 1, 1)]
    """

    def __init__(
        self,
        features: ImageShape,
        scales: int,
        squeezed: Callable[[ImageShape], Iterable[Bijector]],
        full: Callable[[ImageShape], Iterable[Bijector]] | None = None,
        last: Callable[[ImageShape], Iterable[Bijector]] | None = None,
    ) -> None:
        if scales < 1:
            raise ValueError(f"expected scales >= 1, got {scales}")

        def scale(shape: ImageShape, left: int) -> list[Bijector]:
            if not left:
                return list(last(shape)) if last else []
            squeeze = Squeeze(shape)
            channels, height, width = small = image_shape(squeeze.forward_shape(shape))
            parts = [*(full(shape) if full else ()), squeeze, *squeezed(small)]
            below = scale((channels - channels // 2, height, width), left - 1)
            if below:
                parts.append(Split(small, Compose(below)))
            return [*parts, squeeze.inv]

        super().__init__(scale(image_shape(features), scales))
        self.triangular = False
