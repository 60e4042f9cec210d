"""Any univariate map on every feature for itself, and the activations that invert."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from pyrodgm.bijectors.base import BijectiveTransform, Bijector
from pyrodgm.bijectors.events import check_size
from pyrodgm.bijectors.univariate import Univariate
from pyrodgm.nets.mlp import MLP
from pyrodgm.shapes import expand_to

__all__ = ["Elementwise", "LeakyReLU", "Sigmoid", "Softplus", "Tanh"]


class _ElementwiseTransform(BijectiveTransform):
    def __init__(self, univariate: Univariate, raw: Tensor) -> None:
        super().__init__()
        self.univariate, self.raw = univariate, raw
        self.domain = constraints.independent(univariate.domain, 1)
        self.codomain = constraints.independent(univariate.codomain, 1)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = check_size(x, self.raw.shape[-1])
        y, ladj = self.univariate.call_and_ladj(self.raw.to(x.dtype), x)
        return y, expand_to(ladj.sum(-1), y.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        y = check_size(y, self.raw.shape[-1])
        x, ladj = self.univariate.inverse_and_ladj(self.raw.to(y.dtype), y)
        return x, expand_to(ladj.sum(-1), x.shape[:-1])


class Elementwise(Bijector):
    r"""Each feature mapped for itself: :math:`y_d = T(x_d; p_d)`, with p learned or given by a network of the context.

    Args:
        features: D.
        univariate: the map T: :class:`RationalQuadraticSpline`, :class:`ScaleShift`, :class:`Sigmoid`, ...
        context: size C of the conditioning vector, 0 for none.
        hidden: widths of the network's hidden layers; its last layer starts at 0.
    Shapes: x (*B, D), context (*B, C) -> y (*B, D), ladj (*B,) in nats.
    Raises: ValueError if features < 1.
    Source: the marginal transforms of copula models; Durkan et al. (2019), arXiv:1906.04032, section 2.
    Example:
        >>> layer = Elementwise(3, Sigmoid())
        >>> layer(torch.zeros(2, 3))[0].detach()[0]
        tensor([0.5000, 0.5000, 0.5000])
    """

    triangular = True

    def __init__(
        self, features: int, univariate: Univariate, *, context: int = 0, hidden: Sequence[int] = (32,)
    ) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"expected features >= 1, got {features}")
        self.features, self.univariate, self.context = features, univariate, context
        self.volume_preserving = univariate.volume_preserving
        self.net: nn.Module | None = None
        if context:
            self.net = MLP(context, univariate.size * features, hidden, last_scale=0.0)
        else:
            self.free = nn.Parameter(torch.zeros(univariate.size, features))

    def extra_repr(self) -> str:
        return str(self.univariate)

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        context = self.check(context)
        raw = self.free if self.net is None else self.net(context).unflatten(-1, (-1, self.features))  # (*B, P, D)
        return _ElementwiseTransform(self.univariate, raw)


class LeakyReLU(Univariate):
    r"""x where it is positive, :math:`x e^{s}` where it is negative, :math:`s = \beta \tanh(\cdot)`; P = 1.

    Args:
        bound: :math:`\beta`, the largest absolute log-slope.
    Raises: ValueError if bound is not positive.
    Example:
        >>> LeakyReLU().call_and_ladj(torch.full((1, 2), -1.0), torch.tensor([-1.0, 1.0]))[0]
        tensor([-0.2180,  1.0000])
    """

    size = 1

    def __init__(self, bound: float = 2.0) -> None:
        if not bound > 0:
            raise ValueError(f"expected bound > 0, got {bound}")
        self.bound = float(bound)

    def call_and_ladj(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._scale(raw, x, self.bound)

    def inverse_and_ladj(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._scale(raw, y, -self.bound)

    def _scale(self, raw: Tensor, x: Tensor, bound: float) -> tuple[Tensor, Tensor]:
        ladj = torch.where(x < 0, bound * torch.tanh(raw.squeeze(-2)), 0.0)
        return x * ladj.exp(), ladj


class Sigmoid(Univariate):
    r""":math:`y = \sigma(x e^{s})` with a learned log-steepness s; P = 1; its inverse is the logit.

    No choice of s is the identity. Towards 0 it inverts as far as the dtype reaches (x e^s > -87 in float32, -708 in
    float64); towards 1 up to 15 and 35 (within 10 % of the last digit of 1 - y). Beyond, both directions stay finite.

    Example:
        >>> Sigmoid().inverse_and_ladj(torch.zeros(1, 1), torch.tensor([0.5]))[0]
        tensor([0.])
    """

    size = 1
    codomain = constraints.unit_interval

    def call_and_ladj(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        s = raw.squeeze(-2)
        t = x * s.exp()
        return torch.sigmoid(t).clamp(*_open(x, 0.0)), F.logsigmoid(t) + F.logsigmoid(-t) + s

    def inverse_and_ladj(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        s, y = raw.squeeze(-2), y.clamp(*_open(y, 0.0))
        log_y, log_rest = y.log(), torch.log1p(-y)
        return (log_y - log_rest) * torch.exp(-s), -log_y - log_rest - s


class Tanh(Univariate):
    r""":math:`y = \tanh(x e^{s})` with a learned log-steepness s; P = 1.

    No choice of s is the identity. It inverts for :math:`|x e^s|` up to 7 in float32 and 17 in float64; beyond, both
    directions stay finite.

    Example:
        >>> Tanh().inverse_and_ladj(torch.zeros(1, 1), torch.tensor([0.0]))
        (tensor([0.]), tensor([0.]))
    """

    size = 1
    codomain = constraints.interval(-1.0, 1.0)

    def call_and_ladj(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        s = raw.squeeze(-2)
        t = x * s.exp()
        return torch.tanh(t).clamp(*_open(x, -1.0)), 2 * (math.log(2.0) - t + F.logsigmoid(2 * t)) + s

    def inverse_and_ladj(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        s, y = raw.squeeze(-2), y.clamp(*_open(y, -1.0))
        return torch.atanh(y) * torch.exp(-s), -torch.log1p(-y) - torch.log1p(y) - s


class Softplus(Univariate):
    r""":math:`y = e^{-s} \log(1 + e^{x e^{s}})` with a learned log-steepness s; P = 1.

    No choice of s is the identity, but x >> 0 stays where it is. It inverts for x e^s > -87 in float32 and -708 in
    float64; beyond, both directions stay finite.

    Example:
        >>> Softplus().call_and_ladj(torch.zeros(1, 1), torch.tensor([100.0]))[0]
        tensor([100.])
    """

    size = 1
    codomain = constraints.positive

    def call_and_ladj(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        s = raw.squeeze(-2)
        t = x * s.exp()
        # torch's softplus is the identity from 20 on, which costs float64 half of its digits.
        y = (-F.logsigmoid(-t)).clamp_min(torch.finfo(x.dtype).tiny)
        return y * torch.exp(-s), F.logsigmoid(t)

    def inverse_and_ladj(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        s = raw.squeeze(-2)
        y = (y * s.exp()).clamp_min(torch.finfo(y.dtype).tiny)
        log_rest = torch.log(-torch.expm1(-y))
        return (y + log_rest) * torch.exp(-s), -log_rest


def _open(like: Tensor, low: float) -> tuple[float, float]:
    """The least and the largest number inside (low, 1)."""
    info = torch.finfo(like.dtype)
    return (info.tiny if low == 0 else low + info.eps / 2), 1 - info.eps / 2
