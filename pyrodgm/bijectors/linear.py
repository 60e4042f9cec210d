"""Linear maps of the features: permutations and shift-and-scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrodgm.bijectors.base import BijectiveTransform, Bijector

__all__ = ["Affine", "Permutation"]


class _PermutationTransform(BijectiveTransform):
    def __init__(self, order: Tensor, inverse: Tensor) -> None:
        super().__init__()
        self.order, self.inverse_order = order, inverse

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.index_select(-1, self.order), x.new_zeros(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y.index_select(-1, self.inverse_order), y.new_zeros(y.shape[:-1])


class Permutation(Bijector):
    r"""A fixed order of the features: :math:`y_i = x_{\pi(i)}`, ladj 0.

    Args:
        order: the permutation :math:`\pi` of 0 .. D-1.
    Raises: ValueError if ``order`` is not a permutation.
    Example:
        >>> Permutation(torch.tensor([2, 0, 1])).condition()(torch.tensor([1.0, 2.0, 3.0]))
        tensor([3., 1., 2.])
    """

    volume_preserving = True

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        order = torch.as_tensor(order)
        if sorted(order.tolist()) != list(range(len(order))):
            raise ValueError(f"expected a permutation of 0..{len(order) - 1}, got {order.tolist()}")
        self.order: Tensor
        self.inverse_order: Tensor
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", order.argsort())

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _PermutationTransform(self.order, self.inverse_order)


class _DiagonalTransform(BijectiveTransform):
    def __init__(self, shift: Tensor, log_scale: Tensor) -> None:
        super().__init__()
        self.shift, self.log_scale = shift, log_scale

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.addcmul(self.shift, x, self.log_scale.exp()), self.log_scale.sum(-1).expand(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return (y - self.shift) * torch.exp(-self.log_scale), -self.log_scale.sum(-1).expand(y.shape[:-1])


class Affine(Bijector):
    r"""A shift and a scale for each feature: :math:`y = x \odot e^{s} + t`.

    Args:
        features: event size D.
    Shapes: x (*B, D) -> y (*B, D), ladj (*B,) in nats.
    Example:
        >>> Affine(2).condition()(torch.ones(2))
        tensor([1., 1.], grad_fn=<AddcmulBackward0>)
    """

    triangular = True

    def __init__(self, features: int) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"expected features >= 1, got {features}")
        self.shift = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))

    @torch.no_grad()
    def standardise(self, x: Tensor) -> None:
        """Set shift and scale to the mean and standard deviation of rows x (B, D): the flow's start is their Gaussian."""
        self.shift.copy_(x.mean(0))
        self.log_scale.copy_(x.std(0).clamp_min(1e-6).log())

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _DiagonalTransform(self.shift, self.log_scale)
