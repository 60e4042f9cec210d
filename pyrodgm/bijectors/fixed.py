"""Any parameter-free transform of torch or Pyro as a bijector: sigmoid, logit, softplus, exp, leaky relu, ..."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributions import Transform, constraints
from torch.distributions.transforms import _InverseTransform

from pyrodgm.bijectors.base import BijectiveTransform, Bijector

__all__ = ["Fixed"]


class _FixedTransform(BijectiveTransform):
    def __init__(self, transform: Transform, event_dim: int) -> None:
        super().__init__()
        self.transform = transform
        self.extra = event_dim - transform.domain.event_dim
        self.domain = constraints.independent(transform.domain, self.extra)
        self.codomain = constraints.independent(transform.codomain, event_dim - transform.codomain.event_dim)

    def _ladj(self, x: Tensor, y: Tensor) -> Tensor:
        ladj = self.transform.log_abs_det_jacobian(x, y)
        return ladj.sum(tuple(range(-self.extra, 0))) if self.extra else ladj

    def _check(self, before: Tensor, after: Tensor) -> None:
        if before.shape != after.shape:
            raise ValueError(
                f"expected a transform that keeps the shape, got {self.transform}, which makes {tuple(after.shape)} of "
                f"{tuple(before.shape)}; put it behind the flow, in Pyro's own TransformedDistribution"
            )

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.transform(x)
        self._check(x, y)
        return y, self._ladj(x, y)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = self.transform.inv(y)
        self._check(y, x)
        return x, -self._ladj(x, y)


class Fixed(Bijector):
    r"""A transform without parameters, such as ``SigmoidTransform()``, over events of any shape.

    Args:
        transform: a bijective transform of torch or Pyro that keeps the shape; a cache of its own is switched off.
            Tensors in it, such as an affine one's scale, go where the module goes, and are no part of its state.
        event_dim: how many of the last dimensions are one event; its ladj is summed over them.
    Shapes: x (*B, *event) -> y (*B, *event), ladj (*B,) in nats.
    Raises: ValueError if the transform is not bijective, wants more event dimensions or, when it is called, changes the
        shape.
    Example:
        >>> import torch
        >>> from torch.distributions.transforms import SigmoidTransform
        >>> y, ladj = Fixed(SigmoidTransform())(torch.zeros(2, 3))
        >>> y[0], ladj.shape
        (tensor([0.5000, 0.5000, 0.5000]), torch.Size([2]))
    """

    def __init__(self, transform: Transform, event_dim: int = 1) -> None:
        super().__init__()
        if not transform.bijective or transform.domain.event_dim > event_dim:
            raise ValueError(
                f"expected a bijective transform of at most {event_dim} event dimensions, got {transform} "
                f"with {transform.domain.event_dim}; raise event_dim"
            )
        self.transform = transform.with_cache(0)
        self.event_dim = event_dim
        self.triangular = transform.domain.event_dim == 0  # one number at a time

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fixed:
        super()._apply(fn, recurse)
        self.transform = _moved(self.transform, fn)
        return self

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _FixedTransform(self.transform, self.event_dim)


def _moved(part: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """A transform, or what one holds, with the function applied to all its tensors."""
    if isinstance(part, Tensor):
        return fn(part)
    if isinstance(part, (list, tuple)):
        return type(part)(_moved(one, fn) for one in part)
    if not isinstance(part, Transform):
        return part
    if isinstance(part, _InverseTransform):
        return _moved(part.inv, fn).inv
    moved = copy.copy(part)
    for name, value in vars(part).items():
        setattr(moved, name, None if name == "_inv" else _moved(value, fn))  # it makes an inverse of its own
    return moved
