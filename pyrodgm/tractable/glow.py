"""Glow, over vectors and over images."""

from __future__ import annotations

from collections.abc import Sequence

from pyrodgm.bijectors.base import Bijector, Compose
from pyrodgm.bijectors.coupling import AffineCoupling
from pyrodgm.bijectors.linear import LULinear
from pyrodgm.bijectors.multiscale import MultiScale
from pyrodgm.bijectors.normalization import ActNorm
from pyrodgm.bijectors.pixels import Pixels
from pyrodgm.core import Tractable
from pyrodgm.tractable.flow import Flow
from pyrodgm.tractable.parametric import StandardNormal

__all__ = ["Glow"]


class Glow(Flow):
    """Glow: steps of actnorm, an invertible linear map and an affine coupling; of images at several levels.

    Over images the linear map is a 1x1 convolution, each level squeezes first, and half of the channels leave after
    it, with a mean and a scale that the rest sets.

    Args:
        features: D >= 2, or an image's (C, H, W) with H and W multiples of 2^levels.
        layers: steps at each level.
        levels: of images.
        hidden: widths, or channels, of each coupling network's hidden layers.
        context: size K of the conditioning vector, 0 for none.
        base: density of the latents; default N(0, I).
        logit: of images, as :class:`~pyrodgm.tractable.ImageFlow`.
        split_prior: whether the half that stays sets mean and scale of the half that leaves.
    Shapes: x (*B, *event), context (*B, K) -> log_prob (*B,) in nats.
    Raises: ValueError if layers or levels < 1, or the images cannot be halved so often.
    Source: Kingma and Dhariwal (2018), arXiv:1807.03039, section 3, figure 2. Departures: log-scales of couplings are
        bounded by a tanh, where theirs are log sigmoid(s + 2), whose inverse overflows; the couplings' last layers
        have no learned factor; theirs have no logit, and a learned mean of the last level's latents, ours N(0, I).
    Example:
        >>> Glow(4).sample(5).shape, Glow((1, 4, 4), 1, hidden=[8]).sample(5).shape
        (torch.Size([5, 4]), torch.Size([5, 1, 4, 4]))
    """

    def __init__(
        self,
        features: int | tuple[int, int, int],
        layers: int = 4,
        levels: int = 2,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        base: Tractable | None = None,
        logit: float | None = 0.05,
        split_prior: bool = True,
    ) -> None:
        if layers < 1:
            raise ValueError(f"expected layers >= 1, got {layers}")
        base = StandardNormal(features) if base is None else base

        def step(shape: int | tuple[int, int, int]) -> list[Bijector]:
            return [ActNorm(shape), LULinear(shape, rotation=True), AffineCoupling(shape, context, hidden)]

        if isinstance(features, int):
            super().__init__(base, [Compose([b for _ in range(layers) for b in step(features)]).inv])
            return

        def level(shape: tuple[int, int, int]) -> list[Bijector]:
            parts = [b for _ in range(layers) for b in step(shape)]
            # A Gaussian given the half that stays is an affine map of N(0, I) given it: one more coupling.
            return [*parts, AffineCoupling(shape, context, hidden, flip=True)] if split_prior else parts

        pixels = [] if logit is None else [Pixels(logit)]
        super().__init__(base, [MultiScale(features, levels, level).inv, *pixels])
