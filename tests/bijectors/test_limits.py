"""What ``bound`` bounds: log-scales at any raw numbers, and where splines end; and the factor of a squeeze."""

import math

import pytest
import torch
from cases import HIDDEN
from torch.nn import functional as F

from pyrodgm.bijectors import (
    AffineCoupling,
    LeakyReLU,
    LinearSpline,
    MixtureLogisticCDF,
    Planar,
    QuadraticSpline,
    Radial,
    RationalQuadraticSpline,
    ScaleShift,
    Squeeze,
)
from pyrodgm.bijectors.mixture_cdf import _STRAIGHT

BOUND = 0.7


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("way", ["call_and_ladj", "inverse_and_ladj"])
def test_log_scales_end_at_the_bound(way, sign):
    far, other = sign * 1e6, sign if way == "call_and_ladj" else -sign
    x = numbers(-2.0)
    for univariate, raw in ((ScaleShift(BOUND), numbers(far, 0.0)), (LeakyReLU(BOUND), numbers(far))):
        y, ladj = getattr(univariate, way)(raw.unsqueeze(-1), x)
        torch.testing.assert_close((y, ladj), (x * math.exp(other * BOUND), numbers(other * BOUND)))


def test_an_affine_coupling_ends_at_its_bound():
    layer = AffineCoupling(5, hidden=HIDDEN, split=2, bound=BOUND).double()
    with torch.no_grad():
        layer.net[-1].bias[:3].fill_(1e6)  # of the three that it moves, the log-scales first
    torch.testing.assert_close(layer(torch.randn(4, 5).double())[1], torch.full((4,), 3 * BOUND).double())


def test_a_mixture_of_logistics_ends_at_its_bounds():
    r"""One component at the origin: logit F(x) = x e^{-s}, so the map is linear, with the slope that s and a give."""
    for scale, last in ((0.0, 1e6), (0.0, -1e6), (-1e6, 0.0), (1e6, 1e6)):
        raw = numbers(0.0, 0.0, scale, last, 0.0).unsqueeze(-1)
        s, a = (BOUND * math.tanh(value / BOUND) for value in (scale, last))
        slope = ((1 - _STRAIGHT) * math.exp(-s) + _STRAIGHT) * math.exp(a)
        y, ladj = MixtureLogisticCDF(1, BOUND).call_and_ladj(raw, numbers(0.3))
        torch.testing.assert_close((y, ladj), (0.3 * numbers(slope), numbers(slope).log()))


@pytest.mark.parametrize("kind", [RationalQuadraticSpline, QuadraticSpline, LinearSpline])
def test_splines_end_at_their_bound(kind):
    """Beyond it the identity, inside it not."""
    spline = kind(4, BOUND)
    raw = torch.randn(spline.size, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = numbers(-1.01, 1.01, 0.5, -0.5) * BOUND
    y, ladj = spline.call_and_ladj(raw, x)
    assert torch.equal(y[:2], x[:2])
    assert bool((ladj[:2] == 0).all())
    assert bool(((y - x)[2:].abs() > 1e-3).all())
    assert bool((y[2:].abs() < BOUND).all())


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_squeeze_takes_blocks_of_its_factor(factor):
    """Every new channel is a picture of the old ones at one place of the blocks."""
    layer, x = Squeeze((2, 6, 12), factor), torch.randn(5, 2, 6, 12)
    y, ladj = layer(x)
    assert y.shape == (5, 2 * factor**2, 6 // factor, 12 // factor) == (5, *layer.forward_shape((2, 6, 12)))
    assert torch.equal(layer.inv(y)[0], x)
    assert torch.equal(ladj, torch.zeros(5))
    channels = F.pixel_unshuffle(x, factor)
    assert sorted(channels[0].flatten(1).tolist()) == sorted(y[0].flatten(1).tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wu", [-20.0, -100.0])
def test_a_planar_map_is_never_flat(wu, dtype):
    """softplus(w.u) is lost beside -1, in float64 as well in the end; the slope at the plane is that of the floor."""
    layer = Planar(2).to(dtype)
    with torch.no_grad():
        layer.free.copy_(torch.tensor([wu, 0.5, 1.0, 0.0, 0.0]))  # u, w and b: the plane is x_0 = 0
        x = torch.tensor([[0.0, 0.0], [1e-3, 1.0], [2.0, -1.0]], dtype=dtype)
        y, ladj = layer(x)
        back, back_ladj = layer.inv(y)
    # Beside a u of 100 float32 holds w.u to 4e-6, which is 4 % of the floor.
    torch.testing.assert_close(ladj[0].exp(), torch.tensor(1e-4, dtype=dtype), rtol=0.05, atol=0)
    steep = torch.exp(-ladj).unsqueeze(-1)
    assert bool(((back - x).abs() <= 10 * torch.finfo(dtype).eps * steep).all())
    assert back_ladj.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_radial_map_is_never_flat(dtype):
    """softplus(beta) is lost beside alpha; the slope at the centre is that of the floor."""
    layer = Radial(2).to(dtype)
    with torch.no_grad():
        layer.free.copy_(torch.tensor([0.0, 0.0, 1.0, -60.0]))  # the centre, alpha and beta
        x = torch.tensor([[0.0, 0.0], [1e-3, 1.0], [2.0, -1.0]], dtype=dtype)
        y, ladj = layer(x)
        back, back_ladj = layer.inv(y)
    torch.testing.assert_close(ladj[0].exp(), torch.tensor(1e-8, dtype=dtype), rtol=0.01, atol=0)  # 1e-4 both ways
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(back_ladj, -ladj, rtol=1e-3, atol=1e-4)
