"""Pyro's own interfaces that want a transform with parameters: AutoNormalizingFlow, NeuTra, iterated transforms."""

from __future__ import annotations

from typing import Any

from pyro.distributions import TransformModule
from torch import Tensor

from pyrodgm.bijectors.base import Bijector

__all__ = ["PyroTransform"]


class PyroTransform(TransformModule):
    """A bijector as a ``pyro.distributions.TransformModule``, for what samples without a context.

    It remembers nothing between calls, so nothing goes stale; scoring a draw therefore runs the inverse.

    Args:
        bijector: one without context; its parameters become this module's.
    Raises: ValueError for a bijector that takes a context: use it in ``ConditionalTransformedDistribution`` as it is.
    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormalizingFlow
        >>> from pyrodgm.bijectors import Autoregressive
        >>> def program():
        ...     with pyro.plate("two", 2):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide = AutoNormalizingFlow(program, lambda size: PyroTransform(Autoregressive(size)))
        >>> guide()["z"].shape
        torch.Size([2])
    """

    bijective = True

    def __init__(self, bijector: Bijector) -> None:
        super().__init__(cache_size=0)
        if bijector.context:
            raise ValueError(
                f"expected a bijector without context, got one of size {bijector.context}; it is a part of "
                "ConditionalTransformedDistribution as it stands"
            )
        self.bijector = bijector

    @property
    def domain(self) -> Any:  # type: ignore[override]
        return self.bijector.condition().domain

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        return self.bijector.condition().codomain

    def _call(self, x: Tensor) -> Tensor:
        return self.bijector.condition()._call(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.bijector.condition()._inverse(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.bijector.condition().log_abs_det_jacobian(x, y)

    def forward_shape(self, shape: Any) -> Any:
        return self.bijector.forward_shape(shape)

    def inverse_shape(self, shape: Any) -> Any:
        return self.bijector.inverse_shape(shape)

    def with_cache(self, cache_size: int = 1) -> PyroTransform:
        return self
