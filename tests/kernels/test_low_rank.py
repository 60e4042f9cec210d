"""The low-rank metric: products against dense matrices, the estimator against closed forms, and what it is good for."""

from typing import Any

import pytest
import torch
from cases import assert_means_agree, mean_and_error
from test_hamiltonian import Banana, Gaussian, check_invariance, generator, normal
from torch import Tensor

from pyrodgm.diagnostics.inference_data import arviz, many_chains
from pyrodgm.kernels import HMC, NUTS, ChEES, Dense, Diagonal, LowRank
from pyrodgm.kernels.hamiltonian import leapfrog
from pyrodgm.kernels.low_rank import Draws, fisher_low_rank
from pyrodgm.kernels.metric import Moments

D = 6


def covariance(size: int = D, seed: int = 0) -> Tensor:
    root = normal(size, size, seed=seed)
    return root @ root.T + 0.1 * torch.eye(size).double()


def metric(rank: int = 2, size: int = D) -> LowRank:
    directions = torch.linalg.qr(normal(size, rank, seed=1)).Q.T.contiguous()
    return LowRank(
        rank, scale=torch.linspace(0.5, 2, size).double(), directions=directions, values=2.0 ** -normal(rank)
    )


def matrix(metric: LowRank) -> Tensor:
    """M^-1 by its formula."""
    assert metric.inverse_mass is not None
    rows = metric.inverse_mass[0]
    scale, directions, values = rows[0].diag(), rows[1:-1], rows[-1, : len(rows) - 2]
    return scale @ (torch.eye(len(scale)).double() + directions.T @ (values - 1).diag() @ directions) @ scale


def check_products(metric: LowRank) -> None:
    """All that a metric does, against the matrix."""
    inverse = matrix(metric)
    x = normal(7, D, seed=2)
    torch.testing.assert_close(metric.velocity(x), x @ inverse)
    torch.testing.assert_close(metric.weigh(x), x @ inverse.inverse())
    torch.testing.assert_close(metric.kinetic(x), (x @ inverse * x).sum(-1) / 2)
    p = metric.momentum(torch.zeros(50_000, D).double(), generator())
    outer = (p.unsqueeze(-1) * p.unsqueeze(-2)).flatten(1)
    assert_means_agree(*mean_and_error(outer), inverse.inverse().flatten())


def test_products_are_those_of_the_matrix() -> None:
    check_products(metric())
    wide = metric()
    x = normal(5, 2, 3, seed=2)
    torch.testing.assert_close(wide.velocity(x).flatten(1), wide.velocity(x.flatten(1)))
    torch.testing.assert_close(wide.weigh(x).flatten(1), wide.weigh(x.flatten(1)))
    assert wide.momentum(x, generator()).shape == x.shape


def test_without_an_estimate_it_is_the_identity() -> None:
    x = normal(4, D)
    plain = LowRank(2)
    for same in (plain.velocity(x), plain.weigh(x)):
        torch.testing.assert_close(same, x)
    assert torch.equal(plain.momentum(x, generator()), Diagonal().momentum(x, generator()))
    assert plain.inverse(x).shape == metric(2).inverse(x).shape  # graphs stay when warm-up has found one


def test_of_full_rank_it_is_the_dense_metric() -> None:
    sigma = covariance()
    values, vectors = torch.linalg.eigh(sigma)
    full = LowRank(D, scale=torch.ones(D).double(), directions=vectors.T.contiguous(), values=values)
    x, p = normal(9, D, seed=3), normal(9, D, seed=4)
    torch.testing.assert_close(full.velocity(p), Dense(sigma).velocity(p))
    torch.testing.assert_close(full.weigh(p), Dense(sigma).weigh(p))

    def energy(x: Tensor) -> Tensor:
        return x.square().square().sum(-1)

    given = (energy, x, p, 4 * x**3, 0.05)
    for a, b in zip(leapfrog(*given, full, 5), leapfrog(*given, Dense(sigma), 5), strict=True):
        torch.testing.assert_close(a, b)


def test_on_a_gaussian_the_estimate_is_exact() -> None:
    """More draws than dimensions, with their gradients, are the whole covariance: no error of sampling is left."""
    sigma = covariance()
    x = normal(D + 2, D, seed=5) + 3.0
    scale, directions, values = fisher_low_rank(x, (x - 1.0) @ sigma.inverse(), D, cutoff=1.0, ridge=0.0)
    torch.testing.assert_close(matrix(LowRank(D, 1.0, scale, directions, values)), sigma)
    # the ridge moves directions by its share of their variance in the metric's units
    ridged = fisher_low_rank(x, (x - 1.0) @ sigma.inverse(), D, cutoff=1.0)
    torch.testing.assert_close(matrix(LowRank(D, 1.0, *ridged)), sigma, rtol=0.05, atol=0.05)


def spiked(size: int = 100) -> tuple[Tensor, Tensor]:
    """Directions and variances of a Gaussian that a diagonal cannot mend: three wide and two narrow ones across."""
    variances = torch.ones(size).double()
    variances[:3], variances[-2:] = torch.tensor([1e3, 1e3, 1e2]).double(), 1e-2
    return torch.linalg.qr(normal(size, size, seed=6)).Q, variances


def test_few_directions_and_few_draws_are_enough() -> None:
    basis, variances = spiked()
    precision = (basis / variances) @ basis.T
    x = normal(60, 100, seed=7) * variances.sqrt() @ basis.T  # fewer draws than dimensions
    draws = LowRank(5).moments()
    draws.add(x, x @ precision)
    found = LowRank(5).estimated(draws, x)
    root = torch.linalg.cholesky(precision)
    left = torch.linalg.eigvalsh(root.T @ found.velocity(torch.eye(100).double()) @ root)
    alone = torch.linalg.eigvalsh(root.T @ (x.var(0).unsqueeze(-1) * root))
    assert left[-1] / left[0] < 100 < 1e4 < alone[-1] / alone[0]  # condition numbers, 1e5 without any metric


def test_directions_within_the_cutoff_are_left_out() -> None:
    x = normal(4000, 20, seed=8)
    scale, directions, values = fisher_low_rank(x, x, 4)
    assert torch.equal(values, torch.ones(4).double())
    assert not directions.any()
    torch.testing.assert_close(scale, torch.ones(20).double())
    flat = fisher_low_rank(torch.cat((x, torch.zeros(4000, 1).double()), 1), torch.zeros(4000, 21).double(), 2)
    assert all(part.isfinite().all() for part in flat)  # an energy without slope, a coordinate that stands
    few = fisher_low_rank(x[:3], x[:3], 4, cutoff=1.0)
    assert [tuple(part.shape) for part in few] == [(20,), (4, 20), (4,)]


@pytest.mark.parametrize("target", [Gaussian, Banana], ids=lambda target: target.__name__)
@pytest.mark.parametrize("make", [HMC, NUTS], ids=lambda make: make.__name__)
def test_targets_stay_invariant(make: Any, target: Any) -> None:
    turned = torch.tensor([[0.6, 0.8]]).double()
    low_rank = LowRank(1, scale=torch.tensor([1.0, 0.7]).double(), directions=turned, values=torch.ones(1).double() * 3)
    check_invariance(make(metric=low_rank, step_size=0.4), target)


def effective_per_gradient(kernel: Any) -> float:
    """Of the worst of the spiked directions, after a warm-up of 80 steps of 32 chains."""
    basis, variances = spiked()
    precision = (basis / variances) @ basis.T
    g = generator(1)
    state = kernel.init(lambda x: ((x @ precision) * x).sum(-1) / 2, normal(32, 100, seed=9))
    tuner = kernel.tuner(state, 80, g)
    for _ in range(80):
        before = state
        state, info = tuner.kernel.step(before, g)
        tuner.update(before, state, info)
    draws, gradients = [], 0
    for _ in range(40):
        state, info = tuner.kernel.step(state, g)
        draws.append(state.positions @ basis)
        gradients += int(info.steps.sum())
    x = torch.stack(draws, 1)
    with many_chains():
        ess = min(float(arviz().ess(x[..., i].numpy())) for i in (0, 1, 2, 50, 98, 99))
    ratio = x.square().mean((0, 1)) / variances
    if ess > 400:  # where there are draws enough to tell: sqrt(2 / 400) = 7 % each, 100 of them
        assert ((ratio - 1).abs() < 0.35).all()
    return ess / gradients


def test_it_is_worth_many_gradients_where_few_directions_are_strong() -> None:
    """Trajectories of the time that suits a sphere are whole ones only in the right units."""
    low, diagonal = effective_per_gradient(HMC(metric=LowRank(10))), effective_per_gradient(HMC())
    assert low > 5 * diagonal


@pytest.mark.parametrize("make", [ChEES, NUTS], ids=lambda make: make.__name__)
def test_warm_up_finds_it(make: Any) -> None:
    sigma = covariance(3)
    precision, g = sigma.inverse(), generator()
    kernel = make(metric=LowRank(3, cutoff=1.0))
    state = kernel.init(lambda x: ((x @ precision) * x).sum(-1) / 2, normal(32, 3))
    tuner = kernel.tuner(state, 80, g)
    for _ in range(80):
        before = state
        state, info = tuner.kernel.step(before, g)
        tuner.update(before, state, info)
    found = tuner.kernel.metric.velocity(torch.eye(3).double())
    torch.testing.assert_close(found, sigma, rtol=0.01, atol=0.01)  # exact but for the ridge


def test_stretch_is_the_largest_ratio() -> None:
    old, new = metric(), metric(3)
    expected = torch.linalg.eigvals(matrix(old).inverse() @ matrix(new)).real.max().sqrt().item()
    assert old.stretch(new) == pytest.approx(expected, rel=1e-3)
    assert LowRank(3).stretch(new) == pytest.approx(torch.linalg.eigvalsh(matrix(new))[-1].sqrt().item(), rel=1e-3)
    assert old.stretch(LowRank(2)) == 1.0


def test_a_store_can_build_it_again() -> None:
    made = metric()
    assert made.inverse_mass is not None
    again = LowRank(2).fitted(made.inverse_mass, torch.zeros(1))
    assert again.inverse_mass is not None
    torch.testing.assert_close(again.inverse_mass, made.inverse_mass.float())


def test_draws_are_thinned_evenly() -> None:
    draws = Draws(most=20)
    for i in range(50):
        draws.add(torch.full((2, 1), float(i)), torch.full((2, 1), -float(i)))
    assert draws.count == len(draws.rows()) <= 20
    steps = draws.rows()[::2, 0].diff()
    assert (steps == steps[0]).all()
    assert draws.rows()[-1] > 40
    assert torch.equal(draws.gradients(), -draws.rows())
    draws = Draws(most=1000)  # chains by the hundred: some of each step, and not all of the first
    for i in range(20):
        draws.add(torch.full((600, 1), float(i)), torch.zeros(600, 1))
    assert draws.count <= 1000
    assert len(draws.rows().unique()) >= 4
    assert draws.rows().max() > 10


def test_mistakes_say_so() -> None:
    one, turned = torch.ones(1), torch.eye(2)[:1]
    for bad, message in (
        (lambda: LowRank(0), "rank >= 1"),
        (lambda: LowRank(cutoff=0.5), "cutoff >= 1"),
        (lambda: LowRank(scale=torch.ones(2)), "together"),
        (lambda: LowRank(1, scale=torch.ones(3), directions=turned, values=one), r"directions \(K, 3\)"),
        (lambda: LowRank(1, scale=torch.zeros(2), directions=turned, values=one), "positive"),
        (lambda: LowRank(1, scale=torch.ones(2), directions=2 * turned, values=one), "orthonormal"),
        (lambda: metric().velocity(torch.ones(1, 3).double()), r"LowRank\(2\)"),
        (lambda: Draws().add(torch.ones(2, 2)), "gradients"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()
    with pytest.raises(TypeError, match=r"metric\.moments"):
        LowRank().estimated(Moments(), torch.ones(1, 2))
    with pytest.raises(TypeError, match=r"metric\.moments"):
        Diagonal().estimated(Draws(), torch.ones(1, 2))
