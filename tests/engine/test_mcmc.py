"""pyrodgm.mcmc: posteriors against closed forms, quadrature and Pyro; supports, enumeration, seeds, stores, arviz."""

import math
import subprocess
import sys
import warnings
from typing import Any

import arviz as az
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions import biject_to
from torch.fx.experimental.proxy_tensor import get_proxy_mode

import pyrodgm
from pyrodgm.core import Energy
from pyrodgm.diagnostics.inference_data import many_chains
from pyrodgm.energy import RBM, BoltzmannMachine, DeepBeliefNetwork, DeepBoltzmannMachine
from pyrodgm.engine import target, unconstrained
from pyrodgm.engine.batched import BatchedEnergy
from pyrodgm.engine.unconstrained import UnconstrainedProgram
from pyrodgm.kernels import HMC, MALA, MEADS, NUTS, BlockGibbs, ChEES, Dense, GibbsSweep, LowRank, RandomWalk
from pyrodgm.kernels.hamiltonian import leapfrog_step
from pyrodgm.tractable import IAF

matplotlib.use("Agg")
D = torch.float64
QUIET = {"compile": False, "progress": False}


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def assert_mean(draws: Tensor, expected: Tensor | float) -> None:
    """Chains (chains, draws) against a mean: 4.5 Monte Carlo standard errors by arviz's effective sample size."""
    values = draws.double().numpy()
    with many_chains():
        error, rhat = float(az.mcse(values)), float(az.rhat(values))
    assert rhat < 1.05
    assert abs(values.mean() - float(expected)) < 4.5 * error, (values.mean(), float(expected), error)


def conjugate(y: Tensor) -> None:
    """Normal data with unknown mean and precision under the conjugate normal-gamma prior."""
    precision = pyro.sample("precision", dist.Gamma(t(3.0)[0], t(2.0)[0]))
    mu = pyro.sample("mu", dist.Normal(t(0.5)[0], (1 / (2 * precision)).sqrt()))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, precision.rsqrt()), obs=y)


Y = t(0.3, 1.9, 1.1, 2.2, 0.8, -0.7, 1.4)


def conjugate_moments() -> dict[str, float]:
    """Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution, eq. 85-89."""
    n, k0, m0, a0, b0 = len(Y), 2.0, 0.5, 3.0, 2.0
    k, a = k0 + n, a0 + n / 2
    m = (k0 * m0 + Y.sum().item()) / k
    b = b0 + 0.5 * (Y - Y.mean()).square().sum().item() + k0 * n * (Y.mean().item() - m0) ** 2 / (2 * k)
    return {"mu": m, "mu^2": m**2 + b / (k * (a - 1)), "precision": a / b, "precision^2": a * (a + 1) / b**2}


def check_conjugate(kernel: Any, **options: Any) -> pyrodgm.Posterior:
    settings = {"chains": 64, "warmup": 120, "draws": 60, "seed": 3, **QUIET, **options}
    posterior = pyrodgm.mcmc(conjugate, kernel, Y, **settings)
    expected = conjugate_moments()
    for site in ("mu", "precision"):
        assert_mean(posterior[site], expected[site])
        assert_mean(posterior[site].square(), expected[f"{site}^2"])
    return posterior


@pytest.mark.parametrize("kernel", [HMC(), ChEES(), NUTS(), MEADS(moves=5), MALA(0.2)], ids=lambda k: type(k).__name__)
def test_conjugate_posterior(kernel: Any) -> None:
    slow = isinstance(kernel, MALA)
    near = {"mu": t(1.0)[0], "precision": t(1.0)[0]}  # far out a step of fixed size is never accepted
    posterior = check_conjugate(kernel, thin=20 if slow else 1, initial=near if slow else None)
    assert posterior["mu"].shape == (64, 60)
    assert posterior["mu"].dtype == D
    assert (posterior["precision"] > 0).all()
    program = UnconstrainedProgram(conjugate, (Y,))
    u = program.unconstrain({k: posterior[k][2, 5] for k in ("mu", "precision")})
    torch.testing.assert_close(posterior.sample_stats["lp"][2, 5], -program(u))
    assert all(v.shape == (64, 60) for v in posterior.sample_stats.values())


def test_without_the_jacobian_the_posterior_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat(unconstrained._Place):
        def _pyro_sample(self, msg: Any) -> None:
            super()._pyro_sample(msg)
            self.ladj = self.vector.new_zeros(())

    monkeypatch.setattr(unconstrained, "_Place", Flat)
    with pytest.raises(AssertionError):
        check_conjugate(HMC())


def test_compiled_is_eager() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # inductor's own
        energies = [BatchedEnergy(UnconstrainedProgram(conjugate, (Y,)), compile) for compile in (False, True)]
        x = torch.randn(5, 2, dtype=D)
        plain, compiled = (energy.energy_and_gradient(x) for energy in energies)
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b)
    leaf = x.clone().requires_grad_()
    energy = torch.stack([UnconstrainedProgram(conjugate, (Y,))(row) for row in leaf])
    torch.testing.assert_close(plain[0], energy)
    torch.testing.assert_close(plain[1], torch.autograd.grad(energy.sum(), leaf)[0])


def many_supports() -> None:
    pyro.sample("scale", dist.HalfCauchy(t(1.0)[0]))
    pyro.sample("weights", dist.Dirichlet(t(1.0, 2.0, 3.0)))
    pyro.sample("corr", dist.LKJCholesky(3, t(2.0)[0]))
    pyro.sample("between", dist.Uniform(t(-1.0)[0], t(3.0)[0]))
    with pyro.plate("a", 2, dim=-2), pyro.plate("b", 3, dim=-1):
        pyro.sample("beta", dist.Beta(t(2.0)[0], t(3.0)[0]))
        pyro.sample("vector", dist.Normal(torch.zeros(4, dtype=D), 1.0).to_event(1))


def test_energy_is_pyros_own() -> None:
    program = UnconstrainedProgram(many_supports)
    assert program.size == 1 + 2 + 3 + 1 + 6 + 24
    _, potential, _, _ = initialize_model(many_supports)
    for u in torch.randn(3, program.size, dtype=D):
        parts = {k: u[s.start : s.stop].reshape(s.shape) for k, s in program.slots.items()}
        torch.testing.assert_close(program(u), potential(parts).reshape(()))
        values = program.constrain(u)
        torch.testing.assert_close(program.unconstrain(values), u)
        assert values["vector"].shape == (2, 3, 4)


def test_supports_may_depend_on_other_sites() -> None:
    """Pyro's own potential keeps the support of its first trace; here it is that of each point."""

    def program() -> None:
        width = pyro.sample("width", dist.Gamma(t(3.0)[0], t(2.0)[0]))
        pyro.sample("x", dist.Uniform(-width, width))

    posterior = pyrodgm.mcmc(program, HMC(), chains=64, warmup=100, draws=80, **QUIET)
    assert (posterior["x"].abs() <= posterior["width"]).all()
    assert_mean(posterior["width"], 1.5)
    assert_mean(posterior["x"].square(), (1.5**2 + 0.75) / 3)  # E w^2 / 3


def mixture(x: Tensor) -> None:
    weight = pyro.sample("weight", dist.Beta(t(2.0)[0], t(2.0)[0]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(weight))
        pyro.sample("x", dist.Normal(3 * z, 1.0), obs=x)


def test_discrete_sites_are_summed_out() -> None:
    x = t(-0.5, 0.4, 2.8, 3.3, 1.6)
    posterior = pyrodgm.mcmc(mixture, NUTS(), x, chains=64, warmup=80, draws=40, **QUIET)
    w = torch.linspace(1e-4, 1 - 1e-4, 4001, dtype=D)
    parts = [dist.Normal(m, 1.0).log_prob(x.unsqueeze(-1)).exp() for m in (0.0, 3.0)]
    density = w * (1 - w) * ((1 - w) * parts[0] + w * parts[1]).prod(0)
    assert_mean(posterior["weight"], (w * density).sum() / density.sum())
    assert set(posterior.samples) == {"weight"}
    groups = posterior.to_arviz(prior_draws=5).groups()
    assert "observed_data" in groups
    assert "log_likelihood" not in groups
    with pytest.raises(ValueError, match="summed out"):
        posterior.log_likelihood()


def test_programs_conditioned_from_outside() -> None:
    def program() -> Tensor:
        mu = pyro.sample("mu", dist.Normal(t(0.0)[0], 1.0))
        return pyro.sample("y", dist.Normal(mu, t(0.5)[0]))

    conditioned = poutine.condition(program, data={"y": t(1.5)[0]})
    posterior = pyrodgm.mcmc(conditioned, HMC(), chains=64, warmup=60, draws=50, **QUIET)
    assert_mean(posterior["mu"], 1.5 * 4 / 5)


SCHOOLS = t(28, 8, -3, 7, -1, 1, 18, 12), t(15, 10, 16, 11, 9, 11, 10, 18)


def schools(y: Tensor, sigma: Tensor) -> None:
    """Eight schools, not centred (Rubin, 1981; Gelman et al., BDA3, section 5.5)."""
    mu = pyro.sample("mu", dist.Normal(t(0.0)[0], 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(t(5.0)[0]))
    with pyro.plate("schools", 8):
        z = pyro.sample("z", dist.Normal(t(0.0)[0], 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def schools_by_quadrature() -> dict[str, float]:
    """Given tau everything is Gaussian, and tau = tan is on a fine grid (BDA3, eq. 5.21)."""
    y, sigma = SCHOOLS
    angle = (torch.arange(20_000, dtype=D) + 0.5) / 20_000 * math.pi / 2  # the half-Cauchy prior is uniform in it
    tau = 5 * angle.tan()
    variance = sigma.square() + tau.square().unsqueeze(-1)  # of y around mu
    precision = 1 / 25 + (1 / variance).sum(-1)
    mean = (y / variance).sum(-1) / precision
    log_weight = 0.5 * (-variance.log() - y.square() / variance).sum(-1) + 0.5 * (mean.square() * precision)
    weight = (log_weight - 0.5 * precision.log()).softmax(0)
    found = {"mu": mean, "mu^2": mean.square() + 1 / precision, "tau": tau, "tau^2": tau.square()}
    return {k: (weight * v).sum().item() for k, v in found.items()}


@pytest.mark.parametrize("kernel", [ChEES(), NUTS()], ids=["ChEES", "NUTS"])
def test_eight_schools(kernel: Any) -> None:
    posterior = pyrodgm.mcmc(schools, kernel, *SCHOOLS, chains=64, warmup=100, draws=100, seed=1, **QUIET)
    expected = schools_by_quadrature()
    for site in ("mu", "tau"):
        assert_mean(posterior[site], expected[site])
        assert_mean(posterior[site].square(), expected[f"{site}^2"])
    torch.testing.assert_close(
        posterior["theta"], posterior["mu"].unsqueeze(-1) + posterior["tau"].unsqueeze(-1) * posterior["z"]
    )
    assert posterior.ebfmi().mean() > 0.5


def test_seeds_decide_everything() -> None:
    def run(seed: int) -> pyrodgm.Posterior:
        return pyrodgm.mcmc(conjugate, HMC(), Y, chains=5, warmup=20, draws=7, seed=seed, **QUIET)

    before = torch.get_rng_state()
    first, again, other = run(1), run(1), run(2)
    assert torch.equal(before, torch.get_rng_state())
    for site in first.samples:
        assert torch.equal(first[site], again[site])
        assert not torch.equal(first[site], other[site])


def test_float32_and_mixed() -> None:
    def program() -> None:
        pyro.sample("a", dist.Normal(0.0, 2.0))
        pyro.sample("b", dist.Exponential(t(2.0)[0]))

    posterior = pyrodgm.mcmc(program, HMC(), chains=64, warmup=60, draws=60, **QUIET)
    assert posterior["a"].dtype == torch.float32
    assert posterior["b"].dtype == D
    assert_mean(posterior["a"].square(), 4.0)
    assert_mean(posterior["b"], 0.5)

    def single() -> None:
        pyro.sample("a", dist.Normal(torch.zeros(3), 2.0).to_event(1))

    posterior = pyrodgm.mcmc(single, NUTS(), chains=32, warmup=40, draws=40, **QUIET)
    assert posterior["a"].dtype == torch.float32
    assert_mean(posterior["a"][..., 0], 0.0)


class Ring(Energy):
    """E(x) = (|x|^2 - 4)^2 in the plane."""

    def __init__(self) -> None:
        super().__init__((2,))
        self.kernel = MALA(0.3)
        self.centre = torch.nn.Parameter(torch.full((1,), 4.0, dtype=D))

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return (x.square().sum(-1) - self.centre).square()

    def start(self, n: int, context: Tensor | None = None) -> Tensor:
        return torch.randn(n, 2, dtype=D)

    def log_partition(self, method: str = "ais", **options: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def test_energy_models() -> None:
    posterior = pyrodgm.mcmc(Ring(), HMC(), chains=64, warmup=80, draws=60, **QUIET)
    square = posterior["x"].square().sum(-1)
    s = torch.linspace(0, 12, 20_001, dtype=D)  # s = |x|^2 has density exp(-(s - 4)^2): the area element is ds / 2
    weight = (-(s - 4).square()).softmax(0)
    assert_mean(square, (weight * s).sum())
    assert_mean(square.square(), (weight * s * s).sum())
    assert set(posterior.to_arviz().groups()) == {"posterior", "sample_stats"}


def test_boltzmann_machines_by_gibbs() -> None:
    torch.manual_seed(0)
    rbm = RBM(5, 3).double()
    with torch.no_grad():
        rbm.weight.normal_(0, 0.5)
    posterior = pyrodgm.mcmc(rbm, BlockGibbs(), chains=200, warmup=20, draws=50, **QUIET)
    states = torch.cartesian_prod(*[t(0.0, 1.0)] * 5)
    p = rbm.log_prob(states).exp().detach()
    for i in range(5):
        assert_mean(posterior["x"][..., i], (p * states[:, i]).sum())
    with pytest.raises(TypeError, match="expected an energy"):
        pyrodgm.mcmc(rbm, HMC(), **QUIET)
    for model, kernel in (
        (DeepBeliefNetwork(6, [6, 4]), BlockGibbs()),
        (DeepBoltzmannMachine(6, [6, 4]), BlockGibbs()),
        (BoltzmannMachine(5, hidden=2), GibbsSweep()),
    ):
        with pytest.raises(TypeError, match="whose kernel moves hidden units too"):
            pyrodgm.mcmc(model, kernel, **QUIET)


def test_given_starts() -> None:
    initial = {"mu": torch.arange(4).double(), "precision": t(2.0)[0]}
    posterior = pyrodgm.mcmc(conjugate, RandomWalk(1e-9), Y, chains=4, warmup=0, draws=2, initial=initial, **QUIET)
    torch.testing.assert_close(posterior["mu"][:, 0], torch.arange(4).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(posterior["precision"][:, 0], t(2.0, 2.0, 2.0, 2.0), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="values of the sites"):
        pyrodgm.mcmc(conjugate, HMC(), Y, initial={"mu": t(0.0)[0]}, **QUIET)


def test_errors_say_what_to_do() -> None:
    def poisson() -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("count", dist.Poisson(rate))

    def half() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 10, subsample_size=5):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.zeros(5))

    def nowhere() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("never", torch.where(x < 100, -math.inf, 0.0))

    def branches() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if len(calls) > 0:
            pyro.sample("extra", dist.Normal(x, 1.0))
        calls.append(0)

    calls: list[int] = []
    for program, message in (
        (poisson, "'count' of Poisson"),
        (half, "5 of 10 in 'rows'"),
        (nowhere, "finite energy somewhere"),
        (lambda: pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(())), "continuous latent site"),
        (branches, "same latent sites"),
    ):
        with pytest.raises(ValueError, match=message):
            pyrodgm.mcmc(program, HMC(), chains=3, warmup=2, draws=2, **QUIET)
    for options, message in (
        ({"chains": 0}, "chains as a whole number >= 1"),
        ({"draws": 0}, "draws"),
        ({"warmup": -1}, "warmup"),
        ({"thin": 0}, "thin"),
        ({"seed": -1}, "seed as a whole number >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            pyrodgm.mcmc(conjugate, HMC(), Y, **{**QUIET, **options})
    with pytest.raises(TypeError, match="expected a kernel"):
        pyrodgm.mcmc(conjugate, "nuts", Y, **QUIET)
    with pytest.raises(TypeError, match="Pyro program or an energy model"):
        pyrodgm.mcmc(3, HMC(), **QUIET)
    with pytest.raises(KeyError, match="sites"):
        pyrodgm.Posterior({"a": torch.zeros(2, 2)})["b"]
    with pytest.raises(ValueError, match="Hamiltonian"):
        pyrodgm.Posterior({"a": torch.zeros(2, 2)}).ebfmi()


def test_what_cannot_be_traced_runs_eagerly_with_one_warning() -> None:
    def program() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
        pyro.factor("f", -0.5 * x.square().sum())
        if get_proxy_mode() is not None:
            raise RuntimeError("no tracing here")

    with pytest.warns(UserWarning, match="fell back to eager: RuntimeError: no tracing here") as caught:
        posterior = pyrodgm.mcmc(program, HMC(), chains=16, warmup=40, draws=40, **QUIET)
    assert len(caught) == 1
    assert_mean(posterior["x"][..., 0].square(), 0.5)


def test_one_chains_bad_matrix_leaves_the_others_alone() -> None:
    def energy(x: Tensor) -> Tensor:
        a = torch.stack((torch.stack((x[0], x[1])), torch.stack((x[1], x[0]))))
        return torch.linalg.cholesky(a).diagonal().log().sum()

    x = t(2, 1, 1, 2, 3, 1).reshape(3, 2)  # the second has no factor
    value, gradient = BatchedEnergy(energy, compile=False).energy_and_gradient(x)
    good = torch.tensor([True, False, True])
    torch.testing.assert_close(value[good], 0.5 * (x[good, 0] ** 2 - x[good, 1] ** 2).log())
    assert value[1].isnan()
    assert gradient[good].isfinite().all()


def test_arviz_reads_everything() -> None:
    posterior = pyrodgm.mcmc(schools, HMC(), *SCHOOLS, chains=4, warmup=100, draws=150, seed=2, **QUIET)
    data = posterior.to_arviz(prior_draws=50)
    groups = {"posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior", "observed_data"}
    assert set(data.groups()) == groups
    scores = dist.Normal(posterior["theta"], SCHOOLS[1]).log_prob(SCHOOLS[0])
    np.testing.assert_allclose(data.log_likelihood["y"].values, scores.numpy())
    assert data.posterior_predictive["y"].shape == (4, 150, 8)
    replicated = torch.from_numpy(data.posterior_predictive["y"].values.copy())
    error = ((replicated - posterior["theta"]) / SCHOOLS[1]).flatten(0, 1)  # N(0, 1), independent
    assert ((error.mean(0) * 600**0.5).abs() < 4.5).all()
    assert data.prior["mu"].shape == (1, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eight points, some of large k-hat; arviz on a newer pandas
        loo = az.loo(data)
        table = az.compare({"a": data, "b": data})
    assert math.isfinite(loo.elpd if hasattr(loo, "elpd") else loo.elpd_loo)  # of arviz 1.x, of 0.x
    assert len(table) == 2
    summary = posterior.summary()
    assert {"mean", "sd", "ess_bulk", "ess_tail", "r_hat"} <= set(summary.columns)
    assert len(summary) == 1 + 1 + 8 + 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arviz on a newer matplotlib
        assert az.plot_trace(data, var_names=["mu", "tau"]).shape == (2, 2)
        az.plot_rank(data, var_names=["mu"])
    plt.close("all")
    np.testing.assert_allclose(posterior.ebfmi().numpy(), az.bfmi(data))
    assert "4 chains x 150 draws of mu, tau, z, theta; by HMC" in repr(posterior)


KILLED = """
import os, sys, torch, pyrodgm
sys.path.insert(0, {here!r})
from test_mcmc import conjugate, Y, QUIET
from pyrodgm.engine import store
from pyrodgm.kernels import HMC
append, calls = store.DrawStore.append, []
def once(self, samples, stats, *rest):
    if calls:  # killed after the numbers of the second block, before the state that makes them count
        self._write(self.root["posterior"], "mu", samples["mu"], self.draws + samples["mu"].shape[1])
        os._exit(9)
    calls.append(0)
    append(self, samples, stats, *rest)
store.DrawStore.append = once
pyrodgm.mcmc(conjugate, HMC(0.4), Y, chains=6, warmup=30, draws=250, seed=4, store={folder!r}, **QUIET)
"""


def test_a_killed_run_keeps_its_draws_and_goes_on(tmp_path: Any, request: pytest.FixtureRequest) -> None:
    def run(name: str, **options: Any) -> pyrodgm.Posterior:
        settings = {"chains": 6, "warmup": 30, "draws": 250, "seed": 4, **QUIET, **options}
        return pyrodgm.mcmc(conjugate, HMC(0.4), Y, store=tmp_path / name, **settings)

    whole = run("whole")
    code = KILLED.format(here=str(request.path.parent), folder=str(tmp_path / "killed"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 9, done.stderr[-2000:]
    resumed = run("killed")
    plain = pyrodgm.mcmc(conjugate, HMC(0.4), Y, chains=6, warmup=30, draws=250, seed=4, **QUIET)
    for site in ("mu", "precision"):
        assert torch.equal(whole[site], resumed[site])
        assert torch.equal(whole[site], plain[site])
    for name in plain.sample_stats:
        assert torch.equal(whole.sample_stats[name], resumed.sample_stats[name])
    more = run("killed", draws=300)
    assert torch.equal(more["mu"][:, :250], whole["mu"])
    assert more["mu"].shape == (6, 300)
    import xarray

    tree = xarray.open_datatree(tmp_path / "killed" / "draws.zarr", engine="zarr", consolidated=False)
    np.testing.assert_array_equal(tree["posterior"]["mu"].values, more["mu"].numpy())
    assert tree["posterior"]["mu"].dims == ("chain", "draw")
    assert more.summary().shape[0] == 2
    with pytest.raises(ValueError, match="another folder"):
        run("killed", seed=5)
    other = {"chains": 6, "warmup": 30, "draws": 300, "seed": 4, "store": tmp_path / "killed", **QUIET}
    for kernel, options in ((HMC(0.3), {}), (HMC(0.4, metric=Dense()), {}), (HMC(0.4), {"initial": {"mu": t(0.0)}})):
        with pytest.raises(ValueError, match="another folder"):  # nor draws of other settings
            pyrodgm.mcmc(conjugate, kernel, Y, **other, **options)
    for program, rows in ((conjugate, 2 * Y), (lambda y: conjugate(2 * y), Y), (scope(conjugate, prefix="a"), Y)):
        with pytest.raises(ValueError, match="another folder"):  # draws of other data or other sites do not mix
            pyrodgm.mcmc(program, HMC(0.4), rows, **other)


def test_biject_to_is_the_change_of_variables() -> None:
    """E(u) of one gamma site is minus the log density of log(z), by its closed form."""

    def program() -> None:
        pyro.sample("z", dist.Gamma(t(2.5)[0], t(1.5)[0]))

    u = t(0.3)
    z = biject_to(dist.Gamma(1.0, 1.0).support)(u)
    expected = 2.5 * z.log() - 1.5 * z + 2.5 * math.log(1.5) - math.lgamma(2.5)  # density of log z
    torch.testing.assert_close(-UnconstrainedProgram(program)(u), expected[0])


@pytest.mark.parametrize("compile", [False, True])
def test_what_kernels_fuse_is_what_they_compute(compile: bool) -> None:
    """Whole leapfrog steps in one graph, also where one tensor stands in two places when it is traced."""
    energy = BatchedEnergy(UnconstrainedProgram(conjugate, (Y,)), compile)
    x, p = torch.randn(2, 5, 2, dtype=D)
    size, mass = torch.full((5, 1), 0.1, dtype=D), t(0.5, 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # inductor's own
        step = energy.fused(leapfrog_step, x, x, x, size, mass)
        found = step(x, p, energy.eager(x)[1], size, mass)
    leaf = x.clone().requires_grad_()
    program = UnconstrainedProgram(conjugate, (Y,))
    (gradient,) = torch.autograd.grad(sum(program(row) for row in leaf), leaf)
    half = p - 0.05 * gradient
    end = (x + 0.1 * mass * half).requires_grad_()
    energies = torch.stack([program(row) for row in end])
    (gradient,) = torch.autograd.grad(energies.sum(), end)
    for a, b in zip(found, (end, half - 0.05 * gradient, energies, gradient), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "kernel",
    [
        HMC(),
        HMC(metric=LowRank(1)),
        HMC(metric=Dense(t(5.0, -0.5, -0.5, 4.0).reshape(2, 2).inverse())),  # column by column
        ChEES(),
        NUTS(),
        MEADS(),
    ],
    ids=["HMC", "HMC low-rank", "HMC dense", "ChEES", "NUTS", "MEADS"],
)
def test_compiled_kernels_find_the_posterior(kernel: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        check_conjugate(kernel, compile=True)


def test_compiled_chains_move_where_single_latents_meet_double_data() -> None:
    def program(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # inductor's own
        mu = pyrodgm.mcmc(program, MEADS(), Y, chains=64, warmup=60, draws=60, progress=False)["mu"]
    assert mu.dtype == torch.float32
    assert_mean(mu, Y.sum() / (len(Y) + 0.25))
    assert_mean(mu.square(), (Y.sum() / (len(Y) + 0.25)).square() + 1 / (len(Y) + 0.25))


def test_a_short_warm_up_of_many_chains_finds_the_length() -> None:
    """Trajectories that start at one small step grow by a fortieth a move at most: too slow for chains far out."""

    def mixture(y: Tensor) -> None:
        weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
        low = pyro.sample("low", dist.Normal(-2.0, 1.0))
        gap = pyro.sample("gap", dist.LogNormal(1.0, 0.5))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("rows", len(y)):
            label = pyro.sample("label", dist.Bernoulli(weight))
            pyro.sample("y", dist.Normal(low + gap * label, scale), obs=y)

    noise = torch.randn(100, generator=torch.Generator().manual_seed(5))
    y = torch.where(torch.arange(100) < 33, -1.5, 1.5) + 0.7 * noise
    posterior = pyrodgm.mcmc(mixture, ChEES(), y, chains=256, warmup=120, draws=30, seed=1, **QUIET)
    with many_chains():
        assert max(float(az.rhat(posterior[site].double().numpy())) for site in posterior.samples) < 1.1


def masked(y: Tensor, seen: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(t(0.0)[0], 1.0))
    with pyro.plate("rows", len(y)), pyro.poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_masked_rows_have_no_likelihood() -> None:
    y, seen = torch.tensor([0.3, math.nan, -0.5], dtype=D), torch.tensor([True, False, True])
    posterior = pyrodgm.mcmc(masked, HMC(0.5), torch.where(seen, y, 7.0), seen, chains=2, warmup=5, draws=4, **QUIET)
    found = posterior.log_likelihood()["y"]
    assert bool((found[..., 1] == 0).all())
    torch.testing.assert_close(found[..., 0], dist.Normal(posterior["mu"], 1.0).log_prob(y[0]))


def test_sites_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many chains and rows: the same draws by small blocks."""
    options = {"chains": 6, "warmup": 5, "draws": 20, **QUIET}
    expected = pyrodgm.mcmc(conjugate, HMC(0.4), Y, **options)
    monkeypatch.setattr(target, "_MOST", 1)
    found = pyrodgm.mcmc(conjugate, HMC(0.4), Y, **options)
    for name in ("mu", "precision"):
        torch.testing.assert_close(found[name], expected[name])


def test_priors_that_are_scored_by_a_sequential_inverse() -> None:
    torch.manual_seed(0)
    flow = IAF(2, layers=2, hidden=[8]).double().requires_grad_(False)
    for p in flow.parameters():
        p.add_(0.3 * torch.randn_like(p))

    def program() -> None:
        pyro.sample("z", flow.condition())

    posterior = pyrodgm.mcmc(program, HMC(), chains=100, warmup=100, draws=60, **QUIET)
    z = flow.sample(20_000)
    for i in range(2):
        assert_mean(posterior["z"][..., i], z[:, i].mean())
        assert_mean(posterior["z"][..., i].square(), z[:, i].square().mean())


def test_chains_start_where_energies_are_known_to_a_nat():
    """Beyond 1 / eps rounding decides Metropolis tests: the step size that all chains share would fall for ever."""

    def steep():
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        pyro.sample("y", dist.Normal((20 * z).exp(), 1.0).to_event(1), obs=torch.zeros(1))

    where = target.as_target(steep, (), {}, None, False)
    starts = where.start(64, None, torch.Generator().manual_seed(0))
    assert (where.potential.eager(starts)[0] < 1 / torch.finfo(torch.float32).eps).all()
    assert starts.std() > 0.5, "nowhere else than before"
