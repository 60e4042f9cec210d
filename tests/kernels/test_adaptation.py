"""What warm-up learns, number by number: dual averaging, the harmonic mean, shrunk metrics, lengths and limits."""

import math

import pytest
import torch
from torch import Tensor

from pyrodgm.kernels import HMC, ChEES, Dense, Diagonal
from pyrodgm.kernels.adaptation import DualAveraging
from pyrodgm.kernels.base import Info
from pyrodgm.kernels.chees import chees_gradient
from pyrodgm.kernels.metric import Moments


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(x: Tensor) -> Tensor:
    return 0 * x.sum(-1)


def test_dual_averaging_is_its_sums() -> None:
    """The recursions of algorithm 5 unrolled: H_t is a sum over t + 10, the average a mean with weights t^-3/4."""
    accepted, target, start = [0.2, 0.9, 0.4, 1.0, 0.65], 0.7, 0.3
    averaging = DualAveraging(start, target)
    logs: list[float] = []
    for t, a in enumerate(accepted, 1):
        averaging.update(a)
        error = sum(target - b for b in accepted[:t]) / (t + 10)
        logs.append(math.log(10 * start) - math.sqrt(t) / 0.05 * error)
        assert math.log(averaging.step_size) == pytest.approx(logs[-1])
        weights = [s**-0.75 * math.prod(1 - r**-0.75 for r in range(s + 1, t + 1)) for s in range(1, t + 1)]
        assert math.log(averaging.average) == pytest.approx(sum(w * v for w, v in zip(weights, logs, strict=True)))


def test_the_step_is_tuned_by_the_harmonic_mean_of_the_chains_acceptance() -> None:
    kernel = HMC()
    state = kernel.init(lambda x: x.square().sum(-1) / 2, normal(3, 2))
    tuner = kernel.tuner(state, 100, torch.Generator().manual_seed(0))
    alone = DualAveraging(tuner.kernel.step_size, kernel.target)
    # 3 / (1 + 2 + 5) and, as a chain that is stuck counts as one in a hundred, 3 / (1 + 1 + 100)
    for accept_prob, mean in (([1.0, 0.5, 0.2], 0.375), ([1.0, 1.0, 0.0], 3 / 102)):
        tuner.update(state, state, Info(torch.tensor(accept_prob, dtype=torch.float64)))
        alone.update(mean)
        assert tuner.kernel.step_size == pytest.approx(alone.step_size)


@pytest.mark.parametrize("metric", [Diagonal(), Dense()])
def test_a_metric_of_few_draws_is_shrunk_as_stan_does(metric: Diagonal | Dense) -> None:
    x = normal(11, 3) @ normal(3, 3, seed=1)
    moments = Moments(metric.dense)
    moments.add(x)
    found = metric.estimated(moments, x).inverse_mass
    expected = 11 / 16 * x.T.cov() + 1e-3 * 5 / 16 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(found, expected if metric.dense else expected.diagonal())


def test_chains_count_by_their_acceptance_in_the_gradient_of_chees() -> None:
    """A chain of weight 3 counts as three chains of weight 1; the centres are zero by symmetry either way."""
    x, end, p = (torch.cat((v, -v)) for v in (normal(20, 2), normal(20, 2, seed=1), normal(20, 2, seed=2)))
    thrice = torch.arange(40) % 20 < 10
    each = torch.cat((torch.arange(40), *[thrice.nonzero().flatten()] * 2))
    ones = torch.ones(len(each), dtype=torch.float64)
    expected = chees_gradient(x[each], (end[each], p[each]), ones, 0.7, Diagonal())
    found = chees_gradient(x, (end, p), torch.where(thrice, 0.9, 0.3).double(), 0.7, Diagonal())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("kernel", "mean"),
    [(HMC(1.5, 0.01), 1.5), (HMC(1.5, 0.01, jitter=False), 1.5), (ChEES(1.5, 0.01), 0.75)],
    ids=["HMC", "HMC fixed length", "ChEES"],
)
def test_mean_length_of_trajectories(kernel: HMC | ChEES, mean: float) -> None:
    """T, whether it varies or not; of ChEES, whose T is the longest one, half of it."""
    state, times = kernel.init(flat, normal(2, 1)), []
    for _ in range(63):  # of the Halton sequence these are all 63 multiples of 1/64
        state, info = kernel.step(state)
        assert info.steps is not None
        times.append(0.01 * info.steps.double().mean().item())
    assert sum(times) / 63 == pytest.approx(mean, abs=0.01)  # the last step of a trajectory is whole
    assert (len(set(times)) > 1) == getattr(kernel, "jitter", True)


@pytest.mark.parametrize("build", [HMC, ChEES])
def test_no_trajectory_is_longer_than_max_steps(build: type[HMC] | type[ChEES]) -> None:
    kernel = build(length=100.0, step_size=0.1, max_steps=7)
    _, info = kernel.step(kernel.init(flat, normal(4, 1)))
    assert info.steps is not None
    assert (info.steps == 7).all()


def test_a_dense_metric_of_few_draws_in_float32() -> None:
    """Rank 27 of 50 and a floor below the rounding of float32: the matrix is mended, not the run ended."""
    torch.manual_seed(0)
    x = 100 * torch.randn(28, 50, dtype=torch.float64)
    covariance = x.T.cov() * 28 / 33 + 1e-3 * 5 / 33 * torch.eye(50, dtype=torch.float64)
    with pytest.raises(ValueError, match="positive definite"):
        Dense(covariance.float())
    found = Dense().fitted(covariance, torch.zeros((), dtype=torch.float32))
    assert found.inverse_mass is not None
    torch.testing.assert_close(
        found.inverse_mass, covariance.float(), rtol=1e-2, atol=1e-2 * covariance.diagonal().max().item()
    )
