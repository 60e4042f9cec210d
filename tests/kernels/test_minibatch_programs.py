"""Programs with subsampled plates under SGLD and SGHMC: unbiased gradients, the law of a conjugate model, mistakes."""

import itertools
import math
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import assert_means_agree, mean_and_error
from torch import Tensor

import pyrodgm
from pyrodgm.engine.subsampled import Rows, SubsampledEnergy, subsets
from pyrodgm.engine.unconstrained import UnconstrainedProgram
from pyrodgm.kernels import HMC, MALA, NUTS, SGHMC, SGLD, ParallelTempering, RandomWalk

D = torch.float64
QUIET = {"compile": False, "progress": False}
N, BATCH = 1000, 50
Y = 1.5 + torch.randn(N, dtype=D, generator=torch.Generator().manual_seed(0))
PRECISION = N + 1.0  # of mu ~ N(0, 1), y ~ N(mu, 1)


def t(value: float) -> Tensor:
    return torch.tensor(value, dtype=D)


def gaussian(y: Tensor, batch: int | None = BATCH) -> None:
    mu = pyro.sample("mu", dist.Normal(t(0.0), 1.0))
    with pyro.plate("rows", len(y), subsample_size=batch) as rows:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])


def regression(x: Tensor, y: Tensor, batch: int | None, of_features: int | None = None) -> None:
    """Two subsampled plates, one inside the other, a scale of positive support and pyro.subsample."""
    scale = pyro.sample("scale", dist.Gamma(t(3.0), 2.0))
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
    pyro.deterministic("precision", scale**-2)
    columns = pyro.plate("columns", y.shape[0], subsample_size=of_features, dim=-2)
    with columns, pyro.plate("rows", y.shape[1], subsample_size=batch, dim=-1):
        mean = pyro.subsample(x @ weight, event_dim=0)
        pyro.deterministic("mean", mean)
        pyro.sample("y", dist.Normal(mean, scale), obs=pyro.subsample(y, event_dim=0))


def every_subset(size: int, count: int) -> Tensor:
    return torch.tensor(list(itertools.combinations(range(size), count)))


def test_the_mean_over_all_subsets_is_the_gradient_of_the_whole() -> None:
    y = Y[:6]
    part, whole = UnconstrainedProgram(gaussian, (y, 2)), UnconstrainedProgram(gaussian, (y, None))
    u = torch.tensor([0.7], dtype=D)
    gradient = torch.func.grad(part)
    mean = torch.stack([gradient(u, rows) for rows in every_subset(6, 2)]).mean(0)
    torch.testing.assert_close(mean, torch.func.grad(whole)(u))
    torch.testing.assert_close(mean, 7 * u - y.sum())
    assert (gradient(u, torch.tensor([0, 1])) - mean).abs() > 0.1  # so that the mean says something


def test_nested_plates_and_supports() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 2, dtype=D, generator=generator)
    y = torch.randn(3, 5, dtype=D, generator=generator)
    part = UnconstrainedProgram(regression, (x.expand(3, 5, 2), y, 2, 2))
    whole = UnconstrainedProgram(regression, (x.expand(3, 5, 2), y, None))
    assert part.subsampled == {"columns": Rows(3, 2), "rows": Rows(5, 2)}
    u = torch.tensor([0.3, -0.4, 0.9], dtype=D)
    every = itertools.product(every_subset(3, 2), every_subset(5, 2))
    gradients = torch.stack([torch.func.grad(part)(u, *rows) for rows in every])
    torch.testing.assert_close(gradients.mean(0), torch.func.grad(whole)(u))
    # what depends on the rows of the moment is no draw
    assert set(part.constrain(u)) == {"scale", "weight", "precision"}
    torch.testing.assert_close(part.constrain(u)["precision"], whole.constrain(u)["precision"])


@pytest.mark.parametrize("size", [5, 30_000])
def test_subsets_are_uniform(size: int) -> None:
    """Of five rows by sorting; of many by Floyd's loop, of which the first and last rows are looked at."""
    chains = 40_000
    drawn = subsets(Rows(size, 3), chains, torch.Generator().manual_seed(2), torch.device("cpu"))
    assert drawn.shape == (chains, 3)
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < size
    assert bool((drawn.sort(-1).values.diff(dim=-1) > 0).all())
    if size == 5:
        which = (drawn.sort(-1).values.unsqueeze(1) == every_subset(5, 3)).all(-1).double()
        assert_means_agree(*mean_and_error(which), torch.full((10,), 0.1, dtype=D))
    else:
        mean, error = mean_and_error(drawn.double().mean(-1))
        assert_means_agree(mean, error, t((size - 1) / 2))


def test_floyds_loop_is_uniform_over_all_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrodgm.engine.subsampled._SHUFFLED", 0)
    drawn = subsets(Rows(5, 3), 40_000, torch.Generator().manual_seed(3), torch.device("cpu"))
    which = (drawn.sort(-1).values.unsqueeze(1) == every_subset(5, 3)).all(-1).double()
    assert_means_agree(*mean_and_error(which), torch.full((10,), 0.1, dtype=D))


def gradient_variance(batch: int = BATCH) -> float:
    """Of the gradient at any mu: a mean of n of N without replacement, N times."""
    return N**2 / batch * (1 - batch / N) * Y.var(correction=1).item()


def test_each_chain_has_rows_of_its_own_at_each_step() -> None:
    energy = SubsampledEnergy(UnconstrainedProgram(gaussian, (Y,)), compile=False)
    u = torch.full((4000, 1), 0.7, dtype=D)
    generator = torch.Generator().manual_seed(4)
    first, second = (energy.noisy_gradient(u, generator) for _ in range(2))
    for found in (first, second):
        assert_means_agree(*mean_and_error(found), PRECISION * 0.7 - Y.sum())
        assert_means_agree(*mean_and_error((found - found.mean()).square()), t(gradient_variance()))
    both = torch.cat((first, second), 1)
    assert abs(torch.corrcoef(both.t())[0, 1]) < 4.5 / math.sqrt(4000)


def run(kernel: Any, **options: Any) -> pyrodgm.Posterior:
    near = {"mu": Y.sum() / PRECISION}
    settings = {"chains": 4000, "warmup": 60, "draws": 1, "initial": near, **QUIET, **options}
    return pyrodgm.mcmc(gaussian, kernel, Y, **settings)


@pytest.mark.parametrize("step", [0.02, 0.01])
def test_sgld_has_the_mean_and_its_known_excess_of_variance(step: float) -> None:
    r"""x' = a x + noise with a = 1 - h P / 2, h = step^2: variance (h + h^2 V / 4) / (1 - a^2), V of the gradient.

    To first order in h that is 1 / P + h (P + V) / (4 P): it falls to the posterior's 1 / P with the step.
    """
    h = step**2
    a = 1 - h * PRECISION / 2
    steps = math.ceil(math.log(1e-4) / math.log(a))  # the start is forgotten to 1e-4
    x = run(SGLD(step), warmup=steps)["mu"].reshape(-1, 1)
    expected = (h + h**2 / 4 * gradient_variance()) / (1 - a**2)
    assert_means_agree(*mean_and_error(x), Y.sum() / PRECISION)
    assert_means_agree(*mean_and_error((x - x.mean()).square()), t(expected))
    excess = h * (PRECISION + gradient_variance()) / (4 * PRECISION)
    assert abs(expected - 1 / PRECISION) < 1.2 * excess


def test_a_small_step_has_the_posterior() -> None:
    step = 0.002
    steps = math.ceil(math.log(1e-2) / math.log(1 - step**2 * PRECISION / 2))
    x = run(SGLD(step), warmup=steps, chains=500)["mu"].reshape(-1, 1)
    error = math.sqrt(2 / 500)  # of a variance by 500 chains, relative
    bias = step**2 * (PRECISION + gradient_variance()) / 4  # relative to 1 / P
    assert bias < 0.03
    assert x.var().item() * PRECISION == pytest.approx(1.0, abs=4 * error + bias)


def test_sghmc_runs_programs_too() -> None:
    kernel = SGHMC(0.003, friction=0.2, noise=0.003**2 * gradient_variance() / 2)
    x = run(kernel, warmup=400, chains=1000)["mu"].reshape(-1, 1)
    assert_means_agree(*mean_and_error(x), Y.sum() / PRECISION)
    # the noise is corrected for; what is left is the discretisation, O(step), some per cent here
    assert x.var().item() * PRECISION == pytest.approx(1.0, abs=0.05 + 4 * math.sqrt(2 / 1000))


def test_seeds_repeat() -> None:
    first, again, other = (run(SGLD(0.01), chains=3, draws=5, seed=s)["mu"] for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_stored_run_goes_on_with_the_same_rows(tmp_path: Any) -> None:
    options = {"chains": 3, "warmup": 5, "seed": 7}
    whole = run(SGLD(0.01), draws=200, **options)["mu"]
    run(SGLD(0.01), draws=100, store=tmp_path, **options)
    rest = run(SGLD(0.01), draws=200, store=tmp_path, **options)["mu"]
    assert torch.equal(whole, rest)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_compiled_is_eager() -> None:
    x = torch.randn(5, 2, dtype=D)
    program = UnconstrainedProgram(regression, (x, Y[:15].reshape(3, 5), 2))
    u = torch.randn(4, 3, dtype=D)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a fall-back to eager
        plain, compiled = (
            SubsampledEnergy(program, compile).noisy_gradient(u, torch.Generator().manual_seed(8))
            for compile in (False, True)
        )
    torch.testing.assert_close(plain, compiled)


def test_likelihoods_and_predictions_are_of_all_rows() -> None:
    """Seven rows in blocks of three: the last one overlaps."""
    y = Y[:7]
    few = pyrodgm.mcmc(gaussian, SGLD(0.1), y, 3, chains=2, warmup=5, draws=4, **QUIET)
    mu = few["mu"].unsqueeze(-1)
    torch.testing.assert_close(few.log_likelihood()["y"], dist.Normal(mu, 1.0).log_prob(y))
    predicted = few.posterior_predictive()["y"]
    assert predicted.shape == (2, 4, 7)
    assert (predicted - mu).std() == pytest.approx(1.0, abs=4 / math.sqrt(2 * 56))
    data = few.to_arviz(prior_draws=3)
    assert torch.equal(torch.as_tensor(data["observed_data"]["y"].values), y)


def test_events_and_whole_sites_beside_a_subsample() -> None:
    rows = torch.randn(5, 3, dtype=D, generator=torch.Generator().manual_seed(9))

    def program() -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3, dtype=D), 1.0).to_event(1))
        pyro.sample("once", dist.Normal(mu.sum(), 1.0), obs=t(0.5))
        with pyro.plate("rows", 5, subsample_size=2) as which:
            pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=rows[which])

    few = pyrodgm.mcmc(program, SGLD(0.1), chains=2, warmup=5, draws=3, **QUIET)
    mu = few["mu"]
    found = few.log_likelihood()
    torch.testing.assert_close(found["y"], dist.Normal(mu.unsqueeze(2), 1.0).to_event(1).log_prob(rows))
    torch.testing.assert_close(found["once"], dist.Normal(mu.sum(-1), 1.0).log_prob(t(0.5)))
    assert few.posterior_predictive()["y"].shape == (2, 3, 5, 3)
    assert torch.equal(torch.as_tensor(few.to_arviz(prior_draws=2)["observed_data"]["y"].values), rows)


@pytest.mark.parametrize(
    "kernel",
    [HMC(), NUTS(), MALA(0.1), RandomWalk(0.1), ParallelTempering(MALA(0.1), 2)],
    ids=lambda k: type(k).__name__,
)
def test_kernels_that_compare_energies_are_refused(kernel: Any) -> None:
    with pytest.raises(ValueError, match=r"50 of 1000 in 'rows'.*use SGLD or SGHMC, or drop subsample_size="):
        run(kernel)
    with pytest.raises(ValueError, match="use SGLD or SGHMC"):
        pyrodgm.smc(gaussian, Y, particles=5, runs=2)


def test_what_has_no_unbiased_gradient_is_refused() -> None:
    def local(y: Tensor) -> None:
        with pyro.plate("rows", len(y), subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(t(0.0), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])

    def given(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(t(0.0), 1.0))
        with pyro.plate("rows", len(y), subsample=torch.arange(2)) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

    def loop(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(t(0.0), 1.0))
        for i in pyro.plate("rows", len(y), subsample_size=2):
            pyro.sample(f"y{i}", dist.Normal(mu, 1.0), obs=y[i])

    def mixture(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
        with pyro.plate("rows", len(y), subsample_size=2) as rows:
            which = pyro.sample("which", dist.Categorical(torch.ones(2, dtype=D)))
            pyro.sample("y", dist.Normal(mu[which], 1.0), obs=y[rows])

    for program, message in (
        (local, "latent sites outside the subsampled plate 'rows', got 'z'"),
        (given, "got subsample= with 2 of 6 in 'rows'"),
        (loop, "got a loop over a subsample"),
        (mixture, "no discrete latent sites beside the subsampled plate"),
    ):
        with pytest.raises(ValueError, match=message):
            pyrodgm.mcmc(program, SGLD(0.1), Y[:6], **QUIET)
    two = pyrodgm.mcmc(regression, SGLD(0.01), torch.ones(3, 5, 2, dtype=D), Y[:15].reshape(3, 5), 2, 2, **QUIET)
    with pytest.raises(ValueError, match="expected one subsampled plate"):
        two.log_likelihood()
