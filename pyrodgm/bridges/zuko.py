"""zuko: its lazy transforms and flows as ours, and ours as its own.

>>> import torch, zuko
>>> layer = ZukoBijector(zuko.flows.MaskedAutoregressiveTransform(3))
>>> layer(torch.zeros(5, 3))[0].shape
torch.Size([5, 3])
"""

from __future__ import annotations

from typing import Any

from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from pyrodgm.bijectors.base import BijectiveTransform, Bijector
from pyrodgm.core import Tractable
from pyrodgm.distributions.flow import FlowDistribution

_VALIDATES = Distribution._validate_args  # importing zuko switches it off
try:
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


class ZukoBijector(Bijector):
    """A lazy transform of zuko as a bijector, in its own direction (in zuko, from data to noise).

    Args:
        transform: any ``zuko.lazy.LazyTransform``; its parameters become this module's.
        context: size C of its context, 0 for none.
    Shapes: x (*B, D), context (*B, C) -> y (*B, D), ladj (*B,) in nats.
    """

    def __init__(self, transform: LazyTransform, context: int = 0) -> None:
        super().__init__()
        self.transform, self.context = transform, context

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _FromZuko(self.transform(self.check(context)))


class ZukoModel(Tractable):
    """A flow of zuko as a tractable model.

    Args:
        flow: any ``zuko.lazy.Flow``, such as ``zuko.flows.NSF(3)``.
        features: D.
        context: size C of its context, 0 for none.
    Shapes: x (*B, D), context (*B, C) -> log_prob (*B,) in nats.
    Raises: TypeError from ``condition`` for a density of zuko that is no flow, such as its mixtures.
    Example:
        >>> import zuko
        >>> ZukoModel(zuko.flows.NSF(3, transforms=1), 3).sample(2).shape
        torch.Size([2, 3])
    """

    def __init__(self, flow: Any, features: int, context: int = 0) -> None:
        super().__init__((features,), context)
        self.flow = flow

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        _, context = self.check(None, context)
        theirs = self.flow(context)
        if not hasattr(theirs, "transform"):
            raise TypeError(
                f"expected a flow of zuko, a base and a transform, got {type(self.flow).__name__}, which gives "
                f"{type(theirs).__name__}"
            )
        return FlowDistribution(theirs.base, [_FromZuko(theirs.transform).inv], watch=self.parameters)


class AsZukoTransform(LazyTransform):
    """A bijector of ours as a lazy transform of zuko, in the bijector's own direction.

    Args:
        bijector: whose parameters become this module's; zuko wants the direction from data to noise, so give it
            ``bijector.inv`` where the bijector makes data.
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
