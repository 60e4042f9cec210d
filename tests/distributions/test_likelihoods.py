"""Likelihoods beyond the contract's two levels: probabilities sum to one, and draws have them."""

import math

import pyro.distributions as dist
import pytest
import torch
from cases import assert_means_agree, mean_and_error
from scipy import stats

import pyrodgm
from pyrodgm.diagnostics import decode
from pyrodgm.distributions import Codes, DiscretizedLogistic, WordCounts
from pyrodgm.latent import VAE
from pyrodgm.tractable import MADE, CategoricalConditional, Parametric, StandardNormal


@pytest.mark.parametrize("scale", [1e-4, 0.02, 1.0, 50.0])
@pytest.mark.parametrize("loc", [-0.3, 0.0, 0.4, 0.5019, 1.7])
def test_discretized_logistic_sums_to_one(loc, scale):
    d = DiscretizedLogistic(torch.tensor(loc).double(), torch.tensor(scale).double(), 256)
    log_prob = d.log_prob(torch.arange(256).double() / 255)
    assert bool(log_prob.isfinite().all())
    torch.testing.assert_close(log_prob.logsumexp(0), torch.zeros(()).double(), rtol=0, atol=1e-10)


def test_discretized_logistic_is_the_logistics_mass_of_each_bin():
    d = DiscretizedLogistic(torch.tensor(0.35).double(), torch.tensor(0.08).double(), 17)
    edges = (torch.arange(16).double() + 0.5) / 16
    cdf = torch.tensor([0.0, *stats.logistic.cdf(edges, 0.35, 0.08), 1.0]).double()
    p = d.log_prob(torch.arange(17).double() / 16).exp()
    torch.testing.assert_close(p, cdf.diff())
    torch.testing.assert_close(d.mean, (p * torch.arange(17) / 16).sum())


def test_discretized_logistic_far_in_the_tail():
    """100 nats below: the naive difference of two sigmoids is 0 there in float64, and its gradient with it."""
    loc = torch.tensor(0.0).double().requires_grad_()
    log_prob = DiscretizedLogistic(loc, torch.tensor(0.005).double(), 256).log_prob(torch.tensor(0.8).double())
    (gradient,) = torch.autograd.grad(log_prob, loc)
    width = 1 / 255 / 0.005
    expected = -0.8 / 0.005 + width / 2 + torch.log(-torch.expm1(torch.tensor(-width)))  # log of e^-a (1 - e^-width)
    assert log_prob.item() == pytest.approx(expected.item(), rel=1e-6)
    assert gradient.item() == pytest.approx(1 / 0.005, rel=1e-6)


def test_discretized_logistic_draws_have_the_probabilities():
    d = DiscretizedLogistic(torch.tensor([0.1, 0.7]).double(), torch.tensor([0.1, 0.5]).double(), 5)
    levels = torch.arange(5).double() / 4
    share = (d.sample((20_000,)).unsqueeze(-1) == levels).double()
    assert_means_agree(*mean_and_error(share), d.log_prob(levels.unsqueeze(-1)).exp().T)
    with pytest.raises(ValueError, match="support"):
        DiscretizedLogistic(torch.zeros(1), torch.ones(1), 5, validate_args=True).log_prob(torch.tensor([0.3]))


@pytest.mark.parametrize("levels", [2, 256, 2**16])
def test_levels_in_float32_are_in_the_support(levels):
    level = torch.arange(levels, dtype=torch.float32)
    d = DiscretizedLogistic(torch.tensor(0.5), torch.tensor(0.1), levels)
    for x in (level / (levels - 1), (level / (levels - 1)).double()):
        assert bool(d.support.check(x).all())
        assert not bool(d.support.check(x[:-1] + 0.5 / (levels - 1)).any())


FAMILIES = {
    "normal": (dist.Normal, {}, None),
    "normal, fixed": (dist.Normal, {"fixed": {"scale": 0.3}}, None),
    "Laplace": (dist.Laplace, {}, None),
    "Poisson": (dist.Poisson, {}, 60),
    "negative binomial": (dist.NegativeBinomial, {}, 400),
    "binomial": (dist.Binomial, {"fixed": {"total_count": 7.0}}, 8),
    "logistic, 256": (DiscretizedLogistic, {"fixed": {"levels": 256}}, 256),
    "categorical": (Codes, {"sizes": {"logits": 6}}, 6),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_any_family_is_a_vaes_likelihood(name):
    """Each feature's probabilities (or density, by the trapezoid) sum to one at a latent's parameters; draws fit."""
    family, options, levels = FAMILIES[name]
    torch.manual_seed(0)
    likelihood = Parametric(family, 3, context=2, hidden=[8], **options)
    vae = VAE(StandardNormal(2), likelihood, Parametric(dist.Normal, 2, context=3, hidden=[8])).double()
    x = vae.sample(4)
    assert bool(vae.support.check(x).all())
    loss = -vae.log_weights(x, particles=2).mean()
    gradients = torch.autograd.grad(loss, list(vae.parameters()))
    assert all(bool((g != 0).any()) for g in gradients)
    base = vae.decode(torch.randn(5, 2).double()).base_dist  # batch (5, 3)
    if levels is None:
        grid = torch.linspace(-40, 40, 40_001).double()
        total = torch.trapezoid(base.log_prob(grid[:, None, None]).exp(), grid, dim=0)
    else:
        grid = torch.arange(levels).double() / (255 if family is DiscretizedLogistic else 1)
        total = base.log_prob(grid[:, None, None]).exp().sum(0)
    # the trapezoid's error at a Laplace's kink, h^2 / 6 of the curvature; sums are exact up to a tail below 1e-6
    torch.testing.assert_close(total.detach(), torch.ones(5, 3).double(), rtol=0, atol=1e-5)


def test_vectors_need_a_size():
    with pytest.raises(TypeError, match="sizes of its parameters"):
        Parametric(Codes, 3)
    with pytest.raises(TypeError, match="sizes of its parameters"):
        Parametric(dist.Normal, 3, sizes={"loc": 2})


def all_codes(features, categories):
    return torch.cartesian_prod(*[torch.arange(categories).double()] * features)


CODE_NETS = {"plain": {}, "direct": {"direct": True}, "linear": {"hidden": []}, "order": {"order": [2, 0, 1]}}


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("options", CODE_NETS.values(), ids=CODE_NETS)
def test_made_over_codes_sums_to_one_and_draws_from_it(context, options):
    torch.manual_seed(1)
    options = {"hidden": [12], **options}
    made = MADE(3, options.pop("hidden"), conditional=CategoricalConditional(5), context=context, **options).double()
    for p in made.parameters():  # so that every code says much about the later ones
        torch.nn.init.normal_(p, std=0.4)
    given = torch.randn(context).double() if context else None
    states = all_codes(3, 5)
    with torch.no_grad():
        p = made.condition(given).log_prob(states).exp()
        torch.testing.assert_close(p.sum(), torch.ones(()).double())
        x = made.sample(20_000, given)
    often = p > 1e-3  # at least some 20 draws, so that their number has a standard error
    share = (x.unsqueeze(1) == states[often]).all(-1).double()
    assert_means_agree(*mean_and_error(share), p[often])
    with pytest.raises(ValueError, match="categories >= 2"):
        CategoricalConditional(1)


def test_made_learns_a_code_that_depends_on_another_in_no_order():
    """The second is a shuffle of the first, which no small function of the number says and one row of a table does."""
    torch.manual_seed(0)
    partner = torch.randperm(12)
    first = torch.randint(12, (2000,))
    x = torch.stack((first, partner[first]), 1).float()
    made = MADE(2, [8], conditional=CategoricalConditional(12), direct=True)
    pyrodgm.fit(made, x, steps=300, batch_size=200, lr=5e-2, progress=False)
    with torch.no_grad():
        surprise = -made.log_prob(torch.stack((torch.arange(12), partner), 1).float()).mean() - math.log(12)
    assert surprise < 0.05  # log 12 = 2.48 where the first says nothing


def test_independent_codes_of_a_grid():
    torch.manual_seed(1)
    model = Parametric(Codes, (2, 2), sizes={"logits": 3}).double()
    torch.nn.init.normal_(model.free)
    states = all_codes(4, 3).unflatten(-1, (2, 2))
    torch.testing.assert_close(model.log_prob(states).exp().sum(), torch.ones(()).double())
    expected = model.free.detach().unflatten(-1, (2, 2, 3)).softmax(-1)
    draws = model.sample(20_000)
    share = (draws.unsqueeze(-1) == torch.arange(3)).double()
    assert_means_agree(*mean_and_error(share), expected)
    d = model.condition()
    torch.testing.assert_close(d.mean, expected[..., 1] + 2 * expected[..., 2])
    assert_means_agree(*mean_and_error(draws), d.mean)
    assert_means_agree(*mean_and_error((draws - d.mean).square()), d.variance)
    torch.testing.assert_close(d.expand((5,)).mean, d.mean.expand(5, 2, 2))


def test_the_mean_of_a_vae_of_codes_is_decoded():
    vae = VAE(
        StandardNormal(2),
        Parametric(Codes, 3, context=2, hidden=[8], sizes={"logits": 4}),
        Parametric(dist.Normal, 2, context=3, hidden=[8]),
    )
    z = torch.randn(5, 2)
    p = vae.decode(z).base_dist.probs
    torch.testing.assert_close(decode(vae, z), (p * torch.arange(4)).sum(-1))


def test_word_counts_sum_to_one_over_the_sequences_of_words():
    log_probs = torch.randn(3, generator=torch.Generator().manual_seed(0)).double().log_softmax(-1)
    sequences = torch.cartesian_prod(*[torch.arange(3)] * 4)  # (81, 4)
    counts = torch.nn.functional.one_hot(sequences, 3).sum(1).double()
    d = WordCounts(log_probs, 4)
    torch.testing.assert_close(d.log_prob(counts).logsumexp(0), torch.zeros(()).double())
    x = d.sample((20_000,))
    assert bool((x.sum(-1) == 4).all())
    assert_means_agree(*mean_and_error(x), 4 * log_probs.exp())
    assert_means_agree(*mean_and_error(x), d.mean)


def test_a_word_of_probability_0_that_does_not_occur_takes_nothing_away():
    logits = torch.tensor([0.3, -torch.inf, 1.0]).double().requires_grad_()
    counts = torch.tensor([[2.0, 0.0, 1.0], [2.0, 1.0, 1.0]]).double()
    found = WordCounts(logits.log_softmax(-1), 4).log_prob(counts)
    expected = counts[:1, [0, 2]] @ logits[[0, 2]].log_softmax(-1)
    torch.testing.assert_close(found[:1], expected)
    assert found[1] == -torch.inf
    (gradient,) = torch.autograd.grad(found[0], logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logits)[0])
