"""Masked couplings: the units of a mask set the univariate maps of all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrodgm.bijectors.base import BijectiveTransform, Bijector
from pyrodgm.bijectors.coupling import both_halves
from pyrodgm.bijectors.events import ImageShape, image_shape
from pyrodgm.bijectors.univariate import ScaleShift, Univariate
from pyrodgm.nets.conv import ConvNet
from pyrodgm.nets.mlp import MLP
from pyrodgm.shapes import expand_to, join_context

__all__ = ["MaskedCoupling", "checkerboard"]


def checkerboard(features: ImageShape, flip: bool = False) -> Tensor:
    """A mask (C, H, W) that is True where row and column make an even sum, or with ``flip`` an odd one.

    Source: Dinh et al. (2017), arXiv:1605.08803, section 3.4.
    Example:
        >>> checkerboard((1, 2, 2)).int()
        tensor([[[1, 0],
                 [0, 1]]], dtype=torch.int32)
    """
    channels, height, width = image_shape(features)
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
        activation: makes one activation module of that network.
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
        *,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
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
            net = (MLP if mask.dim() == 1 else ConvNet)(len(mask) + context, size, hidden, activation, last_scale=0.0)
        self.net = net

    def extra_repr(self) -> str:
        return str(self.univariate)

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _MaskedTransform(self, self.check(context))
