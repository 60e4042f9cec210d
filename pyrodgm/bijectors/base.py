r"""Contract 3, read this file first: a bijector owns parameters, its transform does the mathematics.

To write a bijector, subclass :class:`Bijector` (parameters, ``condition``) and
:class:`BijectiveTransform` (two methods, one fused pass each). Everything that torch and Pyro
ask of a transform follows from the two.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor, nn
from torch.distributions import Transform, constraints

__all__ = [
    "BijectiveTransform",
    "Bijector",
    "Compose",
    "ComposedTransform",
    "Inverse",
    "InverseTransform",
    "in_its_precision",
]


def in_its_precision(x: Tensor) -> AbstractContextManager[Any]:
    """A block for products with x itself: autocast may shorten what networks compute, not the variable of a density."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # not of tensors without storage
    return torch.autocast(kind, enabled=False) if on else nullcontext()


class BijectiveTransform(Transform):
    r"""y = f(x) with its log absolute determinant of the Jacobian (ladj, nats), in both directions.

    A transform lives as long as one distribution and caches nothing, so nothing goes stale.
    """

    bijective = True
    domain: Any = constraints.real_vector
    codomain: Any = constraints.real_vector

    def __init__(self) -> None:
        super().__init__(cache_size=0)

    @abstractmethod
    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""f(x) and :math:`\log|\det \partial f/\partial x|`: (*B, *event) -> (*B, *event), (*B)."""
        raise NotImplementedError(f"expected {type(self).__name__} to define call_and_ladj(x)")

    @abstractmethod
    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""The inverse and *its* ladj: (*B, *event) -> (*B, *event), (*B)."""
        raise NotImplementedError(f"expected {type(self).__name__} to define inverse_and_ladj(y)")

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call_and_ladj(x)[1]

    @property
    def inv(self) -> BijectiveTransform:
        return InverseTransform(self)

    def with_cache(self, cache_size: int = 1) -> BijectiveTransform:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> BijectiveTransform:
        # It has no state of its own, and tensors inside a graph cannot be copied: a copy shares them.
        return copy.copy(self)


class InverseTransform(BijectiveTransform):
    """The inverse of a transform: the two fused passes change places."""

    def __init__(self, transform: BijectiveTransform) -> None:
        super().__init__()
        self.transform = transform
        self.domain, self.codomain = transform.codomain, transform.domain

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform.inverse_and_ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform.call_and_ladj(y)

    def _call(self, x: Tensor) -> Tensor:
        return self.transform._inverse(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.transform._call(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.transform.call_and_ladj(y)[1]  # the way that torch has gone, if y is where x came from

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return self.transform.inverse_shape(shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self.transform.forward_shape(shape)

    @property
    def inv(self) -> BijectiveTransform:
        return self.transform


class ComposedTransform(BijectiveTransform):
    """f_n o ... o f_1: the first of the list is applied first; of none, the identity of ``event_dim`` dimensions."""

    def __init__(self, transforms: Sequence[BijectiveTransform], event_dim: int = 1) -> None:
        super().__init__()
        self.transforms = list(transforms)
        if self.transforms:
            self.domain, self.codomain = self.transforms[0].domain, self.transforms[-1].codomain
        else:
            self.domain = self.codomain = constraints.independent(constraints.real, event_dim)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[: x.dim() - self.domain.event_dim])
        for transform in self.transforms:
            x, ladj = transform.call_and_ladj(x)
            total = total + ladj
        return x, total

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(y.shape[: y.dim() - self.codomain.event_dim])
        for transform in reversed(self.transforms):
            y, ladj = transform.inverse_and_ladj(y)
            total = total + ladj
        return y, total

    def _call(self, x: Tensor) -> Tensor:
        for transform in self.transforms:
            x = transform._call(x)
        return x

    def _inverse(self, y: Tensor) -> Tensor:
        for transform in reversed(self.transforms):
            y = transform._inverse(y)
        return y

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        for transform in self.transforms:
            shape = transform.forward_shape(shape)
        return shape

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        for transform in reversed(self.transforms):
            shape = transform.inverse_shape(shape)
        return shape


class Bijector(ConditionalTransformModule):
    """A module that owns the parameters of an invertible map; ``condition`` makes the map.

    Attributes:
        triangular: claim: the Jacobian is lower triangular in the natural order of the features.
        volume_preserving: claim: ladj is 0 everywhere.
        context: size C of the conditioning vector, 0 for none.
    Example:
        >>> class Shifted(BijectiveTransform):
        ...     def __init__(self, loc):
        ...         super().__init__()
        ...         self.loc = loc
        ...     def call_and_ladj(self, x):
        ...         return x + self.loc, x.new_zeros(x.shape[:-1])
        ...     def inverse_and_ladj(self, y):
        ...         return y - self.loc, y.new_zeros(y.shape[:-1])
        >>> class Shift(Bijector):
        ...     def __init__(self, features):
        ...         super().__init__()
        ...         self.loc = nn.Parameter(torch.ones(features))
        ...     def condition(self, context=None):
        ...         return Shifted(self.loc)
        >>> Shift(2).condition().inv(torch.ones(3, 2)).sum().item()
        0.0
    """

    triangular: bool = False
    volume_preserving: bool = False
    context: int = 0

    @abstractmethod
    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        """The transform for one context, (*B, C); it works on x of shape (*B, *event).

        It is of the parameters as they are now: make another after a step.
        """
        raise NotImplementedError(f"expected {type(self).__name__} to define condition(context)")

    def check(self, context: Tensor | None) -> Tensor | None:
        """The context as this bijector takes it: None for one that takes none, whoever passes one along.

        Raises: ValueError if it is missing or of another size.
        """
        if not self.context:
            return None
        if context is None or context.shape[-1] != self.context:
            got = "none" if context is None else str(tuple(context.shape))
            raise ValueError(f"expected context of shape (*, {self.context}), got {got}; pass condition(context)")
        return context

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """The event shape of y for that of x; most bijectors keep it."""
        return shape

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """The event shape of x for that of y."""
        return shape

    @property
    def inv(self) -> Bijector:
        """The bijector that runs the other way and shares these parameters."""
        return Inverse(self)

    def initialize(self, rows: Tensor, context: Tensor | None = None, *, inverse: bool = False) -> Tensor:
        """Set what starts from data by the rows that come in, (B, *event); returns them as they go out.

        A bijector with such a start keeps a buffer ``started``, so that it happens once, in any process.

        Args:
            inverse: whether the rows come in at y.
        """
        transform = self.condition(context)
        return (transform.inverse_and_ladj if inverse else transform.call_and_ladj)(rows)[0]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Shorthand for ``condition(context).call_and_ladj(x)``."""
        return self.condition(context).call_and_ladj(x)


class Inverse(Bijector):
    """A bijector run the other way; the parameters are the wrapped one's.

    Example:
        >>> import torch
        >>> from pyrodgm.bijectors import AffineCoupling
        >>> layer = AffineCoupling(4)
        >>> x = torch.randn(3, 4)
        >>> y, _ = layer(x)
        >>> torch.allclose(layer.inv(y)[0], x)
        True
    """

    def __init__(self, bijector: Bijector) -> None:
        super().__init__()
        self.bijector = bijector
        self.context = bijector.context
        self.triangular, self.volume_preserving = bijector.triangular, bijector.volume_preserving

    @property
    def inv(self) -> Bijector:
        return self.bijector

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return self.bijector.inverse_shape(shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self.bijector.forward_shape(shape)

    def initialize(self, rows: Tensor, context: Tensor | None = None, *, inverse: bool = False) -> Tensor:
        return self.bijector.initialize(rows, context, inverse=not inverse)

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return self.bijector.condition(context).inv


class Compose(Bijector):
    """Bijectors in a row, the first applied first; each that takes a context gets it.

    Args:
        bijectors: none make the identity.
        event_dim: dimensions of one event where there are none to ask; 3 for images.
    Shapes: x (*B, *event), context (*B, C) -> y (*B, *event), ladj (*B,) in nats.
    Example:
        >>> from pyrodgm.bijectors import Affine, AffineCoupling
        >>> Compose([Affine(2), AffineCoupling(2)])(torch.zeros(3, 2))[0].shape
        torch.Size([3, 2])
    """

    def __init__(self, bijectors: Iterable[Bijector], event_dim: int = 1) -> None:
        super().__init__()
        parts = list(bijectors)
        self.bijectors, self.event_dim = nn.ModuleList(parts), event_dim
        self.context = max((b.context for b in parts), default=0)
        self.triangular = all(b.triangular for b in parts)
        self.volume_preserving = all(b.volume_preserving for b in parts)

    def initialize(self, rows: Tensor, context: Tensor | None = None, *, inverse: bool = False) -> Tensor:
        for bijector in reversed(self.bijectors) if inverse else self.bijectors:
            rows = bijector.initialize(rows, context, inverse=inverse)  # type: ignore[operator]
        return rows

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        for bijector in self.bijectors:
            shape = bijector.forward_shape(shape)  # type: ignore[operator]
        return shape

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        for bijector in reversed(self.bijectors):
            shape = bijector.inverse_shape(shape)  # type: ignore[operator]
        return shape

    def condition(self, context: Tensor | None = None) -> ComposedTransform:
        parts = [b.condition(context) for b in self.bijectors]  # type: ignore[operator]
        return ComposedTransform(parts, self.event_dim)
