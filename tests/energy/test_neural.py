"""Neural energies: log Z three ways, samples and gradients against quadrature, and an energy prior inside a VAE."""

import math

import pyro.distributions as dist
import pytest
import torch
from cases import (
    C,
    all_binary,
    assert_errors_are_the_spread,
    assert_gradients_agree,
    assert_means_agree,
    contexts,
    grow,
    mean_and_error,
)
from pyro.infer import Trace_ELBO
from torch import nn

import pyrodgm
from pyrodgm.energy import NeuralEnergy
from pyrodgm.evaluation import importance_estimate, log_likelihood
from pyrodgm.kernels import HMC, MALA
from pyrodgm.latent import VAE
from pyrodgm.objectives import DenoisingScoreMatching, ReplayDivergence
from pyrodgm.tractable import Parametric, RealNVP

CHAINS = 4000


def neural(features=2, context=0, base=None, scale=0.5, seed=0):
    torch.manual_seed(seed)
    return grow(NeuralEnergy.mlp(features, [8], context, base, MALA(0.7), nn.Tanh), scale).double()


class Quadratic(nn.Module):
    """f(x) = sum_d a_d x_d^2 / 2 + w_d x_d."""

    def __init__(self, a, w):
        super().__init__()
        self.a, self.w = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, w))

    def forward(self, x):
        return (self.a * x.square() / 2 + self.w * x).sum(-1)


def grid_means(model, functions, context=None):
    """E_p of functions (rows) -> (rows, k), by quadrature."""
    axis = torch.linspace(-9, 9, 401, dtype=torch.float64)
    nodes = torch.cartesian_prod(*[axis] * model.event_shape[0]).reshape(-1, *model.event_shape)
    with torch.no_grad():
        p = (-model.energy(nodes, context)).softmax(0)
        return p @ functions(nodes)


def moments(x):
    return torch.cat((x, x.square(), x.sin(), (x[:, :1] * x[:, -1:])), -1)


@pytest.mark.parametrize(
    ("a", "w"), [([0.5], [0.3]), ([3.0], [-9.0]), ([0.5, 2.0], [0.0, 1.0]), ([0.0, 0.0], [8.0, -8.0])]
)
def test_quadrature_of_a_gaussian(a, w):
    r"""f = a x^2 / 2 + w x under N(0, 1): Z = prod (1 + a)^-1/2 exp(w^2 / 2 (1 + a)), also with its mass far away."""
    model = NeuralEnergy(len(a), Quadratic(a, w)).double()
    log_z, error = model.log_partition("grid")
    a, w = model.net.a, model.net.w
    exact = (w.square() / (1 + a) - (1 + a).log()).sum() / 2
    torch.testing.assert_close(log_z, exact, rtol=0, atol=1e-7)  # the rim of the box holds less than 1e-8
    assert error < 1e-7
    found = torch.autograd.grad(log_z, [a, w])
    expected = torch.autograd.grad(exact, [a, w])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def check_log_partition(conditional=False, base=None):
    """AIS and importance sampling, from the base and from another proposal, within their own errors of quadrature."""
    model = neural(context=C if conditional else 0)
    if base is not None:
        model.base = base
    context = contexts(1)[0] if conditional else None
    exact, error = model.log_partition("grid", context=context)
    assert error < 1e-3  # far below the errors of the others
    wide = Parametric(dist.Normal, 2, fixed={"scale": 2.0}).double()
    ways = {
        "ais": {"chains": 200, "temperatures": 40},
        "importance": {"draws": 4000},
        "proposal": {"draws": 4000, "proposal": wide},
    }
    for way, options in ways.items():
        method = "importance" if way == "proposal" else way
        scores = []
        for seed in range(6):
            found, error = model.log_partition(method, context=context, seed=seed, **options)
            assert 0 < error < 0.2
            scores.append(((found - exact) / error).item())
        # six standard normal scores: their root mean square lies within (0.2, 2.2) but for 1 in 10^4
        assert max(map(abs, scores)) < 5
        assert 0.2 < math.sqrt(sum(s**2 for s in scores) / len(scores)) < 2.2


@pytest.mark.parametrize("conditional", [False, True])
def test_log_partition(conditional):
    check_log_partition(conditional)


def test_log_partition_with_a_flow_as_base():
    torch.manual_seed(1)
    check_log_partition(base=grow(RealNVP(2, 2, hidden=[8]), 0.1).double())


@pytest.mark.parametrize("way", ["ais", "importance", "proposal"])
def test_standard_errors_are_the_spread_of_repeats(way):
    model = neural()
    wide = Parametric(dist.Normal, 2, fixed={"scale": 2.0}).double()
    options = {
        "ais": {"method": "ais", "chains": 100, "temperatures": 15},
        "importance": {"method": "importance", "draws": 400},
        "proposal": {"method": "importance", "draws": 400, "proposal": wide},
    }[way]
    runs = (model.log_partition(seed=seed, **options) for seed in range(60))
    assert_errors_are_the_spread(runs, model.log_partition("grid")[0])


def test_seeds_and_random_state():
    model = neural()
    state = torch.get_rng_state()
    first = model.log_partition("ais", chains=10, temperatures=5, seed=1)[0]
    model.log_partition("grid")
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, model.log_partition("ais", chains=10, temperatures=5, seed=1)[0])


@pytest.mark.parametrize("conditional", [False, True])
def test_log_prob_is_normalised(conditional):
    """The mean of p / b over draws of b is 1."""
    model = neural(context=C if conditional else 0)
    context = contexts(2)[torch.arange(20_000) % 2] if conditional else None
    x = torch.randn(20_000, 2, dtype=torch.float64)
    with torch.no_grad():
        ratio = (model.log_prob(x, context) - model.base.log_prob(x)).exp()
    assert ratio.std() < 3
    assert_means_agree(*mean_and_error(ratio), torch.ones(()).double())


@pytest.mark.parametrize("kernel", [MALA(0.7), HMC(step_size=0.5)], ids=["MALA", "HMC"])
@pytest.mark.parametrize("conditional", [False, True])
def test_samples_have_the_density(kernel, conditional):
    model = neural(context=C if conditional else 0)
    model.kernel, model.sample_steps = kernel, 60 if isinstance(kernel, MALA) else 15
    context = contexts(1)[0] if conditional else None
    torch.manual_seed(1)
    found = moments(model.sample(CHAINS, context))
    expected = grid_means(model, moments, context)
    assert (expected[:2].abs() > 0.1).any()  # so N(0, I), where the chains start, would not pass
    assert_means_agree(*mean_and_error(found), expected)


def test_training_gradient():
    """Unnormalised.log_prob while training has the gradient of log p, whose log Z quadrature differentiates."""
    model = neural().train()
    model.negative_steps = 40
    x = torch.randn(10, 2, dtype=torch.float64)
    parameters = list(model.parameters())
    exact = torch.autograd.grad((-model.energy(x) - model.log_partition("grid")[0]).mean(), parameters)
    found = []
    for _ in range(25):
        log_prob = model.condition().log_prob(x.repeat(40, 1))
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(log_prob.mean(), parameters)]))
    assert_gradients_agree(torch.stack(found), torch.cat([g.flatten() for g in exact]))


def test_images_and_many_dimensions():
    """Any event shape and any net; AIS where no grid reaches."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.SiLU(), nn.Flatten(), nn.Linear(8, 1))
    model = NeuralEnergy((1, 4, 4), net).double()
    x = torch.randn(3, 2, 1, 4, 4, dtype=torch.float64)
    energy = model.energy(x)
    torch.testing.assert_close(energy[1, 1], model.energy(x[1, 1]))
    expected = net(x[2])[:, 0] + x[2].square().sum((1, 2, 3)) / 2 + 8 * math.log(2 * math.pi)
    torch.testing.assert_close(energy[2], expected)
    importance, e1 = model.log_partition("importance", draws=4000, seed=0)
    ais, e2 = model.log_partition("ais", chains=100, temperatures=30, seed=0)
    assert_means_agree(importance, e1, ais, e2)
    found = log_likelihood(model, x[0], chains=20, temperatures=10)
    assert found.kind == "AIS estimate"


def test_a_context_broadcasts():
    model = neural(context=C)
    x, context = torch.randn(5, 2, dtype=torch.float64), contexts(3)
    energy = model.energy(x.unsqueeze(1), context)
    assert energy.shape == (5, 3)
    torch.testing.assert_close(energy[4, 1], model.energy(x[4], context[1]))


def test_mistakes():
    model = neural()
    with pytest.raises(ValueError, match=r'"ais", "importance" or "grid"'):
        model.log_partition("exact")
    with pytest.raises(ValueError, match="odd number of points"):
        model.log_partition("grid", points=10)
    with pytest.raises(ValueError, match="one or two dimensions"):
        neural(3).log_partition("grid")
    with pytest.raises(ValueError, match="one context"):
        neural(2, C).log_partition("grid", context=contexts(2))
    with pytest.raises(ValueError, match="draws >= 2"):
        model.log_partition("importance", draws=1)
    with pytest.raises(ValueError, match="one number a row"):
        NeuralEnergy(2, nn.Linear(2, 3)).energy(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="base of event shape"):
        NeuralEnergy(2, nn.Linear(2, 1), base=RealNVP(3))
    with pytest.raises(ValueError, match="base of event shape"):
        NeuralEnergy(2, nn.Linear(2, 1), base=RealNVP(2, context=3))
    with pytest.raises(ValueError, match="that the base confines"):
        NeuralEnergy(1, Quadratic([-1.5], [0.0])).double().log_partition("grid")


def test_fit():
    """A narrow ring is learnt in part; the held-out score is the likelihood by quadrature."""
    torch.manual_seed(0)
    angle = 2 * math.pi * torch.rand(2000)
    x = torch.stack((angle.cos(), angle.sin()), -1) * 1.5 + 0.3 * torch.randn(2000, 2)
    model = NeuralEnergy.mlp(2, [16])
    before = -model.log_prob(x[:500]).mean().item()
    run = pyrodgm.fit(model, x[500:], ReplayDivergence(5, 500), validate=x[:500], steps=60, lr=1e-2, progress=False)
    after = -model.log_prob(x[:500]).mean().item()
    assert after < before
    assert run.history[-1]["held_out"] == pytest.approx(after, abs=1e-3)  # float32 sums


# An energy prior inside a VAE's program


def energy_vae():
    """One latent number, Bernoulli rows of three, the prior a neural energy."""
    torch.manual_seed(3)
    prior = NeuralEnergy.mlp(1, [6], kernel=MALA(0.9), activation=nn.Tanh)
    prior.negative_steps = 30
    likelihood = Parametric(dist.Bernoulli, 3, context=1, hidden=[6], activation=nn.Tanh)
    guide = Parametric(dist.Normal, 1, context=3, hidden=[6], activation=nn.Tanh)
    return grow(VAE(prior, likelihood, guide), 0.3).double()


def exact_bound(vae, x):
    """The mean bound by quadrature over z and over log Z, with all its gradients."""
    t = torch.linspace(-9, 9, 301, dtype=torch.float64)
    q = vae.guide.condition(x)
    z = q.base_dist.loc + q.base_dist.scale * t.reshape(-1, 1, 1)  # (nodes, B, 1)
    weights = vae.decode(z).log_prob(x) - vae.prior.energy(z) - q.log_prob(z)  # (nodes, B)
    return ((-t.square() / 2).softmax(0) @ weights).mean() - vae.prior.log_partition("grid")[0]


def test_gradient_of_a_vae_with_an_energy_prior():
    """Pang et al. (2020), eq. 6-8: prior, decoder and guide together, by the ELBO of the program as it stands."""
    vae = energy_vae().train()
    x = all_binary((3,))[[1, 2, 4, 7]]
    parameters = list(vae.parameters())
    exact = torch.autograd.grad(exact_bound(vae, x), parameters)
    found = []
    for _ in range(40):
        loss = Trace_ELBO().differentiable_loss(vae, vae.guide, x.repeat(100, 1)) / 400
        found.append(torch.cat([-g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    assert_gradients_agree(torch.stack(found), torch.cat([g.flatten() for g in exact]))


def test_no_bound_is_claimed_where_log_z_is_missing():
    x = all_binary((3,))
    assert log_likelihood(energy_vae(), x).kind == "none"
    with pytest.raises(TypeError, match="'z' known up to its log Z"):
        importance_estimate(energy_vae(), x, particles=50)


def test_a_vae_with_an_energy_prior_trains():
    vae = energy_vae()
    x = all_binary((3,))[torch.tensor([0, 7, 7, 7, 0, 1])].repeat(50, 1)
    before, start = exact_bound(vae, x[:6]).item(), vae.prior.net.net[0].weight.clone()
    pyrodgm.fit(vae, x, steps=80, lr=2e-2, precision="64-true", progress=False)
    assert exact_bound(vae, x[:6]).item() > before
    assert not torch.equal(start, vae.prior.net.net[0].weight)


def test_the_prior_alone_can_be_fitted_to_latents():
    """Two-stage training: any objective of energies, on what the guide gives."""
    vae = energy_vae()
    z = vae.guide.condition(all_binary((3,)).repeat(20, 1)).sample()
    objective = DenoisingScoreMatching(0.3)

    def score():
        torch.manual_seed(1)  # the same noise before and after
        return objective.held_out(vae.prior, z).item()

    before = score()
    pyrodgm.fit(vae.prior, z, objective, steps=60, lr=1e-2, precision="64-true", progress=False)
    assert score() < before
