"""The latent family: bounds against exact marginals, estimators against Pyro's and against enumeration."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import (
    HIDDEN,
    MODELS,
    all_binary,
    assert_gradients_agree,
    assert_means_agree,
    context_of,
    mean_and_error,
    of_family,
    ready,
    rows,
    variants,
)
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pyrodgm
from pyrodgm.core import Latent, data_plate
from pyrodgm.guides import FullCovariance, Hierarchical, MeanField, Sites
from pyrodgm.latent import VAE, Dequantized, resample_missing
from pyrodgm.objectives import ELBO, ImportanceWeighted, PyroObjective
from pyrodgm.tractable import MADE, Parametric, RealNVP, StandardNormal

N = 4
NOISE = 0.5  # scale of the linear-Gaussian model's x
COLUMNS = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.8, 0.2], [-0.2, 0.8]]).double()  # orthogonal: diagonal posteriors
OFFSET = torch.tensor([0.3, -0.2, 0.1, 0.5]).double()

every = variants(MODELS, of_family("latent"))
CHAIN = partial(Latent.complete, steps=40)
# those whose likelihood has dependent coordinates, and some whose has not
DEPENDENT = {"VAE of MADE", "VAE of embeddings", "VAE of sentences", "ProdLDA", "NVDM", "ETM"}
BY_IMPORTANCE = {"VAE", "VAE of flows", "VAE, autoencoding", "VAE skipping", "VAE with MADE prior", "M2"}
BY_IMPORTANCE |= {"VQVAE", "VQVAE2", "VQVAE2 of images"}


def linear_vae(optimal=True):
    """p(z) = N(0, I), p(x | z) = N(W z + b, 0.25 I), and the guide that is its posterior, or one beside it."""
    decoder, encoder = nn.Linear(2, 4), nn.Linear(4, 4)
    vae = VAE(
        prior=StandardNormal(2),
        likelihood=Parametric(dist.Normal, 4, context=2, net=decoder, fixed={"scale": NOISE}),
        guide=Parametric(dist.Normal, 2, context=4, net=encoder),
    ).double()
    with torch.no_grad():
        precision = 1 + COLUMNS.square().sum(0) / NOISE**2
        gain = (COLUMNS / NOISE**2 / precision).T
        decoder.weight.copy_(COLUMNS)
        decoder.bias.copy_(OFFSET)
        encoder.weight.copy_(torch.cat((gain, torch.zeros_like(gain))))
        encoder.bias.copy_(torch.cat((-gain @ OFFSET, -0.5 * precision.log())))
        if not optimal:
            encoder.weight[:2].mul_(0.7)
            encoder.bias[2:].add_(0.5)
    return vae


def exact_marginal():
    covariance = COLUMNS @ COLUMNS.T + NOISE**2 * torch.eye(4).double()
    return dist.MultivariateNormal(OFFSET, covariance)


def binary_vae():
    """Two binary latents, so every sum over z is exact; its guide is not reparameterised."""
    torch.manual_seed(3)
    vae = VAE(
        prior=Parametric(dist.Bernoulli, 2),
        likelihood=Parametric(dist.Bernoulli, 3, context=2, hidden=HIDDEN),
        guide=Parametric(dist.Bernoulli, 2, context=3, hidden=HIDDEN),
    ).double()
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.7 * torch.randn(p.shape, dtype=p.dtype))
    return vae.eval()


def joint(vae, x):
    """log p(x, z) and log q(z | x) for every z, (4, B)."""
    z = all_binary((2,)).unsqueeze(1).expand(-1, len(x), -1)
    return vae.prior.log_prob(z) + vae.decode(z).log_prob(x), vae.posterior(x).log_prob(z)


class GlobalLatent(Latent):
    """A user's own model with a latent outside the plate: mu, z_i ~ N(mu, 1), x_i ~ N(a z_i, 1)."""

    def __init__(self):
        super().__init__((1,))
        self.slope = nn.Parameter(torch.tensor([1.5]).double())
        self.guide = self.Guide()

    def forward(self, x=None, context=None, *, n=None):
        mu = pyro.sample("mu", dist.Normal(self.slope.new_zeros(1), 1.0).to_event(1))
        with data_plate(x, context, n):
            z = pyro.sample("z", dist.Normal(mu, 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.slope * z, 1.0).to_event(1), obs=x)

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.tensor([0.2]).double())
            self.log_scale = nn.Parameter(torch.tensor([-0.3]).double())
            self.gain = nn.Parameter(torch.tensor([0.4]).double())

        def forward(self, x=None, context=None, *, n=None):
            pyro.sample("mu", dist.Normal(self.mean, self.log_scale.exp()).to_event(1))
            with data_plate(x, context, n):
                return pyro.sample("z", dist.Normal(self.gain * x, 0.6).to_event(1))


def value_and_gradients(model, compute):
    """A seeded loss and its gradients."""
    torch.manual_seed(5)
    loss = compute()
    parameters = list(model.parameters())
    return loss.detach(), torch.autograd.grad(loss, parameters, materialize_grads=True)


def agree(a, b):
    # the same noise in float64: only the order of the sums differs
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def models_for_elbo(name):
    if name == "global latent":
        return GlobalLatent(), torch.randn(N, 1, generator=torch.Generator().manual_seed(0)).double()
    model = ready(MODELS[name])
    return model, rows(MODELS[name], model, N)


def check_elbo_is_pyros(name="VAE", particles=1, n=None, analytic=True):
    """Loss and gradients of Trace_ELBO (TraceMeanField_ELBO with analytic KL) on the same noise, divided by n."""
    model, x = models_for_elbo(name)
    pyros = (TraceMeanField_ELBO if analytic else Trace_ELBO)(
        num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1
    )
    ours = ELBO(particles, analytic_kl=analytic)
    agree(
        value_and_gradients(model, lambda: ours.loss(model, x, n=n)),
        value_and_gradients(model, lambda: pyros.differentiable_loss(model, model.guide, x, n=n) / (n or N)),
    )


def check_importance_weighted_is_pyros(alpha=0.0, particles=5):
    """RenyiELBO.loss on the same noise: it, too, is a bound of each row where all sites are in the plate."""
    model, x = models_for_elbo("VAE of flows")
    torch.manual_seed(5)
    pyros = RenyiELBO(alpha, particles, max_plate_nesting=1, vectorize_particles=True).loss(model, model.guide, x)
    torch.manual_seed(5)
    ours = ImportanceWeighted(particles, alpha).loss(model, x)
    assert N * ours.item() == pytest.approx(pyros, rel=1e-9)


@torch.no_grad()
def check_bounds_rise_to_the_likelihood():
    """ELBO < IWAE-5 < IWAE-100 <= log p on average, and the last comes close."""
    vae, x = linear_vae(optimal=False), exact_marginal().sample((20,))
    exact = exact_marginal().log_prob(x).mean()
    means, errors = [], []
    for k in (1, 5, 100):
        objective = ImportanceWeighted(k)
        bounds = torch.stack([-objective.loss(vae, x) for _ in range(200)])
        mean, error = mean_and_error(bounds)
        means.append(mean), errors.append(error)
        assert mean < exact + 5 * error
    assert means[0] + 5 * errors[0] < means[1] < means[2] - 5 * errors[2]
    # the bias of log mean_K w is about var(w) / 2K, here under 0.02
    assert abs(means[2] - exact) < 5 * errors[2] + 0.02


@torch.no_grad()
def check_optimal_guide_has_constant_weights():
    vae, x = linear_vae(), exact_marginal().sample((7,))
    weights = vae.log_weights(x, particles=10)
    agree(weights, exact_marginal().log_prob(x).expand(10, 7))


def check_score_function_gradient_is_unbiased():
    """Mean of the loss and its gradients over repeats against the sum over every z."""
    vae, x = binary_vae(), all_binary((3,))[:5]
    log_joint, log_q = joint(vae, x)
    exact_loss = -(log_q.exp() * (log_joint - log_q)).sum(0).mean()
    parameters = list(vae.parameters())
    exact = torch.autograd.grad(exact_loss, parameters, materialize_grads=True)
    objective, found = ELBO(particles=200, analytic_kl=False), []
    for _ in range(60):
        loss = objective.loss(vae, x)
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        found.append(torch.cat([loss.detach().reshape(1), *(g.flatten() for g in gradients)]))
    found = torch.stack(found)
    expected = torch.cat([exact_loss.detach().reshape(1), *(g.flatten() for g in exact)])
    assert_means_agree(*mean_and_error(found[:, 0]), expected[0])
    assert_gradients_agree(found[:, 1:], expected[1:])


@torch.no_grad()
def check_complete_is_the_conditional(complete=CHAIN):
    """Frequencies of x_missing against p(x_missing | x_observed) by enumeration."""
    vae = binary_vae()
    states = all_binary((3,))
    log_p = joint(vae, states)[0].logsumexp(0)
    observed = torch.tensor([True, False, False])
    for first in (0.0, 1.0):
        fits = states[:, 0] == first
        p = log_p[fits].softmax(0)
        filled = complete(vae, torch.full((6000, 3), first).double(), observed)
        assert bool((filled[:, 0] == first).all())
        found = (filled.unsqueeze(1) == states[fits]).all(-1).double()
        assert_means_agree(*mean_and_error(found), p)


@torch.no_grad()
def check_complete_of_a_linear_gaussian_model(complete=CHAIN):
    """With a guide that is too wide and off: mean and covariance of x_missing in closed form."""
    vae, p = linear_vae(optimal=False), exact_marginal()
    mask = torch.tensor([True, True, False, False])
    x = torch.tensor([1.0, -1.0, 0.0, 0.0]).double()
    s = p.covariance_matrix
    gain = s[2:, :2] @ s[:2, :2].inverse()
    mean, covariance = OFFSET[2:] + gain @ (x[:2] - OFFSET[:2]), s[2:, 2:] - gain @ s[:2, 2:]
    d = complete(vae, x.expand(6000, 4), mask)[:, 2:] - mean
    assert_means_agree(*mean_and_error(d), torch.zeros(()).double())
    assert_means_agree(*mean_and_error((d.unsqueeze(-1) * d.unsqueeze(-2)).flatten(1)), covariance.flatten())


@every
def test_guide_sites_are_the_latent_sites(name, conditional):
    model = ready(MODELS[name], conditional)
    x, context = rows(MODELS[name], model, N), context_of(conditional, N, MODELS[name])
    trace = poutine.trace(model).get_trace(x, context)
    latent = {k for k in trace.stochastic_nodes if k != "data"}
    guide = poutine.trace(model.guide).get_trace(x, context)
    assert {k for k in guide.stochastic_nodes if k != "data"} == latent == set(MODELS[name].latents)
    for site in latent:
        assert guide.nodes[site]["value"].shape == trace.nodes[site]["value"].shape


@every
def test_shapes(name, conditional):
    model = ready(MODELS[name], conditional)
    x, context = rows(MODELS[name], model, N), context_of(conditional, N, MODELS[name])
    weights = model.log_weights(x, context, particles=6)
    assert weights.shape == (6, N)
    assert bool((weights.std(0) > 0).all()) is not MODELS[name].deterministic
    q = model.posterior(x, context)
    assert tuple(q.batch_shape) == (N,)
    assert tuple(q.event_shape) == (2,)
    again = model.reconstruct(x, context)
    assert again.shape == x.shape
    assert again.dtype == x.dtype
    assert not again.requires_grad
    assert bool(model.support.check(again).all())


@variants(MODELS, lambda case: of_family("latent")(case) and case.latents == ("z",))
def test_weights_are_the_log_joint_less_the_guide(name, conditional):
    model = ready(MODELS[name], conditional)
    x, context = rows(MODELS[name], model, N), context_of(conditional, N, MODELS[name])
    torch.manual_seed(1)
    weights = model.log_weights(x, context, particles=3)
    torch.manual_seed(1)
    with pyro.plate("particles", 3, dim=-2), poutine.trace() as handler:
        z = model.guide(x, context)
    del handler
    prior = model.prior.condition(context if model.prior.context else None)
    expected = prior.log_prob(z) + model.decode(z, context).log_prob(x) - model.posterior(x, context).log_prob(z)
    torch.testing.assert_close(weights, expected)


@every
def test_complete_keeps_what_is_observed(name, conditional):
    model = ready(MODELS[name], conditional)
    x, context = rows(MODELS[name], model, N), context_of(conditional, N, MODELS[name])
    mask = torch.rand(x.shape) < 0.5
    if name in DEPENDENT:
        with pytest.raises(TypeError, match="expected independent dimensions"):
            model.complete(x, mask, context, steps=3)
        return
    filled = model.complete(torch.where(mask, x, 0.0), mask, context, steps=3)
    assert torch.equal(filled[mask], x[mask])
    assert bool(model.support.check(filled).all())
    assert torch.equal(model.complete(x, torch.ones_like(mask), context, steps=2), x)
    if name in BY_IMPORTANCE:
        filled = resample_missing(model, torch.where(mask, x, 0.0), mask, context, particles=20)
        assert torch.equal(filled[mask], x[mask])
        assert bool(model.support.check(filled).all())


@pytest.mark.parametrize("n", [None, 3 * N])
@pytest.mark.parametrize("particles", [1, 7])
@pytest.mark.parametrize("analytic", [False, True])
@pytest.mark.parametrize("name", ["VAE", "VAE of flows", "VAE of MADE", "global latent"])
def test_elbo_is_pyros(name, analytic, particles, n):
    check_elbo_is_pyros(name, particles, n, analytic)


@variants(MODELS, lambda case: of_family("latent")(case) and case.latents == ("z",))
@pytest.mark.parametrize("analytic", [False, True])
def test_elbo_of_every_model_is_pyros(name, conditional, analytic):
    """With its context; models of classes are left out, whose draws of them Pyro scores on noise of its own."""
    model = ready(MODELS[name], conditional)
    x, context = rows(MODELS[name], model, N), context_of(conditional, N, MODELS[name])
    kind = TraceMeanField_ELBO if analytic else Trace_ELBO
    pyros = kind(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    agree(
        value_and_gradients(model, lambda: ELBO(3, analytic).loss(model, x, context, n=3 * N)),
        value_and_gradients(
            model, lambda: pyros.differentiable_loss(model, model.guide, x, context, n=3 * N) / (3 * N)
        ),
    )


@pytest.mark.parametrize("name", ["VAE", "global latent"])
def test_wrapped_pyro_elbo_is_pyros(name):
    model, x = models_for_elbo(name)
    agree(
        value_and_gradients(model, lambda: PyroObjective(Trace_ELBO()).loss(model, x, n=8)),
        value_and_gradients(model, lambda: ELBO(analytic_kl=False).loss(model, x, n=8)),
    )


@pytest.mark.parametrize("elbo", [RenyiELBO()])
def test_objects_without_a_differentiable_loss_are_refused(elbo):
    with pytest.raises(TypeError, match="ImportanceWeighted"):
        PyroObjective(elbo)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_importance_weighted_is_pyros(alpha):
    check_importance_weighted_is_pyros(alpha)


@pytest.mark.pyro_store
# order 2 follows the smallest weight, whose log is -1e9 for these flows: of its digits too few stand behind the point
@pytest.mark.parametrize(("name", "alpha"), [("VAE of flows", 0.0), ("VAE of flows", 0.5), ("VAE", 0.5), ("VAE", 2.0)])
def test_importance_weighted_gradient_is_pyros(name, alpha):
    """loss_and_grads needs parameters in Pyro's store, which svi() puts there."""
    model, x = models_for_elbo(name)
    torch.manual_seed(5)
    RenyiELBO(alpha, 5, max_plate_nesting=1, vectorize_particles=True).loss_and_grads(*model.svi(), x)
    pyros = [p.grad for p in model.parameters()]
    _, ours = value_and_gradients(model, lambda: N * ImportanceWeighted(5, alpha).loss(model, x))
    agree(list(ours), pyros)


def test_renyi_of_order_one_is_the_elbo():
    model, x = models_for_elbo("VAE")
    agree(
        value_and_gradients(model, lambda: ImportanceWeighted(7, alpha=1.0).loss(model, x)),
        value_and_gradients(model, lambda: ELBO(7, analytic_kl=False).loss(model, x)),
    )


def test_a_reconstruction_is_drawn_through_the_guide():
    """Its mean is a sum over every z: q(z | x) E[x' | z], and not the prior's."""
    vae, x = binary_vae(), all_binary((3,))[5:6]
    z = all_binary((2,))
    given_z = vae.decode(z).base_dist.mean  # (4, 3)
    expected = vae.posterior(x).log_prob(z).exp() @ given_z
    prior = vae.prior.log_prob(z).exp() @ given_z
    assert (expected - prior).abs().max() > 0.03  # twelve standard errors of the draws
    assert_means_agree(*mean_and_error(vae.reconstruct(x.expand(40_000, -1))), expected)


def test_rows_of_a_program_with_global_latents_have_no_weights():
    model, x = models_for_elbo("global latent")
    with pytest.raises(ValueError, match="'mu' lies outside the data plate"):
        model.log_weights(x)


def test_bounds_rise_to_the_likelihood():
    check_bounds_rise_to_the_likelihood()


def test_optimal_guide_has_constant_weights():
    check_optimal_guide_has_constant_weights()


def test_optimal_guide_is_where_the_elbo_is_tight():
    """There the ELBO is the likelihood, and its expected gradient in the guide is 0."""
    vae, x = linear_vae(), exact_marginal().sample((7,))
    gradients = []
    for _ in range(300):
        found = torch.autograd.grad(ELBO(20).loss(vae, x), list(vae.guide.parameters()))
        gradients.append(torch.cat([g.flatten() for g in found]))
    assert_means_agree(*mean_and_error(torch.stack(gradients)), torch.zeros(()).double())
    with torch.no_grad():  # the analytic KL leaves the noise of log p(x | z)
        losses = torch.stack([ELBO().loss(vae, x) for _ in range(400)])
    assert_means_agree(*mean_and_error(losses), -exact_marginal().log_prob(x).mean())


def test_held_out_likelihood_meets_the_exact_one():
    vae, x = linear_vae(optimal=False), exact_marginal().sample((50,))
    found = pyrodgm.evaluation.log_likelihood(vae, x, particles=2000)
    assert found.kind == "bound"
    # the bias of log mean_K w is about var(w) / 2K < 0.002, its noise sqrt(var(w) / (50 K)) < 0.01
    assert found.value == pytest.approx(exact_marginal().log_prob(x).mean().item(), abs=0.03)


def test_score_function_gradient_is_unbiased():
    check_score_function_gradient_is_unbiased()


RESAMPLED = partial(resample_missing, particles=90)
IN_ONE_ROUND = partial(resample_missing, particles=90, rounds=1)


def check_complete_by_importance():
    check_complete_of_a_linear_gaussian_model(RESAMPLED)


def check_complete_in_one_round():
    """Its fillings-in are draws of p(x), which have to leave no trace."""
    check_complete_of_a_linear_gaussian_model(partial(IN_ONE_ROUND, particles=360))


def test_complete_in_one_round():
    check_complete_in_one_round()


def test_complete_is_the_conditional():
    check_complete_is_the_conditional()


@pytest.mark.parametrize("resample", [RESAMPLED, IN_ONE_ROUND], ids=["four rounds", "one round"])
def test_resampled_is_the_conditional(resample):
    check_complete_is_the_conditional(resample)


def test_complete_of_a_linear_gaussian_model():
    check_complete_of_a_linear_gaussian_model()


def test_resampled_of_a_linear_gaussian_model():
    check_complete_by_importance()


@torch.no_grad()
def test_one_filling_in_is_not_enough():
    """What the mixture is for: weights against the guide of a single filled row have a wrong limit of few particles."""
    vae, p = linear_vae(), exact_marginal()
    mask = torch.tensor([True, False, False, False])
    x = torch.tensor([1.0, 0.0, 0.0, 0.0]).double()
    s = p.covariance_matrix
    mean, scale = OFFSET[1:] + s[1:, 0] / s[0, 0] * (x[0] - OFFSET[0]), (s[1:, 1:] - s[1:, :1] @ s[:1, 1:] / s[0, 0])
    d = RESAMPLED(vae, x.expand(4000, 4), mask)[:, 1:] - mean
    assert_means_agree(*mean_and_error(d), torch.zeros(()).double())
    assert_means_agree(*mean_and_error((d.unsqueeze(-1) * d.unsqueeze(-2)).flatten(1)), scale.flatten())
    filled = torch.where(mask, x, vae(n=4000))
    z = vae.posterior(filled).sample((90,))  # (K, B, Z)
    seen = vae.decode(z).base_dist.log_prob(filled)[..., 0]
    log_w = vae.prior.log_prob(z) + seen - vae.posterior(filled).log_prob(z)
    z = z[log_w.softmax(0).T.multinomial(1)[:, 0], torch.arange(4000)]
    naive = vae.decode(z).sample()[:, 1:] - mean
    assert bool(((naive.square().mean(0) / scale.diagonal()).log().abs() > 0.05).any())


@pytest.mark.parametrize("builder", [lambda s: FullCovariance(s, [8]), lambda s: MeanField(s, [8])])
def test_complete_by_guides_of_programs(builder, monkeypatch):
    """Their auxiliary sites are no latents of the model, and they are off the posterior."""
    vae = linear_vae()
    vae.guide = builder(Sites(vae, (torch.zeros(3, 4).double(),)))
    monkeypatch.setitem(globals(), "linear_vae", lambda optimal=True: vae)
    check_complete_of_a_linear_gaussian_model(partial(resample_missing, particles=180))


def test_what_cannot_be_completed_is_refused():
    x, mask = torch.ones(3, 5).double(), torch.arange(5) < 2
    vae = COMPOSED["MADE decoder"]().double()
    for complete in (Latent.complete, resample_missing):
        with pytest.raises(TypeError, match="independent dimensions"):
            complete(vae, x, mask)
    vae = linear_vae()
    with pytest.raises(ValueError, match="particles > 8"):
        resample_missing(vae, x[:, :4], mask[:4], particles=8)
    vae.guide = Hierarchical(Sites(vae, (x[:, :4],)), 2, [8])
    with pytest.raises(TypeError, match="'_reverse_locals'"):
        resample_missing(vae, x[:, :4], mask[:4])
    with pytest.raises(TypeError, match="independent dimensions"):
        resample_missing(Dequantized(RealNVP(2, 2, hidden=HIDDEN), 4), x[:, :2].float(), mask[:2])


@pytest.mark.parametrize("complete", [CHAIN, resample_missing, Dequantized.complete], ids=["chain", "SIR", "cells"])
def test_masks_that_do_not_fit_are_refused(complete):
    vae, x, mask = linear_vae(), torch.zeros(3, 4).double(), torch.arange(4) < 2
    with pytest.raises(TypeError, match=r"boolean tensor, True where x is observed, got torch\.float32"):
        complete(vae, x, mask.float())
    with pytest.raises(TypeError, match="got list"):
        complete(vae, x, mask.tolist())
    with pytest.raises(ValueError, match=r"broadcast against x of shape \(3, 4\), got \(3,\)"):
        complete(vae, x, mask[:3])
    with pytest.raises(ValueError, match="finite numbers where mask is True"):
        complete(vae, torch.where(mask, torch.nan, x), mask)


@pytest.mark.parametrize("complete", [CHAIN, resample_missing], ids=["chain", "SIR"])
def test_what_is_missing_may_be_nan(complete):
    mask = torch.arange(4) < 2
    filled = complete(linear_vae(), torch.where(mask, 0.5, torch.nan).double().expand(3, 4), mask)
    assert bool(filled.isfinite().all())
    assert bool((filled[:, :2] == 0.5).all())


def test_what_is_masked_has_no_weight_whatever_its_density():
    def program(x):
        with pyro.plate("data", 3, dim=-1), poutine.mask(mask=torch.tensor([True, False, True])):
            pyro.sample("x", dist.Normal(torch.tensor([0.0, torch.inf, 0.0]), 1.0, validate_args=False), obs=x)

    found = Latent.row_log_prob(poutine.trace(program).get_trace(torch.zeros(3)))
    torch.testing.assert_close(found, -0.5 * math.log(2 * math.pi) * torch.tensor([1.0, 0.0, 1.0]))


class Misnamed(nn.Module):
    """A guide whose latent has another name than the program's."""

    def __init__(self, guide, infer=None):
        super().__init__()
        self.guide, self.infer = guide, infer

    def forward(self, x=None, context=None, *, n=None):
        with data_plate(x, context, n):
            return pyro.sample("w", self.guide.condition(x), infer=self.infer)


@pytest.mark.parametrize("objective", [ELBO(), ELBO(3), ImportanceWeighted(3), ImportanceWeighted(3, doubly=True)])
def test_a_guide_of_other_sites_is_refused(objective):
    vae, x = ready(MODELS["VAE"]), rows(MODELS["VAE"], ready(MODELS["VAE"]), N)
    vae.guide = Misnamed(vae.guide)
    with pytest.raises(ValueError, match=r"latent sites \['z'\], got \['w'\]"):
        objective.loss(vae, x)
    with pytest.raises(ValueError, match=r"latent sites \['z'\], got \['w'\]"):
        vae.log_weights(x)
    vae.guide.infer = {"is_auxiliary": True}
    with pytest.raises(ValueError, match=r"latent sites \['z'\], got \[\]"):
        vae.log_weights(x)


COMPOSED = {
    "flow prior and guide": lambda: VAE(
        RealNVP(2, 2, hidden=HIDDEN),
        Parametric(dist.Bernoulli, 5, context=2, hidden=HIDDEN),
        RealNVP(2, 2, hidden=HIDDEN, context=5),
    ),
    "MADE decoder": lambda: VAE(
        StandardNormal(2), MADE(5, HIDDEN, context=2), Parametric(dist.Normal, 2, context=5, hidden=HIDDEN)
    ),
    "MADE everywhere": lambda: VAE(MADE(3, HIDDEN), MADE(5, HIDDEN, context=3), MADE(3, HIDDEN, context=5)),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_compositions_train(name):
    """On rows of two alternating patterns, the bound comes from D log 2 to near the log 2 of the choice."""
    torch.manual_seed(0)
    vae = COMPOSED[name]()
    x = torch.tensor([[1.0, 0, 1, 0, 1], [0.0, 1, 0, 1, 0]]).repeat(32, 1)
    objective, optimizer = ELBO(), torch.optim.Adam(vae.parameters(), lr=0.02)
    history = []
    for _ in range(250):
        loss = objective.loss(vae, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-20:]) / 20 < 1.5 < 0.9 * 5 * math.log(2) < history[0]
