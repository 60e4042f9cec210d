"""Objectives in which model and guide take turns: wake-sleep, variational EM, lagging inference, games about z."""

import copy
import itertools
import pickle

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
    contexts,
    mean_and_error,
    ready,
    rows,
)
from test_contracts_latent import NOISE, binary_vae, exact_marginal, joint, linear_vae
from test_learned_priors import MASK, masked
from torch import nn

import pyrodgm
from pyrodgm.core import Latent, data_plate
from pyrodgm.guides import Amortized, ImplicitGuide, Local, Sites, refine
from pyrodgm.latent import VAE
from pyrodgm.objectives import (
    ELBO,
    AdversarialAutoencoder,
    AdversarialVariationalBayes,
    Game,
    ImportanceWeighted,
    LaggingInference,
    LinearAnnealing,
    ReweightedWakeSleep,
    StopLagging,
    VariationalEM,
    WakeSleep,
    generative_parameters,
)
from pyrodgm.tractable import Parametric, StandardNormal


def flat(loss, parameters):
    found = torch.autograd.grad(loss, list(parameters), materialize_grads=True, retain_graph=True)
    return torch.cat([g.flatten() for g in found])


def players_gradients(objective, vae, x):
    """player -> gradient of its loss in its own parameters."""
    own = {k: list(p) for k, p in objective.players(vae).items()}
    return {player: flat(loss, own[player]) for player, loss in objective(vae, x)}


def assert_gradients_are(objective, vae, x, exact, repeats=80):
    """Means of the objective's gradients over repeats against the exact ones; many copies of x cut the noise."""
    found = [players_gradients(objective, vae, x.repeat(40, 1)) for _ in range(repeats)]
    for player, gradient in exact.items():
        assert_gradients_agree(torch.stack([f[player] for f in found]), gradient)


# wake-sleep, by sums over every z (and every x)


def sleep_loss(vae):
    states = all_binary((3,))
    log_joint, log_q = joint(vae, states)  # (4, 8) each
    return -(log_joint.detach().exp() * log_q).sum()


def check_wake_sleep(particles=1):
    vae, x = binary_vae(), all_binary((3,))[:5]
    log_joint, log_q = joint(vae, x)
    wake = -(log_q.detach().exp() * log_joint).sum(0).mean()
    exact = {
        "model": flat(wake, generative_parameters(vae)),
        "guide": flat(sleep_loss(vae), vae.guide.parameters()),
    }
    assert_gradients_are(WakeSleep(particles), vae, x, exact)


def reweighted(vae, x, k):
    """Exact losses of K particles: sums over every K-tuple of latents."""
    log_joint, log_q = joint(vae, x)
    model = guide = 0.0
    for states in itertools.product(range(4), repeat=k):
        p, q = log_joint[list(states)], log_q[list(states)]  # (K, B)
        share = (p - q).detach().softmax(0)
        chance = q.detach().sum(0).exp()
        model = model - (chance * (share * p).sum(0)).mean()
        guide = guide - (chance * (share * q).sum(0)).mean()
    return model, guide


def check_reweighted_wake_sleep(insomnia=1.0, k=2):
    vae, x = binary_vae(), all_binary((3,))[:5]
    model, guide = reweighted(vae, x, k)
    guide = insomnia * guide + (1 - insomnia) * sleep_loss(vae)
    exact = {"model": flat(model, generative_parameters(vae)), "guide": flat(guide, vae.guide.parameters())}
    assert_gradients_are(ReweightedWakeSleep(k, insomnia), vae, x, exact)


@pytest.mark.parametrize("particles", [1, 3])
def test_wake_sleep_by_enumeration(particles):
    check_wake_sleep(particles)


@pytest.mark.parametrize("insomnia", [1.0, 0.3, 0.0])
def test_reweighted_wake_sleep_by_enumeration(insomnia):
    check_reweighted_wake_sleep(insomnia)


def test_the_models_gradient_is_that_of_the_importance_weighted_bound():
    vae, x = ready(MODELS["VAE"]), rows(MODELS["VAE"], ready(MODELS["VAE"]), 5)
    own = generative_parameters(vae)
    torch.manual_seed(1)
    found = flat(next(iter(ReweightedWakeSleep(7)(vae, x)))[1], own)
    torch.manual_seed(1)
    torch.testing.assert_close(found, flat(ImportanceWeighted(7).loss(vae, x), own))


@pytest.mark.parametrize("objective", [WakeSleep(), ReweightedWakeSleep(5, 0.5)])
def test_discrete_latents_train(objective):
    """Two alternating patterns: two bits of z hold what tells them apart."""
    torch.manual_seed(0)
    x = torch.tensor([[1.0, 0, 1, 0], [0.0, 1, 0, 1]]).repeat(50, 1)
    bits = Parametric(dist.Bernoulli, 2)
    vae = VAE(
        bits, Parametric(dist.Bernoulli, 4, context=2, hidden=[8]), Parametric(dist.Bernoulli, 2, context=4, hidden=[8])
    )
    pyrodgm.fit(vae, x, objective, steps=300, batch_size=50, lr=0.03, progress=False)
    log_p = joint(vae.double(), x[:2].double())[0].logsumexp(0).mean()
    assert log_p > 1.5 * -torch.tensor(2.0).log()  # at best -log 2, without latents -4 log 2


# variational EM


def check_refine_is_exact(from_guide=False):
    """On a linear-Gaussian model each row's q is the posterior, and the bound the evidence."""
    best, vae, x = linear_vae(), linear_vae(optimal=False), exact_marginal().sample((9,))
    local = refine(vae, x, steps=250, lr=0.1, from_guide=from_guide)
    exact, found = best.posterior(x).base_dist, local.condition("z").base_dist
    # the noise of the gradient vanishes at the optimum, and Adam's last steps are 1e-3 of its first
    torch.testing.assert_close(found.loc, exact.loc, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.scale, exact.scale.expand_as(found.scale), rtol=0, atol=2e-3)
    objective = VariationalEM(200, amortized=from_guide)
    # the gap is a KL of order atol^2 / scale^2; its one-sample estimate has noise of order atol / scale
    assert objective.held_out(vae, x).item() == pytest.approx(-exact_marginal().log_prob(x).mean().item(), abs=0.02)


@pytest.mark.parametrize("from_guide", [False, True])
def test_refine_is_exact(from_guide):
    check_refine_is_exact(from_guide)


def check_the_model_follows_the_evidence():
    """With the posterior in the E-step the M-step's gradient is that of log p(x) (Fisher's identity)."""
    vae, x = linear_vae(optimal=False), exact_marginal().sample((3,))
    own = generative_parameters(vae)
    weight, bias = vae.likelihood.net.weight, vae.likelihood.net.bias
    covariance = weight @ weight.T + NOISE**2 * torch.eye(4).double()
    evidence = -dist.MultivariateNormal(bias, covariance).log_prob(x).mean()
    exact = flat(evidence, own)
    many = x.repeat(60, 1)
    objective = VariationalEM(80, lr=0.2)
    found = torch.stack([players_gradients(objective, vae, many)["model"] for _ in range(16)])
    mean, error = mean_and_error(found)
    # beside the noise, q is off by some 1e-3
    assert_means_agree(mean, (error**2 + 5e-3**2) ** 0.5, exact)


def test_the_model_follows_the_evidence():
    check_the_model_follows_the_evidence()


def test_refining_is_at_least_as_good_as_the_guide():
    """On a trained model that stays as it is, on held-out rows."""
    torch.manual_seed(0)
    prototypes = (torch.rand(4, 12) < 0.5).float()
    x = (prototypes[torch.randint(4, (600,))] - (torch.rand(600, 12) < 0.1).float()).abs()
    vae = VAE.mlp(12, 2, [16])
    pyrodgm.fit(vae, x[:400], ELBO(), steps=300, lr=5e-3, progress=False)
    before = [p.clone() for p in vae.parameters()]
    test = x[400:]
    amortized = torch.stack([ELBO(20).held_out(vae, test) for _ in range(10)]).mean()
    refined = torch.stack([VariationalEM(60, 0.05, 20, True).held_out(vae, test) for _ in range(3)]).mean()
    # both are means of 20 draws of 200 rows: their noise is of order 1 / sqrt(4000) nats
    assert refined < amortized + 0.05
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


def test_variational_em_trains_without_a_guide():
    torch.manual_seed(0)
    x = exact_marginal().sample((300,)).float()
    vae = linear_vae().float()
    with torch.no_grad():
        vae.likelihood.net.weight.mul_(0.3).add_(0.1)
        vae.likelihood.net.bias.zero_()
    guide = [p.clone() for p in vae.guide.parameters()]
    held_out = exact_marginal().sample((200,)).float()
    before = VariationalEM(40).held_out(vae, held_out)
    run = pyrodgm.fit(vae, x, VariationalEM(10), steps=80, batch_size=100, lr=0.03, progress=False)
    after = VariationalEM(40).held_out(vae, held_out)
    best = -exact_marginal().log_prob(held_out.double()).mean()
    assert set(run.history[-1]) >= {"loss"}
    assert after - best < 0.25 * (before - best)
    assert all(torch.equal(a, b) for a, b in zip(guide, vae.guide.parameters(), strict=True))


class Positive(Latent):
    """A user's program with a constrained latent: z ~ Exponential(1), x ~ N(z, 0.5)."""

    def __init__(self):
        super().__init__((2,))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x=None, context=None, *, n=None):
        x, context = self.check(x, context)
        with data_plate(x, context, n):
            z = pyro.sample("rate", dist.Exponential(torch.ones(2)).to_event(1))
            return pyro.sample("x", dist.Normal(z + self.shift, 0.5).to_event(1), obs=x)


def test_constrained_latents_are_refined_in_their_support():
    model, x = Positive(), torch.tensor([[3.0, 0.5], [2.0, 4.0], [-1.0, 0.0]])
    local = refine(model, x, steps=300, particles=5, from_guide=False)
    draws = torch.stack([local(x)["rate"] for _ in range(400)])
    assert bool((draws > 0).all())
    # far from 0 the posterior is N(x - 0.25, 0.5); the lognormal q has nearly its mean
    mean, error = mean_and_error(draws[:, [0, 1], [0, 1]])
    assert_means_agree(mean, (error**2 + 0.02**2) ** 0.5, torch.tensor([2.75, 3.75]))


@pytest.mark.parametrize("from_guide", [True, False])
def test_local_parameters_leave_out_what_is_masked(from_guide):
    """Rows without weight in the program have none in q, so theirs are not refined towards nothing."""
    model, x = masked(0.0)
    local = refine(model, x, steps=3, from_guide=from_guide)
    drawn = model.particle_trace(local, 5, x)
    weights = model.row_log_prob(drawn)
    assert bool((weights[:, ~MASK] == 0).all())
    assert bool((weights[:, MASK] != 0).all())


def test_local_parameters_belong_to_their_rows():
    vae, x = linear_vae(), exact_marginal().sample((4,))
    local = Local(vae, x)
    exact = vae.posterior(x).base_dist
    torch.testing.assert_close(local.condition("z").base_dist.loc, exact.loc)
    with pytest.raises(ValueError, match="the 4 rows"):
        local(x[:2])
    with pytest.raises(TypeError, match="continuous latents"):
        Local(binary_vae(), all_binary((3,)))


# lagging inference


def test_the_guide_takes_its_steps_first():
    vae, x = ready(MODELS["VAE"]), rows(MODELS["VAE"], ready(MODELS["VAE"]), 8)
    objective = LaggingInference(3)
    own = {k: {id(p) for p in ps} for k, ps in objective.players(vae).items()}
    assert not own["guide"] & own["model"]
    assert own["guide"] | own["model"] == {id(p) for p in vae.parameters()}
    assert [player for player, _ in objective(vae, x)] == ["guide"] * 3 + ["model"]
    objective.aggressive = False
    assert [player for player, _ in objective(vae, x)] == ["guide", "model"]
    other = LaggingInference(3)
    other.load_state_dict(objective.state_dict())
    assert not other.aggressive


def test_an_annealed_weight_counts_the_steps_of_the_model():
    vae, x = ready(MODELS["VAE"]).train(), rows(MODELS["VAE"], ready(MODELS["VAE"]), 8)
    objective = LaggingInference(4, ELBO(beta=LinearAnnealing(10))).double()
    for _ in range(3):
        assert len(list(objective(vae, x))) == 5
    assert objective.objective.beta.step == 3
    assert all(m.training for m in objective.modules())
    objective.eval()
    list(objective(vae, x))
    assert not any(m.training for m in objective.modules())


def test_the_aggressive_phase_closes_the_inference_gap_and_ends():
    """With the model held still, eight steps of the guide for each of the model come closer to its posterior."""
    torch.manual_seed(0)
    x = exact_marginal().sample((400,)).float()
    gaps = {}
    for inner in (1, 8):
        vae = linear_vae(optimal=False).float()
        held = {"lr": 0.0}

        def optimizer(parameters, guide=vae.guide, held=held):
            mine = {id(p) for p in guide.parameters()}
            return torch.optim.SGD(parameters, lr=0.01 if id(parameters[0]) in mine else held["lr"])

        stop = StopLagging(x[:100], patience=2)
        objective = LaggingInference(inner, ELBO(stl=True))
        pyrodgm.fit(vae, x, objective, epochs=6, optimizer=optimizer, callbacks=[stop], progress=False)
        gaps[inner] = ELBO(200).held_out(vae, x) + exact_marginal().log_prob(x.double()).mean()
        assert len(stop.history) == 6
    assert gaps[8] < 0.5 * gaps[1]
    stop, run = StopLagging(x[:50]), type("Run", (), {"model": vae, "objective": LaggingInference(2)})()
    stop.history.append(1e9)
    assert stop(run) is False
    assert not run.objective.aggressive


# games about the latents


class Quadratic(nn.Module):
    """A critic that holds every log-ratio of two Gaussians."""

    def __init__(self, features):
        super().__init__()
        self.net = nn.Linear(features + features**2, 1).double()
        nn.init.zeros_(self.net.weight)

    def forward(self, v, context=None):
        return self.net(torch.cat((v, (v.unsqueeze(-1) * v.unsqueeze(-2)).flatten(1)), -1)).squeeze(-1)


def line():
    """x in two dimensions, z in one, with wide posteriors, so that the critics' ratios are tame."""
    decoder, encoder = nn.Linear(1, 2), nn.Linear(2, 2)
    vae = VAE(
        StandardNormal(1),
        Parametric(dist.Normal, 2, context=1, net=decoder, fixed={"scale": 1.0}),
        Parametric(dist.Normal, 1, context=2, net=encoder),
    ).double()
    with torch.no_grad():
        decoder.weight.copy_(torch.tensor([[1.0], [-0.5]])), decoder.bias.zero_()
        encoder.weight.copy_(torch.tensor([[0.5, -0.2], [0.0, 0.0]]))
        encoder.bias.copy_(torch.tensor([0.3, -0.2]))
    return vae


def train_critic(objective, vae, x, steps=40):
    """By L-BFGS on the critic's loss with the same noise at every look: the problem is convex."""
    optimizer = torch.optim.LBFGS(objective.critic.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure():
        torch.manual_seed(2)
        loss = next(loss for player, loss in objective(vae, x) if player == "critic")
        optimizer.zero_grad()
        loss.backward()
        return loss

    optimizer.step(closure)


def check_the_critic_measures_the_kl(kind=AdversarialVariationalBayes):
    """With the best critic the held-out score is reconstruction and KL, of q(z | x) for AVB, of q(z) for the AAE."""
    torch.manual_seed(0)
    vae = line()
    x = torch.randn(20_000, 2).double() @ torch.tensor([[1.2, 0.0], [-0.4, 1.0]]).double()
    joint_critic = kind is AdversarialVariationalBayes
    objective = kind(Quadratic(3 if joint_critic else 1))
    train_critic(objective, vae, x)
    q = vae.posterior(x).base_dist
    if joint_critic:
        mean, variance = q.loc, q.scale**2
    else:
        mean, variance = q.loc.mean(0), q.loc.var(0) + q.scale.square().mean(0)
    kl = 0.5 * (mean**2 + variance - 1 - variance.log()).sum(-1).mean()
    residual = (x - vae.decode(q.loc).base_dist.loc).square() + q.scale**2 * vae.likelihood.net.weight.T.square()
    seen = -(0.5 * residual + 0.5 * torch.log(torch.tensor(2 * torch.pi))).sum(-1).mean()
    # 20 000 rows: the critic's few weights and the means are off by about 1 / sqrt(20 000), times some units
    assert objective.held_out(vae, x).item() == pytest.approx((kl - seen).item(), abs=0.05)


@pytest.mark.parametrize("kind", [AdversarialVariationalBayes, AdversarialAutoencoder])
def test_the_critic_measures_the_kl(kind):
    check_the_critic_measures_the_kl(kind)


@pytest.mark.parametrize("kind", [AdversarialVariationalBayes, AdversarialAutoencoder])
def test_each_loss_moves_its_own_player(kind):
    vae, x = ready(MODELS["VAE"]), rows(MODELS["VAE"], ready(MODELS["VAE"]), 8)
    objective = kind.mlp(vae, HIDDEN)  # of the type of the model, float64
    for player, loss in objective(vae, x):
        moved = torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True, retain_graph=True)
        of_guide = {id(p) for p in vae.guide.parameters()}
        reached = {id(p) for p, g in zip(vae.parameters(), moved, strict=True) if g is not None}
        expected = {"critic": set(), "guide": of_guide, "model": {id(p) for p in vae.parameters()}}
        assert reached == expected[player]


class Scores(nn.Module):
    """One number a row, whatever the context."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, z, context=None):
        return self.net(z).squeeze(-1)


class Difference(Game):
    """Of mean scores."""

    def critic(self, real, fake):
        return fake.mean() - real.mean()

    def generator(self, fake):
        return -fake.mean()


def test_the_autoencoders_game_and_its_critics_steps_are_choices():
    """With scores w z the guide's gradient in the mean is -w; every step of the critic has draws of its own."""
    vae, x, critic = line(), torch.randn(6, 2).double(), nn.Linear(1, 1).double()
    objective = AdversarialAutoencoder(Scores(critic), Difference(), critic_steps=3)
    found = list(objective(vae, x))
    assert [player for player, _ in found] == ["model", "critic", "critic", "critic", "guide"]
    assert len({loss.item() for player, loss in found if player == "critic"}) == 3
    (of_bias,) = torch.autograd.grad(found[-1][1], [vae.guide.posterior.net.bias])
    torch.testing.assert_close(of_bias[:1], -critic.weight[0])


class Scored(dist.Normal):
    """It scores and is not sampled."""

    def sample(self, sample_shape=torch.Size()):
        raise NotImplementedError

    rsample = sample


class Normed(Latent):
    def __init__(self):
        super().__init__((3,))
        self.net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.guide = Amortized(Parametric(dist.Normal, 2, context=3))

    def forward(self, x=None, context=None, *, n=None):
        x, context = self.check(x, context)
        with data_plate(x, context, n):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", Scored(self.net(z), 1.0).to_event(1), obs=x)


def test_latents_are_counted_without_a_mark_on_the_model():
    """In train mode one row has no statistics; and x need not be sampled."""
    model, before = Normed().train(), Normed().net[1].state_dict()
    for kind in (AdversarialAutoencoder, AdversarialVariationalBayes):
        objective = kind.mlp(model, [8], critic_steps=3)
        objective.check(model)
        assert objective.critic_steps == 3
    assert all(m.training for m in model.modules())
    torch.testing.assert_close(model.net[1].state_dict(), before)


def test_more_particles_leave_the_adaptive_bound_and_lessen_its_noise():
    vae, x = line(), torch.randn(10, 2).double()
    vae.guide = ImplicitGuide(Sites(vae, (x,)), hidden=HIDDEN)
    objective = AdversarialVariationalBayes.mlp(vae, HIDDEN, adaptive=True)
    found = {}
    for particles in (1, 8):
        objective.particles = particles
        found[particles] = torch.stack([objective.held_out(vae, x) for _ in range(200)])
    assert_means_agree(*mean_and_error(found[1]), *mean_and_error(found[8]))
    # the sd of a log-variance of 200 numbers is 0.1
    assert 8 / 1.5 < found[1].var() / found[8].var() < 8 * 1.5


class Sampler(nn.Module):
    """A guide without a density: noise through a network beside x."""

    class Draw(dist.Delta):
        def log_prob(self, value):
            raise NotImplementedError("no density")

    def __init__(self, features, latent):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features + latent, 16), nn.Tanh(), nn.Linear(16, latent))
        self.latent = latent

    def forward(self, x=None, context=None, *, n=None):
        with data_plate(x, context, n):
            z = self.net(torch.cat((x, torch.randn(len(x), self.latent)), -1))
            return pyro.sample("z", self.Draw(z, event_dim=1))


@pytest.mark.parametrize("kind", [AdversarialVariationalBayes, AdversarialAutoencoder])
def test_guides_without_a_density_train(kind):
    torch.manual_seed(0)
    x = torch.tensor([[1.0, 0, 1, 0], [0.0, 1, 0, 1]]).repeat(50, 1)
    vae = VAE(StandardNormal(2), Parametric(dist.Bernoulli, 4, context=2, hidden=[16]), Sampler(4, 2))
    objective = kind.mlp(vae, (32,))
    pyrodgm.fit(vae, x, objective, steps=400, batch_size=50, lr=5e-3, progress=False)
    # at best log 2; without latents 4 log 2 = 2.8
    assert objective.held_out(vae, x) < 1.8


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: WakeSleep(0), "particles >= 1"),
        (lambda: ReweightedWakeSleep(5, 2.0), "insomnia in"),
        (lambda: VariationalEM(0), "steps >= 1"),
        (lambda: LaggingInference(0), "inner_steps >= 1"),
        (lambda: StopLagging(torch.zeros(2, 2), patience=0), "patience >= 1"),
        (lambda: AdversarialAutoencoder(nn.Identity(), critic_steps=0), "critic_steps >= 1"),
        (lambda: refine(linear_vae(), torch.zeros(2, 4).double(), particles=0), "particles >= 1"),
        (lambda: refine(ready(MODELS["VQVAE"]), torch.zeros(2, 5).double()), "expected a site with some spread"),
    ],
)
def test_mistakes_are_named(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_what_cannot_play_is_refused():
    with pytest.raises(TypeError, match="one loss"):
        LaggingInference(2, WakeSleep())
    with pytest.raises(TypeError, match="without rsample"):
        list(AdversarialVariationalBayes.mlp(binary_vae(), [8]).double()(binary_vae(), all_binary((3,))))


LATENT = [name for name, case in OBJECTIVES.items() if MODELS[case.model].build().family == "latent"]


@pytest.mark.parametrize("name", LATENT)
def test_conditional_models_copies_and_held_out(name):
    """With a context, after pickling, and from rows to a held-out score without gradients."""
    case = OBJECTIVES[name]
    if MODELS[case.model].conditional is None:
        return
    model = ready(MODELS[case.model], conditional=True)
    x, context = rows(MODELS[case.model], model, 6), contexts(6, labels=MODELS[case.model].labels)
    objective = pickle.loads(pickle.dumps(case.build(model).double()))
    for _, loss in objective(model, x, context, n=24):
        assert bool(loss.isfinite())
    objective.eval()
    before = copy.deepcopy(objective.state_dict())
    score = objective.held_out(model, x, context, n=24)
    assert not score.requires_grad
    assert bool(score.isfinite())
    torch.testing.assert_close(objective.state_dict(), before, rtol=0, atol=0, equal_nan=True)
