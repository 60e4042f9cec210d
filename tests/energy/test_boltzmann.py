"""Boltzmann machines: everything against the enumeration of tiny ones."""

import math

import pytest
import torch
from cases import all_binary, assert_means_agree, mean_and_error
from torch import Tensor

import pyrodgm
from pyrodgm.energy import RBM, BoltzmannMachine
from pyrodgm.energy import boltzmann as module
from pyrodgm.kernels import GibbsSweep
from pyrodgm.kernels.sweep import colour
from pyrodgm.objectives import ContrastiveDivergence


def machine(
    visible: int, hidden: int = 0, context: int = 0, spins: bool = False, **options: Tensor
) -> BoltzmannMachine:
    """A machine far from its first weights."""
    torch.manual_seed(0)
    model = BoltzmannMachine(visible, hidden, context, spins, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.6)
    return model


def states(units: int, spins: bool = False) -> Tensor:
    x = all_binary((units,))
    return 2 * x - 1 if spins else x


def worked() -> BoltzmannMachine:
    """Three units of -1 or 1: w12 = w13 = -1, w23 = 2, b2 = 1."""
    model = BoltzmannMachine(3, spins=True).double()
    weight = torch.tensor([[0.0, -1, -1], [-1, 0, 2], [-1, 2, 0]]).double()
    model.set_weights(weight, torch.tensor([0.0, 1, 0]).double())
    return model


def test_the_worked_example_by_hand_and_by_enumeration() -> None:
    """Z is the sum of e^1, e^-1, e^-3, e^3, e^5, e^-1, e^-3, e^-1 over the eight states."""
    model = worked()
    by_hand = sum(math.exp(g) for g in (1, -1, -3, 3, 5, -1, -3, -1))
    z = model.log_partition("exact")[0].exp().item()
    assert z == pytest.approx(by_hand)
    nothing, second = torch.zeros(3).bool(), torch.tensor([False, True, False])
    x = torch.tensor([0.0, -1.0, 0.0]).double()
    one, given = model.marginals(x, nothing)[0].item(), model.marginals(x, second)[0].item()
    # the published figures, each to its three decimals
    assert (f"{z:.3f}", f"{one:.3f}", f"{given:.3f}") == ("172.420", "0.135", "0.980")


def test_the_worked_example_by_gibbs_and_by_ais() -> None:
    model, n = worked(), 20_000
    model.sample_steps = 400  # the sweep's second eigenvalue is 0.968, whose 400th power is 2e-6
    x = model.sample(n)
    assert_means_agree(*mean_and_error((x[:, 0] == 1).double()), model.marginals(x[0], torch.zeros(3).bool())[0])
    given = x[x[:, 1] == -1]
    expected = model.marginals(torch.tensor([0.0, -1.0, 0.0]).double(), torch.tensor([False, True, False]))[0]
    assert_means_agree(*mean_and_error((given[:, 0] == 1).double()), expected)
    log_z, error = model.log_partition("ais", chains=2000, temperatures=200, seed=0)
    assert_means_agree(log_z, error, model.log_partition("exact")[0])
    assert error < 0.005  # so that agreement says something to three digits of log Z


@pytest.mark.parametrize("spins", [False, True])
@pytest.mark.parametrize("context", [0, 2])
def test_energy_sums_the_hidden_units_out(spins: bool, context: int) -> None:
    model = machine(4, 3, context, spins)
    x, h = states(4, spins), states(3, spins)
    c = torch.randn(16, context).double() if context else None
    joint = model.joint_energy(x.unsqueeze(1), h, None if c is None else c.unsqueeze(1))  # (16, 8)
    torch.testing.assert_close(model.energy(x, c), -(-joint).logsumexp(-1))
    s, weight, bias = torch.cat((x[5], h[2])), model.weight, model.bias
    if c is not None:
        bias = bias + model.bias_context @ c[5]
    pairs = sum(weight[i, j] * s[i] * s[j] for i in range(7) for j in range(i + 1, 7))
    torch.testing.assert_close(joint[5, 2], -pairs - s @ bias)


@pytest.mark.parametrize("spins", [False, True])
@pytest.mark.parametrize("hidden", [0, 3])
def test_log_partition(spins: bool, hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = machine(5, hidden, spins=spins)
    expected = (-model.energy(states(5, spins))).logsumexp(0)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    for at_once in (2**16, 4):  # one chunk, or many
        monkeypatch.setattr(module, "_STATES_AT_ONCE", at_once)
        log_z, error = model.log_partition("exact")
        torch.testing.assert_close(log_z, expected)
        assert error == 0
        torch.testing.assert_close(torch.autograd.grad(log_z, list(model.parameters())), wanted)
    data = (model.sample(50) if spins else states(5)) if hidden else None
    scores = []
    for seed in range(8):
        found, error = model.log_partition("ais", chains=200, temperatures=60, data=data, seed=seed)
        assert 0 < error < 0.2
        scores.append(((found - log_z) / error).item())
    # eight standard normal scores: each below 5, and their root mean square within (0.3, 1.9) but for 1 in 10^4
    assert max(map(abs, scores)) < 5
    assert 0.3 < math.sqrt(sum(s**2 for s in scores) / 8) < 1.9


@pytest.mark.parametrize("spins", [False, True])
@pytest.mark.parametrize("hidden", [0, 3])
def test_the_kernel_leaves_the_model_invariant(spins: bool, hidden: int) -> None:
    model, n = machine(4, hidden, spins=spins), 20_000
    x = states(4, spins)
    p = model.log_prob(x).exp()
    torch.testing.assert_close(p.sum(), torch.ones(()).double())
    start = x[p.multinomial(n, replacement=True)]
    for steps in (1, 3):
        end = model.run_kernel(start, None, steps)
        assert_means_agree(*mean_and_error((end.unsqueeze(1) == x).all(-1).double()), p)


def test_hidden_units_are_drawn_from_their_posterior() -> None:
    model = machine(3, 3, context=2)
    x, c = states(3)[5].expand(20_000, -1), torch.ones(20_000, 2).double()
    h = states(3)
    expected = (-model.joint_energy(x[:8], h, c[:8])).softmax(0)
    found = (model.draw_hidden(x, c).unsqueeze(1) == h).all(-1).double()
    assert_means_agree(*mean_and_error(found), expected)


@pytest.mark.parametrize("hidden", [0, 2])
@pytest.mark.parametrize("way", ["enumeration", "clamped Gibbs"])
def test_completion(hidden: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, n = machine(4, hidden, spins=True), 20_000
    mask = torch.tensor([True, False, True, False])
    x = torch.tensor([1.0, torch.nan, -1.0, torch.nan]).double()
    all_x = states(4, True)
    agrees = (all_x[:, [0, 2]] == x[[0, 2]]).all(-1)
    p = torch.where(agrees, model.log_prob(all_x).exp(), 0.0)
    p = p / p.sum()
    torch.testing.assert_close(model.marginals(x, mask), p @ (all_x == 1).double())
    if way == "clamped Gibbs":
        monkeypatch.setattr(module, "_MOST_UNITS", 3)
    filled = model.complete(x.expand(n, -1), mask, steps=40)
    assert_means_agree(*mean_and_error((filled.unsqueeze(1) == all_x).all(-1).double()), p)


def test_marginals_of_each_row_under_its_own_context_and_mask() -> None:
    model = machine(3, 1, context=2)
    x, c = states(3)[[1, 6]], torch.eye(2).double()
    mask = torch.tensor([[True, False, False], [False, False, True]])
    for i, found in enumerate(model.marginals(x, mask, c)):
        p = model.log_prob(states(3), c[i].expand(8, -1)).exp()
        p = torch.where((states(3) == x[i])[:, mask[i]].all(-1), p, 0.0)
        torch.testing.assert_close(found, p @ states(3) / p.sum())


def test_missing_links_make_groups_and_an_rbm() -> None:
    links = torch.zeros(7, 7).bool()
    links[:4, 4:] = True
    model = machine(4, 3, links=links | links.t())
    assert sorted(sorted(group.tolist()) for group in model.groups) == [[0, 1, 2, 3], [4, 5, 6]]
    rbm = RBM(4, 3).double()
    with torch.no_grad():
        rbm.weight.copy_(model.weight[4:, :4])
        rbm.visible_bias.copy_(model.bias[:4])
        rbm.hidden_bias.copy_(model.bias[4:])
    torch.testing.assert_close(model.energy(states(4)), rbm.energy(states(4)))
    torch.testing.assert_close(model.log_partition("exact")[0], rbm.log_partition("exact")[0])


def test_colours_never_join_linked_units() -> None:
    links = torch.rand(30, 30) < 0.2
    links = links | links.t()
    links.fill_diagonal_(False)
    groups = colour(links)
    assert sorted(i for group in groups for i in group) == list(range(30))
    assert not any(links[list(group)][:, list(group)].any() for group in groups)
    assert len(groups) <= links.sum(0).max() + 1  # what a greedy colouring is sure of


@pytest.mark.parametrize("hidden", [0, 2])
def test_learning_reaches_the_exact_likelihood(hidden: int) -> None:
    """By persistent negatives, next to what the exact gradient reaches on the same rows."""
    torch.manual_seed(1)
    truth = machine(4, hidden)
    p = truth.log_prob(states(4)).exp().detach()
    x = states(4)[p.multinomial(2000, replacement=True)]
    counts = (x.unsqueeze(1) == states(4)).all(-1).double().mean(0)
    best = BoltzmannMachine(4, hidden).double()
    optimizer = torch.optim.LBFGS(best.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -(counts @ best.log_prob(states(4)))
        value.backward()
        return value

    optimizer.step(loss)
    model = BoltzmannMachine(4, hidden).double()
    before = (counts @ model.log_prob(states(4))).item()
    pyrodgm.fit(
        model, x, ContrastiveDivergence(persistent=True, chains=200), epochs=30, batch_size=200, seed=0, progress=False
    )
    reached, top = (counts @ model.log_prob(states(4))).item(), -loss().item()
    # the chains' noise leaves a stochastic gradient a little below the top: 5 % of the way
    assert top - reached < 0.05 * (top - before)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="an RBM takes many"):
        BoltzmannMachine(3, 13)
    with pytest.raises(ValueError, match=r"links \| links\.t"):
        BoltzmannMachine(2, links=torch.tensor([[False, True], [False, False]]))
    with pytest.raises(ValueError, match="symmetric weight"):
        BoltzmannMachine(2).set_weights(torch.tensor([[0.0, 1], [2, 0]]), torch.zeros(2))
    with pytest.raises(ValueError, match='log_partition\\("ais"\\)'):
        BoltzmannMachine(21).log_partition("exact")
    with pytest.raises(ValueError, match=r"complete\(\)"):
        BoltzmannMachine(21).marginals(torch.zeros(21), torch.zeros(21).bool())
    with pytest.raises(ValueError, match='"exact" or "ais"'):
        BoltzmannMachine(3).log_partition("bridge")
    with pytest.raises(ValueError, match="one context"):
        BoltzmannMachine(3, context=2).log_partition("exact", context=torch.zeros(4, 2))
    with pytest.raises(ValueError, match="observed units"):
        BoltzmannMachine(2, spins=True).complete(torch.zeros(2), torch.ones(2).bool())
    with pytest.raises(TypeError, match=r"boltzmann_machine\.potential\(\)"):
        GibbsSweep().init(lambda x: x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(N, N\)"):
        colour(torch.zeros(3).bool())
    assert not BoltzmannMachine(2, spins=True).support.check(torch.zeros(2))
