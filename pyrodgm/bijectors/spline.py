"""Monotone splines on an interval with the identity outside of it: what they share, linear and quadratic ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pyrodgm.bijectors.spline_bins import LEAST
from pyrodgm.bijectors.univariate import Univariate

__all__ = ["LinearSpline", "QuadraticSpline"]


class BinnedSpline(Univariate):
    """What splines share: bins by softmax, the search for a bin, and the identity outside [-bound, bound].

    The bins lie in dimension -2, before the features, so every reduction over them runs along whole rows.
    """

    def __init__(self, bins: int = 8, bound: float = 3.0) -> None:
        if not 2 <= bins <= int(1 / LEAST) // 2:
            raise ValueError(f"expected 2 <= bins <= {int(1 / LEAST) // 2}, got {bins}")
        if not bound > 0:
            raise ValueError(f"expected bound > 0, got {bound}")
        self.bins, self.bound = bins, float(bound)

    def _parts(self, raw: Tensor) -> Tensor:
        """Softmax parts of the interval, each at least ``LEAST`` of it: (*B, K, D), they sum to 1."""
        return LEAST + (1 - LEAST * self.bins) * torch.softmax(raw, -2)

    def call_and_ladj(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._inside(raw, x, False)

    def inverse_and_ladj(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._inside(raw, y, True)

    def _inside(self, raw: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raw, x = torch.broadcast_tensors(raw, x.unsqueeze(-2))
        x = x[..., 0, :]
        inside = x.abs() < self.bound
        # Work on [0, 1]; points outside stand at 1/2, so no formula meets a value that it has no bin for.
        u = torch.where(inside, (x + self.bound) / (2 * self.bound), 0.5)
        v, ladj = self._unit(raw, u, inverse)
        return torch.where(inside, v * (2 * self.bound) - self.bound, x), torch.where(inside, ladj, 0.0)

    def _unit(self, raw: Tensor, u: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """The spline on [0, 1]."""
        raise NotImplementedError


def search(edges: Tensor, u: Tensor) -> Tensor:
    """The bin of each u: right edges (*B, K, D), u (*B, D) -> (*B, 1, D)."""
    return (u.unsqueeze(-2) >= edges[..., :-1, :]).sum(-2, keepdim=True)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """What belongs to each u's bin: values (*B, K, D), index (*B, 1, D) -> (*B, D)."""
    return values.gather(-2, index).squeeze(-2)


def positive_slope(raw: Tensor) -> Tensor:
    """Softplus shifted so that 0 gives 1, at least ``LEAST``."""
    return LEAST + F.softplus(raw + math.log(math.expm1(1 - LEAST)))


class LinearSpline(BinnedSpline):
    r"""Piecewise-linear spline with K equal bins; P = K (log-slopes up to a constant).

    Args:
        bins: K.
        bound: it acts on [-bound, bound].
    Source: Mueller et al. (2019), arXiv:1808.03856, section 4.1.
    Example:
        >>> LinearSpline(bins=4).call_and_ladj(torch.zeros(4, 1), torch.tensor([0.5]))[0]
        tensor([0.5000])
    """

    def __init__(self, bins: int = 8, bound: float = 3.0) -> None:
        super().__init__(bins, bound)
        self.size = bins

    def _unit(self, raw: Tensor, u: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        heights = self._parts(raw)
        top = heights.cumsum(-2)
        index = search(top, u) if inverse else (u * self.bins).long().clamp(0, self.bins - 1).unsqueeze(-2)
        h = pick(heights, index)
        y0, x0 = pick(top, index) - h, index.squeeze(-2).to(u.dtype) / self.bins
        slope = h * self.bins
        out = x0 + (u - y0) / slope if inverse else y0 + (u - x0) * slope
        return out, -slope.log() if inverse else slope.log()


class QuadraticSpline(BinnedSpline):
    r"""Piecewise-quadratic spline: the density is piecewise linear; P = 2 K - 1 (widths, inner densities).

    .. math:: \frac{dy}{dx} = v_k + \xi (v_{k+1} - v_k), \quad
        y = y_k + w_k \left[ \xi v_k + \tfrac12 \xi^2 (v_{k+1} - v_k) \right]

    The densities at the knots are scaled to integrate to 1. At the two ends they are fixed at the
    same raw value 0, so all zeros give the identity; elsewhere the slope jumps to 1 at the ends.

    Args:
        bins: K.
        bound: it acts on [-bound, bound].
    Source: Mueller et al. (2019), arXiv:1808.03856, section 4.2.
    Example:
        >>> QuadraticSpline(bins=4).call_and_ladj(torch.zeros(7, 1), torch.tensor([0.5]))[0]
        tensor([0.5000])
    """

    def __init__(self, bins: int = 8, bound: float = 3.0) -> None:
        super().__init__(bins, bound)
        self.size = 2 * bins - 1

    def _unit(self, raw: Tensor, u: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        k = self.bins
        widths = self._parts(raw[..., :k, :])
        right = widths.cumsum(-2)
        v = F.pad(positive_slope(raw[..., k:, :]), (0, 0, 1, 1), value=1.0)
        areas = 0.5 * (v[..., :-1, :] + v[..., 1:, :]) * widths
        total = areas.sum(-2, keepdim=True)
        v, areas = v / total, areas / total
        top = areas.cumsum(-2)
        index = search(top if inverse else right, u)
        w, area = pick(widths, index), pick(areas, index)
        x0, y0 = pick(right, index) - w, pick(top, index) - area
        v0, v1 = pick(v, index), pick(v, index + 1)
        if inverse:
            rest = (u - y0) / w
            root = (v0 * v0 + 2 * (v1 - v0) * rest).clamp_min(0).sqrt()
            xi = (2 * rest / (v0 + root)).clamp(0, 1)
            out = x0 + xi * w
        else:
            xi = ((u - x0) / w).clamp(0, 1)
            out = y0 + w * (xi * v0 + 0.5 * xi * xi * (v1 - v0))
        ladj = (v0 + xi * (v1 - v0)).log()
        return out, -ladj if inverse else ladj
