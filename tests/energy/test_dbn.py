"""Deep belief networks: densities, bounds, kernels and training against the enumeration of tiny ones."""

import signal

import pytest
import torch
from cases import all_binary, assert_gradients_agree, assert_means_agree, contexts, grow, mean_and_error, pairs
from patterns import patterns
from torch import Tensor

import pyrodgm
from pyrodgm.energy import RBM, DeepBeliefNetwork, DeepBoltzmannMachine, Recognition, SoftmaxUnits
from pyrodgm.engine import fit_stack
from pyrodgm.objectives import ContrastiveDivergence, UpDown

SHAPES = [(4, [3, 2]), (3, [2, 3, 2]), (2, [2, 2, 2, 2])]
every = pytest.mark.parametrize("shape", SHAPES, ids=str)


def network(visible: int = 4, hidden: tuple[int, ...] | list[int] = (3, 2), context: int = 0) -> DeepBeliefNetwork:
    """Far from its first weights."""
    torch.manual_seed(0)
    return grow(DeepBeliefNetwork(visible, hidden, context), 0.8).double()


def recognition_of(model: DeepBeliefNetwork) -> Recognition:
    torch.manual_seed(1)
    return grow(Recognition(model.sizes[0], model.sizes[1:-1]), 0.5, seed=1).double()


def middle(model: DeepBeliefNetwork) -> list[Tensor]:
    """Every joint state of h_1 to h_{L-1}, [(S, H_l)]."""
    sizes = list(model.sizes[1:-1])
    return list(all_binary((sum(sizes),)).split(sizes, -1))


def joint_table(model: DeepBeliefNetwork, x: Tensor, context: Tensor | None = None) -> Tensor:
    """log p(x, h) + log Z of every h, (B, S)."""
    h = middle(model)
    many = x.unsqueeze(1).expand(-1, len(h[0]), -1)
    each = None if context is None else context.unsqueeze(1)
    return -model.joint_energy(many, [part.expand(len(x), -1, -1) for part in h], each)


@every
@pytest.mark.parametrize("context", [0, 2])
def test_energy_sums_every_hidden_layer_out(shape, context):
    model = network(*shape, context)
    x = all_binary((shape[0],))
    c = contexts(len(x)) if context else None
    torch.testing.assert_close(model.energy(x, c), -joint_table(model, x, c).logsumexp(-1))


@every
@pytest.mark.parametrize("context", [0, 2])
def test_the_normaliser_is_the_top_machines(shape, context):
    """Sigmoid layers are normalised, so they add nothing to log Z."""
    model = network(*shape, context)
    x = all_binary((shape[0],))
    c = contexts(1)[0] if context else None
    total = (-model.energy(x, None if c is None else c.expand(len(x), -1))).logsumexp(0)
    torch.testing.assert_close(total, model.log_partition("exact", context=c)[0])
    found, error = model.log_partition("ais", context=c, chains=300, temperatures=100, seed=2)
    assert abs(found - total) < 4 * error  # 1 in 16,000 by chance, and the seed is fixed


def test_a_tied_top_leaves_the_lower_machine_as_it_was():
    """An RBM is a belief network of infinitely many tied layers: unroll two of them."""
    torch.manual_seed(0)
    rbm = grow(RBM(5, 3).double(), 0.8)
    above = RBM(3, 5).double()
    above.tie(rbm)
    x = all_binary((5,))
    stack = [rbm, above]
    torch.testing.assert_close(DeepBeliefNetwork.from_stack(stack).log_prob(x), rbm.log_prob(x))
    # and then q(h | x) is the lower machine's posterior, exact: every weight is p(x)
    model, recognition = DeepBeliefNetwork.from_stack(stack), Recognition.from_stack(stack)
    weights = model.log_weights(x, recognition, particles=3) - model.log_partition("exact")[0]
    torch.testing.assert_close(weights, rbm.log_prob(x).expand(3, -1))


def test_units_beyond_the_tied_ones_say_nothing_to_second_order():
    """What is left are products of two weights of one unit: a tenth of the weights, a hundredth of the difference."""
    torch.manual_seed(0)
    rbm, x = grow(RBM(5, 4).double(), 0.8), all_binary((5,))
    weights = torch.randn(30, 4).double()
    differences = []
    for scale in (0.1, 0.01):
        above = RBM(4, 5 + 30).double()
        with torch.no_grad():
            above.weight[5:] = scale * weights
            above.hidden_bias.normal_()
        above.tie(rbm)
        differences.append((DeepBeliefNetwork.from_stack([rbm, above]).log_prob(x) - rbm.log_prob(x)).abs().max())
        raw = above.visible_bias - rbm.hidden_bias
        assert raw.abs().max() > 20 * differences[-1]  # and that is what the biases took back
    assert differences[1] < differences[0] / 50


def test_training_the_tied_top_raises_the_bound_above_the_lower_machine():
    """The guarantee of greedy training, which other first weights do not have: the same steps end below."""
    x = patterns(400)

    def bound(stack: list[RBM]) -> Tensor:
        """E_q log p(x, h) - log q(h), the sum over all h."""
        model, recognition = DeepBeliefNetwork.from_stack(stack), Recognition.from_stack(stack)
        h = middle(model)
        q = recognition.log_prob(x.unsqueeze(1).expand(-1, 16, -1), [h[0].expand(len(x), -1, -1)])
        table = joint_table(model, x) - model.log_partition("exact")[0]
        return (q.exp() * (table - q)).sum(-1).mean()

    gains = []
    for tied in (True, False):
        torch.manual_seed(0)
        stack = [RBM(8, 4).double(), RBM(4, 12).double()]
        options = {"epochs": 40, "batch_size": 20, "progress": False, "lr": 0.05}
        runs = fit_stack(stack, x, lambda: ContrastiveDivergence(k=5, persistent=True, chains=30), tied=tied, **options)
        assert runs[1].objective.negatives.shape == (30, 4)
        gains.append(bound(stack) - stack[0].log_prob(x).mean())
    assert gains[0] > 0.02
    assert gains[1] < -0.02


@every
def test_hidden_units_are_drawn_from_their_posterior(shape):
    model, x = network(*shape), torch.ones(1, shape[0]).double()
    drawn = model.draw_hidden(x.expand(20_000, -1), generator=torch.Generator().manual_seed(3))
    p, h = joint_table(model, x)[0].softmax(-1), torch.cat(middle(model), -1)
    apart = ~torch.eye(h.shape[-1], dtype=torch.bool).flatten()
    assert (p @ pairs(h) - pairs(p @ h))[apart].abs().max() > 0.03  # so independent units would be seen
    assert_means_agree(*mean_and_error(pairs(torch.cat(drawn, -1))), p @ pairs(h))


@every
def test_samples_and_moves_follow_the_enumerated_probabilities(shape):
    model, x = network(*shape), all_binary((shape[0],))
    p = model.log_prob(x).exp()
    model.sample_steps = 40
    torch.manual_seed(4)
    drawn = model.sample(20_000)
    assert_means_agree(*mean_and_error((drawn.unsqueeze(1) == x).all(-1).double()), p)
    rows = x[p.multinomial(20_000, replacement=True)]
    moved = model.run_kernel(rows, None, 2)
    assert (moved != rows).any(-1).double().mean() > 0.3
    assert_means_agree(*mean_and_error((moved.unsqueeze(1) == x).all(-1).double()), p)


@torch.no_grad()
@every
@pytest.mark.parametrize("context", [0, 2])
def test_chains_start_with_a_pass_downwards_from_independent_units(shape, context):
    model, c = network(*shape, context), contexts(1)[0] if context else None
    x, h = all_binary((shape[0],)), middle(model)
    bias = model.top.visible_bias if c is None else model.top.visible_bias + model.top.visible_context @ c
    of_top = torch.where(h[-1] == 1, bias.sigmoid(), (-bias).sigmoid()).log().sum(-1)  # (S,)
    below = model.log_likelihood(x.unsqueeze(1).expand(-1, len(of_top), -1), [p.expand(len(x), -1, -1) for p in h])
    found = (model.start(20_000, c).unsqueeze(1) == x).all(-1).double()
    assert_means_agree(*mean_and_error(found), (below + of_top).logsumexp(-1).exp())


@every
@pytest.mark.parametrize("context", [0, 2])
def test_weights_are_unbiased(shape, context):
    model = network(*shape, context)
    recognition, x = recognition_of(model), all_binary((shape[0],))[:4]
    c = contexts(4) if context else None
    torch.manual_seed(5)
    weights = model.log_weights(x, recognition, c, particles=20_000).exp()
    assert_means_agree(*mean_and_error(weights), (-model.energy(x, c)).exp())


def test_the_bound_rises_to_the_likelihood():
    model, x = network(), all_binary((4,))
    recognition, exact = recognition_of(model), model.log_prob(x)
    torch.manual_seed(6)
    one, one_error = mean_and_error(
        torch.stack([model.bound(x, recognition, particles=1, method="exact").mean() for _ in range(100)])
    )
    ten, ten_error = mean_and_error(
        torch.stack([model.bound(x, recognition, particles=10, method="exact").mean() for _ in range(100)])
    )
    assert one + 5 * one_error < ten - 5 * ten_error
    assert ten < exact.mean() + 5 * ten_error
    many = model.bound(x, recognition, particles=4000, method="exact")
    # sd of a mean of 4000 weights whose relative variance is below 4: 0.03
    torch.testing.assert_close(many, exact, rtol=0, atol=0.15)


@pytest.mark.parametrize("top", [None, ContrastiveDivergence(30, persistent=True, chains=320)], ids=["cd", "chains"])
def test_gradients_of_up_down(top):
    """Wake: of E_q -log p(x, h1), log Z included; sleep: of E_p -log q. Both sums over every state."""
    model, x = network(), all_binary((4,))
    recognition = recognition_of(model)
    h = middle(model)
    q = recognition.log_prob(x.unsqueeze(1).expand(-1, 8, -1), [h[0].expand(16, -1, -1)])
    wake = -(q.exp().detach() * joint_table(model, x)).sum(-1).mean() + model.log_partition("exact")[0]
    sleep = -(joint_table(model, x).flatten().softmax(0).detach() * q.flatten()).sum()
    players = {"model": list(model.parameters()), "recognition": list(recognition.parameters())}
    exact = {"model": wake, "recognition": sleep}
    torch.manual_seed(7)
    objective = UpDown(recognition, top=top) if top else UpDown(recognition, k=30)
    found = {"model": [], "recognition": []}
    for _ in range(100):
        for player, loss in objective(model, x.repeat(20, 1)):
            found[player].append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, players[player])]))
    for player, loss in exact.items():
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, players[player])])
        assert_gradients_agree(torch.stack(found[player]), expected)


def test_greedy_layers_then_up_down_raise_the_likelihood():
    x = patterns(400)
    torch.manual_seed(0)
    stack = [RBM(8, 5).double(), RBM(5, 4).double()]
    options = {"epochs": 20, "batch_size": 20, "progress": False}
    alone = DeepBeliefNetwork.from_stack(stack).log_prob(x).mean()
    fit_stack(stack, x, lambda: ContrastiveDivergence(k=5), lr=0.1, **options)
    model, recognition = DeepBeliefNetwork.from_stack(stack), Recognition.from_stack(stack)
    greedy = model.log_prob(x).mean()
    assert greedy > alone + 1
    run = pyrodgm.fit(model, x, UpDown(recognition, k=5), lr=0.1, **options)
    tuned = run.model.log_prob(x).mean()
    assert tuned > greedy + 0.3
    # importance sampling with 20 particles: its bias and noise are hundredths here
    assert run.objective.held_out(run.model, x).item() == pytest.approx(-tuned.item(), abs=0.1)


def test_the_chains_of_up_down_are_saved():
    model, x = network(), all_binary((4,))
    top = {"k": 1, "persistent": True, "chains": 6, "centered": True}
    first = UpDown(recognition_of(model), top=ContrastiveDivergence(**top)).double()
    list(first(model, x))
    second = UpDown(recognition_of(model), top=ContrastiveDivergence(**top)).double()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.top.negatives, first.top.negatives)
    assert torch.equal(second.top.offsets.hidden, first.top.offsets.hidden)


def test_held_out_with_contexts():
    model, x, c = network(context=2), all_binary((4,)), contexts(16)
    objective = UpDown(recognition_of(model), particles=3000)
    # as in test_the_bound_rises_to_the_likelihood, and a mean over 16 rows
    assert objective.held_out(model, x, c).item() == pytest.approx(-model.log_prob(x, c).mean().item(), abs=0.05)


def test_large_networks_are_bounded_and_sampled():
    torch.manual_seed(0)
    model = DeepBeliefNetwork(30, [24, 30])
    assert not model.enumerable
    model.sample_steps = 5
    x = model.sample(6)
    bound = model.bound(x, Recognition(30, [24]), particles=5, chains=50, temperatures=50)
    assert bound.shape == (6,)
    assert bool((bound < 0).all())
    with pytest.raises(ValueError, match="log_weights, bound and UpDown"):
        model.energy(x)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="one hidden layer is an RBM"):
        DeepBeliefNetwork(4, [3])
    with pytest.raises(ValueError, match=r"use Recognition\(4, \[3\]\)"):
        UpDown(Recognition(4, [2])).check(network())
    with pytest.raises(TypeError, match="DeepBeliefNetwork, got RBM"):
        UpDown(Recognition(4, [2])).check(RBM(4, 3))
    with pytest.raises(ValueError, match="Bernoulli units without context"):
        DeepBeliefNetwork.from_stack([RBM(4, 3, units=SoftmaxUnits(2)), RBM(3, 2)])
    with pytest.raises(ValueError, match=r"RBM\(3, 4 or more\) on top of RBM\(4, 3\), got RBM\(3, 2\)"):
        RBM(3, 2).tie(RBM(4, 3))
    with pytest.raises(ValueError, match="Bernoulli units without context to tie"):
        RBM(3, 4).tie(RBM(4, 3, units=SoftmaxUnits(2)))
    twins = DeepBoltzmannMachine.stack(4, [3, 3])
    with pytest.raises(TypeError, match="expected RBMs to tie, got TwinRBM"):
        fit_stack(twins, all_binary((4,)).float(), tied=True, epochs=1, progress=False)
    with pytest.raises(ValueError, match="k >= 1"):
        UpDown(Recognition(4, [2]), k=0)


def test_every_machine_of_a_stack_has_files_of_its_own(tmp_path):
    """Equal machines too: the second does not take the first one's checkpoint for its own."""
    x = all_binary((4,)).float()
    options = {"epochs": 2, "progress": False, "checkpoint": tmp_path / "run", "csv": tmp_path / "log.csv"}
    first = [RBM(4, 4), RBM(4, 4)]
    runs = fit_stack(first, x, **options)
    assert [len(run.history) for run in runs] == [2, 2]
    assert not torch.equal(first[0].weight, first[1].weight)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "log-0.csv", "log-1.csv"}
    again = [RBM(4, 4), RBM(4, 4)]
    fit_stack(again, x, **options)  # nothing is left to do
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a.weight, b.weight)
    for name in ("validate", "context"):
        with pytest.raises(ValueError, match=f"no {name}= for a stack"):
            fit_stack([RBM(4, 2)], x, **{name: x}, progress=False)


def test_ctrl_c_ends_a_stack_and_the_same_call_goes_on(tmp_path):
    """No machine is trained on the hidden units of one that is half trained."""
    x = all_binary((4,)).float()
    options = {"epochs": 3, "progress": False, "checkpoint": tmp_path / "run"}

    def interrupted(run):
        if len(run.history) == 1:
            signal.raise_signal(signal.SIGINT)

    def stack():
        torch.manual_seed(0)
        return [RBM(4, 3), RBM(3, 2)]

    cut, whole = stack(), stack()
    before = cut[1].weight.detach().clone()
    runs = fit_stack(cut, x, callbacks=[interrupted], **options)
    assert [run.stopped for run in runs] == ["interrupted"]
    assert torch.equal(cut[1].weight, before)
    assert len(fit_stack(cut, x, **options)) == 2
    fit_stack(whole, x, epochs=3, progress=False)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(cut, whole, strict=True))


def test_a_tied_stack_is_a_function_of_its_seed():
    x = all_binary((4,)).float()
    weights = []
    for noise in (0, 1):
        stack = [RBM(4, 3), RBM(3, 4)]
        for machine in stack:
            torch.nn.init.constant_(machine.weight, 0.1)
        torch.manual_seed(noise)  # of the world around it
        fit_stack(stack, x, lambda: ContrastiveDivergence(k=1, persistent=True, chains=8), tied=True, epochs=2, seed=3,
                  progress=False)  # fmt: skip
        weights.append(stack[1].weight.detach().clone())
    assert torch.equal(*weights)
