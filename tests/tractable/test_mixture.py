"""Mixtures: the gradient is EM's, the maximum is scikit-learn's, and the VampPrior shares its guide."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import HIDDEN, MODELS, assert_means_agree, contexts, mean_and_error, ready, rows
from sklearn.mixture import GaussianMixture
from torch import nn
from torch.distributions import constraints
from torch.distributions.transforms import ExpTransform

import pyrodgm
from pyrodgm.bijectors import ActNorm, Fixed
from pyrodgm.core import Energy
from pyrodgm.distributions import MixtureDistribution
from pyrodgm.energy import RBM
from pyrodgm.latent import VAE
from pyrodgm.tractable import Flow, Mixture, Parametric, RealNVP, StandardNormal, VampPrior


def test_density_is_the_weighted_sum():
    mixture = ready(MODELS["Mixture"])
    x = rows(MODELS["Mixture"], mixture, 6)
    each = torch.stack([m.log_prob(x).exp() for m in mixture.components], -1)
    torch.testing.assert_close(mixture.log_prob(x).exp(), each @ mixture.weights)
    torch.testing.assert_close(mixture.responsibilities(x), each * mixture.weights / (each @ mixture.weights)[:, None])


def test_the_mean_is_the_draws():
    """Of components with events and a batch of weights."""
    generator = torch.Generator().manual_seed(2)
    logits, locs = (torch.randn(*shape, generator=generator).double() for shape in ((2, 3), (3, 2, 4)))
    parts = [dist.Normal(loc, 1.0).to_event(1) for loc in 3 * locs]
    d = MixtureDistribution(logits, parts)
    assert d.mean.shape == (2, 4)
    assert_means_agree(*mean_and_error(d.sample((20_000,))), d.mean)


def test_gated_weights_follow_the_context():
    mixture, c = ready(MODELS["Mixture"], True), contexts(5)
    x = rows(MODELS["Mixture"], mixture, 5)
    parts = [m.log_prob(x, c if m.context else None).exp() for m in mixture.components]
    weights = mixture.gate(c).softmax(-1)
    torch.testing.assert_close(mixture.log_prob(x, c).exp(), (torch.stack(parts, -1) * weights).sum(-1))
    with pytest.raises(ValueError, match="free weights"):
        _ = mixture.weights


def test_gradient_is_that_of_the_expected_complete_likelihood():
    """Fisher's identity: the gradient of log p is EM's, with the responsibilities held fixed."""
    mixture = ready(MODELS["Mixture"])
    x, parameters = rows(MODELS["Mixture"], mixture, 8), list(mixture.parameters())
    found = torch.autograd.grad(mixture.log_prob(x).sum(), parameters)
    r = mixture.responsibilities(x).detach()
    complete = torch.stack([m.log_prob(x) for m in mixture.components], -1) + mixture.logits.log_softmax(-1)
    torch.testing.assert_close(found, torch.autograd.grad((r * complete).sum(), parameters))


def test_gradient_ascent_reaches_scikit_learns_maximum():
    torch.manual_seed(0)
    means = torch.tensor([[-2.0, 0.0], [2.0, 1.0]]).double()
    x = torch.cat([m + torch.randn(150, 2).double() * s for m, s in zip(means, (0.5, 1.0), strict=True)])
    reference = GaussianMixture(2, covariance_type="diag", reg_covar=0, tol=1e-10, max_iter=1000, random_state=0).fit(x)
    mixture = Mixture([Parametric(dist.Normal, 2), Parametric(dist.Normal, 2)]).double()
    with torch.no_grad():
        for member, mean in zip(mixture.components, means, strict=True):
            member.free[:2] = mean
    optimizer = torch.optim.LBFGS(mixture.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -mixture.log_prob(x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    # both stop where the likelihood moves by less than 1e-7
    assert mixture.log_prob(x).mean().item() == pytest.approx(reference.score(x), abs=1e-6)


def test_components_draw_their_own_share():
    logits = torch.tensor([0.2, 0.3, 0.5]).log()
    parts = [dist.Delta(torch.tensor(float(k))) for k in range(3)]
    d = MixtureDistribution(logits, parts)
    batched = MixtureDistribution(logits, [p.expand((4,)) for p in parts])
    for x in (d.sample((20_000,)), batched.sample((5_000,)).flatten()):
        share = torch.stack([x == k for k in range(3)], -1).double()
        assert_means_agree(*mean_and_error(share), logits.exp().double())


def half_and_whole(swapped=False):
    """An exponential, whose support is a half line, beside a normal."""
    members = [Parametric(dist.Exponential, 1), Parametric(dist.Normal, 1)]
    return Mixture(members[::-1] if swapped else members)


@pytest.mark.parametrize("swapped", [False, True])
def test_members_of_other_supports_have_no_density_outside_them(swapped):
    mixture = half_and_whole(swapped).double()
    exponential, normal = reversed(mixture.components) if swapped else mixture.components
    with torch.no_grad():
        mixture.logits.copy_(torch.tensor([0.7, -0.2] if swapped else [-0.2, 0.7]))
        exponential.free.fill_(0.5), normal.free.copy_(torch.tensor([0.3, 0.2]))
    x = torch.tensor([[-2.0], [-0.1], [0.4], [3.0]]).double().requires_grad_()
    share = mixture.weights.flip(0) if swapped else mixture.weights
    expected = share[1] * normal.log_prob(x).exp()
    expected[2:] = expected[2:] + share[0] * exponential.log_prob(x[2:]).exp()
    for validate in (True, False):
        with pyro.validation_enabled(validate):
            found = mixture.log_prob(x)
            torch.testing.assert_close(found.exp(), expected)
            r = mixture.responsibilities(x)[:, int(swapped)]
            torch.testing.assert_close(r[2:], share[0] * exponential.log_prob(x[2:]).exp() / expected[2:])
            assert r[:2].tolist() == [0, 0]
            leaves = [x, *mixture.parameters()]
            slopes = torch.autograd.grad(expected.log().sum(), leaves, retain_graph=True)
            torch.testing.assert_close(torch.autograd.grad(found.sum(), leaves), slopes)
    line = torch.linspace(-12, 40, 400_001, dtype=torch.float64).unsqueeze(-1)
    # the trapezoid rule is off by half a step of the line, 1.3e-4, times the jump at 0, 0.5; the tail is below e^-60
    with torch.no_grad():
        assert abs(torch.trapezoid(mixture.log_prob(line).exp(), line.squeeze(-1)).item() - 1) < 1e-4
        draws = mixture.sample(20_000)
    assert bool(mixture.support.check(draws).all())
    p = share[1] * dist.Normal(0.3, math.exp(0.2)).cdf(torch.zeros(()).double())
    assert_means_agree(*mean_and_error((draws < 0).double()), p)


def test_members_of_other_supports_train():
    torch.manual_seed(0)
    x = half_and_whole().double().sample(200)
    mixture = half_and_whole().double()
    run = pyrodgm.fit(mixture, x, epochs=5, batch_size=50, progress=False)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert all(bool(p.isfinite().all()) for p in mixture.parameters())


def test_a_support_of_several_parts():
    """Bits beside counts, an interval beside a half line: what is in either, and nothing else."""
    bits, counts = Parametric(dist.Bernoulli, 2), Parametric(dist.Poisson, 2)
    for members in ([bits, counts], [counts, bits]):
        mixture = Mixture(members).double()
        states = torch.cartesian_prod(torch.arange(60), torch.arange(60)).double()
        torch.testing.assert_close(mixture.log_prob(states).exp().sum(), torch.ones(()).double())
        assert mixture.support.is_discrete
        assert mixture.support.check(torch.tensor([[0.0, 7.0], [0.5, 0.0], [-1.0, 0.0]])).tolist() == [
            True, False, False,
        ]  # fmt: skip
    parts = [dist.Uniform(-2.0, -1.0), dist.Exponential(1.0), dist.Uniform(torch.tensor([3.0, 4.0]), 5.0)]
    d = MixtureDistribution(torch.zeros(3), parts)
    x = torch.tensor([-1.5, -0.5, 0.5, 3.5])
    assert d.support.check(x.unsqueeze(-1)).tolist() == [[True] * 2, [False] * 2, [True] * 2, [True] * 2]
    e = torch.exp(-x[2:])
    torch.testing.assert_close(d.log_prob(x[2:].unsqueeze(-1)).exp(), torch.stack(
        (torch.stack((e[0], e[0])), torch.stack((e[1] + 0.5, e[1])))) / 3)  # fmt: skip
    with pytest.raises(ValueError, match="support"):
        MixtureDistribution(torch.zeros(3), parts, validate_args=True).log_prob(torch.tensor([-0.5, 1.0]))


def test_a_member_starts_from_the_rows_in_its_support():
    """A log-normal flow: what it would make of the others has no logarithm."""
    flow = Flow(StandardNormal(1), [ActNorm(1), Fixed(ExpTransform())])
    mixture = Mixture([flow, StandardNormal(1)])
    x = torch.tensor([[-1.0], [0.5], [2.0], [-3.0], [4.0]])
    mixture.initialize(x)
    torch.testing.assert_close(flow.bijectors[0].shift, x[x > 0].log().mean().reshape(1))
    assert bool(mixture.log_prob(x).isfinite().all())


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: Mixture([StandardNormal(2), Parametric(dist.Bernoulli, 2)]).support, ValueError, "have no sum"),
        (
            lambda: MixtureDistribution(
                torch.zeros(2), [dist.OneHotCategorical(torch.ones(3)), dist.Multinomial(4, torch.ones(3))]
            ),
            ValueError,
            "known point",
        ),
        (lambda: Mixture([]), ValueError, "at least one"),
        (lambda: Mixture([StandardNormal(2), StandardNormal(3)]), ValueError, "one event shape"),
        (lambda: Mixture([RealNVP(2, context=1), RealNVP(2, context=3)]), ValueError, "one context size"),
        (lambda: Mixture([StandardNormal(2)], nn.Linear(2, 1)), ValueError, "leave the gate out"),
        (lambda: Mixture([RBM(2, 2)]), TypeError, "Tractable"),
        (lambda: VampPrior(Parametric(dist.Normal, 2, context=3), 0), ValueError, "pseudo_inputs >= 1"),
        (lambda: VampPrior(Parametric(dist.Normal, 2, context=3), 2, context=3), ValueError, "pseudo_inputs >= 1"),
    ],
)
def test_mistakes_are_named(build, error, match):
    assert issubclass(RBM, Energy)
    with pytest.raises(error, match=match):
        build()


def vamp_vae(pseudo_inputs=4):
    guide = Parametric(dist.Normal, 2, context=5, hidden=HIDDEN)
    prior = VampPrior(guide, pseudo_inputs, support=constraints.unit_interval)
    return VAE(prior, Parametric(dist.Bernoulli, 5, context=2, hidden=HIDDEN), guide).double()


def test_vamp_prior_is_the_guides_average_over_pseudo_inputs():
    vae, z = vamp_vae(), torch.randn(7, 2).double()
    u = vae.prior.pseudo_inputs
    assert bool(((u > 0) & (u < 1)).all())
    each = torch.stack([vae.posterior(u[k : k + 1]).log_prob(z) for k in range(4)])
    torch.testing.assert_close(vae.prior.log_prob(z), each.exp().mean(0).log())


def test_vamp_prior_of_the_data_is_the_aggregate_posterior():
    """With every row a pseudo-input, the prior is the mean of the posteriors, where E_x KL(q || p) is least."""
    vae, x = vamp_vae(6), torch.rand(6, 5).double() * 0.98 + 0.01
    vae.prior.start_from(x)
    # a start keeps off the bounds by 2 per cent of the range
    torch.testing.assert_close(vae.prior.pseudo_inputs.detach(), x, rtol=0, atol=0.02)
    aggregate = Mixture([StandardNormal(2)])  # any other density of z has a larger mean KL
    q = vae.posterior(x)
    z = q.sample((4000,))
    with torch.no_grad():
        gap = (vae.prior.log_prob(z) - aggregate.double().log_prob(z)).mean(-1)
    mean, error = mean_and_error(gap)
    assert mean > 5 * error


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_prior_and_guide_one(duplicate):
    other = duplicate(vamp_vae())
    assert other.prior.posterior is other.guide.posterior
    assert len(list(other.parameters())) == len({id(p) for p in other.parameters()})
    fresh = vamp_vae()
    fresh.load_state_dict(other.state_dict())
    z = torch.randn(3, 2).double()
    torch.testing.assert_close(fresh.prior.log_prob(z), other.prior.log_prob(z))
    with torch.no_grad():
        other.guide.posterior.net[0].weight.add_(1.0)
    assert not torch.equal(fresh.prior.log_prob(z), other.prior.log_prob(z))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_vamp_prior_of_narrow_far_normals_keeps_its_digits(dtype):
    """The products' terms are 1e8 times the density's exponent where the scales are 1e-4 of the means."""
    torch.manual_seed(0)
    guide = Parametric(dist.Normal, 3, context=5 + 2, hidden=HIDDEN, fixed={"scale": 1e-3}).to(dtype)
    prior, c = VampPrior(guide, 4, context=2).to(dtype), torch.randn(6, 2, dtype=dtype)
    with torch.no_grad():
        guide.net[-1].bias.add_(10.0)
    u = prior.pseudo_inputs.detach()
    pairs = torch.cat((u.expand(6, 4, 5), c.unsqueeze(1).expand(6, 4, 2)), -1)
    each = guide.condition(pairs).base_dist  # (6, 4, 3)
    z = (each.loc[:, 0] + 1e-3 * torch.randn(7, 6, 3, dtype=dtype)).detach()  # two leading dimensions
    distance = (z.unsqueeze(-2).double() - each.loc.double()) / each.scale.double()
    expected = (-0.5 * distance.square() - each.scale.double().log() - 0.5 * torch.tensor(2 * torch.pi).log()).sum(-1)
    found = prior.condition(c).log_prob(z)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-7
    torch.testing.assert_close(
        found.double(), (expected.logsumexp(-1) - torch.tensor(4.0).log()), rtol=tolerance, atol=0
    )


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_pseudo_inputs_do_not_start_at_rows_of_one_value(value):
    """On a bounded support: there is nothing to tell how near the bounds the data come."""
    prior = VampPrior(Parametric(dist.Normal, 2, context=5), 4, support=constraints.unit_interval)
    with pytest.raises(ValueError, match=f"rows of more than one value, got {value} everywhere"):
        prior.start_from(torch.full((4, 5), value))
    x = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)).round()
    prior.start_from(x)
    torch.testing.assert_close(prior.pseudo_inputs, 0.98 * x + 0.01)


def test_expanding_the_vamp_prior_asks_the_guide_once():
    vae, calls = vamp_vae(), []
    vae.guide.posterior.net.register_forward_hook(lambda *_: calls.append(1))
    p = vae.prior.condition()
    z = torch.randn(5, 3, 2).double()
    torch.testing.assert_close(p.expand((3,)).log_prob(z), p.log_prob(z))
    assert p.expand((3,)).sample((5,)).shape == (5, 3, 2)
    assert len(calls) == 2  # one for the components, one for the draws


def test_vamp_prior_of_a_posterior_of_two_dimensions():
    posterior = Parametric(dist.Normal, (2, 3), context=6, hidden=HIDDEN).double()
    prior = VampPrior(posterior, 5).double()
    z = torch.randn(4, 2, 3).double()
    each = torch.stack([posterior.log_prob(z, row.expand(4, 6)) for row in prior.pseudo_inputs], -1)
    torch.testing.assert_close(prior.log_prob(z), each.logsumexp(-1) - torch.tensor(5.0).double().log())
