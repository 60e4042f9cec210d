"""Rational-quadratic splines, whose backward pass is written in closed form."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrodgm.bijectors.spline import BinnedSpline, positive_slope
from pyrodgm.bijectors.spline_bins import LEAST, Bin, bin_gradient, find_bin

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

    columns = True

    def __init__(self, bins: int = 8, bound: float = 3.0) -> None:
        super().__init__(bins, bound)
        self.size = 3 * bins - 1

    def inverse(self, raw: Tensor, y: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.inverse_and_ladj(raw, y)[0]
        raw, u = raw.movedim(-2, 0), _unit(y, self.bound)
        found = find_bin(raw, u, self.bins, True)
        xi = _position(found, positive_slope(found.slopes), u, True)
        x = torch.addcmul(found.start[0], xi, found.length[0])
        return torch.where(y.abs() < self.bound, x * (2 * self.bound) - self.bound, y)

    def _inside(self, raw: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        # The ends have raw slope 0, which is slope 1.
        return rational_quadratic(raw, x, self.bins, inverse, self.bound)


def rational_quadratic(
    raw: Tensor, x: Tensor, bins: int, inverse: bool, bound: float | None = None
) -> tuple[Tensor, Tensor]:
    """The spline and its ladj, elementwise: raw (*B, P, D), x (*B, D) -> (*B, D), (*B, D).

    Args:
        bound: it acts on [-bound, bound], and outside x stays as it is. None: the spline of a circle, whose x are in
            [0, 1] and whose ends have one slope.
    """
    backward = (
        torch.is_grad_enabled() and torch.autograd.forward_ad._current_level < 0
    )  # forward mode takes it op by op
    run: Any = _Spline.apply if backward else _Spline.forward
    shape = torch.broadcast_shapes(raw.shape[:-2] + raw.shape[-1:], x.shape)
    raw, x = raw.expand(*shape[:-1], -1, shape[-1]).movedim(-2, 0), x.expand(shape)  # (*B, P, D) -> (P, *B, D)
    if len(shape) == 2 and raw.stride(1) == 1:  # laid out by columns, (P, D, B) in memory
        y, ladj, *_ = run(raw.mT, x.mT.contiguous(), bins, inverse, bound)
        return y.mT, ladj.mT
    y, ladj, *_ = run(raw, x, bins, inverse, bound)
    return y, ladj


def _position(found: Bin, slopes: Tensor, u: Tensor, inverse: bool) -> Tensor:
    r"""Where u stands in its bin, xi in [0, 1] on the axis of x.

    Backwards, with t = (y - y_k) / h_k and :math:`m = d_k (1 - t) - d_{k+1} t`, the discriminant of the quadratic is
    :math:`m^2 + 4 s_k^2 t (1 - t)`, and the root is a ratio of sums of what is not negative, so no digits cancel:

    .. math:: \xi = \frac{2 s_k t}{2 s_k t + g} \text{ if } m \ge 0, \text{ else } \frac{g}{g + 2 s_k (1 - t)},
        \quad g = |m| + \sqrt{m^2 + 4 s_k^2 t (1 - t)}
    """
    (x0, y0), (w, h), (d0, d1) = found.start.unbind(), found.length.unbind(), slopes.unbind()
    if not inverse:
        return ((u - x0) / w).clamp(0, 1)
    t, s = ((u - y0) / h).clamp(0, 1), h / w
    rest, twice = 1 - t, s + s
    below, above = twice * t, twice * rest
    m = torch.addcmul(d0 * rest, d1, t, value=-1)
    g = m.abs() + torch.addcmul(m * m, below, above).sqrt()
    rising = m >= 0
    part = torch.where(rising, below, g)
    return part / (part + torch.where(rising, g, above))


class _Curve(NamedTuple):
    """What value and slope at xi are made of, (*S) each."""

    s: Tensor  # h / w
    rest: Tensor  # 1 - xi
    both: Tensor  # xi (1 - xi)
    square: Tensor  # xi^2
    other: Tensor  # (1 - xi)^2
    bend: Tensor  # d1 + d0 - 2 s
    below: Tensor  # s + bend xi (1 - xi), the denominator of f
    f: Tensor  # (y - y0) / h
    top: Tensor  # d1 xi^2 + 2 s xi (1 - xi) + d0 (1 - xi)^2; the slope is s^2 top / below^2


def _curve(xi: Tensor, length: Tensor, slopes: Tensor) -> _Curve:
    (w, h), (d0, d1) = length.unbind(), slopes.unbind()
    s, rest = h / w, 1 - xi
    both, square, other = xi * rest, xi * xi, rest * rest
    twice = s + s  # products with a number cost two passes on small tensors
    bend = d1 + d0 - twice
    below = torch.addcmul(s, bend, both)
    f = torch.addcmul(s * square, d0, both) / below
    top = torch.addcmul(torch.addcmul(d1 * square, twice, both), d0, other)
    return _Curve(s, rest, both, square, other, bend, below, f, top)


def _unit(x: Tensor, bound: float | None) -> Tensor:
    """[-bound, bound] as [0, 1]; what is outside stands at its ends, where every formula is finite."""
    return x if bound is None else (x * (0.5 / bound) + 0.5).clamp(0, 1)


class _Spline(torch.autograd.Function):
    r"""y = y0 + h f(xi) with f = (s xi^2 + d0 xi (1 - xi)) / below, its log-slope, and the gradients of both.

    .. math:: \frac{\partial f}{\partial \xi} = \frac{s \, \mathrm{top}}{\mathrm{below}^2}, \quad
        \frac{\partial f}{\partial s} = \frac{\xi^2 - f (1 - 2 \xi (1 - \xi))}{\mathrm{below}}, \quad
        \frac{\partial f}{\partial d_0} = \frac{\xi (1 - \xi) (1 - f)}{\mathrm{below}}, \quad
        \frac{\partial f}{\partial d_1} = -\frac{\xi (1 - \xi) f}{\mathrm{below}}

    and log dy/dx = 2 log s + log top - 2 log below. The gradients of the inverse are those of xi where f stays at
    (u - y0) / h: the implicit function theorem.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(raw: Tensor, x: Tensor, bins: int, inverse: bool, bound: float | None) -> tuple[Tensor, ...]:
        u = _unit(x, bound)
        found = find_bin(raw, u, bins, inverse, bound is None)
        slopes = positive_slope(found.slopes)
        xi = _position(found, slopes, u, inverse)
        curve = _curve(xi, found.length, slopes)
        (x0, y0), (w, h) = found.start.unbind(), found.length.unbind()
        ladj = torch.log(curve.s * curve.s * curve.top / (curve.below * curve.below))
        out, ladj = (x0 + xi * w, -ladj) if inverse else (torch.addcmul(y0, h, curve.f), ladj)
        if bound is None:
            return out, ladj, torch.ones_like(u), xi, slopes, *curve, *found
        # Products with 0 and 1 are exact, also far outside, where x stays as it is.
        inside = (bound - x.abs()).sign_().clamp_min_(0)
        out = torch.addcmul((out * (2 * bound) - bound) * inside, x, 1 - inside)
        return out, ladj * inside, inside, xi, slopes, *curve, *found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        raw, x, ctx.bins, ctx.inverse, ctx.bound = inputs
        plain = output[2:]
        ctx.mark_non_differentiable(*plain)
        ctx.set_materialize_grads(False)  # nor are zeros made as gradients of these
        ctx.save_for_backward(raw, x, *plain)

    @staticmethod
    def backward(ctx: Any, to_out: Tensor | None, to_ladj: Tensor | None, *_: Any) -> tuple[Any, ...]:
        raw, x, inside, xi, slopes, *saved = ctx.saved_tensors
        to_out = torch.zeros_like(x) if to_out is None else to_out
        to_ladj = torch.zeros_like(x) if to_ladj is None else to_ladj
        curve, found = _Curve(*saved[: len(_Curve._fields)]), Bin(*saved[len(_Curve._fields) :])
        bound, circular = ctx.bound, ctx.bound is None
        if torch.is_grad_enabled():  # for a second derivative all has to know what it depends on
            u = _unit(x, bound)
            found = find_bin(raw, u, ctx.bins, ctx.inverse, circular)
            slopes = positive_slope(found.slopes)
            xi = _position(found, slopes, u, ctx.inverse)
            curve = _curve(xi, found.length, slopes)
        to_tail = None
        if not circular:
            to_tail, to_ladj = to_out * (1 - inside), to_ladj * inside
            to_out = to_out * (inside * (2 * bound))
        (w, h), (d0, d1), (s, rest, both, square, other, bend, below, f, top) = (
            found.length.unbind(),
            slopes.unbind(),
            curve,
        )
        # Products with a number cost two passes on small tensors: 2 x is x + x, and 1 - 2 xi (1 - xi) a sum of squares.
        turn, squares = rest - xi, square + other
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
        to_start, to_length = torch.stack((to_x0, to_y)), torch.stack((to_w, to_h))
        to_slopes = torch.stack((to_d0, to_d1)) * -torch.expm1(LEAST - slopes)  # the slope of softplus
        to_raw = bin_gradient(raw, found, to_start, to_length, to_slopes, ctx.bins, circular)
        if to_tail is not None:
            to_u = torch.add(to_tail, to_u, alpha=0.5 / bound)
        return to_raw, to_u, None, None, None
