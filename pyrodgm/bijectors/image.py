"""Bijectors of images: squeeze, masked coupling, the split that makes a flow multi-scale, and pixel values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from pyrodgm.bijectors.base import BijectiveTransform, Bijector, Compose, check_size
from pyrodgm.bijectors.coupling import both_halves
from pyrodgm.bijectors.univariate import ScaleShift, Univariate
from pyrodgm.core import expand_to, join_context
from pyrodgm.nets.conv import ConvNet
from pyrodgm.nets.mlp import MLP

__all__ = ["MaskedCoupling", "MultiScale", "Pixels", "Split", "Squeeze", "checkerboard"]

_IMAGE = constraints.independent(constraints.real, 3)
Shape = tuple[int, int, int]


class _SqueezeTransform(BijectiveTransform):
    domain = codomain = _IMAGE

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

    def __init__(self, features: Shape, factor: int = 2) -> None:
        super().__init__()
        channels, height, width = _image(features)
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


def checkerboard(features: Shape, flip: bool = False) -> Tensor:
    """A mask (C, H, W) that is True where row and column make an even sum, or with ``flip`` an odd one.

    Source: Dinh et al. (2017), arXiv:1605.08803, section 3.4.
    Example:
        >>> checkerboard((1, 2, 2)).int()
        tensor([[[1, 0],
                 [0, 1]]], dtype=torch.int32)
    """
    channels, height, width = _image(features)
    even = (torch.arange(height).unsqueeze(-1) + torch.arange(width)) % 2 == 0
    return (even ^ flip).expand(channels, height, width).clone()


class _MaskedTransform(BijectiveTransform):
    def __init__(self, coupling: MaskedCoupling, context: Tensor | None) -> None:
        super().__init__()
        self.coupling, self.context, self.dims = coupling, context, coupling.mask.dim()
        self.domain = self.codomain = constraints.independent(both_halves(coupling.univariate), self.dims)

    def _raw(self, x: Tensor) -> Tensor:
        """The parameters of every moved number, (*B, P, moved numbers)."""
        c = self.coupling
        kept = torch.where(c.mask, x, 0.0)
        raw = c.net(join_context(kept, self.context, self.dims)).to(x.dtype)
        return raw.flatten(-self.dims).unflatten(-1, (c.univariate.size, -1)).index_select(-1, c.moved)

    def _apply(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        c = self.coupling
        if x.shape[-self.dims :] != c.mask.shape:
            raise ValueError(f"expected x of shape (*, {', '.join(map(str, c.mask.shape))}), got {tuple(x.shape)}")
        raw = self._raw(x)
        x = expand_to(x, raw.shape[:-2] + c.mask.shape)  # one x under many contexts
        flat = x.flatten(-self.dims)
        act = c.univariate.inverse_and_ladj if inverse else c.univariate.call_and_ladj
        moved, ladj = act(raw, flat.index_select(-1, c.moved))
        return flat.index_copy(-1, c.moved, moved).reshape(x.shape), ladj.sum(-1)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply(x, False)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply(y, True)


class MaskedCoupling(Bijector):
    r"""Coupling by a mask: the numbers where it is True are kept and set the map of every other number.

    .. math:: y = b \odot x + (1 - b) \odot T(x; p(b \odot x, c)), \quad
        \mathrm{ladj} = \sum_{j : b_j = 0} \log T'(x_j; p_j(b \odot x, c))

    Args:
        mask: b, boolean of the event shape (D,) or (C, H, W); :func:`checkerboard` makes Dinh's.
        univariate: the map T; default :class:`ScaleShift`.
        context: size C of the conditioning vector, 0 for none.
        hidden: widths of the network's hidden layers; the last layer starts at 0, so the map starts as the identity.
        net: any module from the event (beside the context, along its first dimension) to P times as many numbers,
            each of the P parameters in a row; default a perceptron, or for images a
            :class:`~pyrodgm.nets.ConvNet`. Where x is moved it sees 0.
    Shapes: x (*B, *event), context (*B, C) -> y (*B, *event), ladj (*B,) in nats.
    Raises: ValueError for a mask of another shape, or one that keeps all or nothing; TypeError if it is not boolean.
    Source: Dinh et al. (2017), arXiv:1605.08803, eq. 9.
    Example:
        >>> MaskedCoupling(checkerboard((1, 4, 4))).condition()(torch.zeros(3, 1, 4, 4)).shape
        torch.Size([3, 1, 4, 4])
    """

    def __init__(
        self,
        mask: Tensor,
        univariate: Univariate | None = None,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        net: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if mask.dtype != torch.bool:
            raise TypeError(f"expected a boolean mask, True where x is kept, got {mask.dtype}; use mask.bool()")
        if mask.dim() not in (1, 3) or mask.all() or not mask.any():
            raise ValueError(
                f"expected a mask of shape (D,) or (C, H, W) that keeps some of x, got shape {tuple(mask.shape)} with "
                f"{int(mask.sum())} of {mask.numel()} kept"
            )
        self.context = context
        self.univariate = ScaleShift() if univariate is None else univariate
        self.volume_preserving = self.univariate.volume_preserving
        self.mask: Tensor
        self.moved: Tensor
        self.register_buffer("mask", mask.clone())
        self.register_buffer("moved", (~mask).flatten().nonzero().squeeze(-1))
        kept = mask.flatten().nonzero().squeeze(-1)
        self.triangular = bool(kept.max() < self.moved.min())
        if net is None:
            size = self.univariate.size * len(mask)
            net = (MLP if mask.dim() == 1 else ConvNet)(len(mask) + context, size, hidden, last_scale=0.0)
        self.net = net

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _MaskedTransform(self, self.check(context))


class _SplitTransform(BijectiveTransform):
    domain = codomain = _IMAGE

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

    def __init__(self, features: Shape, bijector: Bijector) -> None:
        super().__init__()
        channels = _image(features)[0]
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
    r"""The multi-scale architecture, from images to latents: at each level squeeze, move, let half of the channels go.

    .. math:: h_0 = x, \quad (z_i, h_i) = f_i(\mathrm{squeeze}(g_i(h_{i-1}))), \quad z = (z_1, \dots, z_L, h_L)

    The latents of all levels are laid out as one image of the shape of x (each level's are squeezed back in place),
    so a base of that shape, an N(0, I) say, stands under the whole flow. A flow samples by its ``inv``.

    Args:
        features: (C, H, W), with H and W multiples of 2^levels.
        levels: L.
        squeezed: makes :math:`f_i` from its shape (4 C, H / 2, W / 2).
        full: makes :math:`g_i` from its shape (C, H, W); default nothing.
        last: what goes on with the half that stays at the last level, from its shape; by default, nothing is split
            there.
    Shapes: x (*B, C, H, W) -> z (*B, C, H, W), ladj (*B,) in nats.
    Raises: ValueError if levels < 1 or the images cannot be halved so often.
    Source: Dinh et al. (2017), arXiv:1605.08803, section 3.6; Kingma and Dhariwal (2018), arXiv:1807.03039, figure 2b.
    Example:
        >>> from pyrodgm.bijectors import ActNorm
        >>> flow = MultiScale((1, 4, 4), 2, lambda shape: [ActNorm(shape)])
        >>> [tuple(m.event) for m in flow.modules() if isinstance(m, ActNorm)]
        [(4, 2, 2), (8, 1, 1)]
    """

    def __init__(
        self,
        features: Shape,
        levels: int,
        squeezed: Callable[[Shape], Iterable[Bijector]],
        full: Callable[[Shape], Iterable[Bijector]] | None = None,
        last: Callable[[Shape], Iterable[Bijector]] | None = None,
    ) -> None:
        if levels < 1:
            raise ValueError(f"expected levels >= 1, got {levels}")

        def level(shape: Shape, left: int) -> list[Bijector]:
            if not left:
                return list(last(shape)) if last else []
            squeeze = Squeeze(shape)
            channels, height, width = small = _image(squeeze.forward_shape(shape))
            parts = [*(full(shape) if full else ()), squeeze, *squeezed(small)]
            below = level((channels - channels // 2, height, width), left - 1)
            if below:
                parts.append(Split(small, Compose(below)))
            return [*parts, squeeze.inv]

        super().__init__(level(_image(features), levels))
        self.triangular = False


class _PixelsTransform(BijectiveTransform):
    domain = _IMAGE

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
        alpha: 0 < alpha < 1/2.
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


def _image(features: Sequence[int]) -> Shape:
    if isinstance(features, int) or len(features) != 3 or min(features) < 1:
        raise ValueError(f"expected an image's (C, H, W), got {features}")
    channels, height, width = features
    return channels, height, width
