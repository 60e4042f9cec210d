"""nflows: its transforms and flows as ours, and ours as its own.

>>> import torch
>>> from nflows.transforms import MaskedAffineAutoregressiveTransform
>>> layer = NflowsBijector(MaskedAffineAutoregressiveTransform(3, 16))
>>> layer(torch.zeros(5, 3))[0].shape
torch.Size([5, 3])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrodgm.bijectors.base import BijectiveTransform, Bijector
from pyrodgm.bridges.foreign import ForeignDistribution, flatten_rows
from pyrodgm.core import Tractable
from pyrodgm.distributions.flow import FlowDistribution

try:
    from nflows.distributions import ConditionalDiagonalNormal as _ConditionalNormal
    from nflows.distributions import StandardNormal as _Normal
    from nflows.distributions.base import Distribution as _Distribution
    from nflows.flows.base import Flow as _Flow
    from nflows.transforms.base import Transform as _Transform
except ImportError as error:  # pragma: no cover
    raise ImportError("pyrodgm.bridges.nflows needs nflows: pip install 'pyrodgm[flows]'") from error

__all__ = ["AsNflowsDistribution", "AsNflowsTransform", "NflowsBijector", "NflowsModel"]

Shapes = tuple[Sequence[int], Sequence[int]]


class _FromNflows(BijectiveTransform):
    def __init__(self, transform: Any, context: Tensor | None, event_dim: int, shapes: Shapes | None) -> None:
        super().__init__()
        self.transform, self.context, self.shapes = transform, context, shapes
        self.dims = (event_dim, event_dim) if shapes is None else (len(shapes[0]), len(shapes[1]))  # of x and of y
        self.domain, self.codomain = (constraints.independent(constraints.real, n) for n in self.dims)

    def _run(self, function: Any, x: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
        rows, context, lead = flatten_rows(x, self.context, event_dim)
        y, ladj = function(rows, context)
        return y.reshape(*lead, *y.shape[1:]), ladj.reshape(lead)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(self.transform, x, self.dims[0])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(self.transform.inverse, y, self.dims[1])

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return shape if self.shapes is None else torch.Size((*shape[: len(shape) - self.dims[0]], *self.shapes[1]))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return shape if self.shapes is None else torch.Size((*shape[: len(shape) - self.dims[1]], *self.shapes[0]))


class NflowsBijector(Bijector):
    """A transform of nflows as a bijector, in its own direction (in nflows, from data to noise).

    Args:
        transform: any ``nflows.transforms.Transform``; its parameters become this module's.
        context: size C of its context, 0 for none.
        event_dim: 1 for vectors, 3 for images.
        shapes: the event shapes of x and of y, for a transform that changes them, such as ((1, 4, 4), (16,)).
    Shapes: x (*B, *event), context (*B, C) -> y (*B, *event), ladj (*B,) in nats.
    Example:
        >>> from nflows.transforms import SqueezeTransform
        >>> squeeze = NflowsBijector(SqueezeTransform(), shapes=((1, 4, 4), (4, 2, 2)))
        >>> squeeze(torch.zeros(5, 1, 4, 4))[0].shape
        torch.Size([5, 4, 2, 2])
    """

    def __init__(
        self, transform: _Transform, context: int = 0, event_dim: int = 1, shapes: Shapes | None = None
    ) -> None:
        super().__init__()
        self.transform, self.context, self.event_dim, self.shapes = transform, context, event_dim, shapes

    def _given(self, context: Tensor | None) -> _FromNflows:
        return _FromNflows(self.transform, context, self.event_dim, self.shapes)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return self._given(None).forward_shape(shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self._given(None).inverse_shape(shape)

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return self._given(self.check(context))


class NflowsModel(Tractable):
    """A flow, or any other distribution, of nflows as a tractable model.

    Args:
        distribution: an ``nflows.flows.Flow`` (its embedding of the context included) or an
            ``nflows.distributions.Distribution``.
        event_shape: of one x.
        context: size C of its context, 0 for none.
    Shapes: x (*B, *event), context (*B, C) -> log_prob (*B,) in nats.
    Example:
        >>> from nflows.distributions import StandardNormal
        >>> from nflows.flows import Flow
        >>> from nflows.transforms import ReversePermutation
        >>> NflowsModel(Flow(ReversePermutation(3), StandardNormal([3])), (3,)).sample(2).shape
        torch.Size([2, 3])
    """

    def __init__(self, distribution: _Distribution, event_shape: tuple[int, ...], context: int = 0) -> None:
        super().__init__(tuple(event_shape), context)
        self.distribution = distribution

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        _, context = self.check(None, context)
        theirs = self.distribution
        if not isinstance(theirs, _Flow):
            return self._foreign(theirs, self.event_shape, context)
        embedded, base = theirs._embedding_net(context), theirs._distribution
        shape = _event_shape(base, self.event_shape)
        back = _FromNflows(theirs._transform, embedded, len(shape), (self.event_shape, shape)).inv
        return FlowDistribution(self._foreign(base, shape, embedded), [back], watch=self.parameters)

    def _foreign(self, theirs: Any, shape: torch.Size, context: Tensor | None) -> ForeignDistribution:
        def draw(rows: int, context: Tensor | None) -> Tensor:
            # With a context theirs draws so many for each of its rows, (rows, 1, *event).
            x = theirs.sample(rows) if context is None else theirs.sample(1, context=context).squeeze(1)
            return x.to(self.dtype)  # its standard normal draws float32 whatever it was cast to

        return ForeignDistribution(theirs.log_prob, draw, shape, context, has_rsample=_has_rsample(theirs, context))


def _event_shape(theirs: Any, default: torch.Size) -> torch.Size:
    """Of one draw, where it says; a transform of images may end in vectors."""
    if isinstance(theirs, AsNflowsDistribution):
        return theirs.model.event_shape
    return torch.Size(getattr(theirs, "_shape", default))


def _has_rsample(theirs: Any, context: Tensor | None) -> bool:
    """Whether its draws carry gradients: those of its mixtures and of its Bernoulli do not, and it does not say."""
    if isinstance(theirs, AsNflowsDistribution):
        return theirs.model.condition(context if theirs.model.context else None).has_rsample
    if isinstance(theirs, _Flow):
        return _has_rsample(theirs._distribution, None if context is None else theirs._embedding_net(context))
    return isinstance(theirs, _Normal | _ConditionalNormal)


class AsNflowsTransform(_Transform):
    """A bijector of ours as a transform of nflows, in the bijector's own direction.

    Args:
        bijector: whose parameters become this module's; nflows wants the direction from data to noise, so give it
            ``bijector.inv`` where the bijector makes data.
    Example:
        >>> from pyrodgm.bijectors import AffineCoupling
        >>> AsNflowsTransform(AffineCoupling(4).inv)(torch.zeros(5, 4))[1].shape
        torch.Size([5])
    """

    def __init__(self, bijector: Bijector) -> None:
        super().__init__()
        self.bijector = bijector

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijector.condition(context).call_and_ladj(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijector.condition(context).inverse_and_ladj(inputs)


class AsNflowsDistribution(_Distribution):
    """A tractable model of ours as a distribution of nflows, such as the base of one of its flows.

    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> AsNflowsDistribution(RealNVP(2)).sample(3).shape
        torch.Size([3, 2])
    """

    def __init__(self, model: Tractable) -> None:
        super().__init__()
        self.model = model

    def _log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        return self.model.log_prob(inputs, context if self.model.context else None)

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        d = self.model.condition(context if self.model.context else None)
        if context is not None and not self.model.context:
            d = d.expand(context.shape[:-1])  # a base that ignores what its flow is given
        x = (d.rsample if d.has_rsample else d.sample)(torch.Size([num_samples]))
        return x if context is None else x.transpose(0, 1)  # (n, B, *event) -> (B, n, *event), theirs
