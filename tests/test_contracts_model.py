"""Contracts 1 and 4: every model is one Pyro program and a plain module, and every objective gives it losses."""

import copy
import itertools
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import (
    GUIDES,
    MODELS,
    OBJECTIVES,
    C,
    assert_gradients_are_slopes,
    assert_means_agree,
    context_of,
    contexts,
    mean_and_error,
    of_family,
    ready,
    rows,
    variants,
)
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyrodgm.bijectors import Affine
from pyrodgm.latent import M2
from pyrodgm.objectives import default_objective
from pyrodgm.traces import sample_sites
from pyrodgm.tractable import FFJORD, Flow, StandardNormal

N = 4

every = variants(MODELS)
trainable = variants(MODELS, lambda case: list(case.build().parameters()))
scored = variants(MODELS, lambda case: case.build().family != "implicit")  # there is a density, maybe unnormalised
bounded = variants(MODELS, lambda case: list(case.build().parameters()) and case.build().family != "implicit")
implicit = variants(MODELS, of_family("implicit"))


def sites_of(name):
    """The sample sites of a case's program."""
    case = MODELS[name]
    latents = {"latent": set(case.latents), "implicit": {"z"}}
    return {"x"} | latents.get(case.build().family, set())


def setting(name, conditional):
    """(model, rows, context) of a case."""
    model = ready(MODELS[name], conditional)
    return model, rows(MODELS[name], model, N), context_of(conditional, N, MODELS[name])


def score(model, x, context):
    """What the model says about rows, or for an implicit one its draws; seeded."""
    torch.manual_seed(11)
    if model.family == "tractable":
        return model.log_prob(x, context)
    if model.family == "latent":
        return model.log_weights(x, context, particles=3)
    if model.family == "energy":
        return model.energy(x, context)
    return model(None, context, n=len(x))


def draw(model, context):
    torch.manual_seed(12)
    return model.sample(3, context)


def losses(model, objective, x, context):
    """player -> loss, all computed before any step, so one backward of their sum reaches everybody."""
    torch.manual_seed(13)
    return dict(objective(model, x, context))


def train_one_step(model, x, context):
    objective = default_objective(model).double()
    objective.check(model)
    model.train()
    for player, loss in objective(model, x, context):
        parameters = list(objective.players(model)[player])
        for p in parameters:
            p.grad = None
        loss.backward()
        torch.optim.SGD(parameters, lr=1e-2).step()
    model.eval()


def check_plate_scale(name, conditional=False):
    """Rows that stand for three times as many weigh three times as much."""
    model, x, context = setting(name, conditional)
    guide = poutine.trace(model.guide).get_trace(x, context)

    def total(n):
        trace = poutine.trace(poutine.replay(model, trace=guide)).get_trace(x, context, n=n)
        guide_trace = poutine.trace(poutine.replay(model.guide, trace=guide)).get_trace(x, context, n=n)
        return trace.log_prob_sum(), torch.as_tensor(guide_trace.log_prob_sum())

    for once, thrice in zip(total(None), total(3 * N), strict=True):
        torch.testing.assert_close(thrice, 3 * once)


def check_sample_shapes(name, conditional=False):
    model = ready(MODELS[name], conditional)
    event = tuple(model.event_shape)
    context = contexts(12, labels=MODELS[name].labels)
    model.train()
    if conditional:
        assert model.sample(3, context[:4]).shape == (3, 4, *event)
        assert model.sample(None, context[:4]).shape == (4, *event)
        assert model.sample(3, context[0]).shape == (3, *event)
        assert model.sample(2, context.unflatten(0, (3, 4))).shape == (2, 3, 4, *event)
        assert model(None, context[:4]).shape == (4, *event)
        x = model.sample(5, context[:4], batch_size=3)
        assert x.shape == (5, 4, *event)
    else:
        assert model.sample(3).shape == (3, *event)
        assert model.sample().shape == event
        assert model(n=3).shape == (3, *event)
        x = model.sample(5, batch_size=2)
        assert x.shape == (5, *event)
    assert x.dtype == torch.float64
    assert not x.requires_grad
    assert model.training
    assert all(m.training for m in model.modules())
    for wrong in (0, 2.5, (3, 2)):
        with pytest.raises(ValueError, match="n >= 1"):
            model.sample(wrong, context if conditional else None)


def check_gradients_reach_every_parameter(name, conditional=False):
    model, x, context = setting(name, conditional)
    model.train()
    torch.manual_seed(1)
    objective = default_objective(model).double()
    sum(losses(model, objective, x, context).values()).backward()
    for key, p in [*model.named_parameters(), *objective.named_parameters()]:
        assert p.dim() >= 1, f"{key} has no dimension, which FSDP refuses"
        assert p.grad is not None, f"{key} takes no part in the loss"
        assert bool((p.grad != 0).any()), f"{key} receives no gradient"


# FFJORD's layers are solved to 1e-8, which a difference divides by the step; tests of their own have them finer.
differentiable = variants(
    MODELS, lambda case: case.build().family in ("tractable", "energy") and not isinstance(case.build(), FFJORD)
)


def check_scores_gradients_are_slopes(name, conditional=False):
    """Of log_prob or the energy, in real rows, in the parameters and in the context."""
    model, x, context = setting(name, conditional)

    def total():
        return score(model, x, context).asinh().sum()

    real = not model.support.is_discrete
    leaves = {"x": [x] * real, "the parameters": list(model.parameters()), "the context": [context] * conditional}
    assert_gradients_are_slopes(total, {kind: group for kind, group in leaves.items() if group})


def check_two_models_train_side_by_side(name, conditional=False):
    """Under stock SVI, two models of one class in one process each move all their parameters."""
    pairs = []
    for _ in range(2):
        model, x, context = setting(name, conditional)
        model.train()
        pairs.append((model, SVI(*model.svi(), pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())))
    for model, svi in pairs:
        before = copy.deepcopy(model.state_dict())
        first = svi.step(x, context)
        assert isinstance(first, float)
        for _ in range(3):
            svi.step(x, context)
        for key, p in model.named_parameters():
            assert not torch.equal(p, before[key]), f"{key} did not move"


@every
def test_sample_shapes(name, conditional):
    check_sample_shapes(name, conditional)


# Those whose draws hardly depend on the context at the weights that the other tests have: by what their weights and the
# contexts are multiplied, and how many draws tell contexts apart.
DEAF = {
    "Resampled": (3, 4, 1000),
    "M2": (2, 1, 1000),
    "DeepBeliefNetwork": (3, 4, 1000),
    "DeepBeliefNetwork of three": (6, 8, 3000),
    "NeuralEnergy": (3, 4, 1000),
}


def moments(x):
    """Means of the features and of their squares, with their errors."""
    return mean_and_error(torch.cat((x.flatten(1), x.flatten(1).square()), 1))


def least_gap(found):
    """Of several moments, how many errors the two that are next to each other are apart, in the feature that tells."""
    gaps = [
        ((a - b).abs() / ((a_error**2 + b_error**2).sqrt() + 1e-9)).max().item()
        for (a, a_error), (b, b_error) in itertools.combinations(found, 2)
    ]
    return min(gaps)


@torch.no_grad()
def check_each_context_gets_its_own_draws(name):
    """Drawn for three contexts together, in batches that cut across them, or for each alone: the same moments."""
    model, labels = ready(MODELS[name], True), MODELS[name].labels
    louder, further, draws = DEAF.get(name, (1, 2, 1000))
    for p in model.parameters():
        p.mul_(louder)
    many = contexts(3, labels=True) if labels else contexts(12) * further
    pilot = [moments(model.sample(draws, context)) for context in many]
    best = max(itertools.combinations(range(len(many)), 3), key=lambda of: least_gap([pilot[i] for i in of]))
    apart = many[list(best)]
    together = model.sample(3000, apart, batch_size=1000)
    each = [moments(model.sample(3000, context)) for context in apart]
    for i, alone in enumerate(each):
        assert_means_agree(*moments(together[:, i]), *alone)
    assert least_gap(each) > 6  # or the 5 errors of the lines above would not see a swap


@pytest.mark.parametrize("name", [name for name, case in MODELS.items() if case.conditional])
def test_each_context_gets_its_own_draws(name):
    check_each_context_gets_its_own_draws(name)


@every
def test_seeded_draws_repeat(name, conditional):
    model, _, context = setting(name, conditional)
    x = draw(model, context)
    assert torch.equal(x, draw(model, context))
    assert not torch.equal(x, model.sample(3, context))


@every
def test_mistakes_are_named(name, conditional):
    model, x, context = setting(name, conditional)
    calls = [lambda x, c: model(x, c)]
    if model.family == "tractable":
        calls.append(model.log_prob)
    if model.family == "latent":
        calls += [model.log_weights, model.posterior, model.reconstruct]
    if model.family == "energy":
        calls.append(model.energy)
    for call in calls:
        with pytest.raises(ValueError, match="expected x of shape"):
            call(torch.cat((x, x[..., :1]), -1), context)
        with pytest.raises(TypeError, match=r"expected x of torch.float64, got torch.float32"):
            call(x.float(), context)
        with pytest.raises(TypeError, match=r"expected x as a torch.Tensor, got list"):
            call(x.tolist(), context)
        if not conditional:
            with pytest.raises(ValueError, match="expected no context"):
                call(x, contexts(N))
            continue
        with pytest.raises(ValueError, match="expected context of shape"):
            call(x, None)
        with pytest.raises(ValueError, match="expected context of shape"):
            call(x, torch.zeros(N, C + 1).double())
        with pytest.raises(TypeError, match=r"expected context of torch.float64"):
            call(x, contexts(N).float())
    if conditional:
        with pytest.raises(ValueError, match="one context row for each row"):
            model(x, contexts(N + 1, labels=MODELS[name].labels))
        with pytest.raises(ValueError, match="expected context of shape"):
            model.sample(2)
    with pytest.raises(ValueError, match="n is the size of the whole data set"):
        model(x, context, n=N - 1)


@every
def test_rows_outside_the_support_are_refused(name, conditional):
    model, x, context = setting(name, conditional)
    if model.family == "implicit":
        with pytest.raises(NotImplementedError, match="no density"):
            poutine.trace(model).get_trace(x, context).compute_log_prob()
        return
    wrong = x.clone()
    wrong[-1] = 0.5 if MODELS[name].binary else torch.nan
    assert model.support.check(wrong).tolist() == [True] * (N - 1) + [False]
    with pytest.raises(ValueError, match=r"support|constraint"):
        Trace_ELBO().loss(model, model.guide, wrong, context)


@every
def test_state_dict_round_trip(name, conditional):
    model, x, context = setting(name, conditional)
    other = ready(MODELS[name], conditional, seed=1)
    result = other.load_state_dict(pickle.loads(pickle.dumps(model.state_dict())))
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(score(other, x, context), score(model, x, context))
    assert torch.equal(draw(other, context), draw(model, context))


def use_nothing(model, x, context):
    pass


def use_sample(model, x, context):
    model.sample(2, context)


def use_score(model, x, context):
    score(model, x, context)


def use_program(model, x, context):
    model(None, context, n=len(x))


def use_svi(model, x, context):
    if model.family == "implicit":  # an ELBO of it is refused, its parameters are registered all the same
        model.svi()[0](None, context, n=len(x))
    else:
        SVI(*model.svi(), pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x, context)


def check_copies(name, conditional, use):
    """deepcopy and pickle after a use give equal, independent models that can be used again."""
    model, x, context = setting(name, conditional)
    use(model, x, context)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(score(other, x, context), score(model, x, context))
        assert torch.equal(draw(other, context), draw(model, context))
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in model.parameters()}
        use(other, x, context)


@every
@pytest.mark.parametrize("use", [use_nothing, use_sample, use_score, use_program])
def test_copies_after_use(name, conditional, use):
    check_copies(name, conditional, use)


@trainable
@pytest.mark.pyro_store
@pytest.mark.parametrize("use", [train_one_step, use_svi])
def test_copies_after_training(name, conditional, use):
    check_copies(name, conditional, use)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_dtype_throughout(name, conditional, dtype):
    model, x, context = setting(name, conditional)
    exact = score(model, x, context)
    model = model.to(dtype)
    x, context = x.to(dtype), None if context is None else context.to(dtype)
    assert model.dtype == dtype
    found = score(model, x, context)
    assert found.dtype == dtype
    assert bool(found.isfinite().all())
    assert model.sample(2, context).dtype == dtype
    assert model(None, context, n=N).dtype == dtype
    if model.family in ("tractable", "energy"):  # others draw noise, whose stream depends on the dtype
        # float32 sums of a few dozen terms
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


@every
def test_all_tensors_are_parameters_or_buffers(name, conditional):
    model, x, context = setting(name, conditional)
    score(model, x, context), model.sample(2, context)
    stray = [f"{type(m).__name__}.{k}" for m in model.modules() for k, v in vars(m).items() if isinstance(v, Tensor)]
    assert not stray
    meta = copy.deepcopy(model).to("meta")
    assert {t.device.type for t in (*meta.parameters(), *meta.buffers())} == {"meta"}
    # A tensor left on the CPU would make an operation on meta tensors fail.
    there = x.to("meta"), None if context is None else context.to("meta")
    with pyro.validation_enabled(False):
        if not MODELS[name].sequential:
            assert score(meta, *there).device.type == "meta"
        elif not isinstance(model, FFJORD):  # whose times have no order to read there either
            drawn = meta.condition(there[1]).sample(() if conditional else (N,))
            assert drawn.device.type == "meta"


@trainable
def test_gradients_reach_every_parameter(name, conditional):
    check_gradients_reach_every_parameter(name, conditional)


@differentiable
def test_the_scores_gradients_are_slopes(name, conditional):
    check_scores_gradients_are_slopes(name, conditional)


@every
def test_sites(name, conditional):
    model, x, context = setting(name, conditional)
    for given in (None, x):
        trace = poutine.trace(model).get_trace(given, context, n=None if given is not None else N)
        sites = sample_sites(trace)
        assert set(sites) == sites_of(name)
        assert sites["x"]["is_observed"] is (given is not None)
        for site in sites.values():
            assert [frame.name for frame in site["cond_indep_stack"]] == ["data"]
            assert tuple(site["fn"].batch_shape) == (N,)
    guide = sample_sites(poutine.trace(model.guide).get_trace(x, context))
    assert set(guide) == sites_of(name) - {"x"}


@scored
def test_plate_scale(name, conditional):
    check_plate_scale(name, conditional)


@scored
def test_stock_elbo(name, conditional):
    """Trace_ELBO takes the pair as it stands, and its gradient reaches every parameter."""
    model, x, context = setting(name, conditional)
    model.train()
    loss = Trace_ELBO().differentiable_loss(model, model.guide, x, context)
    assert loss.shape == ()
    assert bool(loss.isfinite())
    parameters = list(model.parameters())
    if parameters:
        assert all(bool((g != 0).any()) for g in torch.autograd.grad(loss, parameters))


@implicit
def test_stock_elbo_refuses_implicit_models(name, conditional):
    model, x, context = setting(name, conditional)
    with pytest.raises(NotImplementedError, match="no density"):
        Trace_ELBO().loss(model, model.guide, x, context)


@every
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(name, conditional, parallel):
    model, _, context = setting(name, conditional)
    model.sample_steps = 3
    found = Predictive(model, num_samples=5, parallel=parallel)(None, context, n=N)
    assert set(found) == sites_of(name)
    assert found["x"].reshape(5, N, *model.event_shape).shape == found["x"].shape


@scored
def test_condition(name, conditional):
    model, x, context = setting(name, conditional)
    conditioned = poutine.condition(model, {"x": x})
    torch.manual_seed(0)
    trace = poutine.trace(conditioned).get_trace(None, context, n=N)
    torch.manual_seed(0)
    expected = poutine.trace(model).get_trace(x, context)
    assert trace.nodes["x"]["is_observed"]
    assert torch.equal(trace.nodes["_RETURN"]["value"], x)
    torch.testing.assert_close(trace.log_prob_sum(), expected.log_prob_sum())


@bounded
@pytest.mark.pyro_store
def test_two_models_train_side_by_side(name, conditional):
    check_two_models_train_side_by_side(name, conditional)


@pytest.mark.pyro_store
@pytest.mark.parametrize("name", ["RealNVP", "MADE", "VAE", "Parametric normal"])
def test_svi_learns(name):
    model, x, _ = setting(name, False)
    svi = SVI(*model.svi(), pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    history = [svi.step(x) for _ in range(60)]
    assert sum(history[-10:]) < sum(history[:10])
    assert list(pyro.get_param_store().keys())
    assert all("$$$" in key for key in pyro.get_param_store())


@every
def test_two_members_in_one_program(name, conditional):
    model, _x, context = setting(name, conditional)
    other = ready(MODELS["RealNVP"], seed=1)

    def program():
        return scope(model, prefix="a")(None, context, n=N), scope(other, prefix="b")(None, n=3)

    sites = sample_sites(poutine.trace(program).get_trace())
    assert set(sites) == {f"a/{site}" for site in sites_of(name)} | {"b/x"}
    assert sites["a/x"]["value"].shape == (N, *model.event_shape)
    assert sites["b/x"]["value"].shape == (3, 2)


@scored
def test_elbo_of_two_members_is_the_sum(name, conditional):
    model, x, context = setting(name, conditional)

    def both(part):
        return lambda: [scope(part(model), prefix=p)(x, context) for p in "ab"]

    torch.manual_seed(0)
    together = Trace_ELBO().loss(both(lambda m: m), both(lambda m: m.guide))
    torch.manual_seed(0)
    alone = [Trace_ELBO().loss(model, model.guide, x, context) for _ in range(2)]
    assert together == pytest.approx(sum(alone))


@variants(MODELS, lambda case: case.build().family in ("tractable", "energy"))
def test_a_context_is_the_batch_of_the_distribution(name, conditional):
    model, _x, context = setting(name, conditional)
    d = model.condition(context)
    batch = (N,) if conditional else ()
    assert tuple(d.batch_shape) == batch
    draws = d.sample((5,))
    assert draws.shape == (5, *batch, *model.event_shape)
    assert d.log_prob(draws).shape == (5, *batch)


@pytest.mark.parametrize("name", GUIDES)
def test_guides_sample_exactly_the_latent_sites(name):
    case = GUIDES[name]
    model, guide = case.model().double(), case.guide().double()
    x = torch.ones(N, *model.event_shape).double()
    sites = sample_sites(poutine.trace(guide).get_trace(x, n=2 * N))
    latent = {k for k, site in sample_sites(poutine.trace(model).get_trace(x)).items() if not site["is_observed"]}
    assert {k for k, site in sites.items() if not site["infer"].get("is_auxiliary")} == latent
    assert all(site["scale"] == 2 for site in sites.values())
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(model, guide, x)))


def gaussian_prior():
    """x = (1 + 2 u) and its like: a flow that is N(shift, scale^2), so posteriors have a closed form."""
    flow = Flow(StandardNormal(2), [Affine(2)]).double()
    with torch.no_grad():
        flow.bijectors[0].shift.copy_(torch.tensor([1.0, -1.0]))
        flow.bijectors[0].log_scale.copy_(torch.tensor([0.0, 0.5]))
    return flow


def posterior_program():
    """A user's program with a member as its prior: y | z ~ N(z, 0.5^2); and the exact posterior's mean and variance."""
    prior, y = gaussian_prior().requires_grad_(False), torch.tensor([2.0, 0.0]).double()

    def program():
        z = pyro.sample("z", prior.condition())
        pyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)

    shift, variance = prior.bijectors[0].shift, (2 * prior.bijectors[0].log_scale).exp()
    precision = 1 / variance + 4
    return program, (shift / variance + 4 * y) / precision, 1 / precision


def test_nuts_on_a_program_with_a_member_as_prior():
    program, mean, variance = posterior_program()
    mcmc = MCMC(NUTS(program), num_samples=300, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    z = mcmc.get_samples()["z"]
    size = torch.tensor([float(v) for v in mcmc.diagnostics()["z"]["n_eff"]]).double()
    assert_means_agree(z.mean(0), (variance / size).sqrt(), mean)


@pytest.mark.pyro_store
def test_auto_normal_on_a_program_with_a_member_as_prior():
    program, mean, _variance = posterior_program()
    guide = AutoNormal(program)
    svi = SVI(program, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(num_particles=20, vectorize_particles=True))
    for _ in range(200):
        svi.step()
    # the posterior is a diagonal Gaussian, which AutoNormal reaches; Adam leaves a few per cent of its scale
    torch.testing.assert_close(guide.median()["z"].double(), mean, rtol=0, atol=0.15)


@pytest.mark.pyro_store
@pytest.mark.parametrize("name", ["VAE", "VAE of flows", "VAE of MADE"])
def test_auto_normal_on_a_latent_model(name):
    model, x, _ = setting(name, False)
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(num_particles=50, vectorize_particles=True))
    history = [svi.step(x) for _ in range(60)]
    assert sum(history[-10:]) < sum(history[:10])


def check_objective(name):
    """Losses are finite scalars, means over rows, of the players in turn; gradients reach every player's parameters."""
    case = OBJECTIVES[name]
    model, x, _ = setting(case.model, False)
    model.train()
    objective = case.build(model).double()
    objective.check(model)
    players = {k: list(p) for k, p in objective.players(model).items()}
    assert tuple(players) == case.players
    found = losses(model, objective, x, None)
    assert tuple(found) == case.players
    for player, loss in found.items():
        assert loss.shape == ()
        assert bool(loss.isfinite())
        gradients = torch.autograd.grad(loss, players[player], retain_graph=True)
        assert all(bool((g != 0).any()) for g in gradients)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective(name):
    check_objective(name)


# Losses whose gradient is not that of their value: it leaves a score out, weighs draws that it does not differentiate,
# comes by way of a critic or a straight line, or the draws themselves move with the parameters.
OTHERWISE = (
    "ELBO landing", "ImportanceWeighted doubly", "ReweightedWakeSleep", "VariationalEM", "VectorQuantization",
    "AdversarialVariationalBayes", "ContrastiveDivergence", "Persistent", "Centred", "ReplayDivergence",
    "JointLikelihood", "UpDown", "MeanFieldContrastive",
)  # fmt: skip


def check_losses_gradients_are_slopes(name):
    """Of each player's losses in its own parameters, with the same noise every time."""
    case = OBJECTIVES[name]
    model, x, _ = setting(case.model, False)
    model.train()
    torch.manual_seed(2)
    objective = case.build(model).double()
    objective.check(model)

    def total(player):
        torch.manual_seed(3)
        return torch.stack([loss for who, loss in objective(model, x) if who == player]).sum()

    for player, parameters in objective.players(model).items():
        assert_gradients_are_slopes(partial(total, player), {player: list(parameters)})


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if not name.startswith(OTHERWISE)])
def test_the_losses_gradients_are_slopes(name):
    check_losses_gradients_are_slopes(name)


@pytest.mark.parametrize("name", [name for name, case in OBJECTIVES.items() if case.rowwise])
def test_objective_is_a_mean_over_the_rows(name):
    """A hundred copies of the rows leave the loss where it was, up to the noise of its draws."""
    case = OBJECTIVES[name]
    model, x, _ = setting(case.model, False)
    objective = case.build(model).double()

    def values(copies, repeats):
        many = x.repeat(copies, *[1] * (x.dim() - 1))
        objective.load_state_dict(copy.deepcopy(state), strict=False)
        return torch.stack([torch.stack([v.detach() for _, v in objective(model, many)]) for _ in range(repeats)])

    state = objective.state_dict()
    few, many = values(1, 100), values(20, 20)
    if few.std(0).max() < 1e-9:  # no noise
        torch.testing.assert_close(few[0], many[0])
        return
    assert_means_agree(few.mean(0), few.std(0) / 10, many.mean(0), many.std(0) / 20**0.5)


# The share of a batch in the data set is part of what the total correlation estimates.
OF_ANY_SIZE = [name for name in OBJECTIVES if name != "BetaTCVAE"]


def check_the_size_of_the_data_weighs_nothing(name):
    """A loss is a mean over rows: how many of them a batch stands for leaves it and its gradients where they are."""
    case, found = OBJECTIVES[name], []
    conditional = isinstance(MODELS[case.model].build(), M2)  # which reads its labels there
    for n in (None, 10 * N):
        model, x, context = setting(case.model, conditional)
        torch.manual_seed(2)
        objective = case.build(model).double()
        players = {k: list(p) for k, p in objective.players(model).items()}
        for player, loss in objective(model, x, context, n=n):
            gradients = torch.autograd.grad(loss, players[player], retain_graph=True, materialize_grads=True)
            found.append((player, loss.detach(), gradients))
    half = len(found) // 2
    for (_, loss, gradients), (player, of_many, others) in zip(found[:half], found[half:], strict=True):
        torch.testing.assert_close((of_many, others), (loss, gradients), msg=lambda m, p=player: f"{p}: {m}")


@pytest.mark.parametrize("name", OF_ANY_SIZE)
def test_the_size_of_the_data_weighs_nothing(name):
    check_the_size_of_the_data_weighs_nothing(name)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_refuses_other_families(name):
    objective = OBJECTIVES[name].build(MODELS[OBJECTIVES[name].model].build())
    family = MODELS[OBJECTIVES[name].model].build().family
    taken = {"tractable", "latent"} if name.startswith(("ELBO", "PyroObjective")) else {family}
    for other in ("RealNVP", "VAE", "RBM", "GAN"):
        model = MODELS[other].build()
        if model.family in taken and OBJECTIVES[name].general:
            objective.check(model)
        else:
            with pytest.raises(TypeError, match=r"expected an? "):
                objective.check(model)
