"""Guides of programs whose posterior is known: at it, every draw's bound is the log evidence itself."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import assert_means_agree, grow, mean_and_error
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyrodgm.bijectors import Autoregressive, Planar, RationalQuadraticSpline
from pyrodgm.core import Tractable
from pyrodgm.guides import (
    Enumerate,
    FlowGuide,
    FullCovariance,
    Hierarchical,
    MeanField,
    PackedGuide,
    Score,
    SemiAmortized,
    Sites,
    StraightThrough,
)
from pyrodgm.traces import sample_sites

W = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, 1.1]], dtype=torch.float64)  # (D, Z)
NOISE = 0.7


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)  # the clean_state fixture sets it back


def raw(scale):
    """What the guides' softplus takes to ``scale``, up to the 1e-6 that they add."""
    return torch.as_tensor(scale - 1e-6).expm1().log()


def set_gaussian(gaussian, loc, covariance):
    """A full Gaussian's free numbers for N(loc, covariance)."""
    tril = torch.linalg.cholesky(covariance)
    d = len(loc)
    below = torch.tril_indices(d, d, -1)
    with torch.no_grad():
        gaussian.free.copy_(torch.cat((loc, raw(tril.diagonal()), tril[below[0], below[1]])))


def factor_model(x):
    """x_b = g + W l_b + noise: a factor model with an unknown mean."""
    g = pyro.sample("g", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        local = pyro.sample("l", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(g + local @ W.T, NOISE).to_event(1), obs=x)


def factor_guide(x):
    """FullCovariance with the exact posterior in it, and the exact log evidence."""
    guide = FullCovariance(Sites(factor_model, (x,)), hidden=[])
    marginal = W @ W.T + NOISE**2 * torch.eye(3)  # of x given g
    precision = torch.eye(3) / 4 + len(x) * torch.linalg.inv(marginal)
    covariance = torch.linalg.inv(precision)
    set_gaussian(guide.posterior_of_globals, covariance @ torch.linalg.solve(marginal, x.sum(0)), covariance)
    local = torch.linalg.inv(torch.eye(2) + W.T @ W / NOISE**2)
    set_gaussian(guide.posterior_of_locals, torch.zeros(2), local)
    gain = local @ W.T / NOISE**2  # (Z, D): the mean of l is gain (x - g)
    with torch.no_grad():
        net = guide.posterior_of_locals.net[0]
        net.weight.zero_(), net.bias.zero_()
        net.weight[:2] = torch.cat((gain, -gain), -1)
    joint = torch.kron(torch.eye(len(x)), marginal) + 4 * torch.kron(torch.ones(len(x), len(x)), torch.eye(3))
    return guide, dist.MultivariateNormal(torch.zeros(3 * len(x)), joint).log_prob(x.flatten())


@pytest.mark.parametrize("elbo", [Trace_ELBO(), Trace_ELBO(3, max_plate_nesting=1, vectorize_particles=True)])
def test_full_covariance_holds_the_posterior_of_a_factor_model(elbo):
    x = torch.randn(5, 3)
    guide, evidence = factor_guide(x)
    # The 1e-6 that keeps scales positive is in both directions of `raw`, so rounding alone is left.
    assert -elbo.loss(factor_model, guide, x) == pytest.approx(float(evidence), rel=1e-9)


class Affine(Tractable):
    """N(loc + gain context, covariance)."""

    def __init__(self, loc, covariance, gain=None):
        super().__init__((len(loc),), 0 if gain is None else gain.shape[1])
        self.loc, self.covariance, self.gain = loc, covariance, gain

    def condition(self, context=None):
        loc = self.loc if context is None else self.loc + context @ self.gain.T
        return dist.MultivariateNormal(loc, self.covariance)


@pytest.mark.parametrize("elbo", [Trace_ELBO(), Trace_ELBO(3, max_plate_nesting=1, vectorize_particles=True)])
def test_a_packed_guide_of_own_posteriors_holds_those_of_a_factor_model(elbo):
    """Of g, and of each l given its x and g; with the l given x alone, g at its mean, the bound is lower."""
    x = torch.randn(5, 3)
    _, evidence = factor_guide(x)
    marginal = W @ W.T + NOISE**2 * torch.eye(3)
    covariance = torch.linalg.inv(torch.eye(3) / 4 + len(x) * torch.linalg.inv(marginal))
    mean = covariance @ torch.linalg.solve(marginal, x.sum(0))
    local = torch.linalg.inv(torch.eye(2) + W.T @ W / NOISE**2)
    gain = local @ W.T / NOISE**2
    of_globals, sites = Affine(mean, covariance), Sites(factor_model, (x,))
    of_both = Affine(torch.zeros(2), local, torch.cat((gain, -gain), -1))
    guide = PackedGuide(sites, of_globals, of_both)
    for _ in range(3):
        assert -elbo.loss(factor_model, guide, x) == pytest.approx(float(evidence), rel=1e-9)
    # l given x alone has the covariance of what g does not say, too
    alone = PackedGuide(sites, of_globals, Affine(-gain @ mean, local + gain @ covariance @ gain.T, gain))
    bounds = torch.tensor([-elbo.loss(factor_model, alone, x) for _ in range(200)])
    mean_bound, error = mean_and_error(bounds)
    assert mean_bound < evidence - 5 * error
    for wrong in (
        lambda: PackedGuide(sites, None, of_both),
        lambda: PackedGuide(sites, of_globals, Affine(torch.zeros(2), local)),
        lambda: PackedGuide(sites, of_both, of_both),
    ):
        with pytest.raises(ValueError, match="posterior_of_"):
            wrong()


def test_full_covariance_finds_the_posterior_of_a_factor_model():
    x = torch.randn(5, 3)
    _, evidence = factor_guide(x)
    guide = FullCovariance(Sites(factor_model, (x,)), hidden=[])
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    steps = 400
    optimizer = torch.optim.Adam(guide.parameters(), 0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / steps)
    for _ in range(steps):
        optimizer.zero_grad()
        elbo.differentiable_loss(factor_model, guide, x).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        bound, error = mean_and_error(torch.tensor([-elbo.loss(factor_model, guide, x) for _ in range(40)]))
    assert bound < evidence + 5 * error
    assert bound > evidence - 0.1  # nats over 13 latent numbers: what the noise of the last steps leaves


def log_normal_model(y):
    """Conjugate in the logarithm: a positive site, a (0, 1) site and a simplex, each with one observation."""
    s = pyro.sample("s", dist.LogNormal(0.5, 1.0))
    p = pyro.sample("p", dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.SigmoidTransform()))
    pyro.sample("y", dist.LogNormal(s.log(), 0.5), obs=y[0])
    pyro.sample("w", dist.Normal(p.logit(), 0.5), obs=y[1])


def check_constrained_sites_carry_their_jacobian(builder, elbo=None):
    torch.set_default_dtype(torch.float64)
    elbo = elbo or Trace_ELBO()
    y = torch.tensor([2.0, -0.3])
    guide = builder(Sites(log_normal_model, (y,)))
    seen, prior = torch.stack((y[0].log(), y[1])), torch.tensor([0.5, 0.0])
    mean, variance = (prior + 4 * seen) / 5, 1 / 5
    with torch.no_grad():
        if builder is MeanField:
            guide.loc.copy_(mean), guide.raw_scale.fill_(float(raw(variance**0.5)))
        else:
            set_gaussian(guide.posterior_of_globals, mean, variance * torch.eye(2))
    evidence = dist.Normal(prior, 1.25**0.5).log_prob(seen).sum() - y[0].log()
    bounds = torch.tensor([-elbo.loss(log_normal_model, guide, y) for _ in range(100)])
    if isinstance(elbo, TraceMeanField_ELBO) and builder is MeanField:  # an exact KL beside a sampled likelihood
        assert_means_agree(*mean_and_error(bounds), evidence)
    else:
        assert torch.allclose(bounds, evidence)


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()])
@pytest.mark.parametrize("builder", [MeanField, FullCovariance])
def test_constrained_sites_carry_their_jacobian(builder, elbo):
    check_constrained_sites_carry_their_jacobian(builder, elbo)


def constrained_globals():
    """Every kind of support that a program's globals are likely to have."""
    pyro.sample("a", dist.Gamma(2.0, 1.0))
    pyro.sample("b", dist.Beta(torch.ones(2), 2.0).to_event(1))
    pyro.sample("c", dist.Dirichlet(torch.ones(3)))
    pyro.sample("d", dist.LKJCholesky(3, torch.tensor(1.0)))
    with pyro.plate("groups", 4):
        pyro.sample("e", dist.Dirichlet(torch.ones(2)))


def total(trace):
    trace.compute_log_prob()
    return sum(s["log_prob"].sum() for s in sample_sites(trace).values())


def given(guide, values):
    trace = poutine.Trace()
    for name, value in values.items():
        trace.add_node(name, type="sample", value=value, is_observed=False, infer={}, fn=None)
    return poutine.trace(poutine.replay(guide, trace=trace)).get_trace()


@pytest.mark.pyro_store
def test_mean_field_is_pyros_auto_normal():
    auto, guide = AutoNormal(constrained_globals), MeanField(Sites(constrained_globals))
    auto()
    grow(auto)
    theirs = poutine.trace(auto).get_trace()
    sites = guide.sites.global_sites
    with torch.no_grad():
        guide.loc.copy_(torch.cat([getattr(auto.locs, s.name).reshape(-1) for s in sites]))
        guide.raw_scale.copy_(raw(torch.cat([getattr(auto.scales, s.name).reshape(-1) for s in sites])))
    ours = given(guide, {s.name: theirs.nodes[s.name]["value"] for s in sites})
    assert torch.allclose(total(ours), total(theirs), rtol=1e-8)


@pytest.mark.pyro_store
def test_full_covariance_is_pyros_auto_multivariate_normal():
    auto, guide = AutoMultivariateNormal(constrained_globals), FullCovariance(Sites(constrained_globals))
    auto()
    grow(auto)
    theirs = poutine.trace(auto).get_trace()
    tril = auto.scale.unsqueeze(-1) * auto.scale_tril
    set_gaussian(guide.posterior_of_globals, auto.loc, tril @ tril.T)
    ours = given(guide, {"_globals": theirs.nodes["_AutoMultivariateNormal_latent"]["value"]})
    for site in guide.sites.global_sites:
        assert torch.allclose(ours.nodes[site.name]["value"], theirs.nodes[site.name]["value"])
    assert torch.allclose(total(ours), total(theirs), rtol=1e-8)


Y = 0.5


def banana():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(a**2, 0.3))
    pyro.sample("y", dist.Normal(b, 1.0), obs=torch.tensor(Y))


def banana_evidence():
    """By quadrature over a, with b integrated in closed form."""
    a = torch.linspace(-6, 6, 4001)
    logs = dist.Normal(0.0, 1.0).log_prob(a) + dist.Normal(a**2, (0.3**2 + 1.0) ** 0.5).log_prob(torch.tensor(Y))
    return logs.logsumexp(0) + math.log(12 / 4000)


def trained_bound(program, guide, steps=150, lr=0.05):
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=0)
    optimizer = torch.optim.Adam(guide.parameters(), lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / steps)
    for _ in range(steps):
        optimizer.zero_grad()
        elbo.differentiable_loss(program, guide).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return mean_and_error(torch.tensor([-elbo.loss(program, guide) for _ in range(60)]))


def test_flows_are_tighter_than_mean_field_on_a_banana():
    sites, evidence = Sites(banana), banana_evidence()
    plain, plain_error = trained_bound(banana, MeanField(sites, scale=0.5))
    guides = {
        "IAF": FlowGuide(sites, layers=2, scale=0.5),
        "planar": FlowGuide(sites, Planar, layers=4, scale=0.5),
        "spline": FlowGuide(
            sites, partial(Autoregressive, univariate=RationalQuadraticSpline(), hidden=[16]), layers=2, scale=0.5
        ),
    }
    for name, guide in guides.items():
        bound, error = trained_bound(banana, guide)
        assert bound > plain + 5 * (error**2 + plain_error**2).sqrt(), name
        assert bound < evidence + 5 * error, name


def ridge():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(a, 0.2))


def test_a_hierarchical_guide_is_tighter_than_the_best_mean_field_on_a_ridge():
    """Nothing is observed, so log evidence is 0; the best independent normals miss by -log(1 - rho^2) / 2."""
    best = -0.5 * math.log(1 + 1 / 0.2**2)
    bound, error = trained_bound(ridge, Hierarchical(Sites(ridge), 2, [16], scale=0.5))
    assert best + 5 * error < bound < 5 * error


def rows_program(x, index=None):
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
    with pyro.plate("data", 4, subsample=index) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x[index])


def test_a_minibatch_weighs_as_the_whole():
    """Over every pair of rows, the mean of log q and of its gradient are those of all rows."""
    x = torch.randn(4)
    guide = MeanField(Sites(rows_program, (x,)), [6])
    grow(guide)
    values = {"scale": torch.tensor(1.3), "z": torch.randn(4)}

    def log_q(index):
        known = {"scale": values["scale"], "z": values["z"][index]}
        trace = poutine.trace(poutine.condition(guide, data=known)).get_trace(x, index)
        log_q = trace.log_prob_sum()
        return log_q.detach(), torch.autograd.grad(log_q, tuple(guide.parameters()))

    whole, gradient = log_q(torch.arange(4))
    pairs = [log_q(torch.tensor(pair)) for pair in itertools.combinations(range(4), 2)]
    assert torch.allclose(torch.stack([value for value, _ in pairs]).mean(), whole)
    for i, expected in enumerate(gradient):
        assert torch.allclose(torch.stack([g[i] for _, g in pairs]).mean(0), expected)


def random_subsample(x):
    with pyro.plate("data", len(x), subsample_size=2) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x[index])


def test_the_guide_draws_the_subsample_that_the_program_takes():
    x = torch.randn(6)
    guide = FullCovariance(Sites(random_subsample, (x,)), [])
    local = guide.posterior_of_locals
    with torch.no_grad():  # exact: z | x is N(x / (1 + 0.25), 0.2)
        local.net[0].weight.zero_(), local.net[0].bias.zero_()
        local.net[0].weight[0] = 0.8
        local.free.copy_(torch.stack((torch.tensor(0.0), raw(0.2**0.5))))
    guide_trace = poutine.trace(guide).get_trace(x)
    trace = poutine.trace(poutine.replay(random_subsample, trace=guide_trace)).get_trace(x)
    index = trace.nodes["data"]["value"]
    assert torch.equal(index, guide_trace.nodes["data"]["value"])
    weight = trace.log_prob_sum() - guide_trace.log_prob_sum()
    assert torch.allclose(weight, 3 * dist.Normal(0.0, 1.25**0.5).log_prob(x[index]).sum())


def nested(x):
    """The data plate is the middle one of three."""
    with pyro.plate("outer", 2, dim=-3), pyro.plate("data", len(x), dim=-2):
        u = pyro.sample("u", dist.Normal(torch.zeros(2, 1, 1), torch.tensor([[[1.0]], [[2.0]]])))
        with pyro.plate("inner", 3, dim=-1):
            v = pyro.sample("v", dist.Normal(u, 1.0))
            pyro.sample("x", dist.Normal(v, 1.0), obs=x.T[:, :, None].expand(2, len(x), 3))


@pytest.mark.parametrize("builder", [MeanField, FullCovariance, FlowGuide])
def test_plates_around_and_inside_the_data(builder):
    """The local sites' rows are where the data plate is: a change of one row of x moves that row alone."""
    x = torch.randn(4, 2)
    guide = builder(Sites(nested, (x,), plate="data"), hidden=[5])
    grow(guide)

    def draws(x):
        torch.manual_seed(0)
        return guide(x)

    first, moved = draws(x), draws(x + torch.tensor([0.0, 0.0, 1.0, 0.0]).unsqueeze(-1))
    assert first["u"].shape == (2, 4, 1)
    assert first["v"].shape == (2, 4, 3)
    for name in ("u", "v"):
        assert torch.equal((first[name] != moved[name]).any(0).any(-1), torch.tensor([False, False, True, False]))
    elbo = Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=3)
    trace = next(elbo._get_traces(nested, guide, (x,), {}))[1]
    assert trace.nodes["v"]["value"].shape == (5, 2, 4, 3)
    many = mean_and_error(torch.tensor([elbo.loss(nested, guide, x) for _ in range(30)]))
    with torch.no_grad():
        ones = mean_and_error(torch.tensor([Trace_ELBO().loss(nested, guide, x) for _ in range(60)]))
    assert_means_agree(*many, *ones)


def masked(x, mask):
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.LogNormal(z.log(), 0.5), obs=x)
        pyro.sample("w", dist.LogNormal(0.0, 1.0))


@pytest.mark.parametrize("builder", [MeanField, FullCovariance])
def test_masked_sites_count_for_nothing(builder):
    """The bound of rows with a masked site is the bound of the rows that are left, on average."""
    x, mask = torch.tensor([1.0, 3.0, 0.5]), torch.tensor([True, False, True])
    guide = builder(Sites(masked, (x, mask)), [4])
    if builder is FullCovariance:  # its draw of a site that is not there stands against a standard normal
        with torch.no_grad():
            guide.posterior_of_locals.free.copy_(torch.tensor([0.0, 0.0, *[float(raw(1.0))] * 2, 0.0]))
            for p in guide.posterior_of_locals.net.parameters():
                p.zero_()

    def bounds(value, weight):
        elbo = Trace_ELBO()
        with torch.no_grad():
            return [-elbo.loss(masked, guide, value, weight) for _ in range(100)]

    whole = mean_and_error(torch.tensor(bounds(x, mask)))
    # At this guide w is as its prior is (FullCovariance) or adds the same everywhere (MeanField, in row 1 alone).
    kept = torch.tensor(bounds(x[mask], mask[mask]))
    if builder is MeanField:
        with torch.no_grad():
            only_w = torch.tensor([-Trace_ELBO().loss(masked, guide, x[1:2], mask[1:2]) for _ in range(100)])
        kept = kept + only_w
    assert_means_agree(*whole, *mean_and_error(kept))


LOCS = torch.tensor([-1.0, 0.5, 2.0])


def mixture(x, family):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", family(torch.tensor([0.2, 0.5, 0.3])))
        loc = LOCS[y] if family is dist.Categorical else (y * LOCS).sum(-1)
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


@pytest.mark.parametrize("family", [dist.Categorical, dist.OneHotCategorical])
def test_enumerated_sites_hold_the_posterior_of_a_mixture(family):
    x = torch.randn(5)
    log_prior = torch.tensor([0.2, 0.5, 0.3]).log()
    evidence = (log_prior + dist.Normal(LOCS, 1.0).log_prob(x.unsqueeze(-1))).logsumexp(-1).sum()
    for how, elbo in ((Enumerate(), TraceEnum_ELBO(max_plate_nesting=1)), (Score(), Trace_ELBO())):
        guide = MeanField(Sites(mixture, (x, family)), hidden=[], discrete=how)
        with torch.no_grad():  # log p(y | x) is linear in x, up to a constant
            guide.discrete.net[0].weight.copy_(LOCS.unsqueeze(-1))
            guide.discrete.net[0].bias.copy_(log_prior - LOCS**2 / 2)
        assert -elbo.loss(mixture, guide, x, family) == pytest.approx(float(evidence), rel=1e-9)


def test_straight_through_values_are_hard_and_their_gradients_arrive():
    x = torch.randn(5)
    for how in (StraightThrough(0.7), Score()):
        guide = MeanField(Sites(mixture, (x, dist.OneHotCategorical)), hidden=[4], discrete=how)
        y = guide(x, dist.OneHotCategorical)["y"]
        assert torch.equal(y.sort(-1).values, torch.eye(3)[2].expand(5, 3))
        Trace_ELBO().differentiable_loss(mixture, guide, x, dist.OneHotCategorical).backward()
        assert all(bool((p.grad != 0).any()) for p in guide.parameters())
    with pytest.raises(TypeError, match="one-hot"):
        MeanField(Sites(mixture, (x, dist.Categorical)), discrete=StraightThrough())(x, dist.Categorical)


def parted(x, prior):
    """One-hot y, and y2 whose prior hangs on it; neither is heard of elsewhere."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.OneHotCategorical(logits=prior[0]))
        pyro.sample("y2", dist.OneHotCategorical(logits=y.detach() @ prior))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def test_straight_through_hears_of_the_prior():
    """The value is torch's; the gradient moves with the prior as that of sum_k y_k log p_k does."""
    x, priors = torch.randn(5), torch.randn(2, 3, 3)
    guide = MeanField(Sites(parted, (x, priors[0])), hidden=[4], discrete=StraightThrough())
    grow(guide)
    parameters, found = list(guide.parameters()), []
    for prior in priors:
        torch.manual_seed(1)
        loss = Trace_ELBO().differentiable_loss(parted, guide, x, prior)
        torch.manual_seed(1)
        trace = poutine.trace(guide).get_trace(x, prior)
        y, y2 = (trace.nodes[name]["value"] for name in ("y", "y2"))
        own = (y * prior[0].log_softmax(-1)).sum() + (y2 * (y.detach() @ prior).log_softmax(-1)).sum()
        relaxed = sum(trace.nodes[name]["fn"].log_prob(trace.nodes[name]["value"]).sum() for name in ("y", "y2"))
        expected = relaxed - own - dist.Normal(0.0, 1.0).log_prob(x).sum()
        torch.testing.assert_close(loss, expected)
        found.append([torch.autograd.grad(one, parameters) for one in (loss, expected)])
    for of_loss, expected in found:
        torch.testing.assert_close(of_loss, expected)
    assert not torch.allclose(found[0][0][0], found[1][0][0])


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_straight_through_gradients_are_those_of_the_relaxed_draw(temperature):
    """Of a Gumbel-softmax s = softmax((logits + g) / t): ds_i / dlogits_j = s_i (1_ij - s_j) / t."""
    torch.set_default_dtype(torch.float64)
    logits = torch.tensor([0.4, -1.0, 0.2], requires_grad=True)
    d, _ = StraightThrough(temperature)(dist.OneHotCategorical, logits)
    torch.manual_seed(1)
    (found,) = torch.autograd.grad(d.rsample()[0], logits)
    torch.manual_seed(1)
    relaxed = torch.distributions.RelaxedOneHotCategorical(torch.tensor(temperature), logits=logits)
    s = relaxed.rsample().detach()
    torch.testing.assert_close(found, s[0] * (torch.eye(3)[0] - s) / temperature)


def far_program():
    pyro.sample("z", dist.Normal(torch.tensor([50.0, -20.0]), torch.tensor([1.0, 0.1])).to_event(1))
    pyro.sample("rate", dist.Gamma(400.0, 2.0))


@pytest.mark.parametrize("builder", [MeanField, FullCovariance])
def test_global_sites_start_in_the_middle_of_their_prior_with_the_scale_asked_for(builder):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    guide = builder(Sites(far_program), scale=0.05)
    draws = [guide() for _ in range(400)]
    z, rate = (torch.stack([d[name] for d in draws]) for name in ("z", "rate"))
    assert (
        (z.mean(0) - torch.tensor([50.0, -20.0])).abs() < torch.tensor([3.0, 0.3])
    ).all()  # three scales of the prior
    assert abs(rate.mean() - 200) < 3 * 10
    # of unconstrained numbers; the error of a standard deviation of 400 draws is 3.5 %
    for free in (z, rate.log().unsqueeze(-1)):
        assert ((free.std(0) / 0.05).log().abs() < 0.18).all()


def sized(x, size=None):
    with pyro.plate("data", size or len(x), subsample=x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def check_one_natural_step(size=None):
    torch.set_default_dtype(torch.float64)
    x = torch.randn(4)
    guide = SemiAmortized(Sites(sized, (x,), {"size": size}), steps=1, step_size=1.0, hidden=[])
    net = guide.amortized.net[0]
    with torch.no_grad():
        net.weight[1], net.bias[1] = 0.0, raw(0.2**0.5)
    loc, _ = guide.refine(guide.sites.call((x, size), {}), (x, size), {})
    assert torch.allclose(loc.squeeze(-1), 0.8 * x)


@pytest.mark.parametrize("size", [None, 40])
def test_one_natural_step_reaches_the_mean_of_a_gaussian_posterior(size):
    """With the posterior's own scale and step size 1: m + v (m* - m) / v = m*, whatever the network said."""
    check_one_natural_step(size)


def test_steps_tighten_the_bound_and_are_learned_through():
    x = torch.randn(6, 3)
    bounds = []
    for steps in (1, 8):
        torch.manual_seed(1)
        guide = SemiAmortized(Sites(factor_model, (x,)), steps=steps, step_size=0.3, hidden=[4])
        with torch.no_grad():
            bounds.append(
                mean_and_error(torch.tensor([-Trace_ELBO().loss(factor_model, guide, x) for _ in range(100)]))
            )
    (few, few_error), (many, many_error) = bounds
    assert many > few + 5 * (few_error**2 + many_error**2).sqrt()
    Trace_ELBO().differentiable_loss(factor_model, guide, x).backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in guide.parameters())
