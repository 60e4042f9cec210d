"""Elementwise maps: round trips in the range that each documents, finite beyond it, and contexts."""

import pytest
import torch
from cases import HIDDEN, C, contexts, grow
from torch.func import grad, vmap

from pyrodgm.bijectors import Elementwise, LeakyReLU, ScaleShift, Shift, Sigmoid, Softplus, Tanh

# (map, range in float32, range in float64), as the docstrings say
RANGES = [(Sigmoid(), (-87, 15), (-708, 35)), (Tanh(), (-7, 7), (-17, 17)), (Softplus(), (-87, 1e3), (-708, 1e3))]
ACTIVATIONS = [Sigmoid(), Tanh(), Softplus(), LeakyReLU()]
by_name = {"ids": lambda u: type(u).__name__ if hasattr(u, "size") else ""}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("univariate", "single", "double"), RANGES, ids=["Sigmoid", "Tanh", "Softplus"])
def test_round_trip_in_the_documented_range(univariate, single, double, dtype):
    low, high = single if dtype == torch.float32 else double
    x = torch.cat((torch.linspace(low, high, 1001), 10.0 ** torch.arange(-6, 1))).to(dtype).clamp(low, high)
    for raw in (0.0, 0.7):
        rows = torch.full((1, len(x)), raw, dtype=dtype)
        t = x / torch.exp(rows[0])
        y, ladj = univariate.call_and_ladj(rows, t)
        back, back_ladj = univariate.inverse_and_ladj(rows, y)
        # a rounding of y, enlarged by the slope of the inverse; a few of them, and those of t itself
        eps = torch.finfo(dtype).eps
        assert bool(((back - t).abs() <= 8 * eps * (y.abs() * torch.exp(-ladj) + t.abs() + 1)).all())
        slack = 8 * eps * (y.abs() * torch.exp(-ladj) + t.abs() + 1)
        assert bool(((back_ladj + ladj).abs() <= 2 * torch.exp(rows[0]) * slack + 8 * eps).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("univariate", ACTIVATIONS, **by_name)
def test_finite_at_every_scale(univariate, dtype):
    x = torch.cat([s * torch.linspace(-3, 3, 41) for s in (1e-3, 1.0, 1e3)]).to(dtype)
    raw = torch.full((1, len(x)), 0.3, dtype=dtype)
    y, ladj = univariate.call_and_ladj(raw, x)
    assert bool(univariate.codomain.check(y).all())
    assert all(v.isfinite().all() for v in (y, ladj, *univariate.inverse_and_ladj(raw, y)))


@pytest.mark.parametrize("univariate", ACTIVATIONS, **by_name)
def test_slope_is_autodiffs(univariate):
    x, raw = torch.linspace(-3, 3, 60).double(), torch.linspace(-1, 1, 60).double().reshape(60, 1, 1)
    slope = vmap(grad(lambda x, r: univariate.call_and_ladj(r, x)[0].sum()))(x, raw)
    torch.testing.assert_close(slope.log(), univariate.call_and_ladj(raw[..., 0].T, x)[1])


@pytest.mark.parametrize("univariate", [*ACTIVATIONS, ScaleShift()], **by_name)
def test_the_context_sets_each_feature(univariate):
    layer = grow(Elementwise(3, univariate, context=C, hidden=HIDDEN)).double()
    x = torch.tensor([-1.0, 0.5, -2.0]).double().expand(4, 3)
    y, ladj = layer(x, contexts(4))
    assert bool((y.std(0)[[0, 2]] > 1e-6).all())
    raw = layer.net(contexts(4)).reshape(4, univariate.size, 3)
    expected_y, expected_ladj = univariate.call_and_ladj(raw, x)
    torch.testing.assert_close((y, ladj), (expected_y, expected_ladj.sum(-1)))
    torch.testing.assert_close(layer.inv(y, contexts(4)), (x, -ladj))


def test_it_starts_as_the_map_of_zeros_and_keeps_the_claim():
    assert Elementwise(2, Shift()).volume_preserving
    assert not Elementwise(2, ScaleShift()).volume_preserving
    x = torch.randn(4, 2)
    for context in (0, C):
        layer = Elementwise(2, LeakyReLU(), context=context)
        assert torch.equal(layer(x, contexts(4).float() if context else None)[0], x)


def test_mistakes_are_named():
    for build, words in [(lambda: Elementwise(0, Shift()), "features"), (lambda: LeakyReLU(0.0), "bound > 0")]:
        with pytest.raises(ValueError, match=words):
            build()
