"""Glow, over vectors and over images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from pyrodgm.bijectors.base import Bijector, Compose
from pyrodgm.bijectors.coupling import AffineCoupling
from pyrodgm.bijectors.events import ImageShape
from pyrodgm.bijectors.linear import LULinear
from pyrodgm.bijectors.multiscale import MultiScale
from pyrodgm.bijectors.normalization import ActNorm
from pyrodgm.bijectors.pixels import Pixels
from pyrodgm.core import Tractable
from pyrodgm.tractable.flow import Flow, check_layers, normal_unless

__all__ = ["Glow"]


class Glow(Flow):
    """Glow: steps of actnorm, an invertible linear map and an affine coupling; of images at several scales.

    Over images the linear map is a 1x1 convolution, each scale squeezes first, and half of the channels leave after
    it, with a mean and a scale that the rest sets.

    Args:
        features: D >= 2, or an image's (C, H, W) with H and W multiples of 2^scales.
        layers: steps at each scale.
        scales: how often images are squeezed.
        hidden: widths, or channels, of each coupling network's hidden layers.
        activation: makes one activation module of those networks.
        context: size K of the conditioning vector, 0 for none.
        base: density of the latents; default N(0, I).
        alpha: of images, as :class:`~pyrodgm.tractable.ImageFlow`.
        split_prior: whether the half that stays sets mean and scale of the half that leaves.
    Shapes: x (*B, *event), context (*B, K) -> log_prob (*B,) in nats.
    Raises: ValueError if layers or scales < 1, or the images cannot be halved so often.
    Source: Kingma and Dhariwal (2018), arXiv:1807.03039, section 3, figure 2. Departures: log-scales of couplings are
        bounded by a tanh, where theirs are log sigmoid(s + 2), whose inverse overflows; the couplings' last layers
        have no learned factor; theirs have no logit, and a learned mean of the last scale's latents, ours N(0, I).
    Example:
        >>> Glow(4).sample(5).shape, Glow((1, 4, 4), layers=1, hidden=[8]).sample(5).shape
        (torch.Size([5, 4]), torch.Size([5, 1, 4, 4]))
    """

    def __init__(
        self,
        features: int | ImageShape,
        layers: int = 4,
        *,
        scales: int = 2,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        context: int = 0,
        base: Tractable | None = None,
        alpha: float | None = 0.05,
        split_prior: bool = True,
    ) -> None:
        check_layers(layers)
        base = normal_unless(base, features)

        def coupling(shape: int | ImageShape, flip: bool = False) -> Bijector:
            return AffineCoupling(shape, context=context, hidden=hidden, activation=activation, flip=flip)

        def step(shape: int | ImageShape) -> list[Bijector]:
            return [ActNorm(shape), LULinear(shape, rotation=True), coupling(shape)]

        if isinstance(features, int):
            super().__init__(base, [Compose([b for _ in range(layers) for b in step(features)]).inv])
            return

        def scale(shape: ImageShape) -> list[Bijector]:
            parts = [b for _ in range(layers) for b in step(shape)]
            # A Gaussian given the half that stays is an affine map of N(0, I) given it: one more coupling.
            return [*parts, coupling(shape, flip=True)] if split_prior else parts

        pixels = [] if alpha is None else [Pixels(alpha)]
        super().__init__(base, [MultiScale(features, scales, scale).inv, *pixels])
