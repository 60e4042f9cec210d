"""Measures of the latents against closed forms, quadrature and models whose use of z is known."""

import csv
import math
import warnings

import pyro.distributions as dist
import pytest
import torch
from cases import HIDDEN, MODELS, all_binary, assert_means_agree, grow, mean_and_error, ready, rows
from pyro import poutine
from test_contracts_latent import exact_marginal, linear_vae
from torch.distributions import kl_divergence

import pyrodgm
from pyrodgm.diagnostics import encode
from pyrodgm.engine.result import Fit
from pyrodgm.engine.surroundings import validation
from pyrodgm.evaluation import (
    CollapseWarning,
    WatchCollapse,
    active_units,
    aggregate_distance,
    importance_estimate,
    kl_per_dimension,
    latent_use,
    log_likelihood,
    mutual_information,
    pareto,
    pareto_k,
)
from pyrodgm.guides import Hierarchical, MeanField, Sites
from pyrodgm.latent import VAE
from pyrodgm.objectives import ELBO
from pyrodgm.tractable import Parametric, RealNVP, StandardNormal


def flow_vae():
    model = ready(MODELS["VAE of flows"])
    return model, rows(MODELS["VAE of flows"], model, 40)


def check_active_units():
    """The posterior mean is linear in x, so its covariance is known; a dimension without weight is not active."""
    vae, x = linear_vae(), exact_marginal().sample((300,))
    with torch.no_grad():
        vae.guide.posterior.net.weight[1].zero_()
    found = active_units(vae, x, batch_size=70)
    weight = vae.guide.posterior.net.weight[:2]
    torch.testing.assert_close(found.variances, (x @ weight.T).var(0).detach())
    assert found.active == 1


def test_active_units():
    check_active_units()


def test_active_units_are_those_above_the_threshold():
    vae, x = linear_vae(), exact_marginal().sample((100,))
    low, high = active_units(vae, x).variances.sort().values.tolist()
    between = (0.5 * low, 2), ((low + high) / 2, 1), (2 * high, 0)
    assert [active_units(vae, x, threshold=t).active for t, _ in between] == [count for _, count in between]


def test_active_units_by_draws_take_their_noise_off():
    """A flow guide has no mean in closed form; its draws' own variance is not the data's."""
    vae, x = flow_vae()
    alike = torch.stack([active_units(vae, x[:1].expand(500, -1), particles=2).variances for _ in range(40)])
    assert_means_agree(*mean_and_error(alike), torch.zeros(()).double())
    # unbiased with any number of draws, where the plain variance of two draws' means has half of each row's in it
    few, many = (
        torch.stack([active_units(vae, x, particles=k).variances for _ in range(repeats)])
        for k, repeats in ((2, 80), (200, 8))
    )
    assert_means_agree(*mean_and_error(few), *mean_and_error(many))


def check_kl_per_dimension():
    vae, x = linear_vae(optimal=False), exact_marginal().sample((50,))
    q = vae.posterior(x).base_dist
    expected = kl_divergence(q, dist.Normal(torch.zeros(2).double(), 1.0)).mean(0).detach()
    torch.testing.assert_close(kl_per_dimension(vae, x, batch_size=7), expected)
    torch.testing.assert_close(torch.tensor(latent_use(vae, x).kl).double(), expected.sum())


def test_kl_per_dimension():
    check_kl_per_dimension()
    with pytest.raises(TypeError, match="independent dimensions"):
        kl_per_dimension(*flow_vae())


def test_kl_per_dimension_by_draws():
    """A Student's t as prior: no closed form, an unbiased estimate, and its variance falls as one over the draws."""
    torch.manual_seed(0)
    prior = Parametric(dist.StudentT, 2, fixed={"df": 4.0})
    vae = grow(VAE(prior, Parametric(dist.Bernoulli, 3, context=2), Parametric(dist.Normal, 2, context=3))).double()
    x = all_binary((3,))
    z = torch.linspace(-30, 30, 20_001, dtype=torch.float64).reshape(-1, 1, 1)
    with torch.no_grad():
        log_q = vae.posterior(x).base_dist.log_prob(z)  # (20001, 8, 2)
        log_ratio = log_q - vae.prior.condition().base_dist.log_prob(z)
        exact = torch.trapezoid(log_q.exp() * log_ratio, z, dim=0).mean(0)
    one, many = (
        torch.stack([kl_per_dimension(vae, x, particles=k, batch_size=3) for _ in range(200)]) for k in (1, 16)
    )
    for found in (one, many):
        assert_means_agree(*mean_and_error(found), exact)
    # a variance from 200 values is known to 10 per cent, a ratio of two to 14
    assert bool(((one.var(0) / many.var(0) / 16).log().abs() < 5 * 0.14).all())


def scalar_vae(spread):
    """q(z | x) = N(spread x, 0.6) for x in one dimension."""
    vae = VAE(StandardNormal(1), Parametric(dist.Normal, 1, context=1), Parametric(dist.Normal, 1, context=1)).double()
    with torch.no_grad():
        net = vae.guide.posterior.net[0]
        net.weight.copy_(torch.tensor([[spread], [0.0]]))
        net.bias.copy_(torch.tensor([0.0, math.log(0.6)]))
    return vae


def check_mutual_information():
    """Three groups of equal rows: the information about the group, by the trapezoid rule."""
    vae, groups = scalar_vae(1.0), torch.tensor([[-1.0], [0.2], [1.5]]).double()
    x = groups.repeat(100, 1)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64).unsqueeze(-1)
    log_q = vae.posterior(groups).log_prob(z.unsqueeze(1)).detach()  # (4001, 3)
    log_mixture = log_q.logsumexp(1) - math.log(3)
    exact = torch.trapezoid((log_q.exp() * (log_q - log_mixture.unsqueeze(1))).mean(1), z.squeeze(-1)).item()
    found = torch.tensor([mutual_information(vae, x, batch_size=70) for _ in range(40)]).double()
    assert_means_agree(*mean_and_error(found), exact)


def test_mutual_information():
    check_mutual_information()
    far = torch.arange(16).double().unsqueeze(-1)
    assert mutual_information(scalar_vae(100.0), far) == pytest.approx(math.log(16), abs=1e-6)  # every row is told
    assert mutual_information(scalar_vae(0.0), far) < 1e-9
    vae, x = flow_vae()
    assert 0 <= mutual_information(vae, x) <= math.log(len(x))
    # the whole KL is the information and the distance of q(z) to p(z), which is not negative
    vae, x = linear_vae(optimal=False), exact_marginal().sample((1500,))
    assert mutual_information(vae, x) < latent_use(vae, x).kl


def test_the_aggregate_of_the_exact_posterior_is_the_prior():
    x = exact_marginal().sample((600,))
    found = torch.tensor([aggregate_distance(linear_vae(), x[i::3], batch_size=64) for i in range(3)])
    away = linear_vae()
    with torch.no_grad():
        away.guide.posterior.net.bias[:2].add_(1.0)
    # an unbiased estimate from 200 rows has a standard deviation of about 1 / 200
    assert found.abs().max() < 0.03
    assert aggregate_distance(away, x) > 0.1


def prototypes(n=400):
    generator = torch.Generator().manual_seed(4)
    kinds = (torch.rand(4, 12, generator=generator) < 0.5).float()
    flips = (torch.rand(n, 12, generator=generator) < 0.05).float()
    return (kinds[torch.randint(4, (n,), generator=generator)] - flips).abs()


def watched(objective, wait=2):
    torch.manual_seed(0)
    vae, x, watch = VAE.mlp(12, 3, [32]), prototypes(), WatchCollapse(prototypes()[:200], wait=wait)
    run = pyrodgm.fit(vae, x, objective, epochs=25, batch_size=50, lr=5e-3, callbacks=[watch], progress=False)
    return run, watch


def check_collapse_is_seen():
    """beta = 100 makes any use of z too dear, and the callback says so once; at beta = 1 there is nothing to say."""
    with pytest.warns(CollapseWarning, match=r"0 of 3 units active") as said:
        run, watch = watched(ELBO(beta=100.0))
    assert len(said) == 1
    assert watch.history[-1].collapsed
    assert run.history[-1]["active_units"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run, watch = watched(ELBO(), wait=15)
    use = watch.history[-1]
    assert not use.collapsed
    # four kinds of rows: log 4 nats tell them apart
    assert use.active >= 2
    assert 0.7 * math.log(4) < use.information
    assert run.history[-1]["information"] == use.information


def test_collapse_is_seen():
    check_collapse_is_seen()


@pytest.mark.parametrize("wait", [0, 2])
def test_a_collapse_is_told_once_after_the_epochs_of_grace(wait):
    """Of a guide that is the prior from the start."""
    prior = StandardNormal(2)
    vae = VAE(
        prior,
        Parametric(dist.Bernoulli, 3, context=2),
        Parametric(dist.Normal, 2, context=3, net=torch.nn.Linear(3, 4)),
    )
    for p in vae.guide.parameters():
        torch.nn.init.zeros_(p)
    watch = WatchCollapse(torch.rand(40, 3).round(), wait=wait)
    told = []
    for epoch in range(5):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert not watch(Fit(vae, ELBO(), history=[{}]))
        told += [epoch] * len(caught)
    assert told == [wait]


def test_a_guide_read_from_the_program_is_measured():
    """Its one site is the posterior: the information is that of those of all rows, by their own means and scales."""
    vae, x = linear_vae(), exact_marginal().sample((40,))
    vae.guide = grow(MeanField(Sites(vae, (x,)), hidden=[8]).double())
    q, z = vae.posterior(x), torch.randn(40, 2).double()
    site = poutine.trace(vae.guide).get_trace(x).nodes["z"]
    torch.testing.assert_close(q.log_prob(z), site["fn"].log_prob(z))
    assert 0 < mutual_information(vae, x) <= math.log(40)
    assert mutual_information(vae, x[:1].expand(40, -1)) < 1e-9
    assert latent_use(vae, x).units == 2
    assert encode(vae, x).shape == (40, 2)
    vae.guide = Hierarchical(Sites(vae, (x,)), hidden=[8]).double()
    with pytest.raises(TypeError, match="of one site, got Hierarchical"):
        vae.posterior(x)


def test_what_the_callback_measures_is_in_every_row_of_the_table(tmp_path):
    vae, x = VAE.mlp(6, 2, [8]), prototypes(40)[:, :6]
    watch = WatchCollapse(x, wait=9)
    run = pyrodgm.fit(vae, x, epochs=3, csv=tmp_path / "history.csv", callbacks=[watch], progress=False)
    with (tmp_path / "history.csv").open(newline="") as lines:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(lines)]
    assert rows == run.history
    assert [row["kl"] for row in rows] == [use.kl for use in watch.history]


def test_information_that_is_no_number_is_told():
    vae, x = linear_vae(), exact_marginal().sample((10,))
    with torch.no_grad():
        vae.guide.posterior.net.bias[0] = torch.nan
    with validation(False):
        assert math.isnan(mutual_information(vae, x))


# likelihood by importance sampling


def test_shape_of_a_known_tail():
    """Draws of generalised Pareto distributions; the estimator's deviation is about (1 + k) / sqrt(M)."""
    u = torch.rand(4000, 200).double()
    for k in (0.2, 0.7, 1.2):
        excess = 1.5 * (u**-k - 1) / k
        found, scale = pareto.fit_pareto(excess.sort(0).values)
        assert_means_agree(found.mean(), found.std() / 200**0.5 + 2e-3, torch.tensor(k).double())  # bias: O(1 / M)
        assert scale.mean().item() == pytest.approx(1.5, rel=0.02)


@pytest.mark.filterwarnings("ignore")  # arviz announces its next version when it is imported
def test_khat_is_arviz():
    import arviz

    for scale in (0.3, 1.0, 3.0):
        log_weights = scale * torch.randn(2000, 4).double()
        _, expected = arviz.psislw(log_weights.T.numpy())
        torch.testing.assert_close(pareto_k(log_weights), torch.as_tensor(expected))


def test_khat_of_tied_weights():
    """Discrete latents: what equals the cutoff is no excess, and a handful of values has no heavy tail."""
    import arviz

    log_weights = torch.zeros(5000, 3).double()
    log_weights[:100, 0] = 1.0  # bounded weights, the rarer of two the larger
    log_weights[:50, 1] = torch.randn(50).double().exp()
    log_weights[:, 2] = torch.randn(5000).double()
    found = pareto_k(log_weights)
    assert found[0] < 0.7
    _, expected = arviz.psislw(log_weights[:, 1:].T.numpy())
    torch.testing.assert_close(found[1:], torch.as_tensor(expected))


@pytest.mark.parametrize("scale", [50.0, 200.0, 800.0, 5000.0])
def test_khat_of_weights_that_underflow(scale):
    """Nothing but the largest weight counts: no tie, and as unreliable as can be."""
    assert bool((pareto_k(scale * torch.randn(1000, 5).double()) > 1).all())
    one = torch.zeros(1000).double()
    one[0] = 1000.0
    assert pareto_k(one) > 1


def check_importance_estimate():
    x = exact_marginal().sample((60,))
    exact = exact_marginal().log_prob(x)
    best = importance_estimate(linear_vae(), x, particles=200)
    torch.testing.assert_close(best.rows, exact)
    assert best.sampling_error < 1e-6
    assert bool((best.effective > 199.99).all())
    assert bool((best.khat < 0.7).all())
    wide = importance_estimate(linear_vae(optimal=False), x, particles=5000, batch_size=25)
    gap = (wide.rows - exact).mean().abs().item()
    assert gap < 5 * wide.sampling_error + 1e-3  # half the relative variance of a mean of 5000 weights
    assert bool((wide.khat < 0.7).all())
    assert wide.standard_error == pytest.approx(wide.rows.std().item() / 60**0.5)


def test_importance_estimate():
    check_importance_estimate()


def test_khat_tells_a_guide_that_misses_mass():
    vae, x = linear_vae(), exact_marginal().sample((30,))
    with torch.no_grad():
        vae.guide.posterior.net.bias[2:].sub_(1.5)  # a scale 4.5 times too small: the weights have infinite variance
    assert importance_estimate(vae, x, particles=2000).khat.median() > 0.7


def check_sampling_error_is_the_spread():
    vae, x = linear_vae(optimal=False), exact_marginal().sample((20,))
    found = [importance_estimate(vae, x, particles=200) for _ in range(150)]
    spread = torch.tensor([f.value for f in found]).double().std()
    claimed = torch.tensor([f.sampling_error for f in found]).double().mean()
    # a standard deviation from 150 values is known to 6 per cent; the weights' own tail adds some
    assert claimed.item() == pytest.approx(spread.item(), rel=0.25)


def test_sampling_error_is_the_spread():
    check_sampling_error_is_the_spread()


def test_particles_come_in_parts_that_fit_memory():
    vae, x, seen = linear_vae(), exact_marginal().sample((100,)), []
    original = vae.log_weights

    def counted(*arguments, particles, **options):
        seen.append(particles)
        return original(*arguments, particles=particles, **options)

    vae.log_weights = counted
    found = log_likelihood(vae, x.repeat(10, 1), particles=5000, batch_size=1000)
    assert sum(seen) == 5000
    assert max(seen) * x.numel() * 10 <= 2**22
    assert found.value == pytest.approx(exact_marginal().log_prob(x).mean().item(), abs=1e-9)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: importance_estimate(linear_vae(), torch.zeros(2, 4).double(), particles=3), "25 particles"),
        (lambda: importance_estimate(linear_vae(), torch.zeros(0, 4).double()), "one row"),
        (lambda: active_units(linear_vae(), torch.zeros(1, 4).double()), "two rows"),
        (lambda: mutual_information(linear_vae(), torch.zeros(0, 4).double()), "one row"),
        (lambda: pareto_k(torch.zeros(10)), "25 weights"),
        (lambda: WatchCollapse(torch.zeros(2, 4), wait=-1), "wait >= 0"),
    ],
)
def test_mistakes_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_every_guide_is_measured():
    x = (torch.rand(30, 5) < 0.5).float()
    likelihood = Parametric(dist.Bernoulli, 5, context=2, hidden=HIDDEN)
    for guide in (RealNVP(2, 2, hidden=HIDDEN, context=5), Parametric(dist.Normal, 2, context=5, hidden=HIDDEN)):
        use = latent_use(VAE(RealNVP(2, 2, hidden=HIDDEN), likelihood, guide), x)
        assert use.units == 2
        assert all(math.isfinite(v) for v in use)
