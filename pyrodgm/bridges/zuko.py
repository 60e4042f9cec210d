"""zuko: its lazy transforms and flows as ours, and ours as its own.

>>> import torch, zuko
>>> layer = ZukoBijector(zuko.flows.MaskedAutoregressiveTransform(3))
>>> layer(torch.zeros(5, 3))[0].shape
torch.Size([5, 3])
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from pyrodgm.bijectors.base import BijectiveTransform, Bijector
from pyrodgm.bridges.foreign import ForeignDistribution
from pyrodgm.core import Tractable
from pyrodgm.distributions.flow import FlowDistribution

_VALIDATES = Distribution._validate_args  # importing zuko switches it off
try:
    from zuko.distributions import NormalizingFlow
    from zuko.lazy import LazyDistribution, LazyTransform
except ImportError as error:  # pragma: no cover
    raise ImportError("pyrodgm.bridges.zuko needs zuko: pip install 'pyrodgm[flows]'") from error
finally:
    Distribution.set_default_validate_args(_VALIDATES)

__all__ = ["AsZukoDistribution", "AsZukoTransform", "ZukoBijector", "ZukoModel"]


class _FromZuko(BijectiveTransform):
    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform
        self.scalar = transform.domain.event_dim == 0  # of every feature for itself
        dims = int(self.scalar)
        self.domain = constraints.independent(transform.domain, dims)
        self.codomain = constraints.independent(transform.codomain, dims)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, ladj = self.transform.call_and_ladj(x)
        return y, ladj.sum(-1) if self.scalar else ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, ladj = self.transform.inv.call_and_ladj(y)
        return x, ladj.sum(-1) if self.scalar else ladj

    def _call(self, x: Tensor) -> Tensor:
        return self.transform(x)  # draws of a continuous flow need no trace

    def _inverse(self, y: Tensor) -> Tensor:
        return self.transform.inv(y)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return self.transform.forward_shape(shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self.transform.inverse_shape(shape)


class ZukoBijector(Bijector):
    """A lazy transform of zuko as a bijector, in its own direction (in zuko, from data to noise).

    Args:
        transform: any ``zuko.lazy.LazyTransform``; its parameters become this module's.
        context: size C of its context, 0 for none.
    Shapes: x (*B, D), context (*B, C) -> y (*B, D), ladj (*B,) in nats.
    Raises: TypeError for a transform that is not lazy.
    """

    def __init__(self, transform: LazyTransform, context: int = 0) -> None:
        super().__init__()
        if not isinstance(transform, LazyTransform):
            raise TypeError(
                f"expected a zuko.lazy.LazyTransform, got {type(transform).__name__}; the class of a plain one goes "
                "into zuko.lazy.UnconditionalTransform"
            )
        self.transform, self.context = transform, context

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _FromZuko(self.transform(self.check(context)))

    @torch.no_grad()
    def _any(self) -> BijectiveTransform:
        """The transform of one context, whose shapes are those of all."""
        like = next(self.parameters(), torch.empty(0))
        return self.condition(like.new_zeros(self.context))

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return self._any().forward_shape(shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self._any().inverse_shape(shape)


class ZukoModel(Tractable):
    """A flow of zuko, or any other density of its own such as a mixture, as a tractable model.

    Args:
        flow: any ``zuko.lazy.LazyDistribution``, such as ``zuko.flows.NSF(3)`` or ``zuko.flows.GMM(3)``.
        features: D, or the whole event shape.
        context: size C of its context, 0 for none.
    Shapes: x (*B, *event), context (*B, C) -> log_prob (*B,) in nats.
    Raises: TypeError for what is no such density; ValueError from ``condition`` if its event shape is another one.
    Example:
        >>> import zuko
        >>> ZukoModel(zuko.flows.NSF(3, transforms=1), 3).sample(2).shape
        torch.Size([2, 3])
    """

    def __init__(self, flow: LazyDistribution, features: int | tuple[int, ...], context: int = 0) -> None:
        super().__init__(features, context)
        if not isinstance(flow, LazyDistribution):
            raise TypeError(
                f"expected a zuko.lazy.LazyDistribution, got {type(flow).__name__}; a transform is a ZukoBijector, and "
                "the class of a plain distribution goes into zuko.lazy.UnconditionalDistribution"
            )
        self.flow = flow

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        _, context = self.check(None, context)
        theirs = self.flow(context)
        if theirs.event_shape != self.event_shape:
            raise ValueError(
                f"expected a density of events {tuple(self.event_shape)}, got {type(self.flow).__name__} of "
                f"{tuple(theirs.event_shape)}; say so in ZukoModel(flow, features)"
            )
        if isinstance(theirs, NormalizingFlow):
            if context is not None and theirs.batch_shape != context.shape[:-1]:
                theirs = theirs.expand(context.shape[:-1])  # one that ignores its context
            return FlowDistribution(theirs.base, [_FromZuko(theirs.transform).inv], watch=self.parameters)

        def log_prob(rows: Tensor, context: Tensor | None) -> Tensor:
            return self.flow(context).log_prob(rows)

        def draw(rows: int, context: Tensor | None) -> Tensor:
            d = self.flow(context)
            return (d.rsample if d.has_rsample else d.sample)(torch.Size() if d.batch_shape else torch.Size([rows]))

        return ForeignDistribution(log_prob, draw, self.event_shape, context, theirs.has_rsample)


class AsZukoTransform(LazyTransform):
    """A bijector of ours as a lazy transform of zuko, in the bijector's own direction.

    Args:
        bijector: whose parameters become this module's; zuko wants the direction from data to noise, so give it
            ``bijector.inv`` where the bijector makes data. What starts from data, such as an actnorm, wants its
            ``initialize`` called: zuko has nothing that would.
    Example:
        >>> import torch
        >>> from pyrodgm.bijectors import AffineCoupling
        >>> AsZukoTransform(AffineCoupling(4).inv)()(torch.zeros(5, 4)).shape
        torch.Size([5, 4])
    """

    def __init__(self, bijector: Bijector) -> None:
        super().__init__()
        self.bijector = bijector

    def forward(self, c: Tensor | None = None) -> Transform:
        return self.bijector.condition(c)


class AsZukoDistribution(LazyDistribution):
    """A tractable model of ours as a lazy distribution of zuko, such as the base of one of its flows.

    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> AsZukoDistribution(RealNVP(2))().sample((3,)).shape
        torch.Size([3, 2])
    """

    def __init__(self, model: Tractable) -> None:
        super().__init__()
        self.model = model

    def forward(self, c: Tensor | None = None) -> Distribution:
        return self.model.condition(c if self.model.context else None)
