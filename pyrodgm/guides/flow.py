"""Normalizing flows as guides of any Pyro program."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pyrodgm.bijectors import Affine, Autoregressive, BijectiveTransform, Bijector, Permutation
from pyrodgm.core import Tractable
from pyrodgm.guides.discrete import Discrete
from pyrodgm.guides.gaussian import scale_of
from pyrodgm.guides.program import PackedGuide
from pyrodgm.guides.sites import Sites, check_sites, local_features
from pyrodgm.nets.mlp import MLP
from pyrodgm.tractable.flow import Flow
from pyrodgm.tractable.parametric import StandardNormal

__all__ = ["FlowGuide"]

Layer = Callable[..., Bijector]  # layer(features, context=size)


class _AffineTransform(BijectiveTransform):
    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.shift, self.scale, self.ladj = shift, scale, scale.log().sum(-1)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.addcmul(self.shift, x, self.scale), self.ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return (y - self.shift) / self.scale, -self.ladj


class _AmortizedAffine(Bijector):
    """A shift and a scale for each number, from a network of the context."""

    def __init__(self, features: int, context: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.context = context
        self.net = MLP(context, 2 * features, hidden)

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        context = self.check(context)
        shift, raw = self.net(context).to(context).chunk(2, -1)
        return _AffineTransform(shift, scale_of(raw))


class FlowGuide(PackedGuide):
    r"""Flows over the packed unconstrained sites: one for the global ones, one of each row for the local ones.

    .. math:: l_b = m(x_b, g) + s(x_b, g) \odot f_K \circ \dots \circ f_1(\epsilon_b; x_b, g), \quad
        \epsilon_b \sim N(0, I)

    The affine map comes last, so that the layers work on numbers of size 1 whatever the scale of the sites. Globals
    have layers of their own and a free affine map, which starts them in the bulk of the prior. A layer is any
    bijector: the default is inverse autoregressive (it draws, and scores its own draw, in one pass), ``Planar`` is
    planar, ``lambda d, context: Autoregressive(d, RationalQuadraticSpline(), context=context)`` a spline. The order of
    the numbers is reversed between layers.

    Args:
        sites: what one trace of the program told.
        layer: makes one bijector, by ``layer(features, context=size)``; default
            :class:`~pyrodgm.bijectors.Autoregressive`.
        layers: number of layers.
        hidden: widths of the network m, s and of those of the default layers.
        conditional: let the local flow read the global sites; without, they are independent.
        amortized: let the local layers read the features too; without, only the affine map does.
        scale: standard deviation with which the global sites start.
        discrete: how discrete sites are treated; default :class:`~pyrodgm.guides.Enumerate`.
    Raises: ValueError if layers < 1 or scale is not positive.
    Source: Rezende and Mohamed (2015), arXiv:1505.05770, section 4; Kingma et al. (2016), arXiv:1606.04934, eq. 10-12.
    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program():
        ...     a = pyro.sample("a", dist.Normal(0.0, 1.0))
        ...     pyro.sample("b", dist.Normal(a**2, 0.1))
        >>> guide = FlowGuide(Sites(program), layers=2)
        >>> sorted(guide())
        ['a', 'b']
    """

    def __init__(
        self,
        sites: Sites,
        layer: Layer | None = None,
        layers: int = 4,
        hidden: Sequence[int] = (64, 64),
        conditional: bool = True,
        amortized: bool = True,
        scale: float = 0.1,
        discrete: Discrete | None = None,
    ) -> None:
        check_sites(sites)
        if layers < 1 or not scale > 0:
            raise ValueError(f"expected layers >= 1 and scale > 0, got {layers} and {scale}")
        layer = partial(Autoregressive, hidden=hidden) if layer is None else layer
        of_globals: Tractable | None = None
        of_locals: Tractable | None = None
        if sites.global_size:
            last = Affine(sites.global_size).to(sites.like)
            with torch.no_grad():
                last.shift.copy_(sites.start())
                last.log_scale.fill_(math.log(scale))
            of_globals = Flow(StandardNormal(sites.global_size), [*_stack(layer, sites.global_size, 0, layers), last])
        if sites.local_size:
            context = local_features(sites, conditional)
            stack = _stack(layer, sites.local_size, context if amortized else 0, layers)
            row = _AmortizedAffine(sites.local_size, context, hidden)
            of_locals = Flow(StandardNormal(sites.local_size), [*stack, row])
        super().__init__(sites, of_globals, of_locals, discrete, hidden)


def _stack(layer: Layer, features: int, context: int, layers: int) -> list[Bijector]:
    stack: list[Bijector] = []
    for i in range(layers):
        if i and features > 1:
            stack.append(Permutation(torch.arange(features).flip(0)))
        made = layer(features, context=context)
        if not isinstance(made, nn.Module):
            raise TypeError(f"expected layer(features, context=size) to make a Bijector, got {type(made).__name__}")
        stack.append(made)
    return stack
