"""Couplings: one half of x is kept and sets the map of the other half."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrodgm.bijectors.base import BijectiveTransform, Bijector
from pyrodgm.bijectors.events import ImageShape, check_size, event_of
from pyrodgm.bijectors.univariate import ScaleShift, Shift, Univariate
from pyrodgm.nets.conv import ConvNet
from pyrodgm.nets.mlp import MLP
from pyrodgm.shapes import expand_to, join_context

__all__ = ["AdditiveCoupling", "AffineCoupling", "Coupling"]


def both_halves(univariate: Univariate) -> Any:
    """The constraint of a number, kept or moved: the map's own where it maps a set onto itself, else the line."""
    own = univariate.domain
    return own if own is univariate.codomain else constraints.real


class _CouplingTransform(BijectiveTransform):
    """Splits the first event dimension; the half named by ``flip`` is moved by what the net makes of the other."""

    def __init__(self, coupling: Coupling, context: Tensor | None) -> None:
        super().__init__()
        self.net, self.univariate, self.context = coupling.net, coupling.univariate, context
        self.split, self.flip, self.dims, self.size = coupling.split, coupling.flip, coupling.dims, coupling.size
        self.domain = self.codomain = constraints.independent(both_halves(coupling.univariate), self.dims)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sizes = self.split, self.size - self.split
        first, second = check_size(x, self.size, self.dims).split(sizes, -self.dims)  # one node, not two slices
        return (second, first) if self.flip else (first, second)

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        n = self.dims
        if kept.shape[:-n] != moved.shape[:-n]:  # one x under many contexts
            kept = kept.expand(*moved.shape[:-n], *kept.shape[-n:])
        return torch.cat((moved, kept) if self.flip else (kept, moved), -n)

    def _raw(self, kept: Tensor) -> Tensor:
        """The parameters of every moved number, (*B, P, moved numbers)."""
        raw = self.net(join_context(kept, self.context, self.dims)).to(kept.dtype)
        raw = raw.unflatten(-self.dims, (self.univariate.size, -1))
        return raw if self.dims == 1 else raw.flatten(-self.dims)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = self._halves(x)
        y, ladj = self.univariate.call_and_ladj(self._raw(kept), moved.flatten(-self.dims))
        y = self._join(kept, self._shaped(y, moved))
        return y, expand_to(ladj.sum(-1), y.shape[: -self.dims])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = self._halves(y)
        x, ladj = self.univariate.inverse_and_ladj(self._raw(kept), moved.flatten(-self.dims))
        x = self._join(kept, self._shaped(x, moved))
        return x, expand_to(ladj.sum(-1), x.shape[: -self.dims])

    def _shaped(self, values: Tensor, like: Tensor) -> Tensor:
        return values if self.dims == 1 else values.unflatten(-1, like.shape[-self.dims :])


class Coupling(Bijector):
    r"""Coupling: half of x sets, through a network, the map of every number of the rest.

    .. math:: y_a = x_a, \quad y_b = T(x_b; p(x_a, c)), \quad \mathrm{ladj} = \sum_j \log T'(x_{b,j}; p_j(x_a, c))

    Of an image the channels are split.

    Args:
        features: event size D >= 2, or an image's (C, H, W) with C >= 2.
        univariate: the map T; default :class:`ScaleShift`.
        context: size of the conditioning vector, 0 for none.
        hidden: widths of the network's hidden layers; the last layer starts at 0, so the map starts as the identity.
        activation: makes one activation module of that network, such as ``lambda: nn.Sequential(nn.ReLU(),
            nn.Dropout(0.2))`` for small data.
        split: size of the first half; default D // 2.
        flip: move the first half instead of the second.
        net: any module from (*B, kept + context) to (*B, P * moved) numbers, each of the P parameters in a row
            (of an image, channels); default a perceptron, or for images a :class:`~pyrodgm.nets.ConvNet`.
    Shapes: x (*B, *event), context (*B, C) -> y (*B, *event), ladj (*B,) in nats.
    Raises: ValueError if features < 2 or the split leaves a half empty.
    Source: Dinh et al. (2017), arXiv:1605.08803, section 3.2; with splines Durkan et al. (2019), arXiv:1906.04032.
    Example:
        >>> from pyrodgm.bijectors import RationalQuadraticSpline
        >>> Coupling(4, RationalQuadraticSpline()).condition()(torch.zeros(3, 4)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        features: int | ImageShape,
        univariate: Univariate | None = None,
        *,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        split: int | None = None,
        flip: bool = False,
        net: nn.Module | None = None,
    ) -> None:
        super().__init__()
        event = event_of(features)
        if event[0] < 2:
            raise ValueError(f"expected features >= 2, or C >= 2 of an image (one half sets the other), got {features}")
        self.split = event[0] // 2 if split is None else split
        if not 0 < self.split < event[0]:
            raise ValueError(f"expected 0 < split < {event[0]}, the size of what is split, got {split}")
        self.features, self.context, self.flip, self.dims, self.size = features, context, flip, len(event), event[0]
        self.univariate = ScaleShift() if univariate is None else univariate
        self.volume_preserving = self.univariate.volume_preserving
        self.triangular = not flip
        kept = event[0] - self.split if flip else self.split
        if net is None:
            outputs = self.univariate.size * (event[0] - kept)
            if self.dims == 1:
                net = MLP(kept + context, outputs, hidden, activation, last_scale=0.0, columns=self.univariate.columns)
            else:
                net = ConvNet(kept + context, outputs, hidden, activation, last_scale=0.0)
        self.net = net

    def extra_repr(self) -> str:
        return f"{self.univariate}, split={self.split}, flip={self.flip}"

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _CouplingTransform(self, self.check(context))


class AffineCoupling(Coupling):
    r"""Affine coupling: half of x sets the shift and scale of the rest.

    .. math:: y_a = x_a, \quad y_b = x_b \odot \exp s(x_a) + t(x_a), \quad \mathrm{ladj} = \sum_j s_j(x_a)

    with :math:`s = \beta \tanh(\cdot)`, bounded so that both directions stay finite at any input.

    Args, Shapes, Raises: as :class:`Coupling`; ``net`` gives the log-scales first.
        bound: :math:`\beta`, the largest absolute log-scale.
    Source: Dinh et al. (2017), arXiv:1605.08803, eq. 4-8. Departure: their tanh has a learned factor, ours a fixed one.
    Example:
        >>> AffineCoupling(4).condition()(torch.zeros(3, 4)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        features: int | ImageShape,
        *,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        split: int | None = None,
        flip: bool = False,
        net: nn.Module | None = None,
        bound: float = 2.0,
    ) -> None:
        super().__init__(
            features,
            ScaleShift(bound),
            context=context,
            hidden=hidden,
            activation=activation,
            split=split,
            flip=flip,
            net=net,
        )


class AdditiveCoupling(Coupling):
    r"""Additive coupling: half of x shifts the rest; volume is preserved.

    .. math:: y_a = x_a, \quad y_b = x_b + t(x_a), \quad \mathrm{ladj} = 0

    Args, Shapes, Raises: as :class:`Coupling`; ``net`` gives the shifts.
    Source: Dinh et al. (2014), arXiv:1410.8516, eq. 6-7.
    Example:
        >>> AdditiveCoupling(4).condition().call_and_ladj(torch.ones(2, 4))[1]
        tensor([0., 0.])
    """

    def __init__(
        self,
        features: int | ImageShape,
        *,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        split: int | None = None,
        flip: bool = False,
        net: nn.Module | None = None,
    ) -> None:
        super().__init__(
            features,
            Shift(),
            context=context,
            hidden=hidden,
            activation=activation,
            split=split,
            flip=flip,
            net=net,
        )
