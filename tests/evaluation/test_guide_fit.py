"""Corrected expectations of a guide: conjugate and curved posteriors, the smoothing of weights, what draws are kept."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_guides_exact import trained_bound

from pyrodgm.evaluation import guide_fit, khat_threshold, pareto_k, smooth_weights
from pyrodgm.guides import FlowGuide, Sites

D = torch.float64
X = torch.tensor([0.7, 1.9, -0.2, 1.1], dtype=D)
VARIANCE = 1 / (1 + len(X))  # of mu | x, for mu ~ N(0, 1), x_i ~ N(mu, 1)
MEAN, SD = X.sum() * VARIANCE, VARIANCE**0.5
SHIFT, WIDER = 0.4, 1.3  # of the wrong guide: numbers of mu, times the posterior's standard deviation
FAR = 4.5  # standard errors; one in 150,000 right estimates is as far off


def conjugate():
    mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=D), 1.0))
    pyro.deterministic("square", mu**2)
    with pyro.plate("rows", len(X)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=X)


def wrong():
    pyro.sample("mu", dist.Normal(MEAN + SHIFT, WIDER * SD))


def moments(z):
    return torch.stack((z["mu"], (z["mu"] - MEAN).square()), -1)


def deviations(fit, function, expected):
    """Of the corrected expectations and of the plain means of the guide's draws, in standard errors."""
    values = function(fit.draws)
    plain = (values.mean(0) - expected) / (values.std(0) / len(values) ** 0.5)
    return ((fit.mean(function) - expected) / fit.standard_error(function)).abs(), plain.abs()


def test_a_wrong_guide_of_a_conjugate_posterior_is_corrected():
    particles = 3000
    fit = guide_fit(conjugate, wrong, particles=particles)
    assert fit.khat < khat_threshold(particles)
    expected = torch.stack((MEAN, torch.tensor(VARIANCE, dtype=D)))
    corrected, plain = deviations(fit, moments, expected)
    assert bool((corrected < FAR).all())
    assert bool((plain > 4 * FAR).all())
    # what the error tends to is E_q[w^2 (f - E f)^2] / K with w = p / q, here by quadrature
    mu = MEAN + SD * torch.linspace(-10, 10, 20_001, dtype=D)
    p, q = dist.Normal(MEAN, SD).log_prob(mu).exp(), dist.Normal(MEAN + SHIFT, WIDER * SD).log_prob(mu).exp()
    spread = (p * p / q).unsqueeze(-1) * (moments({"mu": mu}) - expected).square()
    limit = (torch.trapezoid(spread, mu, dim=0) / particles).sqrt()
    torch.testing.assert_close(fit.standard_error(moments), limit, rtol=0.15, atol=0)  # of the fourth moments' noise


def test_draws_of_a_right_guide_count_alike():
    def right():
        pyro.sample("mu", dist.Normal(MEAN, SD))

    fit = guide_fit(conjugate, right, particles=100)
    torch.testing.assert_close(fit.weights, torch.full((100,), 0.01, dtype=D))
    torch.testing.assert_close(fit.mean(moments), moments(fit.draws).mean(0))
    plain = moments(fit.draws).std(0, correction=0) / 10
    torch.testing.assert_close(fit.standard_error(moments), plain)
    share = fit.mean(lambda z: z["mu"] > MEAN)  # of an event
    torch.testing.assert_close(share, (fit.draws["mu"] > MEAN).double().mean())


def test_resampled_draws_have_the_posteriors_moments_and_keep_together():
    fit = guide_fit(conjugate, wrong, particles=3000)
    again = fit.resample(2000)
    assert set(again) == {"mu", "square"}
    torch.testing.assert_close(again["square"], again["mu"] ** 2)
    # two errors: of the weighted draws, and of drawing from them
    error = (fit.standard_error(lambda z: z["mu"]).square() + VARIANCE / 2000).sqrt()
    assert abs(again["mu"].mean() - MEAN) < FAR * error


OBSERVED = torch.tensor(1.5)


def funnel():
    s = pyro.sample("s", dist.Normal(0.0, 1.0))
    x = pyro.sample("x", dist.Normal(0.0, (s / 2).exp()))
    pyro.sample("y", dist.Normal(x, 1.0), obs=OBSERVED)


def funnel_moments():
    """E s, E s^2, E x, E x^2 given y, by quadrature over s with x given s in closed form, and the log evidence."""
    s = torch.linspace(-8, 8, 4001)
    log_joint = dist.Normal(0.0, 1.0).log_prob(s) + dist.Normal(0.0, (s.exp() + 1).sqrt()).log_prob(OBSERVED)
    variance = 1 / ((-s).exp() + 1)
    mean = variance * OBSERVED
    values = torch.stack((s, s * s, mean, mean * mean + variance), -1)
    return log_joint.softmax(0) @ values, log_joint.logsumexp(0) + math.log(16 / 4000)


def test_a_flow_that_was_fitted_to_a_funnel_is_corrected():
    torch.set_default_dtype(torch.float64)
    guide, (expected, evidence) = FlowGuide(Sites(funnel), layers=2, hidden=[16], scale=0.5), funnel_moments()
    trained_bound(funnel, guide)
    with torch.no_grad():
        guide.posterior_of_globals.bijectors[-1].log_scale.add_(0.4)  # wider than the ELBO wants it, and so off
    fit = guide_fit(funnel, guide, particles=1000)
    assert set(fit.draws) == {"s", "x"}
    assert fit.khat < khat_threshold(1000)
    corrected, plain = deviations(fit, lambda z: torch.stack((z["s"], z["s"] ** 2, z["x"], z["x"] ** 2), -1), expected)
    assert bool((corrected < FAR).all())
    assert bool((plain[[1, 3]] > 1.5 * FAR).all())
    assert abs(fit.log_z - evidence) < FAR * (1 / fit.effective - 1 / 1000) ** 0.5


def mixed():
    k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.8])))
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0).expand([3]).to_event(1))
    pyro.sample("y", dist.Normal(k.float(), scale).to_event(1), obs=torch.zeros(3))


def mixed_guide():
    noise = pyro.sample("noise", dist.Normal(0.0, 0.1), infer={"is_auxiliary": True})
    pyro.sample("k", dist.Categorical(torch.tensor([0.6, 0.4])))
    pyro.sample("scale", dist.LogNormal(noise * 0.0, 0.7).expand([3]).to_event(1))


def test_draws_are_of_the_programs_sites_in_their_shapes():
    fit = guide_fit(mixed, mixed_guide, particles=1000)
    assert {name: tuple(v.shape) for name, v in fit.draws.items()} == {"k": (1000,), "scale": (1000, 3)}
    assert fit.mean(lambda z: z["scale"]).shape == fit.standard_error(lambda z: z["scale"]).shape == (3,)
    # P(k = 1 | y) by quadrature over each scale
    s = torch.linspace(1e-4, 15, 200_001, dtype=D)
    each = [
        dist.Gamma(2.0, 2.0).log_prob(s) + dist.Normal(mean, s).log_prob(torch.zeros((), dtype=D))
        for mean in (0.0, 1.0)
    ]
    masses = [share * torch.trapezoid(log.exp(), s) ** 3 for share, log in zip((0.2, 0.8), each, strict=True)]
    found, error = fit.mean(lambda z: z["k"]), fit.standard_error(lambda z: z["k"])
    assert abs(found - masses[1] / sum(masses)) < FAR * error


def test_draws_whose_shape_changes_are_left_out():
    def program():
        n = pyro.sample("n", dist.Bernoulli(0.5))
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([1 + int(n)]).to_event(1))
        if n:
            pyro.sample("more", dist.Normal(0.0, 1.0))

    fit = guide_fit(program, program, particles=40)
    assert set(fit.draws) == {"n"}
    assert fit.effective == pytest.approx(40)


def test_a_function_of_another_number_of_rows_is_refused():
    fit = guide_fit(conjugate, wrong, particles=30)
    for ask in (fit.mean, fit.standard_error):
        with pytest.raises(ValueError, match=r"a row for each of the 30 draws, got shape \(\); let it keep"):
            ask(lambda z: z["mu"].mean())


def test_smoothed_weights_of_a_pareto_tail_are_its_quantiles():
    """Of 2000 weights whose largest 135 stand at the quantiles of a tail of shape 1/2, in a muddled order."""
    n = 135  # 3 sqrt(2000), rounded up
    p = (torch.arange(n, dtype=D) + 0.5) / n
    tail = 1 + 0.3 * ((1 - p) ** -0.5 - 1) / 0.5
    muddle = torch.randperm(2000)
    weights = torch.cat((torch.linspace(0.1, 1, 2000 - n, dtype=D), tail))[muddle]
    smooth = smooth_weights(weights.log() + 700)  # up to a constant
    assert pareto_k(weights.log()).item() == pytest.approx(0.5, abs=0.02)
    torch.testing.assert_close(smooth, weights / weights.sum(), rtol=0.05, atol=0)  # as the fit is near the tail
    large = weights > 1
    body = smooth[~large] / weights[~large]
    torch.testing.assert_close(body, body[:1].expand_as(body))  # what is below the tail stays as it is
    assert bool((smooth[large] != weights[large] * body[0]).any())
    assert bool((smooth / body[0] <= weights.max() * (1 + 1e-12)).all())
    assert smooth.sum().item() == pytest.approx(1)


def test_smoothed_weights_are_better_than_the_raw_ones():
    """Weights u^-0.6 of uniform u have no variance; E w f / E w of f(u) = u is (1 / 1.4) / (1 / 0.4)."""
    u = torch.rand(1000, 1000, dtype=D)
    log_weights = -0.6 * u.log()
    smooth = torch.stack([smooth_weights(row) for row in log_weights])
    errors = [((weights * u).sum(-1) - 0.4 / 1.4).abs() for weights in (log_weights.softmax(-1), smooth)]
    gain = errors[0] - errors[1]
    assert gain.mean() > 3 * gain.std() / 1000**0.5


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("draws", [25, 1000])
def test_smoothed_weights_are_weights_at_any_spread(draws, spread):
    log_weights = spread * torch.randn(draws, dtype=D)
    log_weights[: draws // 5] = -math.inf
    smooth = smooth_weights(log_weights)
    assert smooth.sum().item() == pytest.approx(1)
    assert bool((smooth >= 0).all())
    assert bool((smooth[: draws // 5] == 0).all())
    order = log_weights.argsort()
    assert bool((smooth[order].diff() >= 0).all())
    tied = torch.randint(3, (draws,)).double()  # the tail's least is the largest of all: nothing to smooth
    torch.testing.assert_close(smooth_weights(tied), tied.softmax(0))


def test_weights_that_cannot_be_smoothed_are_refused():
    with pytest.raises(ValueError, match="at least 25 weights, got 24"):
        smooth_weights(torch.randn(24))
    with pytest.raises(ValueError, match=r"one row of weights \(K,\), got shape \(30, 2\); smooth each alone"):
        smooth_weights(torch.randn(30, 2))
