"""Linear maps that mix the features: permutations, triangular factors, reflections."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from pyrodgm.bijectors.base import BijectiveTransform, Bijector

__all__ = ["Householder", "LULinear", "Permutation"]


class _PermutationTransform(BijectiveTransform):
    def __init__(self, order: Tensor, inverse: Tensor, event_dim: int) -> None:
        super().__init__()
        self.order, self.inverse_order, self.dims = order, inverse, event_dim
        self.domain = self.codomain = constraints.independent(constraints.real, event_dim)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.index_select(-self.dims, self.order), x.new_zeros(x.shape[: -self.dims])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y.index_select(-self.dims, self.inverse_order), y.new_zeros(y.shape[: -self.dims])


class Permutation(Bijector):
    r"""A fixed order of the features, or of the channels of an image: :math:`y_i = x_{\pi(i)}`, ladj 0.

    Args:
        order: the permutation :math:`\pi` of 0 .. D-1.
        event_dim: dimensions of one event, of which the first is permuted; 3 for images (C, H, W).
    Raises: ValueError if ``order`` is not a permutation.
    Example:
        >>> Permutation(torch.tensor([2, 0, 1])).condition()(torch.tensor([1.0, 2.0, 3.0]))
        tensor([3., 1., 2.])
    """

    volume_preserving = True

    def __init__(self, order: Tensor, event_dim: int = 1) -> None:
        super().__init__()
        order = torch.as_tensor(order)
        if sorted(order.tolist()) != list(range(len(order))):
            raise ValueError(f"expected a permutation of 0..{len(order) - 1}, got {order.tolist()}")
        self.order: Tensor
        self.inverse_order: Tensor
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", order.argsort())
        self.event_dim = event_dim

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _PermutationTransform(self.order, self.inverse_order, self.event_dim)


class _MatrixTransform(BijectiveTransform):
    """y = P L U x + t, with L unit lower and U upper triangular: one product there, triangular solves back."""

    def __init__(self, order: Tensor, lower: Tensor, upper: Tensor, ladj: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.order, self.lower, self.upper, self.ladj, self.shift = order, lower, upper, ladj, shift

    def weight(self) -> Tensor:
        """P L U."""
        return (self.lower @ self.upper)[self.order]

    def solve(self, columns: Tensor) -> Tensor:
        """The inverse of L U times columns."""
        columns = torch.linalg.solve_triangular(self.lower, columns, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(self.upper, columns, upper=True)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.linear(x, self.weight(), self.shift), self.ladj.expand(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        columns = (y - self.shift)[..., self.order.argsort()].unsqueeze(-1)
        return self.solve(columns).squeeze(-1), -self.ladj.expand(y.shape[:-1])


class _ConvolutionTransform(_MatrixTransform):
    """The matrix at every place of an image: one 1x1 convolution in either direction, back by the inverse matrix."""

    domain = codomain = constraints.independent(constraints.real, 3)

    def _convolve(self, x: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
        rows = x.reshape(-1, *x.shape[-3:])
        return F.conv2d(rows, weight[..., None, None], shift).reshape(x.shape)

    def _ladj(self, x: Tensor) -> Tensor:
        return (self.ladj * x.shape[-2:].numel()).expand(x.shape[:-3])

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._convolve(x, self.weight(), self.shift), self._ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        eye = torch.eye(len(self.order), dtype=y.dtype, device=y.device)
        inverse = self.solve(eye[self.order.argsort()])
        return self._convolve(y, inverse, -(inverse @ self.shift)), -self._ladj(y)


class LULinear(Bijector):
    r"""A full linear map of the features, kept as its PLU factors: :math:`y = P L U x + t`; of the channels of an image
    at every place, an invertible 1x1 convolution.

    .. math:: \mathrm{ladj} = H W \sum_i s_i, \quad U_{ii} = \pm e^{s_i}

    Args:
        features: D, or an image's (C, H, W).
        order: the permutation P, from which the map starts; default random, as a rotation would mix the features.
        rotation: start from a random rotation instead, which then has its own P.
    Shapes: x (*B, *event) -> y (*B, *event), ladj (*B,) in nats.
    Raises: ValueError for another order than a permutation, or for one beside a rotation.
    Source: Kingma and Dhariwal (2018), arXiv:1807.03039, section 3.2, eq. 10-11.
    Example:
        >>> layer = LULinear(3)
        >>> y, _ = layer(torch.ones(2, 3))
        >>> torch.allclose(layer.inv(y)[0], torch.ones(2, 3), atol=1e-5)
        True
    """

    def __init__(
        self, features: int | tuple[int, int, int], order: Tensor | None = None, rotation: bool = False
    ) -> None:
        super().__init__()
        event = (features,) if isinstance(features, int) else tuple(features)
        if len(event) not in (1, 3) or min(event) < 1:
            raise ValueError(f"expected features >= 1 or an image's (C, H, W), got {features}")
        if rotation and order is not None:
            raise ValueError("expected an order or rotation=True, got both: a rotation has its own order")
        size, self.dims = event[0], len(event)
        factors, sign, log_diagonal = torch.zeros(size, size), torch.ones(size), torch.zeros(size)
        if rotation:
            start, lower, upper = torch.linalg.lu(torch.linalg.qr(torch.randn(size, size))[0])
            order, factors = start.argmax(1), lower.tril(-1) + upper.triu(1)
            sign, log_diagonal = upper.diagonal().sign(), upper.diagonal().abs().log()
        self.order: Tensor
        self.sign: Tensor
        self.register_buffer("order", torch.randperm(size) if order is None else torch.as_tensor(order))
        self.register_buffer("sign", sign)
        if sorted(self.order.tolist()) != list(range(size)):
            raise ValueError(f"expected order to be a permutation of 0..{size - 1}, got {self.order.tolist()}")
        # One matrix holds both factors: L below the diagonal, U above it.
        self.factors = nn.Parameter(factors)
        self.log_diagonal = nn.Parameter(log_diagonal)
        self.shift = nn.Parameter(torch.zeros(size))

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        factors = self.factors
        lower = factors.tril(-1) + torch.eye(len(factors), dtype=factors.dtype, device=factors.device)
        upper = factors.triu(1) + (self.sign * self.log_diagonal.exp()).diag()
        make = _MatrixTransform if self.dims == 1 else _ConvolutionTransform
        return make(self.order, lower, upper, self.log_diagonal.sum(), self.shift)


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
