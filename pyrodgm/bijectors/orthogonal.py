"""Linear maps by reflections: orthogonal ones, and any with a triangular factor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrodgm.bijectors.base import BijectiveTransform, Bijector, in_its_precision
from pyrodgm.bijectors.events import check_size
from pyrodgm.bijectors.linear import BOUND
from pyrodgm.nets.mlp import MLP
from pyrodgm.shapes import expand_to

__all__ = ["Householder", "QRLinear"]


class _Reflections:
    r"""Q, the reflections :math:`I - 2 v_k v_k^\top` one after the other, by two products and a triangular solve.

    With the unit vectors as the rows of V, :math:`Q^\top = I - V^\top T V`; the inverse of T is the upper triangle of
    :math:`V V^\top` with its diagonal halved (Joffrain et al., 2006, "Accumulating Householder transformations,
    revisited").

    Args:
        vectors: (K, D), or (*B, K, D): reflections of each row's own.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors / vectors.norm(dim=-1, keepdim=True)
        products = self.vectors @ self.vectors.mT
        self.factor = products.triu(1) + 0.5 * torch.eye(vectors.shape[-2], dtype=vectors.dtype, device=vectors.device)

    def turn(self, x: Tensor, back: bool = False) -> Tensor:
        """Q x, or back by the transposed: (*B, D) -> (*B, D)."""
        own = self.vectors.dim() > 2
        rows = x.unsqueeze(-2) if own else x.reshape(-1, x.shape[-1])
        factor = self.factor.mT if back else self.factor
        along = torch.linalg.solve_triangular(factor, rows @ self.vectors.mT, upper=not back, left=False)
        turned = rows - along @ self.vectors
        return turned.squeeze(-2) if own else turned.reshape(x.shape)


class _ReflectionsTransform(BijectiveTransform):
    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        with in_its_precision(vectors):
            self.features, self.reflections = vectors.shape[-1], _Reflections(vectors)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._turn(x, back=False)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._turn(y, back=True)

    def _turn(self, x: Tensor, back: bool) -> tuple[Tensor, Tensor]:
        check_size(x, self.features)
        with in_its_precision(x):
            x = self.reflections.turn(x, back)
        return x, x.new_zeros(x.shape[:-1])


class Householder(Bijector):
    r"""A product of reflections, :math:`H_k = I - 2 v_k v_k^\top / |v_k|^2`: an orthogonal map, ladj 0.

    Under a context, what a network makes of it is added to every v; it starts at 0.

    Args:
        features: D.
        reflections: how many; D of them reach every orthogonal matrix of one sign of determinant.
        context: size C of the conditioning vector, 0 for none.
        hidden: widths of that network's hidden layers.
    Shapes: x (*B, D), context (*B, C) -> y (*B, D), ladj (*B,) in nats.
    Raises: ValueError for sizes below 1.
    Source: Tomczak and Welling (2016), arXiv:1611.09630, eq. 6-8.
    Example:
        >>> layer = Householder(3, reflections=2)
        >>> torch.allclose(layer(torch.ones(3))[0].norm(), torch.ones(3).norm())
        True
    """

    volume_preserving = True

    def __init__(
        self, features: int, *, reflections: int | None = None, context: int = 0, hidden: Sequence[int] = (32,)
    ) -> None:
        super().__init__()
        self.vectors = nn.Parameter(_random_vectors(features, reflections))
        self.context = context
        self.net = MLP(context, self.vectors.numel(), hidden, last_scale=0.0) if context else None

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        context = self.check(context)
        vectors: Tensor = self.vectors
        if self.net is not None:
            vectors = vectors + self.net(context).to(vectors.dtype).unflatten(-1, vectors.shape)
        return _ReflectionsTransform(vectors)


class _QRTransform(BijectiveTransform):
    def __init__(self, vectors: Tensor, upper: Tensor, ladj: Tensor, shift: Tensor) -> None:
        super().__init__()
        with in_its_precision(vectors):
            self.features, self.reflections = vectors.shape[-1], _Reflections(vectors)
        self.upper, self.ladj, self.shift = upper, ladj, shift

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ladj = expand_to(self.ladj, check_size(x, self.features).shape[:-1])
        with in_its_precision(x):
            stretched = (self.upper @ x.unsqueeze(-1)).squeeze(-1) if self.upper.dim() > 2 else F.linear(x, self.upper)
            return self.reflections.turn(stretched) + self.shift, ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        ladj = -expand_to(self.ladj, check_size(y, self.features).shape[:-1])
        with in_its_precision(y):
            turned = self.reflections.turn(y - self.shift, back=True)
            if self.upper.dim() > 2:
                return torch.linalg.solve_triangular(self.upper, turned.unsqueeze(-1), upper=True).squeeze(-1), ladj
            rows = turned.reshape(-1, self.features)
            return torch.linalg.solve_triangular(self.upper.mT, rows, upper=False, left=False).reshape(y.shape), ladj


class QRLinear(Bijector):
    r"""A full linear map of the features, kept as its QR factors: :math:`y = Q R x + t`.

    .. math:: \mathrm{ladj} = \sum_i s_i, \quad R_{ii} = e^{s_i}

    Q is a product of Householder reflections and R upper triangular; it starts with R = 1. Beside :class:`LULinear`, it
    needs no fixed permutation: the reflections are learned too, so it reaches every matrix of one sign of determinant.

    Under a context, what a network makes of it is added to the vectors, R, s and t; it starts at 0, so every context
    starts from the same map. The part that it adds to s is bounded.

    Args:
        features: D.
        reflections: how many; default D.
        context: size C of the conditioning vector, 0 for none.
        hidden: widths of that network's hidden layers.
    Shapes: x (*B, D), context (*B, C) -> y (*B, D), ladj (*B,) in nats.
    Raises: ValueError for sizes below 1.
    Source: Hoogeboom et al. (2019), arXiv:1901.11137, on 1x1 convolutions by a QR decomposition.
    Example:
        >>> layer = QRLinear(3)
        >>> y, _ = layer(torch.ones(2, 3))
        >>> torch.allclose(layer.inv(y)[0], torch.ones(2, 3), atol=1e-5)
        True
    """

    def __init__(
        self, features: int, *, reflections: int | None = None, context: int = 0, hidden: Sequence[int] = (32,)
    ) -> None:
        super().__init__()
        self.vectors = nn.Parameter(_random_vectors(features, reflections))
        self.upper = nn.Parameter(torch.zeros(features, features))  # above its diagonal
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.context = context
        self.sizes = (self.vectors.numel(), features * features, features)  # s moves by the diagonal's place in R
        self.net = MLP(context, sum(self.sizes), hidden, last_scale=0.0) if context else None

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        context = self.check(context)
        vectors: Tensor = self.vectors
        upper: Tensor = self.upper
        log_diagonal: Tensor = self.log_diagonal
        shift: Tensor = self.shift
        if self.net is not None:
            turns, moves, shifts = self.net(context).to(upper.dtype).split(self.sizes, -1)
            moves = moves.unflatten(-1, upper.shape)
            vectors, upper, shift = vectors + turns.unflatten(-1, vectors.shape), upper + moves, shift + shifts
            log_diagonal = log_diagonal + BOUND * torch.tanh(moves.diagonal(dim1=-2, dim2=-1))
        upper = upper.triu(1) + log_diagonal.exp().diag_embed()
        return _QRTransform(vectors, upper, log_diagonal.sum(-1), shift)


def _random_vectors(features: int, reflections: int | None) -> Tensor:
    reflections = features if reflections is None else reflections
    if features < 1 or reflections < 1:
        raise ValueError(f"expected positive sizes, got features={features}, reflections={reflections}")
    return torch.randn(reflections, features)
