"""The shape of the weights' tail: its threshold, ties, and weights that differ by rounding alone."""

import math

import pytest
import torch

from pyrodgm.evaluation import khat_threshold, pareto_k
from pyrodgm.evaluation.pareto import fit_pareto


def test_the_threshold_is_the_papers():
    assert khat_threshold(1000) == pytest.approx(2 / 3)
    assert khat_threshold(10**6) == 0.7
    shape = khat_threshold(200)  # so that the least number of draws for it, 10^(1 / (1 - k)), is 200
    assert 10 ** (1 / (1 - shape)) == pytest.approx(200)


@pytest.mark.parametrize("level", [0.0, -543.21])
def test_the_rounding_of_float32_is_no_tail(level):
    """A program sums in float32 what is scored in float64: equal weights come as that much noise."""
    noise = torch.distributions.StudentT(1.5).sample((2000,)).clamp(-20, 20)  # with a heavy tail of its own
    assert pareto_k((level + 1e-7 * max(1.0, abs(level)) * noise).double()) == -math.inf
    assert pareto_k((level + 10 * noise).double()) > 0.7


def test_weights_of_zero_are_no_rounding():
    weights = 2 * torch.randn(2000).double()
    expected = pareto_k(weights)
    weights[weights.argmin()] = -math.inf
    torch.testing.assert_close(pareto_k(weights), expected)


@pytest.mark.parametrize("size", [99, 100, 104, 120, 121])
def test_equal_excesses_have_a_shape(size):
    """Of 100 to 120 one point of the grid is theta = 0 exactly; the shape is far below 0, as of a bounded tail."""
    shape, scale = fit_pareto(torch.full((size,), 0.5).double())
    assert shape < -1
    assert bool(scale.isfinite())


def test_a_row_of_two_values_beside_another():
    """Two values of weights of which the larger fills the tail, with one in between as the cutoff."""
    weights = torch.stack((-5 - torch.rand(1200), torch.randn(1200)), -1).double()
    weights[:104, 0] = 0.0
    weights[104, 0] = math.log(0.5)
    found = pareto_k(weights)
    assert found[0] < 0
    torch.testing.assert_close(found[1], pareto_k(weights[:, 1]))
