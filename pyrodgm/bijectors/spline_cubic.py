"""Monotone cubic splines with slopes by Steffen's method."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pyrodgm.bijectors.spline import BinnedSpline, pick, search

__all__ = ["CubicSpline"]

_LEAST = 1e-3  # of the slope of a bin
_LEAST_END = 0.4  # of the first and the last bin: a cubic that starts with slope 1 is monotone from 1/3 on
_NEWTON = 8


class CubicSpline(BinnedSpline):
    r"""Cubic Hermite spline with K bins; P = 2 K (widths, heights).

    .. math:: y = y_k + w_k \left[ (d_k + d_{k+1} - 2 s_k) \xi^3 + (3 s_k - 2 d_k - d_{k+1}) \xi^2 + d_k \xi \right],
        \quad \xi = \frac{x - x_k}{w_k}, \; s_k = \frac{h_k}{w_k}

    with Steffen's slopes :math:`d_k = \min(2 s_{k-1}, 2 s_k, p_k)`,
    :math:`p_k = (s_{k-1} w_k + s_k w_{k-1}) / (w_{k-1} + w_k)`, inside and 1 at the ends, so it meets the identity
    outside smoothly. The inverse is by Newton's method on the side of the inflection where the root lies, on which
    it converges from every point.

    Departure from the source: its end slopes are free, :math:`0 < d < 3 s`; here they are 1, and the end bins are at
    least 0.4 steep. Heights are relative to widths, so equal raw heights give the identity whatever the widths.

    Args:
        bins: K.
        bound: it acts on [-bound, bound].
    Raises: ValueError for fewer than 2 bins or a bound that is not positive.
    Source: Durkan et al. (2019), arXiv:1906.02145, section 3; Steffen (1990), eq. 8 and 11.
    Example:
        >>> spline = CubicSpline(4)
        >>> x = torch.tensor([-5.0, 0.5])
        >>> spline.call_and_ladj(torch.zeros(8, 2), x)[0]
        tensor([-5.0000,  0.5000])
    """

    def __init__(self, bins: int = 8, bound: float = 3.0) -> None:
        super().__init__(bins, bound)
        self.size = 2 * bins

    def _heights(self, raw: Tensor, widths: Tensor) -> Tensor:
        least = widths * F.pad(widths.new_full((self.bins - 2, 1), _LEAST), (0, 0, 1, 1), value=_LEAST_END)
        free = 1 - least.sum(-2, keepdim=True)
        return least + free * torch.softmax(raw + (widths - least).log(), -2)

    def _unit(self, raw: Tensor, u: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        k = self.bins
        widths = self._parts(raw[..., :k, :])
        heights = self._heights(raw[..., k:, :], widths)
        right, top = widths.cumsum(-2), heights.cumsum(-2)
        index = search(top if inverse else right, u)
        w, h = pick(widths, index), pick(heights, index)
        x0, y0 = pick(right, index) - w, pick(top, index) - h
        slopes = _steffen(widths, heights / widths)
        d0, d1, s = pick(slopes, index), pick(slopes, index + 1), h / w
        a, b = d0 + d1 - 2 * s, 3 * s - 2 * d0 - d1
        if inverse:
            xi = _root(a, b, d0, d1, s, (u - y0) / w)
            out = x0 + xi * w
        else:
            xi = ((u - x0) / w).clamp(0, 1)
            out = y0 + w * xi * (d0 + xi * (b + xi * a))
        ladj = _slope(a, b, d0, xi).log()
        return out, -ladj if inverse else ladj


def _steffen(w: Tensor, s: Tensor) -> Tensor:
    """Slopes at the K + 1 knots of increasing data, 1 at the ends."""
    before, after, w0, w1 = s[..., :-1, :], s[..., 1:, :], w[..., :-1, :], w[..., 1:, :]
    parabola = (before * w1 + after * w0) / (w0 + w1)
    return F.pad(torch.minimum(2 * torch.minimum(before, after), parabola), (0, 0, 1, 1), value=1.0)


def _slope(a: Tensor, b: Tensor, c: Tensor, xi: Tensor) -> Tensor:
    return c + xi * (2 * b + 3 * a * xi)


def _root(a: Tensor, b: Tensor, c: Tensor, d1: Tensor, s: Tensor, target: Tensor) -> Tensor:
    r"""The :math:`\xi` in [0, 1] where the increasing :math:`a \xi^3 + b \xi^2 + c \xi` meets the target."""

    def excess(xi: Tensor) -> Tensor:
        return xi * (c + xi * (b + xi * a)) - target

    with torch.no_grad():
        turn = torch.where(a.abs() > 1e-6 * b.abs(), -b / (3 * a), 2.0).clamp(0, 1)  # far from 1 it does not matter
        below = excess(turn) < 0
        low, high = torch.where(below, turn, 0.0), torch.where(below, 1.0, turn)
        # The rational-quadratic curve with the same ends and slopes is near, and its root is closed.
        bend = d1 + c - 2 * s
        p, q, r = s - c + target / s * bend, c - target / s * bend, -target
        xi = (2 * r / (-q - (q * q - 4 * p * r).clamp_min(0).sqrt())).nan_to_num(0.5).clamp(low, high)
        for _ in range(_NEWTON):
            xi = (xi - excess(xi) / _slope(a, b, c, xi)).clamp(low, high)
    # The value moves by rounding only; the gradient is the implicit one, and with the second step its gradient too.
    for _ in range(2):
        xi = xi - excess(xi) / _slope(a, b, c, xi)
    return xi
