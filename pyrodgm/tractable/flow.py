"""Normalizing flows: a base pushed through bijectors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrodgm.bijectors.base import Bijector
from pyrodgm.core import Tractable
from pyrodgm.distributions.flow import FlowDistribution
from pyrodgm.tractable.parametric import StandardNormal

__all__ = ["Flow", "check_layers", "normal_unless"]


class Flow(Tractable):
    r"""A base density pushed through bijectors: :math:`x = f_n \circ \dots \circ f_1(z)`.

    Args:
        base: any tractable model; the event shape is what the bijectors make of its own, mostly the same.
        bijectors: the first is applied first when sampling.
    Shapes: x (*B, *event), context (*B, C) -> log_prob (*B,) in nats.
    Raises: TypeError if base is not a Tractable; ValueError if the parts want contexts of different sizes.
    Source: Rezende and Mohamed (2015), arXiv:1505.05770.
    Example:
        >>> from pyrodgm.bijectors import Affine, AffineCoupling
        >>> from pyrodgm.tractable import StandardNormal
        >>> flow = Flow(StandardNormal(4), [AffineCoupling(4), Affine(4)])
        >>> flow.log_prob(flow.sample(3)).shape
        torch.Size([3])
    """

    def __init__(self, base: Tractable, bijectors: Iterable[Bijector]) -> None:
        if not isinstance(base, Tractable):
            raise TypeError(
                f"expected base as a Tractable (it moves with the model), got {type(base).__name__}; "
                "use StandardNormal or Parametric"
            )
        bijectors = list(bijectors)
        sizes = {base.context, *(bijector.context for bijector in bijectors)} - {0}
        if len(sizes) > 1:
            raise ValueError(f"expected one context size in all parts, got {sorted(sizes)}")
        shape = base.event_shape
        for bijector in bijectors:
            shape = bijector.forward_shape(shape)
        super().__init__(tuple(shape), max(sizes, default=0))
        self.base = base
        self.bijectors = nn.ModuleList(bijectors)

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        _, context = self.check(None, context)
        base = self.base.condition(context if self.base.context else None)
        if context is not None and not self.base.context:
            base = base.expand(context.shape[:-1])
        transforms = [b.condition(context) for b in self.bijectors]  # type: ignore[operator]
        return FlowDistribution(base, transforms, watch=self.parameters)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        x, context = self.check(x, context)
        for bijector in reversed(self.bijectors):
            x = bijector.initialize(x, context, inverse=True)  # type: ignore[operator]
        self.base.initialize(x, context if self.base.context else None)


def check_layers(layers: int) -> None:
    """Raise ValueError unless a flow has layers."""
    if layers < 1:
        raise ValueError(f"expected layers >= 1, got {layers}")


def normal_unless(base: Tractable | None, features: int | tuple[int, ...]) -> Tractable:
    """The base of a flow; where none is given, N(0, I) of that size or event shape."""
    return StandardNormal(features) if base is None else base
