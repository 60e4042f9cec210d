"""Euclidean metrics of Hamiltonian kernels: the covariance that momenta are drawn against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from pyrodgm.kernels.base import shown

__all__ = ["Collector", "Dense", "Diagonal", "Metric", "Moments", "kinetic", "velocity"]


class Collector(Protocol):
    """What warm-up gathers for a metric.

    Attributes:
        count: rows taken in.
    """

    count: int

    def add(self, rows: Tensor, gradients: Tensor | None = None) -> None:
        """Take in rows (n, *event), with the gradients of the energy there."""


def velocity(inverse_mass: Tensor, momentum: Tensor) -> Tensor:
    r""":math:`M^{-1} p`, (chains, *event) -> (chains, *event).

    Args:
        inverse_mass: a diagonal (*event), a matrix (D, D), or the rows of a
            :class:`~pyrodgm.kernels.low_rank.LowRank` metric, (1, rank + 2, D).
    """
    if inverse_mass.shape == momentum.shape[1:]:
        return momentum * inverse_mass
    if inverse_mass.dim() == 3:
        rows = inverse_mass[0]
        scale, directions, values = rows[0], rows[1:-1], rows[-1, : len(rows) - 2]
        scaled = momentum.reshape(-1, len(scale)) * scale
        changed = scaled + ((scaled @ directions.T) * (values - 1)) @ directions
        return (changed * scale).reshape(momentum.shape)
    return (momentum.reshape(-1, len(inverse_mass)) @ inverse_mass).reshape(momentum.shape)


def kinetic(inverse_mass: Tensor, momentum: Tensor) -> Tensor:
    r""":math:`p^\top M^{-1} p / 2`, (chains, *event) -> (chains,)."""
    return (momentum * velocity(inverse_mass, momentum)).flatten(1).sum(-1) / 2


class Moments:
    """Mean and covariance of rows that come in batches, pooled: chains and draws count alike.

    Args:
        dense: keep the whole covariance, else its diagonal.
    Source: Chan et al. (1979), Updating formulae and a pairwise algorithm for computing sample variances, eq. 2.1.
    Example:
        >>> moments = Moments()
        >>> moments.add(torch.tensor([[1.0], [3.0]]))
        >>> moments.covariance()
        tensor([2.], dtype=torch.float64)
    """

    def __init__(self, dense: bool = False) -> None:
        self.dense = dense
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, rows: Tensor, gradients: Tensor | None = None) -> None:
        """Take in rows (n, *event); gradients are not used."""
        rows = rows.double()  # sums of many float32 squares would drift
        mean = rows.mean(0)
        d = rows - mean
        squares = d.flatten(1).T @ d.flatten(1) if self.dense else d.square().sum(0)
        if self._mean is None or self._squares is None:
            self.count, self._mean, self._squares = len(rows), mean, squares
            return
        gap = mean - self._mean
        weight = self.count * len(rows) / (self.count + len(rows))
        between = torch.outer(gap.flatten(), gap.flatten()) if self.dense else gap.square()
        self._squares = self._squares + squares + weight * between
        self._mean = self._mean + gap * len(rows) / (self.count + len(rows))
        self.count += len(rows)

    def covariance(self) -> Tensor:
        """(*event) of variances, or (D, D).

        Raises: ValueError after less than two rows.
        """
        if self._squares is None or self.count < 2:
            raise ValueError(f"expected two rows at least, got {self.count}; add more")
        return self._squares / (self.count - 1)


class Metric(ABC):
    r"""A mass matrix M: momenta are :math:`p \sim N(0, M)`, the velocity is :math:`M^{-1} p`.

    :math:`M^{-1}` is best an estimate of the target's covariance.

    Attributes:
        dense: whether M is a matrix rather than its diagonal.
        inverse_mass: :math:`M^{-1}`, of a shape that :func:`velocity` takes; None for the identity.
    """

    dense: bool
    inverse_mass: Tensor | None

    def __repr__(self) -> str:
        return shown(self)

    @abstractmethod
    def momentum(self, positions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """p ~ N(0, M) for each chain, like positions (chains, *event)."""

    @abstractmethod
    def inverse(self, positions: Tensor) -> Tensor:
        """``inverse_mass`` as a tensor, that of the identity too, for positions (chains, *event)."""

    @abstractmethod
    def weigh(self, positions: Tensor) -> Tensor:
        r""":math:`M x`, (chains, *event) -> (chains, *event)."""

    @abstractmethod
    def stretch(self, newer: Metric) -> float:
        """By how much the longest direction under this metric is longer than under a ``newer`` one of the kind."""

    @abstractmethod
    def fitted(self, inverse_mass: Tensor, like: Tensor) -> Metric:
        """This kind of metric with another inverse mass, on the dtype and device of ``like``."""

    def moments(self) -> Collector:
        """What gathers the draws that :meth:`estimated` makes the next metric of."""
        return Moments(self.dense)

    def velocity(self, momentum: Tensor) -> Tensor:
        r""":math:`M^{-1} p`, (chains, *event) -> (chains, *event)."""
        return velocity(self.inverse(momentum), momentum)

    def kinetic(self, momentum: Tensor) -> Tensor:
        r""":math:`p^\top M^{-1} p / 2`, (chains, *event) -> (chains,)."""
        return kinetic(self.inverse(momentum), momentum)

    def estimated(self, moments: Collector, like: Tensor) -> Metric:
        r"""The metric of pooled draws, shrunk as Stan does.

        .. math:: \frac{n}{n + 5} \hat\Sigma + 10^{-3} \frac{5}{n + 5} I

        Args:
            moments: from :meth:`moments`.
        Source: Stan reference manual, section 15.2 (Euclidean metric, regularisation).
        """
        if not isinstance(moments, Moments):
            raise TypeError(f"expected Moments, got {type(moments).__name__}; gather draws with metric.moments()")
        n = moments.count
        covariance = moments.covariance()
        floor = 1e-3 * 5 / (n + 5)
        eye = torch.eye(len(covariance)).to(covariance) if self.dense else torch.ones_like(covariance)
        return self.fitted(n / (n + 5) * covariance + floor * eye, like)


class Diagonal(Metric):
    """A diagonal mass matrix.

    Args:
        variance: inverse mass of each coordinate, (*event); ones if None.
    Raises: ValueError if a variance is not positive.
    Source: Neal (2011), MCMC using Hamiltonian dynamics, section 4.1.
    Example:
        >>> Diagonal(torch.tensor([4.0, 1.0])).kinetic(torch.ones(1, 2))
        tensor([2.5000])
    """

    dense = False

    def __init__(self, variance: Tensor | None = None) -> None:
        if variance is not None and not bool((variance > 0).all()):
            raise ValueError(f"expected positive variances, got a least one of {variance.min().item()}")
        self.inverse_mass = variance
        self._scale = None if variance is None else variance.rsqrt()

    def momentum(self, positions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(positions.shape, generator=generator, dtype=positions.dtype, device=positions.device)
        return noise if self._scale is None else noise * self._scale.to(noise)

    def inverse(self, positions: Tensor) -> Tensor:
        if self.inverse_mass is None:
            return torch.ones_like(positions[0])
        return self.inverse_mass.to(positions).expand(positions.shape[1:]).contiguous()

    def weigh(self, positions: Tensor) -> Tensor:
        return positions if self.inverse_mass is None else positions / self.inverse_mass.to(positions)

    def stretch(self, newer: Metric) -> float:
        if newer.inverse_mass is None:
            return 1.0
        ratio = newer.inverse_mass if self.inverse_mass is None else newer.inverse_mass / self.inverse_mass
        return ratio.max().sqrt().item()

    def fitted(self, inverse_mass: Tensor, like: Tensor) -> Diagonal:
        return Diagonal(inverse_mass.to(like))


class Dense(Metric):
    """A full mass matrix, for targets whose correlations a diagonal leaves; positions are flattened.

    Args:
        covariance: inverse mass, (D, D); the identity if None.
    Raises: ValueError if the covariance is not positive definite.
    Source: Neal (2011), MCMC using Hamiltonian dynamics, section 4.1.
    Example:
        >>> Dense(torch.eye(2)).velocity(torch.ones(3, 2)).shape
        torch.Size([3, 2])
    """

    dense = True

    def __init__(self, covariance: Tensor | None = None) -> None:
        self.inverse_mass = covariance
        self._factor: Tensor | None = None
        if covariance is not None:
            factor, info = torch.linalg.cholesky_ex(covariance)
            if int(info) != 0:
                raise ValueError("expected a positive definite covariance, got one that has no Cholesky factor")
            self._factor = factor

    def momentum(self, positions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(positions.shape, generator=generator, dtype=positions.dtype, device=positions.device)
        if self._factor is None:
            return noise
        self._check(positions)
        # covariance = L L', so L^-T noise has covariance (L L')^-1 = M
        factor = self._factor.to(noise)
        return torch.linalg.solve_triangular(factor.T, noise.flatten(1).T, upper=True).T.reshape(noise.shape)

    def _check(self, positions: Tensor) -> None:
        size = positions[0].numel()
        if self._factor is not None and len(self._factor) != size:
            raise ValueError(
                f"expected positions of {len(self._factor)} numbers for that covariance, got {size}; "
                "pass Dense() and let warm-up find it"
            )

    def inverse(self, positions: Tensor) -> Tensor:
        if self.inverse_mass is None:
            return torch.eye(positions[0].numel(), dtype=positions.dtype, device=positions.device)
        self._check(positions)
        return self.inverse_mass.to(positions).contiguous()  # an inverse comes column by column, which no graph takes

    def weigh(self, positions: Tensor) -> Tensor:
        if self._factor is None:
            return positions
        self._check(positions)
        return torch.cholesky_solve(positions.flatten(1).T, self._factor.to(positions)).T.reshape(positions.shape)

    def stretch(self, newer: Metric) -> float:
        if newer.inverse_mass is None:
            return 1.0
        ratio = newer.inverse_mass
        if self._factor is not None:
            half = torch.linalg.solve_triangular(self._factor, ratio, upper=False)
            ratio = torch.linalg.solve_triangular(self._factor, half.T, upper=False)
        return torch.linalg.eigvalsh(ratio).max().sqrt().item()

    def fitted(self, inverse_mass: Tensor, like: Tensor) -> Dense:
        found, extra = inverse_mass.to(like), 0.0
        variances = found.diagonal().diag()
        # Of few draws the covariance is all but singular, and rounding to the dtype may take it over the edge.
        while int(torch.linalg.cholesky_ex(found + extra * variances)[1]) and extra < 1:
            extra = max(2 * extra, 8 * len(found) * torch.finfo(found.dtype).eps)
        return Dense(found + extra * variances)
