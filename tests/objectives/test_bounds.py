"""Options of the bounds: annealing, free bits, gradients without the score, and the KL taken apart."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import (
    HIDDEN,
    MODELS,
    OBJECTIVES,
    all_binary,
    assert_gradients_agree,
    assert_means_agree,
    mean_and_error,
    ready,
    rows,
)
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from test_contracts_latent import binary_vae, exact_marginal, joint, linear_vae, models_for_elbo, value_and_gradients
from torch import nn
from torch.distributions import kl_divergence
from torch.fx.experimental.proxy_tensor import make_fx

import pyrodgm
from pyrodgm.engine.surroundings import validation
from pyrodgm.evaluation import mmd
from pyrodgm.guides import Corrupted, FullCovariance, GaussianNoise, Sites
from pyrodgm.latent import VAE
from pyrodgm.objectives import (
    ELBO,
    BetaTCVAE,
    CyclicalAnnealing,
    FreeBits,
    ImportanceWeighted,
    InfoVAE,
    LinearAnnealing,
    ReweightedWakeSleep,
    VariationalEM,
    WakeSleep,
    infovae,
    log_aggregate,
)
from pyrodgm.tractable import Parametric, RealNVP, StandardNormal


def parts(vae, x):
    """The seeded one-sample log p(x | z), (B,), and the exact KL of each dimension, (B, Z)."""
    torch.manual_seed(5)
    z = vae.posterior(x).rsample()
    q = vae.posterior(x).base_dist
    kl = kl_divergence(q, dist.Normal(torch.zeros_like(q.loc), 1.0))
    return vae.decode(z).log_prob(x), kl


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def gradients_of(objective, model, x, repeats, parameters=None):
    """(repeats, P) gradients of independent draws."""
    parameters = list(model.parameters()) if parameters is None else parameters
    return torch.stack(
        [
            flat(torch.autograd.grad(objective.loss(model, x), parameters, materialize_grads=True))
            for _ in range(repeats)
        ]
    )


# annealing


def test_a_line_and_a_cycle_are_their_formulas():
    line, cycle = LinearAnnealing(10, 0.5, 2.0, wait=3), CyclicalAnnealing(8, 0.25, 0.1, 1.0, cycles=2)
    for t in range(30):
        assert line().item() == pytest.approx(0.5 + 1.5 * min(1, max(0, t - 3) / 10), rel=1e-6)
        expected = 1.0 if t >= 16 else 0.1 + 0.9 * min(1, (t % 8) / 8 / 0.25)
        assert cycle().item() == pytest.approx(expected, rel=1e-6)
    line.eval()
    before = line.step.clone()
    assert line() == line()
    assert torch.equal(line.step, before)


@pytest.mark.parametrize("options", [{}, {"beta": LinearAnnealing(5, start=1.0)}])
@pytest.mark.parametrize("name", ["VAE", "VAE of flows", "global latent"])
def test_beta_one_is_the_elbo_to_the_last_bit(name, options):
    model, x = models_for_elbo(name)
    plain, found = (value_and_gradients(model, lambda o=o: o.loss(model, x, n=9)) for o in (ELBO(), ELBO(**options)))
    assert torch.equal(plain[0], found[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], found[1], strict=True))


def test_no_free_bits_are_the_elbo():
    model, x = models_for_elbo("VAE")
    for group in (1, 2, None):
        plain = value_and_gradients(model, lambda: ELBO(3).loss(model, x, n=9))
        found = value_and_gradients(model, lambda g=group: ELBO(3, free_bits=FreeBits(0.0, g)).loss(model, x, n=9))
        torch.testing.assert_close(plain, found)  # float64: the sums run in another order


def check_beta_weighs_the_kl(beta=3.0):
    vae, x = linear_vae(optimal=False), exact_marginal().sample((7,))
    seen, kl = parts(vae, x)
    torch.manual_seed(5)
    torch.testing.assert_close(ELBO(beta=beta).loss(vae, x), beta * kl.sum(-1).mean() - seen.mean())


def test_beta_weighs_the_kl():
    check_beta_weighs_the_kl()


def check_free_bits_are_a_floor():
    """A floor between the KL of the two dimensions: one of them counts as the floor and has no gradient."""
    vae, x = linear_vae(optimal=False), exact_marginal().sample((7,))
    with torch.no_grad():
        vae.guide.posterior.net.weight[1].mul_(0.1)
    seen, kl = parts(vae, x)
    means = kl.mean(0)
    floor = means.mean().item()
    for group, expected in ((1, means.clamp(min=floor).sum()), (2, means.sum().clamp(min=3 * floor))):
        torch.manual_seed(5)
        nats = floor if group == 1 else 3 * floor
        loss = ELBO(free_bits=FreeBits(nats, group)).loss(vae, x)
        torch.testing.assert_close(loss, expected - seen.mean())
        if group == 2:
            torch.manual_seed(5)
            torch.testing.assert_close(loss, ELBO(free_bits=FreeBits(nats, None)).loss(vae, x))


def test_free_bits_are_a_floor():
    check_free_bits_are_a_floor()


def test_a_number_of_free_bits_is_refused():
    with pytest.raises(TypeError, match=r"use FreeBits\(0\.25\)"):
        ELBO(free_bits=0.25)


def test_free_bits_of_a_flow_take_the_whole_site():
    model, x = models_for_elbo("VAE of flows")
    with pytest.raises(TypeError, match="independent dimensions"):
        ELBO(free_bits=FreeBits(0.1)).loss(model, x)
    loss = ELBO(free_bits=FreeBits(1e3, None)).loss(model, x)
    assert loss > 1e3


@torch.no_grad()
def test_the_held_out_score_is_the_plain_bound():
    model, x = models_for_elbo("VAE")
    torch.manual_seed(1)
    plain = ELBO().loss(model, x)
    for objective in (
        ELBO(beta=4.0, free_bits=FreeBits(2.0)),
        ELBO(beta=LinearAnnealing(5)),
        InfoVAE(0.5),
        BetaTCVAE(),
        BetaTCVAE(beta=LinearAnnealing(5)),
    ):
        torch.manual_seed(1)
        assert torch.equal(objective.held_out(model, x), plain)


def check_tempered_score_function_is_unbiased(beta=0.4):
    vae, x = binary_vae(), all_binary((3,))[:5]
    log_joint, log_q = joint(vae, x)
    z = all_binary((2,)).unsqueeze(1).expand(-1, len(x), -1)
    prior = vae.prior.log_prob(z)
    exact_loss = -(log_q.exp() * (log_joint - prior + beta * (prior - log_q))).sum(0).mean()
    exact = flat(torch.autograd.grad(exact_loss, list(vae.parameters()), materialize_grads=True))
    found = gradients_of(ELBO(200, analytic_kl=False, beta=beta), vae, x, 60)
    assert_gradients_agree(found, exact)


def test_tempered_score_function_is_unbiased():
    check_tempered_score_function_is_unbiased()


ANNEALED = {
    "ELBO": lambda: ELBO(beta=CyclicalAnnealing(4), free_bits=FreeBits(0.05)),
    "BetaTCVAE": lambda: BetaTCVAE(beta=CyclicalAnnealing(4, end=6.0)),
}


def run(name, folder=None, steps=9, compile=False, seed=0):
    torch.manual_seed(seed)
    vae, objective = VAE.mlp(6, 2, [8]), ANNEALED[name]()
    x = (torch.rand(40, 6, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    options = {"checkpoint": folder, "checkpoint_every": 1 if folder else None, "progress": False, "compile": compile}
    fit = pyrodgm.fit(vae, x, objective, steps=steps, batch_size=10, **options)
    return vae, objective, fit


@pytest.mark.parametrize("name", ANNEALED)
def test_a_resumed_schedule_goes_on(name, tmp_path):
    """Stopped inside an epoch and inside a cycle, the run ends as one that was not stopped."""
    whole, counted, _ = run(name)
    run(name, tmp_path, steps=5)
    again, objective, _ = run(name, tmp_path)
    assert objective.beta.step == counted.beta.step == 9
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ANNEALED)
def test_a_compiled_schedule_counts(name):
    """compile=True warns, which is an error here, if it falls back; float32 sums differ in their order only."""
    eager, counted, fit = run(name)
    compiled, objective, again = run(name, compile=True)
    assert again.timings["compile_seconds"] > 0
    assert objective.beta.step == counted.beta.step == 9
    torch.testing.assert_close(fit.history[-1]["loss"], again.history[-1]["loss"], rtol=1e-4, atol=1e-4)
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        # Adam takes steps of 1e-3 whose sign is open where a gradient is 0 but for rounding
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


class Whole(torch.nn.Module):
    def __init__(self, model, objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x):
        return self.objective.loss(self.model, x)


TRACED = ("ELBO tempered", "ELBO annealed", "ELBO landing", "InfoVAE", "BetaTCVAE", "ImportanceWeighted doubly")


@pytest.mark.parametrize("name", TRACED)
def test_the_loss_traces(name):
    """One graph for loss and gradients, as the engine makes it."""
    case = OBJECTIVES[name]
    model = ready(MODELS[case.model]).train()
    x = rows(MODELS[case.model], model, 5)
    whole = Whole(model, case.build(model).double())
    names = [k for k, _ in whole.named_parameters()] + [k for k, _ in whole.named_buffers()]
    parameters, buffers = list(whole.parameters()), list(whole.buffers())

    def traced(parameters, buffers, x):
        return torch.func.functional_call(whole, dict(zip(names, parameters + buffers, strict=True)), (x,))

    with validation(False):  # as the engine does: its checks look at values
        graph = make_fx(traced)(parameters, [b.clone() for b in buffers], x)
    other = rows(MODELS[case.model], model, 5, seed=21)
    found = value_and_gradients(model, lambda: graph(parameters, [b.clone() for b in buffers], other))
    torch.testing.assert_close(found, value_and_gradients(model, lambda: whole(other)))


# gradients


def check_sticking_the_landing():
    """Where q is the posterior, every draw's gradient in the guide is 0; elsewhere its mean is the ELBO's."""
    x = exact_marginal().sample((6,))
    vae = linear_vae()
    own = list(vae.guide.parameters())
    assert gradients_of(ELBO(stl=True), vae, x, 3, own).abs().max() < 1e-10
    assert gradients_of(ELBO(analytic_kl=False), vae, x, 3, own).abs().max() > 1e-2
    vae = linear_vae(optimal=False)
    a, b = (gradients_of(ELBO(50, False, stl=stl), vae, x, 80) for stl in (False, True))
    assert_means_agree(*mean_and_error(a), *mean_and_error(b))


def test_sticking_the_landing():
    check_sticking_the_landing()


def check_doubly_reparameterised(alpha=0.0, k=8):
    """The same mean as the bound's own gradient, for model and guide, and less variance for the guide."""
    vae, x = linear_vae(optimal=False), exact_marginal().sample((6,))
    many = x.repeat(50, 1)
    a, b = (gradients_of(ImportanceWeighted(k, alpha, doubly), vae, many, 80) for doubly in (False, True))
    assert_means_agree(*mean_and_error(a), *mean_and_error(b))
    own = torch.cat([torch.full((p.numel(),), name.startswith("guide")) for name, p in vae.named_parameters()])
    assert b[:, own].var(0).sum() < 0.5 * a[:, own].var(0).sum()
    torch.manual_seed(1)
    value = ImportanceWeighted(k, alpha).loss(vae, x)
    torch.manual_seed(1)
    torch.testing.assert_close(ImportanceWeighted(k, alpha, True).loss(vae, x), value)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_doubly_reparameterised(alpha):
    check_doubly_reparameterised(alpha)


def test_doubly_with_many_particles_the_signal_does_not_drown():
    """Variance over squared mean of the guide's gradient: it falls with K only with DReG (Rainforth et al. 2018)."""
    vae, x = linear_vae(optimal=False), exact_marginal().sample((6,)).repeat(20, 1)
    own = list(vae.guide.parameters())

    def noise(k, doubly):
        found = gradients_of(ImportanceWeighted(k, 0.0, doubly), vae, x, 100, own)
        return (found.var(0).sum() / found.mean(0).square().sum()).item()

    assert noise(64, True) < 0.5 * noise(64, False)


def test_gradients_without_a_score_need_reparameterised_sites():
    vae, x = binary_vae(), all_binary((3,))
    for objective in (ELBO(stl=True), ELBO(free_bits=FreeBits(0.1, None)), ImportanceWeighted(3, doubly=True)):
        with pytest.raises(TypeError, match="reparameterised"):
            objective.loss(vae, x)


def noisy_guide():
    """A VAE of flows whose guide reads its rows corrupted: two runs are of two densities."""
    vae = ready(MODELS["VAE of flows"])
    vae.guide = Corrupted(vae.guide, GaussianNoise(0.5))
    return vae


@pytest.mark.parametrize("objective", [ELBO(stl=True), ImportanceWeighted(3, doubly=True)], ids=["stl", "doubly"])
def test_gradients_without_a_score_need_a_guide_without_noise_of_its_own(objective):
    vae = noisy_guide()
    x = rows(MODELS["VAE of flows"], vae, 6)
    with pytest.raises(ValueError, match="'z' has another density when it runs again"):
        objective.loss(vae.train(), x)
    assert objective.loss(vae.eval(), x).isfinite()
    with pytest.raises(ValueError, match="another density"):  # the first step of a run is validated
        pyrodgm.fit(vae, x, objective, steps=2, progress=False)


# the aggregate posterior


def gaussian_vae():
    torch.manual_seed(2)
    return ready(MODELS["VAE"])


def check_terms_are_the_exact_ones():
    """On the whole data set the three parts are those of the mixture of its posteriors, and sum to the KL."""
    vae = gaussian_vae()
    x = rows(MODELS["VAE"], vae, 6)
    torch.manual_seed(3)
    seen, terms = BetaTCVAE().terms(vae, x)
    torch.manual_seed(3)
    z = poutine.trace(vae.guide).get_trace(x).nodes["z"]["value"]
    q = vae.posterior(x)
    equal = torch.distributions.Categorical(torch.ones(6).double())
    mixture = torch.distributions.MixtureSameFamily(equal, q)
    marginals = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(2, 6).double()),
        torch.distributions.Normal(q.base_dist.loc.T, q.base_dist.scale.T),
    )
    log_q, log_z, log_d = q.log_prob(z), mixture.log_prob(z), marginals.log_prob(z).sum(-1)
    torch.testing.assert_close(terms.information, (log_q - log_z).mean())
    torch.testing.assert_close(terms.correlation, (log_z - log_d).mean())
    torch.testing.assert_close(terms.dimensions, (log_d - vae.prior.log_prob(z)).mean())
    torch.testing.assert_close(seen, vae.decode(z).log_prob(x).mean())


def test_terms_are_the_exact_ones():
    check_terms_are_the_exact_ones()


def test_each_part_of_the_kl_has_a_weight():
    vae = gaussian_vae()
    x = rows(MODELS["VAE"], vae, 6)
    torch.manual_seed(3)
    seen, terms = BetaTCVAE().terms(vae, x, n=50)
    torch.manual_seed(3)
    loss = BetaTCVAE(6.0, alpha=0.3, gamma=2.0).loss(vae, x, n=50)
    torch.testing.assert_close(loss, 0.3 * terms.information + 6 * terms.correlation + 2 * terms.dimensions - seen)


@pytest.mark.parametrize("stratified", [True, False])
def test_weights_one_give_the_elbo(stratified):
    vae = gaussian_vae()
    x = rows(MODELS["VAE"], vae, 6)
    objective = BetaTCVAE(1.0, stratified=stratified)
    found = value_and_gradients(vae, lambda: objective.loss(vae, x, n=50))
    torch.testing.assert_close(found, value_and_gradients(vae, lambda: ELBO(analytic_kl=False).loss(vae, x)))


def check_stratified_is_unbiased(n=6, rows_at_once=3):
    """The mean over all batches that hold row 0 is q(z) itself."""
    generator = torch.Generator().manual_seed(0)
    log_q = torch.randn(n, n, generator=generator, dtype=torch.float64)
    exact = log_q[0].exp().mean()
    found = []
    for others in itertools.combinations(range(1, n), rows_at_once - 1):
        batch = torch.tensor([0, *others])
        found.append(log_aggregate(log_q[batch][:, batch], n)[0].exp())
    torch.testing.assert_close(torch.stack(found).mean(), exact)
    torch.testing.assert_close(log_aggregate(log_q, n), log_q.logsumexp(1) - math.log(n))


def test_stratified_is_unbiased():
    check_stratified_is_unbiased()


def test_weighted_sampling_is_the_papers():
    log_q = torch.randn(4, 4).double()
    torch.testing.assert_close(log_aggregate(log_q, 90, False), (log_q.exp().sum(1) / (90 * 4)).log())


def test_total_correlation_takes_any_prior_and_refuses_dependent_guides():
    torch.manual_seed(0)
    x = rows(MODELS["VAE"], gaussian_vae(), 6).float()
    likelihood = Parametric(dist.Bernoulli, 5, context=2, hidden=HIDDEN)
    prior = VAE(RealNVP(2, 2, hidden=HIDDEN), likelihood, Parametric(dist.Normal, 2, context=5, hidden=HIDDEN))
    assert BetaTCVAE().loss(prior, x).isfinite()
    with pytest.raises(TypeError, match="independent dimensions"):
        BetaTCVAE().loss(VAE(StandardNormal(2), likelihood, RealNVP(2, 2, hidden=HIDDEN, context=5)), x)


def check_discrepancy_is_unbiased():
    a, b = torch.randn(40, 3).double(), torch.randn(40, 3).double() + 0.3
    torch.testing.assert_close(infovae._mmd(a, b, 1.5), mmd(a, b, bandwidth=1.5))
    same = torch.stack([infovae._mmd(*torch.randn(2, 10, 3).double(), None) for _ in range(3000)])
    assert_means_agree(*mean_and_error(same), torch.zeros(()).double())


def test_discrepancy_is_unbiased():
    check_discrepancy_is_unbiased()


def test_infovae_holds_the_elbo():
    for name in ("VAE", "VAE of flows"):
        model, x = models_for_elbo(name)
        found = value_and_gradients(model, lambda m=model, x=x: InfoVAE(0.0, 1.0).loss(m, x))
        torch.testing.assert_close(found, value_and_gradients(model, lambda m=model, x=x: ELBO().loss(m, x)))


@pytest.mark.parametrize("particles", [1, 4])
def test_infovae_is_the_bound_and_a_discrepancy_of_its_bandwidth(particles):
    alpha, scale = 0.3, 5.0
    vae, x = models_for_elbo("VAE of flows")
    torch.manual_seed(2)
    loss = InfoVAE(alpha, scale, bandwidth=0.7, particles=particles).loss(vae, x)
    torch.manual_seed(2)
    bound = ELBO(particles, beta=1 - alpha).loss(vae, x)
    drawn, prior = (poutine.trace(program).get_trace(x).nodes["z"]["value"] for program in (vae.guide, vae))
    torch.testing.assert_close(loss, bound + (alpha + scale - 1) * mmd(drawn, prior, bandwidth=0.7))


def test_the_discrepancy_pulls_the_aggregate_to_the_prior():
    """Without a KL, latents run away from the prior; the discrepancy alone brings them back."""
    torch.manual_seed(0)
    x = (torch.rand(200, 6) < 0.5).float()
    distance = {}
    for scale in (0.0, 200.0):
        torch.manual_seed(1)
        vae = VAE.mlp(6, 2, [16])
        with torch.no_grad():
            vae.guide.posterior.net[-1].bias[:2].fill_(3.0)
        pyrodgm.fit(vae, x, InfoVAE(1.0, scale), steps=150, batch_size=100, lr=0.01, progress=False)
        distance[scale] = pyrodgm.evaluation.aggregate_distance(vae, x, bandwidth=2**0.5)
    assert distance[200.0] < 0.2 * distance[0.0]


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: LinearAnnealing(0), "steps >= 1"),
        (lambda: LinearAnnealing(5, start=-1.0), "weights >= 0"),
        (lambda: CyclicalAnnealing(5, ramp=0.0), "ramp"),
        (lambda: ELBO(beta=-1.0), "beta >= 0"),
        (lambda: FreeBits(-1.0), "nats >= 0"),
        (lambda: FreeBits(0.1, 0), "group >= 1"),
        (lambda: InfoVAE(2.0), "alpha <= 1"),
        (lambda: InfoVAE(0.0, bandwidth=0.0), "bandwidth > 0"),
        (lambda: BetaTCVAE(-1.0), "weights >= 0"),
        (lambda: ELBO(free_bits=FreeBits(0.1, 3)).loss(VAE.mlp(6, 2, [8]), torch.ones(4, 6)), "multiple of group=3"),
    ],
)
def test_mistakes_are_named(build, match):
    with pytest.raises(ValueError, match=match):
        build()


@pytest.mark.parametrize("name", ["beta", "alpha", "gamma"])
def test_a_schedule_weighs_a_part_of_the_kl(name):
    """Step by step the loss of the number; a batch of one row is a step too."""
    vae, x = linear_vae(optimal=False), exact_marginal().sample((7,))
    annealed = BetaTCVAE(**{name: LinearAnnealing(4, start=1.0, end=9.0)})
    for weight in (1.0, 3.0, None, 7.0, 9.0, 9.0):
        if weight is None:
            annealed.loss(vae, x[:1])
            continue
        torch.manual_seed(0)
        found = annealed.loss(vae, x, n=50)
        torch.manual_seed(0)
        torch.testing.assert_close(found, BetaTCVAE(**{name: weight}).loss(vae, x, n=50))


def test_a_schedule_of_two_weights_counts_once():
    vae, x = linear_vae(), exact_marginal().sample((7,))
    shared = LinearAnnealing(4)
    BetaTCVAE(beta=shared, alpha=shared).loss(vae, x)
    assert shared.step == 1


@pytest.mark.parametrize("name", ["alpha", "scale"])
def test_an_info_vae_says_that_it_anneals_nothing(name):
    with pytest.raises(TypeError, match=f"expected {name} as a number, got LinearAnnealing.*anneal by ELBO"):
        InfoVAE(**{name: LinearAnnealing(9)})


@pytest.mark.parametrize("objective", [BetaTCVAE(), InfoVAE(alpha=0.3)], ids=lambda o: type(o).__name__)
def test_a_last_batch_of_one_row_has_the_plain_bound(objective):
    vae, x = linear_vae(), torch.zeros(1, 4).double()
    torch.manual_seed(0)
    found = objective.loss(vae, x)
    torch.manual_seed(0)
    expected = ELBO(analytic_kl=False) if isinstance(objective, BetaTCVAE) else ELBO(beta=0.7)
    torch.testing.assert_close(found, expected.loss(vae, x))


@pytest.mark.parametrize(
    "objective",
    [
        ImportanceWeighted(5),
        ImportanceWeighted(5, doubly=True),
        ImportanceWeighted(5, alpha=1.0),
        BetaTCVAE(),
        InfoVAE(1.0),
    ],
    ids=repr,
)
def test_a_guide_without_rsample_is_refused_where_its_gradient_would_be_wrong(objective):
    vae, x = binary_vae(), all_binary((3,))
    with pytest.raises(TypeError, match="'z' without rsample; use ReweightedWakeSleep"):
        objective.loss(vae, x)
    assert objective.held_out(vae, x).isfinite()  # values have no gradient to be wrong


class Squared(VAE):
    """log z is drawn: a positive latent, for guides that push draws onto its support."""

    def __init__(self):
        super().__init__(Parametric(dist.Gamma, 1), Parametric(dist.Normal, 1, context=1), nn.Identity())


def test_pyros_autoguides_keep_their_jacobian():
    """AutoNormal gives a positive site as a point with a density, which Pyro's closed form of the KL leaves out."""
    vae, x = Squared().double(), torch.zeros(1, 1).double()

    def program(x, context=None, *, n=None):
        return vae(x, context, n=n)

    vae.guide = AutoNormal(program)
    vae.guide(x)
    pyro.clear_param_store()  # where Pyro's guides put theirs
    bounds = {}
    for analytic in (True, False):
        torch.manual_seed(0)
        bounds[analytic] = ELBO(analytic_kl=analytic).loss(vae, x)
    torch.manual_seed(0)
    torch.testing.assert_close(bounds[True], Trace_ELBO().differentiable_loss(vae, vae.guide, x))
    torch.testing.assert_close(bounds[True], bounds[False])
    pyro.clear_param_store()


def test_free_bits_need_a_density_at_each_site():
    vae, x = linear_vae(), torch.randn(5, 4).double()
    vae.guide = FullCovariance(Sites(vae, (x,))).double()
    with pytest.raises(TypeError, match="free bits, got the auxiliary sites"):
        ELBO(free_bits=FreeBits(0.5, None)).loss(vae, x)


def test_refined_bounds_of_packed_guides_are_bounds():
    """What a packed guide draws on the way to its sites is no latent of the rows."""
    vae, x = linear_vae(), exact_marginal().sample((20,))
    vae.guide = FullCovariance(Sites(vae, (x,))).double()
    bound = -VariationalEM(steps=60, particles=50, amortized=True).held_out(vae, x)
    exact = exact_marginal().log_prob(x).mean()
    assert exact - 0.3 < bound < exact + 0.05


@pytest.mark.parametrize("objective", [WakeSleep(), ReweightedWakeSleep(insomnia=0.5)], ids=lambda o: type(o).__name__)
def test_dreams_are_refused_by_packed_guides(objective):
    vae, x = linear_vae(), torch.randn(5, 4).double()
    vae.guide = FullCovariance(Sites(vae, (x,))).double()
    with pytest.raises(TypeError, match="dreams, which have no values for them, got the auxiliary sites"):
        list(objective(vae, x))
