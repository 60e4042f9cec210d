"""Flows over images: RealNVP and Flow++ as multi-scale recipes."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pyrodgm.bijectors.base import Bijector
from pyrodgm.bijectors.coupling import Coupling
from pyrodgm.bijectors.events import ImageShape
from pyrodgm.bijectors.linear import LULinear
from pyrodgm.bijectors.masked_coupling import MaskedCoupling, checkerboard
from pyrodgm.bijectors.mixture_cdf import MixtureLogisticCDF
from pyrodgm.bijectors.multiscale import MultiScale
from pyrodgm.bijectors.normalization import ActNorm
from pyrodgm.bijectors.pixels import Pixels
from pyrodgm.bijectors.univariate import ScaleShift, Univariate
from pyrodgm.core import Tractable
from pyrodgm.nets.residual import ResidualConvNet
from pyrodgm.tractable.flow import Flow, check_layers, normal_unless

__all__ = ["ImageFlow", "ImageFlowPlusPlus", "ImageRealNVP"]


class ImageFlow(Flow):
    r"""A flow over images from a bijector that maps images to latents, with a logit before it.

    Pixels of whole numbers 0..L-1 are dequantized first: by :func:`pyrodgm.data.dequantize`, whose :math:`[0, 1)` this
    takes, or inside the model by :class:`~pyrodgm.latent.Dequantized`; :func:`pyrodgm.data.bits_per_dim` turns
    log_prob into bits.

    Args:
        features: (C, H, W).
        to_latents: the bijector from images (after the logit) to latents of the same shape.
        base: density of the latents; default N(0, I).
        alpha: the margin of :class:`~pyrodgm.bijectors.Pixels`, which keeps the logit of pixels in [0, 1) finite; None
            for real numbers, which have no logit.
    Shapes: x (*B, C, H, W), context (*B, K) -> log_prob (*B,) in nats.
    Source: Dinh et al. (2017), arXiv:1605.08803, section 4.1.
    Example:
        >>> import torch
        >>> ImageFlow((1, 2, 2), ActNorm((1, 2, 2))).log_prob(torch.rand(5, 1, 2, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: ImageShape,
        to_latents: Bijector,
        *,
        base: Tractable | None = None,
        alpha: float | None = 0.05,
    ) -> None:
        pixels = [] if alpha is None else [Pixels(alpha)]
        super().__init__(normal_unless(base, tuple(features)), [to_latents.inv, *pixels])


class ImageRealNVP(ImageFlow):
    """RealNVP over images: at each scale three couplings by checkerboards, a squeeze, three couplings by channels.

    Half of the channels leave after each scale; the last half is moved by four checkerboards.

    Args:
        features: (C, H, W), with H and W multiples of 2^scales.
        scales: how often the images are squeezed.
        channels: of the residual networks, between their ends.
        blocks: residual blocks of each network.
        context: size K of the conditioning vector, 0 for none.
        base: density of the latents; default N(0, I).
        alpha: as :class:`ImageFlow`.
        bound: largest absolute log-scale of one coupling.
    Shapes: x (*B, C, H, W), context (*B, K) -> log_prob (*B,) in nats.
    Raises: ValueError if scales < 1 or the images cannot be halved so often.
    Source: Dinh et al. (2017), arXiv:1605.08803, sections 3.4-3.7. Departure: actnorm (Kingma and Dhariwal, 2018)
        before each coupling, where theirs has batch normalization, under which a row's density depends on its batch;
        no doubling of the hidden channels from scale to scale.
    Example:
        >>> ImageRealNVP((1, 4, 4), scales=1, channels=8, blocks=1).sample(5).shape
        torch.Size([5, 1, 4, 4])
    """

    def __init__(
        self,
        features: ImageShape,
        *,
        scales: int = 2,
        channels: int = 32,
        blocks: int = 2,
        context: int = 0,
        base: Tractable | None = None,
        alpha: float | None = 0.05,
        bound: float = 2.0,
    ) -> None:
        def net(kept: int, moved: int) -> nn.Module:
            return ResidualConvNet(kept + context, 2 * moved, channels=channels, blocks=blocks, last_scale=0.0)

        def boards(shape: ImageShape, count: int) -> list[Bijector]:
            masks = [checkerboard(shape, flip=bool(i % 2)) for i in range(count)]
            couplings = [
                MaskedCoupling(mask, ScaleShift(bound), context=context, net=net(shape[0], shape[0])) for mask in masks
            ]
            return [part for coupling in couplings for part in (ActNorm(shape), coupling)]

        def halves(shape: ImageShape) -> list[Bijector]:
            half = shape[0] // 2
            sizes = [(half, shape[0] - half), (shape[0] - half, half)]  # kept and moved
            couplings = [
                Coupling(shape, ScaleShift(bound), context=context, flip=bool(i % 2), net=net(*sizes[i % 2]))
                for i in range(3)
            ]
            return [part for coupling in couplings for part in (ActNorm(shape), coupling)]

        def last(shape: ImageShape) -> list[Bijector]:
            return boards(shape, 4) if shape[1] * shape[2] > 1 else []  # one place has no checkerboard

        scale = MultiScale(features, scales, halves, lambda shape: boards(shape, 3), last)
        super().__init__(features, scale, base=base, alpha=alpha)


class ImageFlowPlusPlus(ImageFlow):
    """Flow++ over images: actnorm, 1x1 convolution and a coupling by mixtures of logistics, by checkerboards, then
    by channels after a squeeze.

    Args:
        features: (C, H, W), with H and W multiples of 2^scales.
        layers: couplings of each kind at each scale.
        scales: how often the images are squeezed; half of the channels leave between them.
        channels: of the residual networks, between their ends.
        blocks: residual blocks of each network.
        context: size K of the conditioning vector, 0 for none.
        base: density of the latents; default N(0, I).
        alpha: as :class:`ImageFlow`.
    Shapes: x (*B, C, H, W), context (*B, K) -> log_prob (*B,) in nats.
    Raises: ValueError if layers or scales < 1 or the images cannot be halved so often.
    Source: Ho et al. (2019), arXiv:1902.00275, section 3.2-3.3 and appendix A. Departure: residual networks without
        self-attention; 4 components of each mixture (theirs 32).
    Example:
        >>> ImageFlowPlusPlus((1, 4, 4), channels=8, blocks=1).sample(5).shape
        torch.Size([5, 1, 4, 4])
    """

    def __init__(
        self,
        features: ImageShape,
        layers: int = 2,
        *,
        scales: int = 1,
        channels: int = 32,
        blocks: int = 2,
        context: int = 0,
        base: Tractable | None = None,
        alpha: float | None = 0.05,
    ) -> None:
        check_layers(layers)

        def net(kept: int, moved: int, univariate: Univariate) -> nn.Module:
            outputs = univariate.size * moved
            return ResidualConvNet(kept + context, outputs, channels=channels, blocks=blocks, last_scale=0.0)

        def mixed(shape: ImageShape, coupling: Callable[[int], Bijector]) -> list[Bijector]:
            def step(i: int) -> list[Bijector]:
                mix = [LULinear(shape, rotation=True)] if shape[0] > 1 else []  # one channel has nothing to mix
                return [ActNorm(shape), *mix, coupling(i)]

            return [b for i in range(layers) for b in step(i)]

        def board(shape: ImageShape, i: int) -> Bijector:
            cdf = MixtureLogisticCDF()
            mask = checkerboard(shape, flip=bool(i % 2))
            return MaskedCoupling(mask, cdf, context=context, net=net(shape[0], shape[0], cdf))

        def halves(shape: ImageShape, i: int) -> Bijector:
            cdf, half, flip = MixtureLogisticCDF(), shape[0] // 2, bool(i % 2)
            kept = shape[0] - half if flip else half
            return Coupling(shape, cdf, context=context, flip=flip, net=net(kept, shape[0] - kept, cdf))

        scale = MultiScale(
            features,
            scales,
            lambda shape: mixed(shape, lambda i: halves(shape, i)),
            lambda shape: mixed(shape, lambda i: board(shape, i)),
        )
        super().__init__(features, scale, base=base, alpha=alpha)
