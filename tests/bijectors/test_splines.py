"""Splines: smooth at their knots, exact inverses at extreme parameters, and the circle's own conditions."""

import math

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

from pyrodgm.bijectors import (
    CircularSpline,
    CubicSpline,
    Elementwise,
    LinearSpline,
    QuadraticSpline,
    RationalQuadraticSpline,
    spline_rational,
)
from pyrodgm.bijectors.spline import BinnedSpline, positive_slope
from pyrodgm.bijectors.spline_bins import find_bin

N = 400
SMOOTH = [RationalQuadraticSpline(5), CubicSpline(5), CircularSpline(5)]
EVERY = [
    *SMOOTH,
    CubicSpline(2),
    CubicSpline(30, bound=0.5),
    CircularSpline(2, wrap=True),
    LinearSpline(5),
    QuadraticSpline(5),
]
smooth = pytest.mark.parametrize("spline", SMOOTH, ids=lambda s: type(s).__name__)
every = pytest.mark.parametrize("spline", EVERY, ids=lambda s: f"{type(s).__name__} {s.bins}")


def raws(spline, scale=1.0, n=N, dtype=torch.float64):
    return (scale * torch.randn(n, spline.size, 1, generator=torch.Generator().manual_seed(1))).to(dtype)


def knots(spline, raw):
    """Where the bins meet in x, ends too, (N, K + 1)."""
    if isinstance(spline, CircularSpline):
        raw = spline.limit * torch.tanh(raw / spline.limit)
    widths = spline._parts(raw[:, : spline.bins]).squeeze(-1)
    return torch.cat((widths.new_zeros(len(raw), 1), widths.cumsum(-1)), -1) * 2 * spline.bound - spline.bound


def check_slopes_are_continuous(spline):
    """From both sides of every knot, the ends too: identity tails for splines of the line, the other end for angles."""
    raw = raws(spline)
    x = knots(spline, raw)
    wide, step = raw.expand(-1, -1, x.shape[-1]), 1e-9
    (y0, l0), (y1, l1) = spline.call_and_ladj(wide, x - step), spline.call_and_ladj(wide, x + step)
    # The slope changes by its own derivative times the step; derivatives reach slope^2 / width, here below 1e5.
    torch.testing.assert_close(l0, l1, rtol=0, atol=1e-3)
    torch.testing.assert_close(y0, y1, rtol=0, atol=1e-6)
    # and between the knots the slope does change
    middles = (x[:, 1:] + x[:, :-1]) / 2
    assert (
        spline.call_and_ladj(raw.expand_as(raw[:, :, :1]).expand(-1, -1, 5), middles)[1] - l0[:, 1:]
    ).abs().max() > 1


@smooth
def test_slopes_are_continuous_at_the_knots(spline):
    check_slopes_are_continuous(spline)


@pytest.mark.parametrize("spline", [RationalQuadraticSpline(5), CubicSpline(5)], ids=lambda s: type(s).__name__)
def test_tails_are_the_identity(spline):
    x = torch.tensor([[-1e6, -3.0, 3.0, 77.0]]).double()
    for way in (spline.call_and_ladj, spline.inverse_and_ladj):
        y, ladj = way(raws(spline).expand(-1, -1, 4), x)
        assert torch.equal(y, x.expand(N, 4))
        assert bool((ladj == 0).all())


@every
def test_equal_raw_numbers_are_the_identity(spline):
    x = torch.linspace(-3, 3, 50).double().expand(3, 50)
    y, ladj = spline.call_and_ladj(torch.zeros(3, spline.size, 50).double(), x)
    # knots in single precision would be off by 1e-8
    torch.testing.assert_close(y, x, rtol=0, atol=1e-13)
    torch.testing.assert_close(ladj, torch.zeros_like(ladj), rtol=0, atol=1e-13)


@every
@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_at_extreme_parameters(spline, scale, dtype):
    raw, x = raws(spline, scale, dtype=dtype), torch.linspace(-0.999, 0.999, 201).to(dtype) * spline.bound
    if isinstance(spline, CircularSpline):
        raw[:, -1] = raw[:, -1].clamp(-3, 3)
    raw = raw.expand(-1, -1, 201)
    y, ladj = spline.call_and_ladj(raw, x)
    back, back_ladj = spline.inverse_and_ladj(raw, y)
    assert bool(ladj.isfinite().all())
    gap = (back - x).abs()
    if spline.bound == math.pi:
        gap = torch.minimum(gap, 2 * math.pi - gap)  # of angles
    # A few roundings of y move x by the slope of the inverse, between x and where it comes back.
    steep = torch.exp(torch.maximum(back_ladj, -ladj)).clamp_min(1)
    assert bool((gap <= 100 * torch.finfo(dtype).eps * spline.bound * steep).all())
    y_again = spline.call_and_ladj(raw, back)[0]
    gap = (y_again - y).abs()
    if spline.bound == math.pi:
        gap = torch.minimum(gap, 2 * math.pi - gap)
    assert bool((gap <= 100 * torch.finfo(dtype).eps * spline.bound * ladj.exp().clamp_min(1)).all())


@every
def test_increasing_with_the_slope_that_autodiff_finds(spline):
    raw, x = raws(spline, 2.0), (torch.rand(N, 1).double() * 2 - 1) * spline.bound
    slope = vmap(grad(lambda x, r: spline.call_and_ladj(r, x)[0].sum()))(x, raw)
    torch.testing.assert_close(slope.log(), spline.call_and_ladj(raw, x)[1])


@every
def test_gradients_of_the_inverse_are_the_implicit_ones(spline):
    """dx/dp = -(dy/dp) / (dy/dx) at the solution."""
    raw, y = raws(spline).requires_grad_(), ((torch.rand(N, 1).double() * 2 - 1) * spline.bound).requires_grad_()
    x, ladj = spline.inverse_and_ladj(raw, y)
    found = torch.autograd.grad(x.sum(), [raw, y])
    there, slope = spline.call_and_ladj(raw, x.detach())
    (expected,) = torch.autograd.grad((-there / slope.exp().detach()).sum(), raw)
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], ladj.exp(), rtol=1e-6, atol=1e-6)


def test_steffens_slopes_are_exact_for_parabolas():
    """Steffen's slope is that of the parabola through three points: where no limit binds, the cubic is the parabola."""
    from pyrodgm.bijectors.spline_cubic import _steffen

    x = torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0]).double()
    y = x + 0.3 * x * x
    w, s = x.diff().unsqueeze(-1), (y.diff() / x.diff()).unsqueeze(-1)
    torch.testing.assert_close(_steffen(w, s)[1:-1, 0], 1 + 0.6 * x[1:-1])
    # and where one binds it is twice the smaller neighbour
    torch.testing.assert_close(
        _steffen(torch.ones(2, 1).double(), torch.tensor([[0.1], [5.0]]).double())[1, 0], torch.tensor(0.2).double()
    )


def test_the_circular_spline_is_a_map_of_the_circle():
    spline = CircularSpline(6)
    raw, x = raws(spline, 2.0).expand(-1, -1, 50), torch.linspace(-math.pi, math.pi, 50, dtype=torch.float64)
    y, ladj = spline.call_and_ladj(raw, x)
    torch.testing.assert_close(y[:, -1], y[:, 0] + 2 * math.pi)
    torch.testing.assert_close(ladj[:, -1], ladj[:, 0])
    for turns in (-3, 1):
        shifted = spline.call_and_ladj(raw[..., 1:-1], x[1:-1] + 2 * math.pi * turns)
        torch.testing.assert_close(shifted, (y[:, 1:-1] + 2 * math.pi * turns, ladj[:, 1:-1]))
    wrapped = CircularSpline(6, wrap=True).call_and_ladj(raw[..., :-1], x[:-1])
    torch.testing.assert_close(wrapped[0].cos(), y[:, :-1].cos())
    torch.testing.assert_close(wrapped[0].sin(), y[:, :-1].sin())
    assert bool(((wrapped[0] >= -math.pi) & (wrapped[0] < math.pi)).all())


def test_a_uniform_angle_keeps_a_total_of_one():
    """The density of F(angle), integrated around the circle; it is smooth, so equal steps are exact to rounding."""
    layer = Elementwise(1, CircularSpline(4, wrap=True)).double()
    with torch.no_grad():
        layer.free.copy_(raws(CircularSpline(4), 0.5)[0])
        y = (torch.arange(20_000).double() / 20_000 * 2 - 1).unsqueeze(-1) * math.pi
        x, ladj = layer.inv(y)
    assert bool(layer.condition().domain.check(x).all())
    # the slope has kinks at the knots, where the trapezoid's error is of the step squared
    assert abs(ladj.exp().mean() - 1) < 1e-6


def test_mistakes_are_named():
    for build, words in [
        (lambda: CubicSpline(1), "bins"),
        (lambda: CubicSpline(4, bound=-1.0), "bound > 0"),
        (lambda: CircularSpline(4, limit=0.0), "limit > 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            build()
    assert issubclass(CubicSpline, BinnedSpline)


def test_bins_meet_to_the_last_digits():
    """Where a bin ends the next one starts, on both axes, in double precision."""
    spline = RationalQuadraticSpline(5)
    raw = raws(spline, n=1)[0]
    widths = spline._parts(raw[:5]).squeeze(-1)
    found = find_bin(raw.expand(-1, 5), widths.cumsum(0) - widths / 2, 5, False)
    assert found.number.tolist() == [0, 1, 2, 3, 4]
    # A handful of roundings of numbers up to 1.
    torch.testing.assert_close((found.start + found.length)[:, :-1], found.start[:, 1:], rtol=0, atol=1e-15)
    torch.testing.assert_close((found.start + found.length)[:, -1], torch.ones(2).double(), rtol=0, atol=1e-15)


RATIONAL = [RationalQuadraticSpline(4), CircularSpline(3)]


def check_gradients(spline, inverse):
    """Of raw numbers and of x, once and twice, inside and outside of the interval, against finite differences."""
    raw = raws(spline, n=6).expand(-1, -1, 3).clone().requires_grad_()
    x = (torch.linspace(-0.95, 0.95, 18).double().reshape(6, 3) * spline.bound).clone()
    x[0, 0] = 4.0  # in the tail, or one turn on
    x.requires_grad_()
    way = spline.inverse_and_ladj if inverse else spline.call_and_ladj
    assert torch.autograd.gradcheck(way, (raw, x), raise_exception=False)
    assert torch.autograd.gradgradcheck(way, (raw, x), raise_exception=False)


@pytest.mark.parametrize("spline", [*RATIONAL, CubicSpline(3)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_in_closed_form(spline, inverse):
    check_gradients(spline, inverse)


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # torch's own forward mode still calls it
@pytest.mark.parametrize("spline", RATIONAL, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("inverse", [False, True])
def test_forward_mode_says_what_the_closed_form_says(spline, inverse):
    raw, x = raws(spline, n=6)[..., 0], torch.linspace(-0.9, 0.9, 6).double() * spline.bound
    way = spline.inverse_and_ladj if inverse else spline.call_and_ladj

    def total(raw):
        y, ladj = way(raw.unsqueeze(-1), x.unsqueeze(-1))
        return (y * (1 + ladj)).sum()

    torch.testing.assert_close(jacfwd(total)(raw), grad(total)(raw))
    torch.testing.assert_close(jacfwd(jacrev(total))(raw), jacrev(jacrev(total))(raw))


@pytest.mark.parametrize("spline", RATIONAL, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_by_row_under_vmap(spline, inverse):
    raw, x = raws(spline, n=6), torch.linspace(-0.9, 0.9, 6).double().reshape(6, 1) * spline.bound
    way = spline.inverse_and_ladj if inverse else spline.call_and_ladj

    def total(raw, x):
        y, ladj = way(raw, x)
        return (y.sin() + ladj.square()).sum()

    by_row = vmap(grad(total, argnums=(0, 1)))(raw, x)
    raw.requires_grad_()
    x.requires_grad_()
    torch.testing.assert_close(by_row, torch.autograd.grad(total(raw, x), (raw, x)))


def test_rational_quadratic_inverse_keeps_its_digits_on_steep_bins():
    """In single precision, of bins with parts and slopes over four orders: put into eq. 4 it gives back the value."""
    bins, n = 8, 50_000
    generator = torch.Generator().manual_seed(1)
    raw, y = 8 * torch.randn(3 * bins - 1, n, generator=generator), torch.rand(n, generator=generator)
    found = find_bin(raw, y, bins, True)
    slopes = positive_slope(found.slopes)
    xi = spline_rational._position(found, slopes, y, True).double()
    (_, y0), (w, h), (d0, d1) = found.start.double(), found.length.double(), slopes.double()
    s, both = h / w, xi * (1 - xi)
    back = y0 + h * (s * xi * xi + d0 * both) / (s + (d1 + d0 - 2 * s) * both)
    torch.testing.assert_close(
        back, y.double(), rtol=0, atol=5e-6
    )  # the root as it is printed, with a Newton step behind it, loses 1e-4 here


@every
def test_inverse_alone_is_the_fused_one(spline):
    raw, y = raws(spline).expand(-1, -1, 9), torch.linspace(-4, 4, 9).double().expand(N, 9)
    y = y.clamp(-3, 3) if getattr(spline, "wrap", False) else y
    expected = spline.inverse_and_ladj(raw, y)[0]
    torch.testing.assert_close(spline.inverse(raw, y), expected)
    with torch.no_grad():
        torch.testing.assert_close(spline.inverse(raw, y), expected, rtol=1e-10, atol=1e-10)
