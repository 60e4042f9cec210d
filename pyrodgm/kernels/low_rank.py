"""A mass matrix of a diagonal and a few directions, for targets too large for a dense one."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrodgm.kernels.metric import Collector, Metric

__all__ = ["Draws", "LowRank", "fisher_low_rank"]


class Draws:
    """Rows that come in batches with their gradients, thinned evenly so that memory does not grow.

    Args:
        most: rows kept, about; when there are more, every second batch is left out from then on.
    Attributes:
        count: rows kept.
    Example:
        >>> draws = Draws(most=4)
        >>> for i in range(4):
        ...     draws.add(torch.full((2, 1), float(i)), torch.zeros(2, 1))
        >>> draws.rows().squeeze(-1)
        tensor([0., 1., 2., 3.])
    """

    def __init__(self, most: int = 1000) -> None:
        self.most = most
        self.count = 0
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._every, self._seen = 1, 0

    def add(self, rows: Tensor, gradients: Tensor | None = None) -> None:
        """Take in rows (n, *event) and the gradients of the energy there.

        Raises: ValueError without gradients.
        """
        if gradients is None:
            raise ValueError("expected the gradients at the rows, got none; a low-rank metric needs a kernel with them")
        if self._seen % self._every == 0:
            step = -(-len(rows) // max(1, self.most // 8))  # of many chains some, so that eight batches have room
            self._kept.append((rows.flatten(1)[::step], gradients.flatten(1)[::step]))
        self._seen += 1
        if sum(len(x) for x, _ in self._kept) > self.most:
            self._kept, self._every = self._kept[::2], 2 * self._every
        self.count = sum(len(x) for x, _ in self._kept)

    def rows(self) -> Tensor:
        """(count, D)."""
        return torch.cat([x for x, _ in self._kept])

    def gradients(self) -> Tensor:
        """(count, D)."""
        return torch.cat([g for _, g in self._kept])


class LowRank(Metric):
    r"""A mass matrix that is diagonal but for a few directions: all it does costs O(D rank).

    .. math::
        M^{-1} = S (I + U (\Lambda - I) U^\top) S, \quad
        M = S^{-1} (I + U (\Lambda^{-1} - I) U^\top) S^{-1}, \quad
        p = S^{-1} (\xi + U (\Lambda^{-1/2} - I) U^\top \xi) \sim N(0, M)

    with :math:`S = \mathrm{diag}(\sigma)`, :math:`\xi \sim N(0, I)`, and :math:`U` of orthonormal columns. Warm-up
    estimates it from pooled draws and gradients, see :func:`fisher_low_rank`. Positions are flattened.

    Args:
        rank: columns of U at most.
        cutoff: directions whose :math:`\lambda` is within [1 / cutoff, cutoff] are left to the diagonal.
        scale: :math:`\sigma`, (D,); ones if None.
        directions: :math:`U^\top`, (K, D) of K <= rank rows, orthonormal or zero; none if None.
        values: :math:`\lambda`, (K,).
    Raises: ValueError for rank < 1, cutoff < 1, values or scales that are not positive, shapes that do not fit, or
        rows that are not orthonormal.
    Source: Seyboldt, Carlson and Carpenter (2026), Preconditioning Hamiltonian Monte Carlo by minimizing Fisher
        divergence, arXiv:2603.18845 (the low-rank plus diagonal form).
    Example:
        >>> metric = LowRank(1, scale=torch.ones(2), directions=torch.tensor([[0.0, 1.0]]), values=torch.tensor([9.0]))
        >>> metric.velocity(torch.ones(1, 2))
        tensor([[1., 9.]])
    """

    dense = False

    def __init__(
        self,
        rank: int = 10,
        cutoff: float = 2.0,
        scale: Tensor | None = None,
        directions: Tensor | None = None,
        values: Tensor | None = None,
    ) -> None:
        if rank < 1 or not cutoff >= 1:
            raise ValueError(f"expected rank >= 1 and cutoff >= 1, got rank={rank} and cutoff={cutoff}")
        self.rank, self.cutoff = rank, cutoff
        self.inverse_mass: Tensor | None = None
        given = [part is not None for part in (scale, directions, values)]
        if any(given) != all(given):
            raise ValueError("expected scale, directions and values together, got some of them")
        if scale is None or directions is None or values is None:
            return
        k = len(values)
        if directions.shape != (k, len(scale)) or not k <= min(rank, len(scale)):
            raise ValueError(
                f"expected directions (K, {len(scale)}) and K values, K <= {min(rank, len(scale))}, got "
                f"{tuple(directions.shape)} and {k}"
            )
        if not bool((scale > 0).all() and (values > 0).all()):
            raise ValueError(f"expected positive scales and values, got {scale.min().item()} and {values.min().item()}")
        gram = directions @ directions.T
        full = gram.diagonal() > 0.5  # rows of zeros have no effect
        if not torch.allclose(gram, torch.diag(full.to(gram)), atol=1e-3):
            raise ValueError("expected orthonormal directions, got others; take them from torch.linalg.qr or eigh")
        self.inverse_mass = _packed(scale, directions, values)

    def _parts(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, directions, values."""
        size = positions[0].numel()
        if self.inverse_mass is None:
            k = min(self.rank, size)
            return positions.new_ones(size), positions.new_zeros(k, size), positions.new_ones(k)
        if self.inverse_mass.shape[-1] != size:
            raise ValueError(
                f"expected positions of {self.inverse_mass.shape[-1]} numbers for that metric, got {size}; "
                f"pass LowRank({self.rank}) and let warm-up find it"
            )
        return _parts(self.inverse_mass.to(positions))

    def momentum(self, positions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(positions.shape, generator=generator, dtype=positions.dtype, device=positions.device)
        if self.inverse_mass is None:
            return noise
        scale, directions, values = self._parts(positions)
        return (_changed(noise.flatten(1), directions, values.rsqrt()) / scale).reshape(noise.shape)

    def inverse(self, positions: Tensor) -> Tensor:
        parts = self._parts(positions)
        return _packed(*parts) if self.inverse_mass is None else self.inverse_mass.to(positions)

    def weigh(self, positions: Tensor) -> Tensor:
        scale, directions, values = self._parts(positions)
        return (_changed(positions.flatten(1) / scale, directions, values.reciprocal()) / scale).reshape(
            positions.shape
        )

    def stretch(self, newer: Metric) -> float:
        """By block power iteration on the ratio of the two, to a few per cent."""
        if newer.inverse_mass is None:
            return 1.0
        size = newer.inverse_mass.shape[-1]
        start = torch.randn(min(8, size), size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        block = start.to(newer.inverse_mass)
        scale, directions, values = self._parts(block)

        def root(rows: Tensor, transposed: bool) -> Tensor:
            """M^(1/2) of this metric (as S^-1 times the root of the middle), or its transpose, on rows."""
            if transposed:
                return _changed(rows / scale, directions, values.rsqrt())
            return _changed(rows, directions, values.rsqrt()) / scale

        for _ in range(30):
            block = torch.linalg.qr(root(newer.velocity(root(block, False)), True).T).Q.T
        ratio = block @ root(newer.velocity(root(block, False)), True).T
        return torch.linalg.eigvalsh((ratio + ratio.T) / 2).max().sqrt().item()

    def fitted(self, inverse_mass: Tensor, like: Tensor) -> LowRank:
        return LowRank(self.rank, self.cutoff, *_parts(inverse_mass.to(like)))

    def moments(self) -> Draws:
        return Draws(max(1000, 4 * self.rank))

    def estimated(self, moments: Collector, like: Tensor) -> LowRank:
        """The metric that :func:`fisher_low_rank` finds; its rank stays, so that compiled graphs do."""
        if not isinstance(moments, Draws):
            raise TypeError(f"expected Draws, got {type(moments).__name__}; gather draws with metric.moments()")
        scale, directions, values = fisher_low_rank(moments.rows(), moments.gradients(), self.rank, self.cutoff)
        return LowRank(self.rank, self.cutoff, scale.to(like), directions.to(like), values.to(like))


def fisher_low_rank(
    rows: Tensor, gradients: Tensor, rank: int, cutoff: float = 2.0, ridge: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Scale, directions and values of the metric that makes draws and scores look alike.

    .. math::
        \sigma_i^2 = \frac{\mathrm{sd}(x_i)}{\mathrm{sd}(g_i)}, \qquad
        \Sigma (Q^\top C_g Q + \gamma I) \Sigma = Q^\top C_x Q + \gamma I, \qquad
        \Sigma = V \Lambda V^\top, \quad U = Q V

    with :math:`C_x` the covariance of :math:`x / \sigma` and :math:`C_g` that of the gradients :math:`g \sigma`, and Q
    an orthonormal basis of the leading ``rank`` eigenvectors of both. It is the least sample Fisher divergence between
    the target in the metric's units and a standard normal. On a Gaussian every draw's gradient tells of the whole
    precision: with more than D draws and rank D it is the covariance, without error of sampling.

    Args:
        rows: x, (n, D).
        gradients: of the energy there, (n, D).
        rank: directions kept, those of largest :math:`|\log \lambda|`.
        cutoff: values within [1 / cutoff, cutoff] become 1.
        ridge: :math:`\gamma`; directions that no draw varies in keep the diagonal.
    Returns: scale (D,), directions (K, D) and values (K,), K = min(rank, D), in float64.
    Source: Seyboldt, Carlson and Carpenter (2026), arXiv:2603.18845, algorithm 1 and eq. 9. The draws are pooled over
        chains, and with 2 rank >= D the basis is the whole space: ours.
    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0])
        >>> scale, _, _ = fisher_low_rank(x, x / torch.tensor([1.0, 4.0, 9.0]), 1)
        >>> scale.float()
        tensor([1., 2., 3.])
    """
    good = rows.isfinite().all(-1) & gradients.isfinite().all(-1)
    x, g = rows[good].double(), gradients[good].double()
    x, g = x - x.mean(0), g - g.mean(0)
    spread, slope = x.square().mean(0).sqrt(), g.square().mean(0).sqrt()
    # a coordinate that did not move, or where the energy is flat, has no ratio
    ratio = torch.where((spread > 0) & (slope > 0), spread / slope, torch.where(spread > 0, spread.square(), 1.0))
    scale = ratio.sqrt()
    x, g = x / scale / len(x) ** 0.5, g * scale / len(g) ** 0.5
    size = x.shape[1]
    k = min(rank, size)
    if 2 * k >= size:
        basis = torch.eye(size, dtype=x.dtype, device=x.device)
    else:
        basis = torch.linalg.qr(torch.cat((_leading(x, k), _leading(g, k)), 1)).Q  # (D, 2 K)
    eye = torch.eye(basis.shape[1], dtype=x.dtype, device=x.device)
    of_draws, of_slopes = ((r @ basis).T @ (r @ basis) + ridge * eye for r in (x, g))
    values, vectors = torch.linalg.eigh(_between(of_draws, of_slopes))
    order = values.log().abs().argsort(descending=True)[:k]
    values, directions = values[order], (basis @ vectors[:, order]).T
    outside = (values > cutoff) | (values < 1 / cutoff)
    spare = k - len(values)  # fewer draws than directions
    directions = torch.nn.functional.pad(torch.where(outside.unsqueeze(-1), directions, 0.0), (0, 0, 0, spare))
    return scale, directions, torch.nn.functional.pad(torch.where(outside, values, 1.0), (0, spare), value=1.0)


def _leading(rows: Tensor, count: int) -> Tensor:
    """Eigenvectors of rows' rows of the largest eigenvalues, (n, D) -> (D, count), by the smaller Gram matrix."""
    n, size = rows.shape
    if n >= size:
        return torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -count:]
    found = rows.T @ torch.linalg.eigh(rows @ rows.T).eigenvectors[:, -count:]
    return found / found.norm(dim=0).clamp(min=1e-300)


def _between(a: Tensor, b: Tensor) -> Tensor:
    r"""The positive G of G b G = a: :math:`b^{-1/2} (b^{1/2} a b^{1/2})^{1/2} b^{-1/2}`."""
    root, inverse_root = _power(b, 0.5), _power(b, -0.5)
    found = inverse_root @ _power(root @ a @ root, 0.5) @ inverse_root
    return (found + found.T) / 2


def _power(a: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh((a + a.T) / 2)
    return (vectors * values.clamp(min=1e-30) ** exponent) @ vectors.T


def _changed(rows: Tensor, directions: Tensor, values: Tensor) -> Tensor:
    """Rows times I + U (diag(values) - I) U'."""
    return rows + ((rows @ directions.T) * (values - 1)) @ directions


def _packed(scale: Tensor, directions: Tensor, values: Tensor) -> Tensor:
    """One tensor for a graph, (1, K + 2, D): scale, directions, values with zeros behind."""
    last = torch.cat((values, values.new_zeros(len(scale) - len(values))))
    return torch.cat((scale.unsqueeze(0), directions, last.unsqueeze(0))).unsqueeze(0)


def _parts(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = packed[0]
    return rows[0], rows[1:-1], rows[-1, : len(rows) - 2]
