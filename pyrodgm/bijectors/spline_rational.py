"""Rational-quadratic splines, whose backward pass is written in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrodgm.bijectors.spline import BinnedSpline, positive_slope
from pyrodgm.bijectors.spline_bins import locate

__all__ = ["RationalQuadraticSpline", "rational_quadratic"]


class RationalQuadraticSpline(BinnedSpline):
    r"""Rational-quadratic spline with K bins; P = 3 K - 1 (widths, heights, inner slopes).

    .. math:: y = y_k + \frac{h_k [s_k \xi^2 + d_k \xi (1 - \xi)]}{s_k + (d_{k+1} + d_k - 2 s_k) \xi (1 - \xi)},
        \quad \xi = \frac{x - x_k}{w_k}, \; s_k = \frac{h_k}{w_k}

    with slopes 1 at the ends, so it meets the identity outside smoothly.

    Args:
        bins: K.
        bound: it acts on [-bound, bound].
    Raises: ValueError for fewer than 2 bins or a bound that is not positive.
    Source: Durkan et al. (2019), arXiv:1906.04032, eq. 4-8.
    Example:
        >>> spline = RationalQuadraticSpline(4)
        >>> x = torch.tensor([-5.0, 0.5])
        >>> spline.call_and_ladj(torch.zeros(11, 2), x)[0]
        tensor([-5.0000,  0.5000])
    """

    def __init__(self, bins: int = 8, bound: float = 3.0) -> None:
        super().__init__(bins, bound)
        self.size = 3 * bins - 1

    def _unit(self, raw: Tensor, u: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        # The ends have raw slope 0, which is slope 1.
        return rational_quadratic(*locate(raw, u, self.bins, inverse), u, inverse)


def rational_quadratic(
    start: Tensor, length: Tensor, raw_slopes: Tensor, u: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The spline and its ladj at u (*B, D) in [0, 1], given what :func:`locate` says of the bin of u."""
    run: Any = _Curve.apply if torch.is_grad_enabled() else _Curve.forward
    out, ladj, _ = run(start, length, positive_slope(raw_slopes), u, inverse)
    return out, ladj


def _position(start: Tensor, length: Tensor, slopes: Tensor, u: Tensor, inverse: bool) -> Tensor:
    """Where u stands in its bin, xi in [0, 1] on the axis of x."""
    (x0, y0), (w, h), (d0, d1) = start.unbind(-2), length.unbind(-2), slopes.unbind(-2)
    if not inverse:
        return ((u - x0) / w).clamp(0, 1)
    s, dy = h / w, u - y0
    bend = d1 + d0 - 2 * s
    a = h * (s - d0) + dy * bend
    b = h * d0 - dy * bend
    c = -s * dy
    xi = (2 * c / (-b - (b * b - 4 * a * c).clamp_min(0).sqrt())).clamp(0, 1)
    # One Newton step gives back the digits that b^2 - 4ac has cancelled.
    both = xi * (1 - xi)
    below = s + bend * both
    rest = h * (s * xi * xi + d0 * both) / below - dy
    slope = h * s * (d1 * xi * xi + 2 * s * both + d0 * (1 - xi) ** 2) / (below * below)
    return (xi - rest / slope).clamp(0, 1)


class _Curve(torch.autograd.Function):
    """y = y0 + h f(xi) with f = (s xi^2 + d0 xi (1 - xi)) / below, its log-slope, and the gradients of both.

    The gradients of the inverse are those of xi where f stays at (u - y0) / h: the implicit function theorem.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(start: Tensor, length: Tensor, slopes: Tensor, u: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        xi = _position(start, length, slopes, u, inverse)
        (x0, y0), (w, h), (d0, d1) = start.unbind(-2), length.unbind(-2), slopes.unbind(-2)
        s, rest = h / w, 1 - xi
        both, square = xi * rest, xi * xi
        below = s + (d1 + d0 - s - s) * both
        top = d1 * square + (s + s) * both + d0 * rest * rest
        ladj = torch.log(s * s * top / (below * below))
        if inverse:
            return x0 + xi * w, -ladj, xi
        return y0 + h * ((s * square + d0 * both) / below), ladj, xi

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        start, length, slopes, u, ctx.inverse = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(start, length, slopes, u, output[2])

    @staticmethod
    def backward(ctx: Any, to_out: Tensor, to_ladj: Tensor, _: Any) -> tuple[Any, ...]:
        start, length, slopes, u, xi = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative xi has to know what it depends on
            xi = _position(start, length, slopes, u, ctx.inverse)
        (w, h), (d0, d1) = length.unbind(-2), slopes.unbind(-2)
        # Products with a number cost two passes on small tensors: 2 x is x + x, and 1 - 2 xi (1 - xi) a sum of squares.
        s, rest = h / w, 1 - xi
        both, square, other = xi * rest, xi * xi, rest * rest
        bend, turn, squares = d1 + d0 - s - s, rest - xi, square + other
        below = s + bend * both
        f = (s * square + d0 * both) / below
        top = d1 * square + (s + s) * both + d0 * other
        slope = h * s * top / (below * below)  # of y in xi
        # Derivatives of the log-slope, 2 log s + log top - 2 log below, times its gradient.
        change = -to_ladj if ctx.inverse else to_ladj
        l_top, l_below = change / top, (change + change) / below
        l_xi = (l_top + l_top) * (d1 * xi + s * turn - d0 * rest) - l_below * bend * turn
        # The gradient of y: as it comes, or by xi where the value of y is given.
        if ctx.inverse:
            to_xi = to_out * w
            to_y = -(to_xi + l_xi) / slope
        else:
            to_y = to_out
            to_xi = to_y * slope + l_xi
        down = to_y * h / below
        to_s = down * (square - f * squares) + (l_top + l_top) * both - l_below * squares + (change + change) / s
        to_d0 = both * (down * (1 - f) - l_below) + l_top * other
        to_d1 = l_top * square - both * (down * f + l_below)
        per_w = to_s / w
        to_h = to_y * f + per_w
        if ctx.inverse:
            to_x0, to_u, to_w = to_out, -to_y, to_out * xi - per_w * s
        else:
            to_u = to_xi / w
            to_x0, to_w = -to_u, -to_u * xi - per_w * s
        to_start, to_length = torch.stack((to_x0, to_y), -2), torch.stack((to_w, to_h), -2)
        return to_start, to_length, torch.stack((to_d0, to_d1), -2), to_u, None
