"""Two-sample distances against their sums over pairs and against closed forms."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from pyrodgm.evaluation import two_sample
from pyrodgm.evaluation.two_sample import energy_distance, mmd


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def by_hand(x: Tensor, y: Tensor, s: float) -> tuple[float, float]:
    def mean(pairs: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        d = torch.stack([(a - b).norm() for a, b in pairs])
        return float(d.mean()), float((-d.square() / (2 * s * s)).exp().mean())

    cross = mean([(a, b) for a in x for b in y])
    own = [mean(list(itertools.permutations(list(z), 2))) for z in (x, y)]
    return 2 * cross[0] - own[0][0] - own[1][0], own[0][1] + own[1][1] - 2 * cross[1]


@pytest.mark.parametrize("at_once", [2**22, 40, 1])
def test_sums_over_pairs(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_sample, "_PAIRS_AT_ONCE", at_once)
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(11, 3, dtype=torch.float64) + 0.5
    distance, discrepancy = by_hand(x, y, 0.7)
    assert math.isclose(float(energy_distance(x, y)), distance, rel_tol=1e-10)
    assert math.isclose(float(mmd(x, y, 0.7)), discrepancy, rel_tol=1e-10)


def test_unbiased_where_the_samples_agree() -> None:
    draws = torch.tensor(
        [[f(torch.randn(20, 2), torch.randn(30, 2)) for f in (energy_distance, mmd)] for _ in range(200)]
    )
    assert (draws.mean(0).abs() < 4.5 * draws.std(0) / 200**0.5).all()
    assert (draws < 0).any(0).all()  # the biased versions never are


def test_closed_form_of_two_gaussians() -> None:
    x, y = torch.randn(1500, 1, dtype=torch.float64), torch.randn(1500, 1, dtype=torch.float64) + 2
    # x - y ~ N(-2, 2): E|N(m, s^2)| = s sqrt(2 / pi) exp(-m^2 / 2 s^2) + m erf(m / s sqrt 2)
    cross = 2 / math.sqrt(math.pi) * math.exp(-1) + 2 * math.erf(1)
    expected = 2 * cross - 4 / math.sqrt(math.pi)
    assert abs(energy_distance(x, y) - expected) < 0.2  # about four standard errors: |x - y| varies by 1.3 a row
    # with k of width 1: E k(x, x') = 1 / sqrt 3, E k(x, y) = exp(-4 / 6) / sqrt 3
    expected = 2 * (1 - math.exp(-2 / 3)) / math.sqrt(3)
    assert abs(mmd(x, y, 1.0) - expected) < 0.07


def test_median_bandwidth_dtype_and_events() -> None:
    x, y = torch.rand(9, 2, 2), torch.rand(8, 2, 2) + 0.3
    pooled = torch.cat((x, y)).flatten(1).double()
    median = torch.pdist(pooled).median()
    torch.testing.assert_close(mmd(x, y), mmd(x, y, median), rtol=1e-6, atol=1e-7)
    assert energy_distance(x, y).dtype == mmd(x, y).dtype == torch.float32
    assert energy_distance((x > 0.5), (y > 0.5)).dtype == torch.get_default_dtype()


def test_far_from_the_origin_no_digits_are_lost() -> None:
    x, y = torch.randn(40, 3, dtype=torch.float64), torch.randn(40, 3, dtype=torch.float64)
    torch.testing.assert_close(energy_distance(x + 2**20, y + 2**20), energy_distance(x, y), rtol=1e-6, atol=1e-8)


def test_gradients_move_a_sample_closer() -> None:
    x, y = torch.zeros(5, 2, dtype=torch.float64) + torch.randn(5, 2), torch.randn(50, 2, dtype=torch.float64) + 3
    for distance in (energy_distance, mmd):
        moving = x.double().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(distance(moving, y), moving)
        assert gradient.isfinite().all()
        assert distance(x.double() - 0.05 * gradient, y) < distance(x.double(), y)


def test_mistakes_are_named() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="one event shape"):
        energy_distance(x, torch.zeros(3, 4))
    with pytest.raises(ValueError, match="at least two rows"):
        mmd(x[:1], x)
    with pytest.raises(ValueError, match="bandwidth > 0"):
        mmd(x, x)
