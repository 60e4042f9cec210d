"""The energy family: kernels leave their targets, log Z agrees with enumeration, and no raw energy is a likelihood."""

import math

import pytest
import torch
from cases import (
    KERNELS,
    MODELS,
    C,
    all_binary,
    assert_gradients_agree,
    assert_means_agree,
    contexts,
    grow,
    mean_and_error,
    of_family,
    ready,
    rows,
    variants,
)

from pyrodgm.energy import RBM, BoltzmannMachine
from pyrodgm.evaluation import log_likelihood

CHAINS = 20_000
PRECISION = torch.tensor([[2.0, 0.8], [0.8, 1.0]]).double()

every = variants(MODELS, of_family("energy"))
enumerated = variants(MODELS, lambda case: of_family("energy")(case) and (case.binary or case.levels))


def gaussian(x):
    return 0.5 * (x @ PRECISION * x).sum(-1)


def rbm(context=0, scale=0.7):
    torch.manual_seed(0)
    return grow(RBM(5, 3, context), scale).double()


def boltzmann():
    torch.manual_seed(0)
    return grow(BoltzmannMachine(5), 0.7).double()


def every_state(model):
    """Every x of binary units, or of one-hot groups, (S, V)."""
    states = all_binary(model.event_shape)
    return states[model.support.check(states)]


def exact_probabilities(model, context=None):
    """p(x) of every x by enumeration of the visible units, (S,)."""
    states = every_state(model)
    return (-model.energy(states, None if context is None else context.expand(len(states), -1))).softmax(0)


def discrete_target(kind):
    """What a kernel of that kind is initialised with, every state, and its probability."""
    model = boltzmann() if kind == "boltzmann" else rbm()
    p, states = exact_probabilities(model).detach(), all_binary(model.event_shape)
    if kind == "binary":
        return model.energy, states, p
    if kind == "categorical":
        return lambda x: model.energy(x[..., 1]), torch.nn.functional.one_hot(states.long(), 2).double(), p
    return model.potential(), states, p


@torch.no_grad()
def check_kernel_invariance(name):
    """Chains that start in the target are in it after ten moves, by their moments or frequencies."""
    case = KERNELS[name]
    kernel, generator = case.build(), torch.Generator().manual_seed(1)
    if case.target == "gaussian":
        noise = torch.randn(CHAINS, 2, dtype=torch.float64, generator=generator)
        covariance = case.covariance(PRECISION)
        state = kernel.init(gaussian, noise @ torch.linalg.cholesky(covariance).T)
    else:
        potential, states, p = discrete_target(case.target)
        start = states[p.multinomial(CHAINS, replacement=True, generator=generator)]
        state = kernel.init(potential, start)
    for _ in range(case.settle):
        state, _ = kernel.step(state, generator)
    moved = 0.0
    for _ in range(10):
        before = state.positions
        state, info = kernel.step(state, generator)
        assert info.accept_prob.shape == (CHAINS,)
        moved += (state.positions != before).flatten(1).any(-1).double().mean().item() / 10
    assert moved > 0.3, "a kernel that stays leaves everything invariant"
    x = state.positions
    if case.target == "gaussian":
        moments = torch.cat((x, (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(1), x**4), -1)
        expected = torch.cat((torch.zeros(2).double(), covariance.flatten(), 3 * covariance.diagonal() ** 2))
        assert_means_agree(*mean_and_error(moments), expected)
    else:
        found = (x.flatten(1).unsqueeze(1) == states.flatten(1)).all(-1).double()
        assert_means_agree(*mean_and_error(found), p)


@torch.no_grad()
def check_moves_leave_the_model(name, conditional=False):
    """Rows that start in p(x | c) have its frequencies after two moves of the model's own kernel."""
    model = grow(ready(MODELS[name], conditional), 0.5, seed=1)
    context = contexts(1)[0] if conditional else None
    states, p = every_state(model), exact_probabilities(model, context)
    generator = torch.Generator().manual_seed(2)
    x = states[p.multinomial(CHAINS, replacement=True, generator=generator)]
    each = None if context is None else context.expand(CHAINS, -1)
    moved = model.run_kernel(x, each, 2, generator)
    assert (moved != x).any(-1).double().mean() > 0.2, "a kernel that stays leaves everything invariant"
    assert_means_agree(*mean_and_error((moved.unsqueeze(1) == states).all(-1).double()), p)


@torch.no_grad()
def check_samples_have_the_density(context=None):
    model = rbm(0 if context is None else C)
    model.sample_steps = 60
    torch.manual_seed(1)
    x = model.sample(CHAINS, context)
    found = (x.unsqueeze(1) == all_binary(model.event_shape)).all(-1).double()
    assert_means_agree(*mean_and_error(found), exact_probabilities(model, context))


def check_log_partition(name="RBM", conditional=False):
    """By enumeration of the model's own units against all visible states; by AIS within its own standard errors."""
    model = grow(ready(MODELS[name], conditional), 0.5, seed=1)
    states, given = every_state(model), {"context": contexts(1)[0]} if conditional else {}
    expected = (-model.energy(states, *(c.expand(len(states), -1) for c in given.values()))).logsumexp(0)
    exact, error = model.log_partition("exact", **given)
    torch.testing.assert_close(exact, expected)
    assert error == 0
    scores = []
    for seed in range(8):
        found, error = model.log_partition("ais", chains=200, temperatures=60, seed=seed, **given)
        assert 0 < error < 0.2
        scores.append(((found - exact) / error).item())
    # eight standard normal scores: each below 5, and their root mean square within (0.3, 1.9) but for 1 in 10^4
    assert max(map(abs, scores)) < 5
    assert 0.3 < math.sqrt(sum(s**2 for s in scores) / len(scores)) < 1.9


def check_training_gradient():
    """Unnormalised.log_prob while training: value -E(x), gradient that of log p(x), the log Z part by the kernel."""
    model = rbm().train()
    model.negative_steps = 40
    x = rows(MODELS["RBM"], model, 10)
    parameters = list(model.parameters())
    exact_loss = (-model.energy(x) - model.log_partition("exact")[0]).mean()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(exact_loss, parameters)])
    found = []
    for _ in range(60):
        many = x.repeat(30, 1)
        log_prob = model.condition().log_prob(many)
        torch.testing.assert_close(log_prob, -model.energy(many))
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(log_prob.mean(), parameters)]))
    assert_gradients_agree(torch.stack(found), exact)


def check_no_raw_value_is_a_likelihood(name="RBM", conditional=False):
    model = grow(ready(MODELS[name], conditional), 0.5, seed=1)
    x, context = rows(MODELS[name], model, 10), contexts(2).repeat(5, 1) if conditional else None
    assert model.condition(context).normalized is False
    which = (x.unsqueeze(1) == every_state(model)).all(-1).double().argmax(-1)
    each = [None] * len(x) if context is None else context
    exact = torch.stack([exact_probabilities(model, c)[i].log() for c, i in zip(each, which, strict=True)])
    found = log_likelihood(model, x, context)
    assert found.kind == "exact"
    assert found.value == pytest.approx(exact.mean().item())
    torch.testing.assert_close(model.log_prob(x, context), exact)


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_invariance(name):
    check_kernel_invariance(name)


@pytest.mark.parametrize("name", [name for name, case in KERNELS.items() if case.target == "gaussian"])
def test_kernels_reach_their_target_from_afar(name):
    generator = torch.Generator().manual_seed(2)
    kernel = KERNELS[name].build()
    state = kernel.init(gaussian, torch.full((4000, 2), 3.0).double())
    for _ in range(80):
        state, _ = kernel.step(state, generator)
    assert_means_agree(*mean_and_error(state.positions), torch.zeros(()).double())


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_noise_comes_from_the_generator(name):
    case = KERNELS[name]
    if case.target == "gaussian":
        potential, x = lambda x: x.square().sum(-1), torch.zeros(6, 5).double()
    else:
        potential, states, _ = discrete_target(case.target)
        x = states[:1].expand(6, *states.shape[1:]).clone()
    given = x.clone()

    def run():
        kernel = case.build()
        return kernel.step(kernel.init(potential, x), torch.Generator().manual_seed(3))[0].positions

    first = run()
    torch.manual_seed(99)
    assert torch.equal(first, run())
    assert torch.equal(x, given), "a kernel leaves the positions it was given"


@enumerated
def test_moves_leave_the_model(name, conditional):
    check_moves_leave_the_model(name, conditional)


@pytest.mark.parametrize("context", [None, contexts(1)[0]], ids=["", "context"])
def test_samples_have_the_density(context):
    check_samples_have_the_density(context)


@enumerated
def test_log_partition(name, conditional):
    check_log_partition(name, conditional)


def test_training_gradient():
    check_training_gradient()


@every
def test_no_negatives_in_eval_mode(name, conditional):
    """There the gradient is the energy's own, and nothing is drawn."""
    model = ready(MODELS[name], conditional)
    x, context = rows(MODELS[name], model, 4), contexts(4) if conditional else None
    state = torch.get_rng_state()
    found = torch.autograd.grad(model.condition(context).log_prob(x).sum(), list(model.parameters()))
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(found, torch.autograd.grad(-model.energy(x, context).sum(), list(model.parameters())))


@enumerated
def test_no_raw_value_is_a_likelihood(name, conditional):
    check_no_raw_value_is_a_likelihood(name, conditional)


def test_a_likelihood_by_ais_says_so():
    model = RBM(30, 30)  # too many to enumerate
    found = log_likelihood(model, model.sample(20), chains=50, temperatures=30)
    assert found.kind == "AIS estimate"
    assert found.standard_error > 0
