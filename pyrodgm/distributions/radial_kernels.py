"""Densities by the distance from a centre alone, for kernel density estimation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.distributions import Beta

__all__ = ["KERNELS", "RadialKernel"]


class RadialKernel(ABC):
    r"""A density of D features by the distance from its centre alone: :math:`K(u) = k(|u|) / Z_D`."""

    @abstractmethod
    def log_shape(self, squares: Tensor) -> Tensor:
        """log k at squared distances; -inf outside of its support."""

    @abstractmethod
    def slope(self, squares: Tensor) -> Tensor:
        """The derivative of :meth:`log_shape`; 0 outside of the support and at the centre."""

    @abstractmethod
    def log_normalizer(self, features: int) -> float:
        r""":math:`\log Z_D`, the log of the integral of k(|u|)."""

    @abstractmethod
    def radii(self, rows: Tensor, features: int) -> Tensor:
        """Distances of as many draws as ``rows`` has, in its dtype: (n,) -> (n,)."""

    def draw(self, shape: torch.Size, like: Tensor) -> Tensor:
        """Draws u, (*shape), whose last dimension is D."""
        u = torch.randn(shape, dtype=like.dtype, device=like.device)
        r = self.radii(u[..., 0].flatten(), shape[-1]).reshape(*shape[:-1], 1)
        return u / u.norm(dim=-1, keepdim=True) * r


class _Gaussian(RadialKernel):
    def log_shape(self, squares: Tensor) -> Tensor:
        return -0.5 * squares

    def slope(self, squares: Tensor) -> Tensor:
        return torch.full_like(squares, -0.5)

    def log_normalizer(self, features: int) -> float:
        return 0.5 * features * math.log(2 * math.pi)

    def radii(self, rows: Tensor, features: int) -> Tensor:
        return torch.distributions.Chi2(rows.new_full((), features)).sample(rows.shape).sqrt()

    def draw(self, shape: torch.Size, like: Tensor) -> Tensor:
        return torch.randn(shape, dtype=like.dtype, device=like.device)


class _Exponential(RadialKernel):
    def log_shape(self, squares: Tensor) -> Tensor:
        return -_root(squares)

    def slope(self, squares: Tensor) -> Tensor:
        return -0.5 * _inverse_root(squares)

    def log_normalizer(self, features: int) -> float:
        return _log_sphere(features) + math.lgamma(features)

    def radii(self, rows: Tensor, features: int) -> Tensor:
        return torch.distributions.Gamma(rows.new_full((), features), rows.new_full((), 1)).sample(rows.shape)


class _Compact(RadialKernel):
    """A kernel of the unit ball."""

    def log_shape(self, squares: Tensor) -> Tensor:
        inside = squares < 1
        # What the other branch computes must be finite, or its gradient would be 0 * inf.
        return torch.where(inside, self._inside(torch.where(inside, squares, 0.25)), -math.inf)

    def slope(self, squares: Tensor) -> Tensor:
        inside = squares < 1
        return torch.where(inside, self._slope(torch.where(inside, squares, 0.25)), 0.0)

    @abstractmethod
    def _inside(self, squares: Tensor) -> Tensor:
        """log k where it is positive."""

    @abstractmethod
    def _slope(self, squares: Tensor) -> Tensor:
        """Its derivative."""


class _Tophat(_Compact):
    def _inside(self, squares: Tensor) -> Tensor:
        return 0 * squares

    def _slope(self, squares: Tensor) -> Tensor:
        return 0 * squares

    def log_normalizer(self, features: int) -> float:
        return _log_sphere(features) - math.log(features)

    def radii(self, rows: Tensor, features: int) -> Tensor:
        return torch.rand_like(rows) ** (1 / features)


class _Epanechnikov(_Compact):
    def _inside(self, squares: Tensor) -> Tensor:
        return torch.log1p(-squares)

    def _slope(self, squares: Tensor) -> Tensor:
        return -1 / (1 - squares)

    def log_normalizer(self, features: int) -> float:
        return _log_sphere(features) + math.log(2 / (features * (features + 2)))

    def radii(self, rows: Tensor, features: int) -> Tensor:
        return Beta(rows.new_full((), features / 2), rows.new_full((), 2)).sample(rows.shape).sqrt()


class _Linear(_Compact):
    def _inside(self, squares: Tensor) -> Tensor:
        return (1 - _radius(squares)).log()

    def _slope(self, squares: Tensor) -> Tensor:
        return -0.5 * _inverse_root(squares) / (1 - _radius(squares))

    def log_normalizer(self, features: int) -> float:
        return _log_sphere(features) - math.log(features * (features + 1))

    def radii(self, rows: Tensor, features: int) -> Tensor:
        return Beta(rows.new_full((), features), rows.new_full((), 2)).sample(rows.shape)


class _Cosine(_Compact):
    def _inside(self, squares: Tensor) -> Tensor:
        return torch.cos(0.5 * math.pi * _radius(squares)).log()

    def _slope(self, squares: Tensor) -> Tensor:
        return -0.25 * math.pi * torch.tan(0.5 * math.pi * _radius(squares)) * _inverse_root(squares)

    def log_normalizer(self, features: int) -> float:
        # The integral of r^m cos(pi r / 2) over [0, 1]: its series in pi / 2, all of whose terms alternate and fall.
        half, term, total = math.pi / 2, 1.0, 0.0
        for k in range(30):
            total += term / (features + 2 * k)
            term *= -half * half / ((2 * k + 1) * (2 * k + 2))
        return _log_sphere(features) + math.log(total)

    def radii(self, rows: Tensor, features: int) -> Tensor:
        """Epanechnikov's, thinned: cos(pi r / 2) lies between pi/4 and 1 times 1 - r^2."""
        envelope, radii, waiting = _Epanechnikov(), rows, torch.ones_like(rows, dtype=torch.bool)
        while bool(waiting.any()):
            r = envelope.radii(rows, features)
            accept = torch.rand_like(r) * (1 - r * r) < torch.cos(0.5 * math.pi * r)
            radii = torch.where(waiting & accept, r, radii)
            waiting = waiting & ~accept
        return radii


KERNELS: dict[str, RadialKernel] = {
    "gaussian": _Gaussian(),
    "epanechnikov": _Epanechnikov(),
    "tophat": _Tophat(),
    "exponential": _Exponential(),
    "linear": _Linear(),
    "cosine": _Cosine(),
}


def _root(squares: Tensor) -> Tensor:
    """The distance, with gradient 0 where it is 0."""
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


def _radius(squares: Tensor) -> Tensor:
    """The distance of a point inside the unit ball, where rounding may not put it on the sphere."""
    return _root(squares).clamp_max(1 - torch.finfo(squares.dtype).eps)


def _inverse_root(squares: Tensor) -> Tensor:
    """1 / distance, and 0 where that is 0: the mean of the directions there."""
    away = squares > torch.finfo(squares.dtype).tiny
    return torch.where(away, torch.where(away, squares, 1.0).rsqrt(), 0.0)


def _log_sphere(features: int) -> float:
    """log of the surface of the unit sphere in D dimensions."""
    return math.log(2) + 0.5 * features * math.log(math.pi) - math.lgamma(0.5 * features)
