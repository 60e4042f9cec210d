"""Any parameter-free transform of torch or Pyro as a bijector: sigmoid, logit, softplus, exp, leaky relu, ..."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Transform, constraints

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

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.transform(x)
        return y, self._ladj(x, y)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = self.transform.inv(y)
        return x, -self._ladj(x, y)


class Fixed(Bijector):
    r"""A transform without parameters, such as ``SigmoidTransform()``, over events of any shape.

    Args:
        transform: a bijective transform of torch or Pyro that keeps the shape; a cache of its own is switched off.
        event_dim: how many of the last dimensions are one event; its ladj is summed over them.
    Shapes: x (*B, *event) -> y (*B, *event), ladj (*B,) in nats.
    Raises: ValueError if the transform is not bijective or wants more event dimensions.
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

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _FixedTransform(self.transform, self.event_dim)
