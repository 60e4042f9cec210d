"""Normalizing flows: a base, bijectors, and the named recipes that choose them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrodgm.bijectors.autoregressive import Autoregressive
from pyrodgm.bijectors.base import Bijector
from pyrodgm.bijectors.coupling import AffineCoupling
from pyrodgm.bijectors.univariate import ScaleShift, Univariate
from pyrodgm.core import Tractable
from pyrodgm.distributions.flow import FlowDistribution
from pyrodgm.tractable.parametric import StandardNormal

__all__ = ["IAF", "MAF", "Flow", "RealNVP"]


class Flow(Tractable):
    r"""A base density pushed through bijectors: :math:`x = f_n \circ \dots \circ f_1(z)`.

    Args:
        base: any tractable model of the same event shape.
        bijectors: the first is applied first when sampling.
    Shapes: x (*B, *event), context (*B, C) -> log_prob (*B,) in nats.
    Raises: TypeError if base is not a Tractable; ValueError if the parts want contexts of different sizes.
    Source: Rezende and Mohamed (2015), arXiv:1505.05770.
    Example:
        >>> from pyrodgm.bijectors import Affine, AffineCoupling
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
        super().__init__(tuple(base.event_shape), max(sizes, default=0))
        self.base = base
        self.bijectors = nn.ModuleList(bijectors)

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        _, context = self.check(None, context)
        base = self.base.condition(context if self.base.context else None)
        if context is not None and not self.base.context:
            base = base.expand(context.shape[:-1])
        transforms = [b.condition(context) for b in self.bijectors]  # type: ignore[operator]
        return FlowDistribution(base, transforms, watch=self.parameters)


class RealNVP(Flow):
    """Affine couplings that move the halves of x in turn.

    Args:
        features: D >= 2.
        layers: number of couplings.
        hidden: widths of each coupling network's hidden layers.
        context: size C of the conditioning vector, 0 for none.
        base: density of z; default N(0, I).
        bound: largest absolute log-scale of one coupling.
    Shapes: x (*B, D), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError if features < 2 or layers < 1.
    Source: Dinh et al. (2017), arXiv:1605.08803.
    Example:
        >>> RealNVP(features=2).sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        layers: int = 8,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        base: Tractable | None = None,
        bound: float = 2.0,
    ) -> None:
        if layers < 1:
            raise ValueError(f"expected layers >= 1, got {layers}")
        super().__init__(
            StandardNormal(features) if base is None else base,
            [AffineCoupling(features, context, hidden, flip=bool(i % 2), bound=bound) for i in range(layers)],
        )


class MAF(Flow):
    """Masked autoregressive flow: scored in one pass a layer, sampled feature by feature with each weight used once.

    The order of the features is reversed from layer to layer.

    Args:
        features: D.
        layers: number of autoregressive layers.
        hidden: widths of each masked network's hidden layers.
        context: size C of the conditioning vector, 0 for none.
        base: density of z; default N(0, I).
        univariate: makes the map of one feature for each layer; default an affine one.
    Shapes: x (*B, D), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError if layers < 1.
    Source: Papamakarios et al. (2017), arXiv:1705.07057.
    Example:
        >>> MAF(features=3).sample(5).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        layers: int = 5,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        base: Tractable | None = None,
        univariate: Callable[[], Univariate] = ScaleShift,
    ) -> None:
        bijectors = [layer.inv for layer in _autoregressive(features, layers, hidden, context, univariate)]
        super().__init__(StandardNormal(features) if base is None else base, bijectors)


class IAF(Flow):
    """Inverse autoregressive flow: sampled in one pass a layer, its own samples scored for nothing more.

    Other data are scored feature by feature, with each weight used once.

    Args, Shapes, Raises: as :class:`MAF`.
    Source: Kingma et al. (2016), arXiv:1606.04934.
    Example:
        >>> IAF(features=3).sample(5).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        layers: int = 5,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        base: Tractable | None = None,
        univariate: Callable[[], Univariate] = ScaleShift,
    ) -> None:
        bijectors = _autoregressive(features, layers, hidden, context, univariate)
        super().__init__(StandardNormal(features) if base is None else base, bijectors)


def _autoregressive(
    features: int, layers: int, hidden: Sequence[int], context: int, univariate: Callable[[], Univariate]
) -> list[Autoregressive]:
    if layers < 1:
        raise ValueError(f"expected layers >= 1, got {layers}")
    natural = torch.arange(features)
    orders = [natural if i % 2 == 0 else natural.flip(0) for i in range(layers)]
    return [Autoregressive(features, univariate(), context, hidden, order) for order in orders]
