"""Couplings: one half of x is kept and sets the map of the other half."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyrodgm.bijectors.base import BijectiveTransform, Bijector
from pyrodgm.core import join_context
from pyrodgm.nets.mlp import MLP

__all__ = ["AdditiveCoupling", "AffineCoupling"]


class _CouplingTransform(BijectiveTransform):
    """Splits at ``split``; the half named by ``flip`` is moved by what the net makes of the other half."""

    def __init__(self, net: nn.Module, context: Tensor | None, split: int, flip: bool) -> None:
        super().__init__()
        self.net, self.context, self.split, self.flip = net, context, split, flip

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.split((self.split, x.shape[-1] - self.split), -1)  # one node of the graph, not two slices
        return (second, first) if self.flip else (first, second)

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        if kept.shape[:-1] != moved.shape[:-1]:  # one x under many contexts
            kept = kept.expand(*moved.shape[:-1], -1)
        return torch.cat((moved, kept) if self.flip else (kept, moved), -1)


class _AffineTransform(_CouplingTransform):
    def __init__(self, net: nn.Module, context: Tensor | None, split: int, flip: bool, bound: float) -> None:
        super().__init__(net, context, split, flip)
        self.bound = bound

    def _scale_shift(self, kept: Tensor, sign: float) -> tuple[Tensor, Tensor]:
        raw, shift = self.net(join_context(kept, self.context)).to(kept.dtype).chunk(2, -1)
        return torch.tanh(raw) * (sign * self.bound), shift

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = self._halves(x)
        log_scale, shift = self._scale_shift(kept, 1.0)
        return self._join(kept, torch.addcmul(shift, moved, log_scale.exp())), log_scale.sum(-1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = self._halves(y)
        log_scale, shift = self._scale_shift(kept, -1.0)  # of the inverse
        return self._join(kept, (moved - shift) * log_scale.exp()), log_scale.sum(-1)


class _AdditiveTransform(_CouplingTransform):
    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = self._halves(x)
        return self._join(kept, moved + self._shift(kept)), x.new_zeros(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = self._halves(y)
        return self._join(kept, moved - self._shift(kept)), y.new_zeros(y.shape[:-1])

    def _shift(self, kept: Tensor) -> Tensor:
        return self.net(join_context(kept, self.context)).to(kept.dtype)


class _Coupling(Bijector):
    """What couplings share: where to split, which half moves, the net from one half to the other's parameters."""

    outputs: ClassVar[int]  # numbers the net gives for each moved feature

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        split: int | None = None,
        flip: bool = False,
        net: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if features < 2:
            raise ValueError(f"expected features >= 2 (one half sets the other), got {features}")
        self.split = features // 2 if split is None else split
        if not 0 < self.split < features:
            raise ValueError(f"expected 0 < split < features={features}, got {split}")
        self.features, self.context, self.flip = features, context, flip
        kept = features - self.split if flip else self.split
        self.net = MLP(kept + context, self.outputs * (features - kept), hidden, last_scale=0.0) if net is None else net

    @property
    def triangular(self) -> bool:  # type: ignore[override]
        return not self.flip


class AffineCoupling(_Coupling):
    r"""Affine coupling: half of x sets the shift and scale of the rest.

    .. math:: y_a = x_a, \quad y_b = x_b \odot \exp s(x_a) + t(x_a), \quad \mathrm{ladj} = \sum_j s_j(x_a)

    with :math:`s = \beta \tanh(\cdot)`, bounded so that both directions stay finite at any input.

    Args:
        features: event size D >= 2.
        context: size C of the conditioning vector, 0 for none.
        hidden: widths of the network's hidden layers; the last layer starts at 0, so the map starts as the identity.
        split: size of the first half; default D // 2.
        flip: move the first half instead of the second.
        net: any module (*B, kept + C) -> (*B, 2 * moved), log-scales first; default an MLP.
        bound: :math:`\beta`, the largest absolute log-scale.
    Shapes: x (*B, D), context (*B, C) -> y (*B, D), ladj (*B,) in nats.
    Raises: ValueError if features < 2 or the split leaves a half empty.
    Source: Dinh et al. (2017), arXiv:1605.08803, eq. 4-8. Departure: their tanh has a learned factor, ours a fixed one.
    Example:
        >>> AffineCoupling(4).condition()(torch.zeros(3, 4)).shape
        torch.Size([3, 4])
    """

    outputs = 2

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        split: int | None = None,
        flip: bool = False,
        net: nn.Module | None = None,
        bound: float = 2.0,
    ) -> None:
        super().__init__(features, context, hidden, split, flip, net)
        if not bound > 0:
            raise ValueError(f"expected bound > 0, got {bound}")
        self.bound = float(bound)

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _AffineTransform(self.net, self.check(context), self.split, self.flip, self.bound)


class AdditiveCoupling(_Coupling):
    r"""Additive coupling: half of x shifts the rest; volume is preserved.

    .. math:: y_a = x_a, \quad y_b = x_b + t(x_a), \quad \mathrm{ladj} = 0

    Args, Shapes, Raises: as :class:`AffineCoupling`; ``net`` gives (*B, moved).
    Source: Dinh et al. (2014), arXiv:1410.8516, eq. 6-7.
    Example:
        >>> AdditiveCoupling(4).condition().call_and_ladj(torch.ones(2, 4))[1]
        tensor([0., 0.])
    """

    outputs = 1
    volume_preserving = True

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _AdditiveTransform(self.net, self.check(context), self.split, self.flip)
