"""Deep Boltzmann machines: energies, bounds, kernels and training against the enumeration of tiny ones."""

import itertools

import pytest
import torch
from cases import all_binary, assert_gradients_agree, assert_means_agree, contexts, grow, mean_and_error, pairs
from patterns import patterns
from torch import Tensor

import pyrodgm
from pyrodgm.energy import RBM, DeepBoltzmannMachine, SoftmaxUnits, dbm
from pyrodgm.energy.twins import TwinRBM
from pyrodgm.engine import fit_stack
from pyrodgm.evaluation import log_likelihood
from pyrodgm.kernels import TemperedTransitions
from pyrodgm.objectives import ContrastiveDivergence, MeanFieldContrastive

SHAPES = [(4, [3, 2]), (3, [2, 3, 2]), (2, [2, 2, 2, 2])]
every = pytest.mark.parametrize("shape", SHAPES, ids=str)


def machine(visible: int = 4, hidden: list[int] | None = None, context: int = 0, scale: float = 0.8):
    """Far from its first weights."""
    torch.manual_seed(0)
    return grow(DeepBoltzmannMachine(visible, hidden or [3, 2], context), scale).double()


def undecided(shape) -> DeepBoltzmannMachine:
    """Strong links, and biases that leave every hidden unit open where x is all ones: there units depend on others."""
    model = machine(*shape, scale=2.5)
    with torch.no_grad():
        for i, weight in enumerate(model.weights):
            above = model.weights[i + 1].sum(0) if i + 1 < len(model.weights) else 0.0
            model.biases[i + 1].copy_(-(0.5 if i else 1.0) * weight.sum(1) - 0.5 * above)
    return model


def all_layers(sizes: list[int]) -> list[Tensor]:
    """Every joint state of layers of these sizes, side by side: [(S, H_l)]."""
    return list(all_binary((sum(sizes),)).split(sizes, -1))


def joint_table(model: DeepBoltzmannMachine, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """-E(x, h) of every h, (B, S), and the states."""
    h = all_layers(list(model.sizes[1:]))
    each = None if context is None else context.unsqueeze(1)
    many = x.unsqueeze(1).expand(-1, len(h[0]), -1)
    return -model.joint_energy(many, [part.expand(len(x), -1, -1) for part in h], each), h


@every
@pytest.mark.parametrize("context", [0, 2])
def test_energy_sums_every_hidden_layer_out(shape, context):
    model = machine(*shape, context)
    x = all_binary((shape[0],))
    c = contexts(len(x)) if context else None
    torch.testing.assert_close(model.energy(x, c), -joint_table(model, x, c)[0].logsumexp(-1))


@every
def test_even_energy_sums_the_odd_layers_out(shape):
    model = machine(*shape)
    s = all_binary((sum(model.sizes[::2]),))
    torch.testing.assert_close((-model.even_energy(s)).logsumexp(0), model.log_partition("exact")[0])
    v = s[:, : shape[0]]
    for x in all_binary((shape[0],))[1::3]:
        rows = (v == x).all(-1)
        torch.testing.assert_close((-model.even_energy(s[rows])).logsumexp(0), -model.energy(x))


@every
@pytest.mark.parametrize("context", [0, 2])
def test_log_partition(shape, context):
    model = machine(*shape, context)
    c = contexts(1)[0] if context else None
    x = all_binary((shape[0],))
    expected = (-model.energy(x, None if c is None else c.expand(len(x), -1))).logsumexp(0)
    exact, _ = model.log_partition("exact", context=c)
    torch.testing.assert_close(exact, expected)
    torch.manual_seed(1)
    model.sample_steps = 40
    draws, data = model.sample(300, c), all_binary((shape[0],))[1:4]
    for options in ({"method": "ais"}, {"method": "ais", "data": data}, {"method": "reverse", "samples": draws}):
        found, error = model.log_partition(context=c, chains=400, temperatures=100, seed=2, **options)
        assert 0 < error < 0.2
        assert abs(found - exact) < 4 * error  # 1 in 16,000 by chance, and the seed is fixed


@every
@pytest.mark.parametrize("enumerated", [True, False])
def test_hidden_units_are_drawn_from_their_posterior(shape, enumerated, monkeypatch):
    """By pairs of units, which are not independent given x."""
    model = undecided(shape)
    if not enumerated:
        monkeypatch.setattr(dbm, "_MOST_ODD", 0)
        monkeypatch.setattr(dbm, "_CLAMPED_SWEEPS", 40)
    x = torch.ones(1, shape[0]).double()
    generator = torch.Generator().manual_seed(3)
    drawn = model.draw_even(x.expand(20_000, -1), generator=generator)
    assert torch.equal(drawn[:, : shape[0]], x.expand(20_000, -1))
    with monkeypatch.context() as patch:
        patch.setattr(dbm, "_MOST_ODD", 14)
        logits, h = joint_table(model, x)
    p, even = logits[0].softmax(-1), torch.cat(h[1::2], -1)
    apart = ~torch.eye(even.shape[-1], dtype=torch.bool).flatten()
    assert (p @ pairs(even) - pairs(p @ even))[apart].abs().max() > 0.05  # so independent units would be seen
    assert_means_agree(*mean_and_error(pairs(drawn[:, shape[0] :])), p @ pairs(even))


@pytest.mark.parametrize("kernel", ["gibbs", "tempered"])
def test_the_kernel_leaves_the_marginal_alone(kernel):
    """Rows that start in p(x) are in it after three moves."""
    model, x = machine(), all_binary((4,))
    if kernel == "tempered":
        model.kernel = TemperedTransitions(3, 0.3)
    p = model.log_prob(x).exp()
    generator = torch.Generator().manual_seed(4)
    rows = x[p.multinomial(20_000, replacement=True, generator=generator)]
    moved = model.run_kernel(rows, None, 3, generator)
    assert (moved != rows).any(-1).double().mean() > 0.3
    assert_means_agree(*mean_and_error((moved.unsqueeze(1) == x).all(-1).double()), p)


@every
def test_mean_field_is_coordinate_ascent_of_a_bound(shape):
    model, x = machine(*shape), all_binary((shape[0],))
    energies = torch.stack([model.variational_energy(x, steps=s) for s in (1, 2, 3, 5, 50)])
    assert bool((energies.diff(dim=0) <= 1e-12).all())
    assert bool((energies >= model.energy(x) - 1e-12).all())
    # at the end no unit can be bettered: the means solve their own equations
    mu = model.mean_field(x, steps=2000)
    layers = [x, *[m.clone().requires_grad_() for m in mu]]
    entropy = sum(-(m.xlogy(m) + (1 - m).xlogy(1 - m)).sum() for m in layers[1:])
    gradients = torch.autograd.grad(model.joint_energy(x, layers[1:]).sum() - entropy, layers[1:])
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-8)


def test_the_bound_is_exact_without_links_above():
    """With W_2 = 0 the posterior is factorised, so the bound is log p(x)."""
    model = machine()
    with torch.no_grad():
        model.weights[1].zero_()
    x = all_binary((4,))
    torch.testing.assert_close(model.bound(x, method="exact"), model.log_prob(x))
    assert bool((machine().bound(x, method="exact") < machine().log_prob(x)).all())


@pytest.mark.parametrize("above", [[20], [20, 10]], ids=str)
def test_a_machine_begins_as_an_rbm(above):
    """What is left are products of small weights: a tenth of the weights, a hundredth of the difference."""
    torch.manual_seed(0)
    rbm, x = grow(RBM(4, 3).double(), 0.8), all_binary((4,))
    differences = []
    for scale in (0.1, 0.01):
        torch.manual_seed(1)
        model = DeepBoltzmannMachine.from_rbm(rbm, above, scale)
        log_prob = model.log_prob(x)
        bound = model.bound(x, method="exact", steps=50)
        differences.append(torch.stack((log_prob - rbm.log_prob(x), bound - log_prob)).abs().amax(-1))
    assert bool((differences[1] < differences[0] / 30).all())
    assert bool((differences[1] < 2e-3).all())


def test_bound_with_contexts():
    model, x, c = machine(context=2), all_binary((4,)), contexts(16)
    gap = model.log_prob(x, c) - model.bound(x, c, method="exact")
    torch.testing.assert_close(gap, model.variational_energy(x, c) - model.energy(x, c))


def test_gradient_of_the_objective_is_that_of_the_bound():
    """With chains in the model's distribution; the entropy of q has no gradient of its own at its maximum."""
    model, x = machine(), all_binary((4,))[1::3]
    parameters = list(model.parameters())
    bound = (-model.variational_energy(x, steps=500) - model.log_partition("exact")[0]).mean()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(-bound, parameters)])
    objective = MeanFieldContrastive(k=5, chains=500, mean_field=500).double()
    torch.manual_seed(2)
    objective.check(model)
    for _ in range(10):
        objective.loss(model, x)
    found = []
    for _ in range(60):
        gradients = torch.autograd.grad(objective.loss(model, x), parameters)
        found.append(torch.cat([g.flatten() for g in gradients]))
    # five sweeps between steps leave little correlation between these weakly linked units
    assert_gradients_agree(torch.stack(found), exact)


def test_pretraining_then_joint_training_raise_the_exact_bound():
    x = patterns(300)
    torch.manual_seed(0)
    start = DeepBoltzmannMachine(8, [6, 4]).double().bound(x, method="exact").mean()
    stack = [layer.double() for layer in DeepBoltzmannMachine.stack(8, [6, 4])]
    options = {"epochs": 30, "batch_size": 50, "progress": False}
    fit_stack(stack, x, lambda: ContrastiveDivergence(k=1), **options)
    model = DeepBoltzmannMachine.from_stack(stack)
    greedy = model.bound(x, method="exact").mean()
    assert greedy > start + 0.5
    run = pyrodgm.fit(model, x, MeanFieldContrastive(k=5), lr=0.02, **options)
    joint = run.model.bound(x, method="exact").mean()
    assert joint > greedy + 0.3
    assert joint <= run.model.log_prob(x).mean()
    assert run.objective.held_out(run.model, x).item() == pytest.approx(-joint.item())


def test_a_stack_becomes_a_machine():
    stack = [grow(layer.double(), 0.5) for layer in DeepBoltzmannMachine.stack(5, [4, 3, 2])]
    assert [(t.visible_copies, t.hidden_copies) for t in stack] == [(2, 1), (2, 2), (1, 2)]
    model = DeepBoltzmannMachine.from_stack(stack)
    for weight, twin in zip(model.weights, stack, strict=True):
        assert torch.equal(weight, twin.weight)
    # without links above and below, a middle layer has what its two machines say on average
    torch.testing.assert_close(model.biases[1], (stack[0].hidden_bias + stack[1].visible_bias) / 2)
    torch.testing.assert_close(model.biases[0], stack[0].visible_bias)
    torch.testing.assert_close(model.biases[3], stack[2].hidden_bias)


@pytest.mark.parametrize("copies", list(itertools.product([1, 2], [1, 3])))
def test_twins_are_the_tied_rbm(copies):
    torch.manual_seed(0)
    twins = grow(TwinRBM(2, 2, *copies), 0.8).double()
    weight, b, c = twins._tied()
    x, h = all_binary((2 * copies[0],)), all_binary((2 * copies[1],))
    joint = x @ b + (h @ c).unsqueeze(-1) + h @ weight @ x.t()  # (S, B)
    torch.testing.assert_close(twins.energy(x), -joint.logsumexp(0))
    torch.testing.assert_close(twins.log_partition("exact")[0], joint.logsumexp((0, 1)))
    generator = torch.Generator().manual_seed(1)
    drawn = twins.draw_hidden(x[1].expand(20_000, -1), generator=generator)
    assert_means_agree(*mean_and_error(drawn), joint[:, 1].softmax(0) @ h[:, :2])


@torch.no_grad()
@pytest.mark.parametrize("context", [0, 2])
def test_chains_start_at_independent_units_with_the_models_biases(context):
    model, c = machine(context=context), contexts(1)[0] if context else None
    bias = model.biases[0] if c is None else model.biases[0] + model.context_weights[0] @ c
    p = bias.sigmoid()
    exact = torch.where(torch.eye(4, dtype=torch.bool), p, p * p.unsqueeze(-1)).flatten()
    found = model.start(20_000, c, generator=torch.Generator().manual_seed(1))
    assert_means_agree(*mean_and_error(pairs(found)), exact)


@torch.no_grad()
def test_twins_start_as_copies_of_one_law():
    twins = grow(TwinRBM(2, 3, 2, 2), 0.8).double()
    p = twins.visible_bias.sigmoid().repeat(2)
    exact = torch.where(torch.eye(4, dtype=torch.bool), p, p * p.unsqueeze(-1)).flatten()
    assert_means_agree(*mean_and_error(pairs(twins.start(20_000))), exact)


def test_likelihoods_say_what_they_are():
    x = all_binary((4,))
    found = log_likelihood(machine(), x)
    assert found.kind == "exact"
    assert found.value == pytest.approx(machine().log_prob(x).mean().item())


def test_large_machines_are_bounded_and_sampled():
    torch.manual_seed(0)
    model = DeepBoltzmannMachine(30, [20, 10])
    assert not model.enumerable
    model.sample_steps = 5
    x = model.sample(6)
    log_z, error = model.log_partition("ais", chains=50, temperatures=50, seed=0)
    bound = model.bound(x, chains=50, temperatures=50, seed=0)
    torch.testing.assert_close(bound, (-model.variational_energy(x).double() - log_z).float())
    assert error < 0.1
    with pytest.raises(ValueError, match="variational_energy, bound"):
        model.energy(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiled_joint_training_is_eager_joint_training():
    runs = []
    for compile in (False, True):
        torch.manual_seed(0)
        model, objective = DeepBoltzmannMachine(8, [5, 3]), MeanFieldContrastive(k=1, chains=10, mean_field=3)
        runs.append(pyrodgm.fit(model, patterns(60).float(), objective, steps=5, compile=compile, progress=False))
    eager, compiled = runs
    assert compiled.timings["compile_seconds"] > 0  # a fall-back warns, which is an error here
    for a, b in zip(eager.model.parameters(), compiled.model.parameters(), strict=True):
        # float32 sums in another order, over five steps
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_seeds_repeat_every_estimate_of_log_z():
    """Also the even layers that reverse AIS draws beside its samples."""
    model, samples = machine(), all_binary((4,))
    for options in ({"method": "ais"}, {"method": "reverse", "samples": samples}):
        found = []
        for disturbance in (1, 2):
            torch.manual_seed(disturbance)
            found.append(model.log_partition(chains=20, temperatures=5, seed=7, **options)[0])
        assert torch.equal(*found)
        assert not torch.equal(found[0], model.log_partition(chains=20, temperatures=5, seed=8, **options)[0])


def test_chains_are_saved():
    model, x = machine(), all_binary((4,))
    first = MeanFieldContrastive(chains=6).double()
    first.loss(model, x)
    second = MeanFieldContrastive(chains=6).double()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.states, first.states)


def test_chains_begin_at_rows_of_a_trained_model():
    model, x = machine(), all_binary((4,))
    objective = MeanFieldContrastive().double()
    objective.begin(model, x)
    objective.check(model)
    assert torch.equal(objective.states[:, :4], x)
    objective.loss(model, x)
    assert objective.states.shape == (16, 6)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="one hidden layer is an RBM"):
        DeepBoltzmannMachine(4, [3])
    with pytest.raises(ValueError, match="Bernoulli units without context"):
        DeepBoltzmannMachine.from_rbm(RBM(4, 3, units=SoftmaxUnits(2)), [2])
    with pytest.raises(ValueError, match="copies >= 1"):
        TwinRBM(4, 3, 0)
    with pytest.raises(ValueError, match="one context"):
        machine(context=2).log_partition("exact", context=contexts(3))
    with pytest.raises(ValueError, match="k, chains and mean_field >= 1"):
        MeanFieldContrastive(k=0)
    with pytest.raises(ValueError, match="without context"):
        MeanFieldContrastive().check(machine(context=2))
    with pytest.raises(TypeError, match="DeepBoltzmannMachine, got TwinRBM"):
        MeanFieldContrastive().check(TwinRBM(4, 3))
    objective = MeanFieldContrastive(chains=2)
    objective.check(machine())
    with pytest.raises(ValueError, match="for each model"):
        objective.check(machine(3, [2, 2]))
    with pytest.raises(ValueError, match="expected machine 1 of 3 visible units"):
        fit_stack([TwinRBM(4, 3), TwinRBM(4, 2)], all_binary((4,)).float(), epochs=1, progress=False)
