"""Distances between two samples: energy distance and maximum mean discrepancy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["energy_distance", "mmd"]

_PAIRS_AT_ONCE = 2**22  # 32 MB of distances
_MEDIAN_ROWS = 1000  # of each sample: the median of a million pairs moves by less than a part in a thousand


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    r"""Energy distance between two samples, unbiased, so a little below 0 now and then where they agree.

    .. math:: D = 2 \, E|x - y| - E|x - x'| - E|y - y'| \ge 0, \quad \text{0 only for equal distributions}

    Args:
        x, y: rows of two samples, at least two each.
    Shapes: x (N, *event), y (M, *event) -> (), in x's floating type, computed in float64.
    Raises: ValueError for fewer than two rows or different events.
    Source: Szekely and Rizzo (2013), Energy statistics, eq. 5.
    Example:
        >>> energy_distance(torch.zeros(2, 1), torch.tensor([[1.0], [3.0]]))
        tensor(2.)
    """
    a, b = _rows(x, y)
    d = 2 * _cross_mean(a, b, _same) - _own_mean(a, _same) - _own_mean(b, _same)
    return d.to(_floating(x))


def mmd(x: Tensor, y: Tensor, bandwidth: float | Tensor | None = None) -> Tensor:
    r"""Squared maximum mean discrepancy under a Gaussian kernel, unbiased, so a little below 0 now and then.

    .. math:: \mathrm{MMD}^2 = E\,k(x, x') + E\,k(y, y') - 2\,E\,k(x, y), \quad k(x, y) = e^{-|x - y|^2 / (2 s^2)}

    Args:
        x, y: rows of two samples, at least two each.
        bandwidth: s; default the median distance between the pooled rows (of at most 1000 of each sample).
    Shapes: x (N, *event), y (M, *event) -> (), in x's floating type, computed in float64.
    Raises: ValueError for fewer than two rows, different events, or a bandwidth that is not positive.
    Source: Gretton et al. (2012), A kernel two-sample test, eq. 3 and section 8 (the median).
    Example:
        >>> mmd(torch.zeros(2, 1), torch.tensor([[1.0], [1.0]]), bandwidth=1.0)
        tensor(0.7869)
    """
    a, b = _rows(x, y)
    s = _median_distance(a, b) if bandwidth is None else torch.as_tensor(bandwidth, dtype=a.dtype, device=a.device)
    if not bool(s > 0):
        raise ValueError(f"expected bandwidth > 0, got {float(s)}; pass one where most rows are equal")

    def kernel(d: Tensor) -> Tensor:
        return (-0.5 * (d / s).square()).exp()

    return (_own_mean(a, kernel) + _own_mean(b, kernel) - 2 * _cross_mean(a, b, kernel)).to(_floating(x))


def _floating(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


def _rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples as float64 matrices about a common centre: distances by products then lose no digits."""
    if x.dim() < 1 or y.dim() < 1 or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"expected two samples of one event shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    if len(x) < 2 or len(y) < 2:
        raise ValueError(f"expected at least two rows of each sample, got {len(x)} and {len(y)}")
    a, b = x.reshape(len(x), -1).double(), y.reshape(len(y), -1).double()
    centre = torch.cat((a, b)).mean(0).detach()
    return a - centre, b - centre


def _same(d: Tensor) -> Tensor:
    return d


def _cross_mean(a: Tensor, b: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean of f(|a_i - b_j|) over all pairs, in chunks."""
    chunks = a.split(max(1, _PAIRS_AT_ONCE // len(b)))
    return torch.stack([f(torch.cdist(chunk, b)).sum() for chunk in chunks]).sum() / (len(a) * len(b))


def _own_mean(a: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean of f(|a_i - a_j|) over the pairs i != j, in chunks."""
    size = max(1, _PAIRS_AT_ONCE // len(a))
    total = []
    for i, chunk in enumerate(a.split(size)):
        values = f(torch.cdist(chunk, a))
        total.append(values.sum() - values.diagonal(i * size).sum())
    return torch.stack(total).sum() / (len(a) * (len(a) - 1))


def _median_distance(a: Tensor, b: Tensor) -> Tensor:
    pooled = torch.cat([s[:: -(-len(s) // _MEDIAN_ROWS)] for s in (a, b)]).detach()
    distances = torch.cdist(pooled, pooled)
    return distances[tuple(torch.triu_indices(len(pooled), len(pooled), 1))].median()
