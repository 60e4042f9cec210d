"""NumPyro: its draws become our posterior; our densities keep their value, gradient and law inside its models."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pytest
import torch
from cases import grow
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS

from pyrodgm.bridges.numpyro import NumPyroDensity, from_numpyro
from pyrodgm.bridges.torch_to_jax import to_jax
from pyrodgm.nets import MLP
from pyrodgm.tractable import MADE, MAF, NSF, GaussianMixtureConditional, RealNVP, StandardNormal

MODELS = {
    "normal": lambda c: StandardNormal(3),
    "coupling": lambda c: RealNVP(3, 2, hidden=[8], context=c),
    "autoregressive": lambda c: MAF(3, 2, hidden=[8], context=c),
    "spline": lambda c: NSF(3, 2, hidden=[8], context=c, bins=4),
    "autoregressive spline": lambda c: NSF(3, 2, hidden=[8], context=c, bins=4, autoregressive=True),
    "MADE": lambda c: MADE(3, [8], context=c),
    "MADE of mixtures": lambda c: MADE(3, [8], conditional=GaussianMixtureConditional(2), context=c),
}


def trained(name: str, context: int = 0, scale: float = 0.3):
    torch.manual_seed(0)
    return grow(MODELS[name](context), scale).eval()


@pytest.mark.parametrize(
    ("name", "context"), [*((name, 0) for name in MODELS), ("coupling", 2), ("autoregressive", 2), ("MADE", 2)]
)
def test_log_prob_and_gradient(name: str, context: int) -> None:
    model = trained(name, context)
    given = torch.randn(2) if context else None
    x = torch.randn(7, 3) if name != "MADE" else torch.randint(2, (7, 3)).float()
    x.requires_grad_()
    ours = model.log_prob(x, None if given is None else given.expand(7, -1))
    theirs = NumPyroDensity(model, given)
    value = np.asarray(jax.jit(theirs.log_prob)(x.detach().numpy()))
    np.testing.assert_allclose(value, ours.detach().numpy(), rtol=1e-5, atol=1e-5)  # of float32
    if name == "MADE" or context:
        return
    (gradient,) = torch.autograd.grad(ours.sum(), x)
    found = jax.jit(jax.grad(lambda v: theirs.log_prob(v).sum()))(x.detach().numpy())
    np.testing.assert_allclose(np.asarray(found), gradient.numpy(), rtol=1e-3, atol=1e-4)


def test_parts_of_one_size() -> None:
    def turned(x: torch.Tensor) -> torch.Tensor:
        x = torch.cat(x.split(3, -1)[::-1], -1)
        return torch.cat(x.split(2, 0)[::-1], 0) + torch.cat(x.chunk(1, 1), 1)

    x = torch.randn(4, 7)
    np.testing.assert_allclose(np.asarray(to_jax(turned, x)(x.numpy())), turned(x).numpy(), rtol=1e-6)


def test_a_net_of_every_activation() -> None:
    for activation in (torch.nn.ReLU, torch.nn.ELU, torch.nn.SiLU, torch.nn.Softplus, torch.nn.LeakyReLU):
        net = grow(MLP(3, 2, [8], activation=activation), 0.3)
        x = torch.randn(5, 3)
        found = to_jax(net, x)(x.numpy())
        np.testing.assert_allclose(np.asarray(found), net(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_numpyro_samples_our_flow() -> None:
    """The flow as a prior with no data: NUTS has to find the flow's own moments."""
    flow = trained("coupling", scale=0.1)

    def model() -> None:
        numpyro.sample("x", NumPyroDensity(flow))

    run = MCMC(NUTS(model), num_warmup=200, num_samples=1000, progress_bar=False)
    run.run(jax.random.PRNGKey(0), extra_fields=("energy", "diverging", "num_steps", "accept_prob", "potential_energy"))
    posterior = from_numpyro(run)
    assert posterior["x"].shape == (1, 1000, 3)
    lp = flow.log_prob(posterior["x"][0]).detach()
    torch.testing.assert_close(posterior.sample_stats["lp"][0], lp, rtol=1e-4, atol=1e-4)
    assert set(posterior.sample_stats) == {"lp", "energy", "diverging", "n_steps", "acceptance_rate"}
    assert posterior.ebfmi().shape == (1,)
    exact = flow.sample(20_000)
    for draws, truth in ((posterior["x"], exact), (posterior["x"].square(), exact.square())):
        for d in range(3):
            effective = float(numpyro.diagnostics.effective_sample_size(draws[..., d].numpy()))
            error = (draws[..., d].var() / effective + truth[:, d].var() / 20_000).sqrt()
            assert abs(draws[..., d].mean() - truth[:, d].mean()) < 4.5 * error


def test_draws_come_from_the_key() -> None:
    density = NumPyroDensity(trained("coupling"))
    a, b, c = (density.sample(jax.random.PRNGKey(s), (4,)) for s in (0, 0, 1))
    assert a.shape == (4, 3)
    assert bool((a == b).all())
    assert not bool((a == c).all())


@pytest.mark.parametrize("context", [0, 2])
def test_a_scan_takes_the_density_apart_and_puts_it_together(context: int) -> None:
    """The steps of a Markov chain whose noise is our flow: their log density is the sum of the flow's."""
    flow = trained("coupling", context)
    given = torch.randn(2) if context else None
    density = NumPyroDensity(flow, given)

    def model(steps: np.ndarray) -> None:
        def step(_: jnp.ndarray, x: jnp.ndarray) -> tuple[jnp.ndarray, None]:
            return numpyro.sample("x", density, obs=x), None

        scan(step, jnp.zeros(3), steps)

    x = torch.randn(4, 3)
    found, _ = numpyro.infer.util.log_density(model, (x.numpy(),), {}, {})
    expected = flow.log_prob(x, None if given is None else given.expand(4, -1)).sum().item()
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_chains_stay_apart() -> None:
    def model() -> None:
        numpyro.sample("z", ndist.Normal(jnp.zeros(2), 1.0))

    run = MCMC(NUTS(model), num_warmup=20, num_samples=10, num_chains=3, chain_method="vectorized", progress_bar=False)
    with pytest.raises(ValueError, match=r"mcmc\.run"):
        from_numpyro(run)
    run.run(jax.random.PRNGKey(0))
    posterior = from_numpyro(run)
    np.testing.assert_array_equal(posterior["z"].numpy(), np.asarray(run.get_samples(group_by_chain=True)["z"]))
    assert posterior["z"].shape == (3, 10, 2)


def test_statistics_of_the_sampler() -> None:
    """Of two standard normals: the log density, and with it the energy less a kinetic one that is never negative."""

    def model() -> None:
        numpyro.sample("z", ndist.Normal(jnp.zeros(2), 1.0))

    run = MCMC(NUTS(model), num_warmup=20, num_samples=30, num_chains=2, chain_method="vectorized", progress_bar=False)
    fields = ("potential_energy", "energy", "diverging", "accept_prob", "num_steps", "adapt_state.step_size")
    run.run(jax.random.PRNGKey(1), extra_fields=fields)
    posterior, theirs = from_numpyro(run), run.get_extra_fields(group_by_chain=True)
    stats = posterior.sample_stats
    assert set(stats) == {"lp", "energy", "diverging", "acceptance_rate", "n_steps", "step_size"}
    z = posterior["z"].double()
    torch.testing.assert_close(
        stats["lp"].double(), (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1), rtol=0, atol=1e-4
    )
    assert (stats["energy"] + stats["lp"] >= -1e-4).all()
    np.testing.assert_array_equal(stats["diverging"].numpy(), np.asarray(theirs["diverging"]))
    np.testing.assert_array_equal(stats["acceptance_rate"].numpy(), np.asarray(theirs["accept_prob"]))
    np.testing.assert_array_equal(stats["n_steps"].numpy(), np.asarray(theirs["num_steps"]))
    np.testing.assert_array_equal(stats["step_size"].numpy(), np.asarray(theirs["adapt_state.step_size"]))


def test_an_operation_without_translation_is_named() -> None:
    with pytest.raises(NotImplementedError, match="digamma"):
        to_jax(torch.digamma, torch.ones(3))
