"""Linear maps that mix the features: permutations and triangular factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from pyrodgm.bijectors.base import BijectiveTransform, Bijector, in_its_precision
from pyrodgm.bijectors.events import ImageShape, check_size, event_of
from pyrodgm.nets.mlp import MLP
from pyrodgm.shapes import expand_to

__all__ = ["BOUND", "LULinear", "Permutation"]

BOUND = 2.0  # of what a context adds to a log-scale, as in ScaleShift


class _PermutationTransform(BijectiveTransform):
    def __init__(self, order: Tensor, inverse: Tensor, event_dim: int) -> None:
        super().__init__()
        self.order, self.inverse_order, self.dims = order, inverse, event_dim
        self.domain = self.codomain = constraints.independent(constraints.real, event_dim)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = check_size(x, len(self.order), self.dims)
        return x.index_select(-self.dims, self.order), x.new_zeros(x.shape[: -self.dims])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        y = check_size(y, len(self.order), self.dims)
        return y.index_select(-self.dims, self.inverse_order), y.new_zeros(y.shape[: -self.dims])


class Permutation(Bijector):
    r"""A fixed order of the features, or of the channels of an image: :math:`y_i = x_{\pi(i)}`, ladj 0.

    It takes no context: an order has no parameter that a network could move a little. :class:`LULinear` with a
    context, whose P is this order, is the map that mixes the features in a way of each context's own.

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
    """y = P L U x + t, with L unit lower and U upper triangular: one product either way, back by the inverse matrix.

    Under a context each row has factors of its own, (*B, D, D), and a shift, (*B, D).
    """

    def __init__(self, order: Tensor, lower: Tensor, upper: Tensor, ladj: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.order, self.lower, self.upper, self.ladj, self.shift = order, lower, upper, ladj, shift

    def weight(self) -> Tensor:
        """P L U."""
        with in_its_precision(self.lower):
            return (self.lower @ self.upper).index_select(-2, self.order)

    def solve(self, columns: Tensor) -> Tensor:
        """The inverse of L U times columns."""
        columns = torch.linalg.solve_triangular(self.lower, columns, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(self.upper, columns, upper=True)

    def inverse_weight(self) -> Tensor:
        """(P L U)^-1."""
        eye = torch.eye(len(self.order), dtype=self.lower.dtype, device=self.lower.device)
        return self.solve(eye[self.order.argsort()])

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ladj = expand_to(self.ladj, check_size(x, len(self.order)).shape[:-1])
        with in_its_precision(x):
            if self.shift.dim() > 1:
                return (self.weight() @ x.unsqueeze(-1)).squeeze(-1) + self.shift, ladj
            return F.linear(x, self.weight(), self.shift), ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        check_size(y, len(self.order))
        ladj = -expand_to(self.ladj, y.shape[:-1])
        if self.shift.dim() > 1:
            return self.solve((y - self.shift)[..., self.order.argsort()].unsqueeze(-1)).squeeze(-1), ladj
        if y.numel() <= len(self.order) ** 2:
            rows = (y - self.shift)[..., self.order.argsort()].reshape(-1, y.shape[-1])
            return self.solve(rows.mT).mT.reshape(y.shape), ladj
        with in_its_precision(y):  # for more rows than features one product takes a fourth of the solves' time
            return F.linear(y - self.shift, self.inverse_weight()), ladj


class _ConvolutionTransform(_MatrixTransform):
    """The matrix at every place of an image: one 1x1 convolution in either direction, back by the inverse matrix."""

    domain = codomain = constraints.independent(constraints.real, 3)

    def _convolve(self, x: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
        with in_its_precision(x):
            if shift.dim() > 1:
                return (weight @ x.flatten(-2) + shift.unsqueeze(-1)).unflatten(-1, x.shape[-2:])
            rows = x.reshape(-1, *x.shape[-3:])
            return F.conv2d(rows, weight[..., None, None], shift).reshape(x.shape)

    def _ladj(self, x: Tensor) -> Tensor:
        return expand_to(self.ladj * x.shape[-2:].numel(), x.shape[:-3])

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_size(x, len(self.order), 3)
        return self._convolve(x, self.weight(), self.shift), self._ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        check_size(y, len(self.order), 3)
        inverse = self.inverse_weight()
        with in_its_precision(y):
            shift = -(inverse @ self.shift.unsqueeze(-1)).squeeze(-1)
        return self._convolve(y, inverse, shift), -self._ladj(y)


class LULinear(Bijector):
    r"""A full linear map of the features, kept as its PLU factors: :math:`y = P L U x + t`; of the channels of an image
    at every place, an invertible 1x1 convolution.

    .. math:: \mathrm{ladj} = H W \sum_i s_i, \quad U_{ii} = \pm e^{s_i}

    Under a context, what a network makes of it is added to L, U, s and t; it starts at 0, so every context starts from
    the same map. The part that it adds to s is bounded.

    Args:
        features: D, or an image's (C, H, W).
        order: the permutation P, from which the map starts; default random, as a rotation would mix the features.
        rotation: start from a random rotation instead, which then has its own P.
        context: size of the conditioning vector, 0 for none.
        hidden: widths of that network's hidden layers; its last one gives D (D + 1) numbers.
    Shapes: x (*B, *event), context (*B, C) -> y (*B, *event), ladj (*B,) in nats.
    Raises: ValueError for another order than a permutation, or for one beside a rotation.
    Source: Kingma and Dhariwal (2018), arXiv:1807.03039, section 3.2, eq. 10-11.
    Example:
        >>> layer = LULinear(3)
        >>> y, _ = layer(torch.ones(2, 3))
        >>> torch.allclose(layer.inv(y)[0], torch.ones(2, 3), atol=1e-5)
        True
    """

    def __init__(
        self,
        features: int | ImageShape,
        *,
        order: Tensor | None = None,
        rotation: bool = False,
        context: int = 0,
        hidden: Sequence[int] = (32,),
    ) -> None:
        super().__init__()
        event = event_of(features)
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
        self.context = context
        self.net = MLP(context, size * (size + 1), hidden, last_scale=0.0) if context else None

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        context, size = self.check(context), len(self.order)
        factors: Tensor = self.factors
        log_diagonal: Tensor = self.log_diagonal
        shift: Tensor = self.shift
        if self.net is not None:
            moves, shifts = self.net(context).to(factors.dtype).split((size * size, size), -1)
            moves = moves.unflatten(-1, (size, size))  # the diagonal's place in L and U is s's
            factors, shift = factors + moves, shift + shifts
            log_diagonal = log_diagonal + BOUND * torch.tanh(moves.diagonal(dim1=-2, dim2=-1))
        lower = factors.tril(-1) + torch.eye(size, dtype=factors.dtype, device=factors.device)
        upper = factors.triu(1) + (self.sign * log_diagonal.exp()).diag_embed()
        make = _MatrixTransform if self.dims == 1 else _ConvolutionTransform
        return make(self.order, lower, upper, log_diagonal.sum(-1), shift)
