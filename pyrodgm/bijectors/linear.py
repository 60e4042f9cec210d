"""Linear maps of the features: permutations and shift-and-scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrodgm.bijectors.base import BijectiveTransform, Bijector

__all__ = ["Affine", "Householder", "LULinear", "Permutation"]


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
        """Set shift and scale to the mean and standard deviation of rows x (B, D), for a start as their Gaussian."""
        self.shift.copy_(x.mean(0))
        self.log_scale.copy_(x.std(0).clamp_min(1e-6).log())

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _DiagonalTransform(self.shift, self.log_scale)


class _MatrixTransform(BijectiveTransform):
    """y = P L U x + t, with L unit lower and U upper triangular: both directions by triangular products and solves."""

    def __init__(self, order: Tensor, lower: Tensor, upper: Tensor, ladj: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.order, self.lower, self.upper, self.ladj, self.shift = order, lower, upper, ladj, shift

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight = (self.lower @ self.upper)[self.order]
        return torch.nn.functional.linear(x, weight, self.shift), self.ladj.expand(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = (y - self.shift)[..., self.order.argsort()].unsqueeze(-1)
        x = torch.linalg.solve_triangular(self.lower, x, upper=False, unitriangular=True)
        x = torch.linalg.solve_triangular(self.upper, x, upper=True)
        return x.squeeze(-1), -self.ladj.expand(y.shape[:-1])


class LULinear(Bijector):
    r"""A full linear map, kept as its PLU factors: :math:`y = P L U x + t`.

    .. math:: \mathrm{ladj} = \sum_i s_i, \quad U_{ii} = e^{s_i}

    Args:
        features: D.
        order: the permutation P; default random, as a rotation would mix the features.
    Shapes: x (*B, D) -> y (*B, D), ladj (*B,) in nats.
    Source: Kingma and Dhariwal (2018), arXiv:1807.03039, eq. 10-11.
    Example:
        >>> layer = LULinear(3)
        >>> y, _ = layer(torch.ones(2, 3))
        >>> torch.allclose(layer.inv(y)[0], torch.ones(2, 3), atol=1e-5)
        True
    """

    def __init__(self, features: int, order: Tensor | None = None) -> None:
        super().__init__()
        self.order: Tensor
        self.register_buffer("order", torch.randperm(features) if order is None else torch.as_tensor(order))
        if sorted(self.order.tolist()) != list(range(features)):
            raise ValueError(f"expected order to be a permutation of 0..{features - 1}, got {self.order.tolist()}")
        # One matrix holds both factors: L below the diagonal, U above it.
        self.factors = nn.Parameter(torch.zeros(features, features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        lower = self.factors.tril(-1) + torch.eye(
            len(self.factors), dtype=self.factors.dtype, device=self.factors.device
        )
        upper = self.factors.triu(1) + self.log_diagonal.exp().diag()
        return _MatrixTransform(self.order, lower, upper, self.log_diagonal.sum(), self.shift)


class _ReflectionsTransform(BijectiveTransform):
    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = vectors / vectors.norm(dim=-1, keepdim=True)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for v in self.vectors:
            x = x - 2 * (x @ v).unsqueeze(-1) * v
        return x, x.new_zeros(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        for v in self.vectors.flip(0):
            y = y - 2 * (y @ v).unsqueeze(-1) * v
        return y, y.new_zeros(y.shape[:-1])


class Householder(Bijector):
    r"""A product of reflections, :math:`H_k = I - 2 v_k v_k^\top / |v_k|^2`: an orthogonal map, ladj 0.

    Args:
        features: D.
        reflections: how many; D of them reach every orthogonal matrix of one sign of determinant.
    Shapes: x (*B, D) -> y (*B, D), ladj (*B,) in nats.
    Source: Tomczak and Welling (2016), arXiv:1611.09630, eq. 6-8.
    Example:
        >>> layer = Householder(3, reflections=2)
        >>> torch.allclose(layer(torch.ones(3))[0].norm(), torch.ones(3).norm())
        True
    """

    volume_preserving = True

    def __init__(self, features: int, reflections: int | None = None) -> None:
        super().__init__()
        reflections = features if reflections is None else reflections
        if features < 1 or reflections < 1:
            raise ValueError(f"expected positive sizes, got features={features}, reflections={reflections}")
        self.vectors = nn.Parameter(torch.randn(reflections, features))

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _ReflectionsTransform(self.vectors)
