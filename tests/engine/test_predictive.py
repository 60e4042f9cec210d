"""What a posterior says by running its program anew: reparameterised sites, factors, priors, modules, missing data."""

import math
import warnings
from typing import Any, ClassVar

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import assert_means_agree, mean_and_error
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.infer.reparam import LocScaleReparam, NeuTraReparam, TransformReparam
from torch import Tensor, nn

import pyrodgm
from pyrodgm.energy import RBM
from pyrodgm.engine import Posterior, predictive, smc
from pyrodgm.kernels import HMC, SGLD, RandomWalk

D = torch.float64
QUIET = {"compile": False, "progress": False}
Y = torch.tensor([2.8, 0.8, -0.3, 0.7], dtype=D)


def leave_one_out(data: Any) -> None:
    """arviz refuses where the likelihood is of more than one array."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few points, of large k-hat
        az.loo(data)


def t(value: float) -> Tensor:
    return torch.tensor(value, dtype=D)


def centred(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(t(0.0), 1.0))
    tau = pyro.sample("tau", dist.LogNormal(t(0.0), 0.5))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def test_reparameterised_sites_are_no_data() -> None:
    program = poutine.reparam(centred, {"theta": LocScaleReparam(0.0)})
    posterior = pyrodgm.mcmc(program, HMC(), Y, chains=4, warmup=40, draws=30, **QUIET)
    mu, tau = (posterior[k].unsqueeze(-1) for k in ("mu", "tau"))
    torch.testing.assert_close(posterior["theta"], mu + tau * posterior["theta_decentered"])
    likelihood = posterior.log_likelihood()
    assert set(likelihood) == {"y"}
    torch.testing.assert_close(likelihood["y"], dist.Normal(posterior["theta"], 1.0).log_prob(Y))
    assert set(posterior.posterior_predictive()) == {"y"}
    data = posterior.to_arviz(prior_draws=5)
    assert list(data.observed_data) == ["y"]
    leave_one_out(data)


def test_a_transform_reparameterisation_has_the_evidence_of_the_program() -> None:
    def program() -> None:
        z = pyro.sample("z", dist.TransformedDistribution(dist.Normal(t(0.0), 1.0), [dist.transforms.ExpTransform()]))
        pyro.sample("x", dist.Normal(z.log(), 1.0), obs=t(1.0))

    found = smc(poutine.reparam(program, {"z": TransformReparam()}), particles=200, runs=6, seed=1)
    exact = dist.Normal(0.0, 2**0.5).log_prob(t(1.0)).item()
    assert abs(found.log_z - exact) < 4.5 * found.standard_error
    torch.testing.assert_close(found.posterior["z"], found.posterior["z_base"].exp())


@pytest.mark.pyro_store
def test_neutra_keeps_its_density_and_is_refused_where_it_would_be_drawn_from() -> None:
    guide = AutoDiagonalNormal(centred, init_scale=0.3)
    guide(Y)
    guide.requires_grad_(False)
    program = NeuTraReparam(guide).reparam(centred)
    posterior = pyrodgm.mcmc(program, HMC(), Y, chains=2, warmup=20, draws=10, **QUIET)
    assert set(posterior.log_likelihood()) == {"y"}
    assert {"mu", "tau", "theta"} < set(posterior.samples)
    with pytest.raises(ValueError, match="draws from its own prior"):
        smc(program, Y, particles=10, runs=2)
    with pytest.warns(UserWarning, match="left out the group prior"):
        assert "prior" not in posterior.to_arviz().groups()


def test_factors_are_no_data() -> None:
    def program(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(t(0.0), 1.0))
        pyro.factor("wish", -mu.abs())
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    posterior = pyrodgm.mcmc(program, HMC(), Y, chains=4, warmup=20, draws=20, **QUIET)
    data = posterior.to_arviz(prior_draws=5)
    for group in ("log_likelihood", "posterior_predictive", "observed_data"):
        assert list(data[group]) == ["y"]
    leave_one_out(data)


def test_data_scored_by_an_energy_have_no_likelihood() -> None:
    rbm = RBM(4, 2).double().eval()
    rbm.sample_steps = 2

    def program() -> None:
        pyro.sample("mu", dist.Normal(t(0.0), 1.0))
        with pyro.plate("rows", 3):
            pyro.sample("x", rbm.condition(), obs=torch.ones(3, 4, dtype=D))

    posterior = pyrodgm.mcmc(program, HMC(0.4), chains=2, warmup=3, draws=3, **QUIET)
    with pytest.raises(ValueError, match="for the likelihood, got 'x' known up to its log Z"):
        posterior.log_likelihood()
    groups = set(posterior.to_arviz(prior_draws=2).groups())
    assert groups == {"posterior", "sample_stats", "posterior_predictive", "prior", "observed_data"}
    with pytest.raises(ValueError, match="for the evidence, got 'x' known up to its log Z"):
        smc(program, particles=4, runs=2, progress=False)


class Scored(dist.TorchDistribution):
    """A likelihood with a log_prob alone."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.real

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return -(value - self.loc).square() / 2


def test_data_that_cannot_be_drawn_are_named() -> None:
    def program() -> None:
        mu = pyro.sample("mu", dist.Normal(t(0.0), 1.0))
        pyro.sample("y", Scored(mu), obs=t(1.0))

    posterior = pyrodgm.mcmc(program, HMC(0.4), chains=2, warmup=3, draws=3, **QUIET)
    for draw in (posterior.prior, posterior.posterior_predictive):
        with pytest.raises(NotImplementedError, match="'y' of Scored, which has a log_prob alone"):
            draw()
    with pytest.warns(UserWarning, match="left out the group") as caught:
        groups = set(posterior.to_arviz().groups())
    assert len(caught) == 2
    assert groups == {"posterior", "sample_stats", "log_likelihood", "observed_data"}


def test_the_prior_knows_nothing_of_the_data() -> None:
    """A site below the data is drawn below data of its own: N(0, 1 + 1 + 1), where given the data it is N(100, 1)."""

    def program() -> None:
        z = pyro.sample("z", dist.Normal(t(0.0), 1.0))
        x = pyro.sample("x", dist.Normal(z, 1.0), obs=t(100.0))
        pyro.sample("w", dist.Normal(x, 1.0))

    posterior = pyrodgm.mcmc(program, HMC(), chains=2, warmup=5, draws=5, initial={"z": t(50.0), "w": t(99.0)}, **QUIET)
    w = posterior.prior(draws=2000, seed=3)["w"].squeeze(0)
    assert_means_agree(*mean_and_error(w), t(0.0))
    assert_means_agree(*mean_and_error(w.square()), t(3.0))
    assert torch.equal(w, posterior.prior(draws=2000, seed=3)["w"].squeeze(0))
    assert not torch.equal(w, posterior.prior(draws=2000, seed=4)["w"].squeeze(0))


class Net(nn.Module):
    """A Pyro program with dropout, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.modes = set[bool]()

    def forward(self, y: Tensor) -> None:
        self.modes.add(self.training)
        mu = pyro.sample("mu", dist.Normal(t(0.0), 1.0))
        scale = self.drop(torch.ones(len(y), dtype=D)) + 0.5
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: m.forward, lambda m: poutine.mask(m, mask=True)])
def test_programs_run_in_eval_mode(wrap: Any) -> None:
    net = Net()
    program = wrap(net)
    posterior = pyrodgm.mcmc(program, HMC(), Y, chains=2, warmup=5, draws=5, **QUIET)
    expected = dist.Normal(posterior["mu"].unsqueeze(-1), 1.5).log_prob(Y)
    torch.testing.assert_close(posterior.log_likelihood()["y"], expected)
    posterior.to_arviz(prior_draws=3)
    smc(program, Y, particles=4, runs=2, moves=1)
    assert net.modes == {False}
    assert net.training
    assert net.drop.training


class Worn(nn.Module):
    """A guide of the posterior of the mean, with dropout that would spoil it."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, y: Tensor) -> None:
        mean = self.drop(y.new_ones(())) * y.sum() / (len(y) + 1)
        pyro.sample("mu", dist.Normal(mean, (len(y) + 1) ** -0.5))


def test_guides_are_judged_in_eval_mode() -> None:
    from pyrodgm.evaluation import guide_calibration, guide_fit

    def program(y: Tensor | None = None) -> None:
        mu = pyro.sample("mu", dist.Normal(t(0.0), 1.0))
        pyro.sample("y", dist.Normal(mu * torch.ones(4, dtype=D), 1.0).to_event(1), obs=y)

    guide = Worn()
    assert guide_fit(program, guide, Y, particles=50).effective == pytest.approx(50)
    assert guide.training
    torch.manual_seed(0)
    worn = guide_calibration(program, guide, ["y"], simulations=60, draws=9).ranks["mu"]
    torch.manual_seed(0)
    assert torch.equal(worn, guide_calibration(program, guide.eval(), ["y"], simulations=60, draws=9).ranks["mu"])


def test_names_with_slashes() -> None:
    posterior = pyrodgm.mcmc(scope(centred, prefix="a"), HMC(), Y, chains=2, warmup=5, draws=5, **QUIET)
    assert posterior["a/mu"].shape == (2, 5)
    data = posterior.to_arviz(prior_draws=3)
    assert set(data.posterior) == {"a.mu", "a.tau", "a.theta"}
    assert list(data.observed_data) == ["a.y"]


def test_improper_priors() -> None:
    """A flat mean has the data's own: N(mean y, 1 / n)."""

    def program(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    posterior = pyrodgm.mcmc(program, HMC(), Y.float(), chains=64, warmup=40, draws=40, **QUIET)
    means = posterior["mu"].double().mean(1)
    assert_means_agree(*mean_and_error(means), Y.mean())
    with pytest.warns(UserWarning, match="left out the group prior, whose draws fail: NotImplementedError"):
        groups = posterior.to_arviz().groups()
    assert "prior" not in groups
    assert "log_likelihood" in groups


def test_priors_that_underflow_where_they_are_drawn(tmp_path: Any) -> None:
    """exp of N(0, 4000^2) is no scale at most draws of the prior; chains start where it is one."""

    def program(y: Tensor) -> None:
        scale = pyro.sample("log_scale", dist.Normal(t(0.0), 4000.0)).exp()
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    for seed in range(5):
        options = {"chains": 2, "warmup": 3, "draws": 2, "seed": seed, "store": tmp_path / str(seed), **QUIET}
        posterior = pyrodgm.mcmc(program, HMC(), Y, **options)
        scale = posterior["log_scale"].exp()
        assert bool((scale > 0).all() & scale.isfinite().all())
        assert bool(posterior.sample_stats["lp"].isfinite().all())
        assert torch.equal(
            pyrodgm.mcmc(program, HMC(), Y, **options)["log_scale"], posterior["log_scale"]
        )  # the store's


def missing(y: Tensor, seen: Tensor) -> None:
    scale = pyro.sample("scale", dist.Gamma(t(3.0), t(2.0)))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Gamma(t(2.0), scale), obs=y, obs_mask=seen)


def test_missing_data_by_obs_mask() -> None:
    """Seen rows tell of the scale, by the conjugate gamma; unseen ones follow it; what data replaces goes nowhere."""
    y, seen = Y.abs() + 0.1, torch.tensor([True, False, True, True])
    posterior = pyrodgm.mcmc(missing, HMC(), y, seen, chains=64, warmup=80, draws=60, **QUIET)
    a, b = 3 + 2 * 3, 2 + y[seen].sum()
    assert_means_agree(*mean_and_error(posterior["scale"].mean(1)), a / b)
    assert_means_agree(*mean_and_error(posterior["y"][..., 1].mean(1)), 2 * b / (a - 1))
    assert torch.equal(posterior["y"][..., seen], y[seen].expand(64, 60, 3))
    u = posterior["y_unobserved"][..., seen].log().mean(1)  # in the unconstrained space N(0, 1)
    assert_means_agree(*mean_and_error(u), torch.zeros(3, dtype=D))
    u = posterior["y_unobserved"][..., seen].log().square().mean(1)
    assert_means_agree(*mean_and_error(u), torch.ones(3, dtype=D))
    found = smc(missing, y, seen, particles=200, runs=8, seed=2)
    exact = 3 * math.log(2) - math.lgamma(3) + math.lgamma(a) - a * b.log() + y[seen].log().sum()
    assert abs(found.log_z - exact) < 4.5 * found.standard_error
    assert found.standard_error < 0.1


def test_missing_counts_are_told_of_mask() -> None:
    def program(n: Tensor, seen: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(t(2.0), t(1.0)))
        with pyro.plate("rows", len(n)):
            pyro.sample("n", dist.Poisson(rate), obs=n, obs_mask=seen)

    with pytest.raises(ValueError, match=r"'n_unobserved' of Poisson; leave the missing rows out by poutine\.mask"):
        pyrodgm.mcmc(program, HMC(), torch.ones(3), torch.tensor([True, True, False]), **QUIET)


class OldLog(torch.autograd.Function):
    """As those of Pyro's ``safe_log``, without ``setup_context``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.log()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / ctx.saved_tensors[0]


@pytest.mark.parametrize("inside", [False, True])
def test_functions_without_rules_run_chain_by_chain_with_one_warning(inside: bool) -> None:
    def program() -> None:
        z = pyro.sample("z", dist.Gamma(t(4.0), t(2.0)))
        if inside:  # the program itself, not its density alone
            pyro.deterministic("log", OldLog.apply(z))
        pyro.factor("f", OldLog.apply(z) if not inside else 1.0 * z.log())

    with pytest.warns(UserWarning, match="energies of the chains are computed one by one") as caught:
        posterior = pyrodgm.mcmc(program, HMC(step_size=0.5), chains=16, warmup=40, draws=40, **QUIET)
    assert len(caught) == 1
    assert_means_agree(*mean_and_error(posterior["z"].mean(1)), t(5.0 / 2.0))  # z^3 z e^-2z: Gamma(5, 2)
    if inside:
        torch.testing.assert_close(posterior["log"], posterior["z"].log())


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, before it refuses
def test_pyros_markov_chain_of_one_site() -> None:
    def program() -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        switch = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
        chain = dist.DiscreteHMM(torch.tensor([0.5, 0.5]).log(), switch, dist.Normal(loc, 1.0), duration=4)
        pyro.sample("y", chain, obs=Y.float())

    with pytest.warns(UserWarning, match="one by one"):
        posterior = pyrodgm.mcmc(program, HMC(), chains=2, warmup=3, draws=2, **QUIET)
    assert posterior["loc"].isfinite().all()


def test_thinned_statistics_count_every_step() -> None:
    """With steps that diverge now and then, a draw of ten steps has the divergences of all ten."""

    def program() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(2, dtype=D), torch.tensor([1.0, 1e-3], dtype=D)).to_event(1))

    options = {"chains": 4, "warmup": 0, "seed": 1, "initial": {"x": torch.zeros(2, dtype=D)}, **QUIET}
    kernel = HMC(0.02, step_size=0.0021)
    every = pyrodgm.mcmc(program, kernel, draws=40, **options).sample_stats
    thinned = pyrodgm.mcmc(program, kernel, draws=4, thin=10, **options).sample_stats
    assert torch.equal(thinned["n_steps"], every["n_steps"].unflatten(1, (4, 10)).sum(2))
    assert torch.equal(thinned["diverging"], every["diverging"].unflatten(1, (4, 10)).any(2))
    assert 0 < every["diverging"].double().mean() < 1


def test_falling_steps_are_told() -> None:
    def program() -> None:
        pyro.sample("x", dist.Normal(t(0.0), 1.0))

    posterior = pyrodgm.mcmc(program, SGLD(0.5, decay=0.6, delay=3.0), chains=2, warmup=4, draws=3, thin=2, **QUIET)
    expected = [0.5 * (1 + s / 3) ** -0.3 for s in (5, 7, 9)]  # of the last step of each draw
    torch.testing.assert_close(posterior.sample_stats["step_size"][0], torch.tensor(expected, dtype=D))


def test_numbers_may_be_floats_that_are_whole() -> None:
    posterior = pyrodgm.mcmc(centred, HMC(), Y, chains=2.0, warmup=1e1, draws=3.0, thin=1.0, seed=0.0, **QUIET)
    assert posterior["mu"].shape == (2, 3)
    for bad in (2.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="draws as a whole number >= 1"):
            pyrodgm.mcmc(centred, HMC(), Y, draws=bad, **QUIET)


def test_the_device_of_the_chains_is_kept() -> None:
    """Where arguments say nothing of it, tensors inside the program do."""
    posterior = pyrodgm.mcmc(lambda: centred(Y), HMC(), chains=2, warmup=2, draws=2, device="cpu", **QUIET)
    assert posterior.device == torch.device("cpu")
    assert predictive._device((), {}, torch.device("meta")) == torch.device("meta")
    assert Posterior({"a": torch.zeros(2, 2)}).device is None
    with pytest.raises(ValueError, match="expected the program's values on meta"):
        pyrodgm.mcmc(lambda: centred(Y), HMC(), device="meta", **QUIET)


def test_an_energy_in_training_inside_a_program_is_told_to_stop() -> None:
    from pyrodgm.energy import NeuralEnergy

    prior = NeuralEnergy.mlp(2, [8])

    def program() -> None:
        z = pyro.sample("z", prior.condition())
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.ones(2))

    with pytest.raises(ValueError, match=r"model\.eval\(\) before MCMC"):
        pyrodgm.mcmc(program, RandomWalk(0.5), chains=2, warmup=2, draws=2, **QUIET)
    prior.eval()
    pyrodgm.mcmc(program, RandomWalk(0.5), chains=2, warmup=2, draws=2, **QUIET)
