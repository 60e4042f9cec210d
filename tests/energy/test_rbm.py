"""RBM: everything against the enumeration of a tiny one."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import assert_errors_are_the_spread, assert_gradients_agree
from pyro import poutine
from torch import Tensor, nn

from pyrodgm.energy import RBM, BoltzmannMachine
from pyrodgm.energy import bipartite as module


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def states(units: int) -> Tensor:
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * units).reshape(-1, units)


def grown(visible: int, hidden: int, context: int = 0, scale: float = 1.0) -> RBM:
    """An RBM far from its first weights."""
    model = RBM(visible, hidden, context).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale)
    return model


@pytest.mark.parametrize("context", [0, 2])
def test_energy_sums_the_hidden_units_out(context: int) -> None:
    model = grown(5, 3, context)
    v, h = states(5), states(3)
    c = torch.randn(32, context, dtype=torch.float64) if context else None
    joint = model.joint_energy(v.unsqueeze(1), h, None if c is None else c.unsqueeze(1))  # (32, 8)
    torch.testing.assert_close(model.energy(v, c), -(-joint).logsumexp(-1))


@pytest.mark.parametrize("context", [0, 2])
def test_conditionals_match_the_joint_energy(context: int) -> None:
    model = grown(4, 3, context)
    c = torch.randn(1, context, dtype=torch.float64) if context else None
    v, h, n = states(4), states(3), 4000
    joint = (-model.joint_energy(v.unsqueeze(1), h, c)).softmax(0)  # p(v | h) in columns
    generator = torch.Generator().manual_seed(1)
    each = None if c is None else c.expand(n, -1)
    draws = model.potential(each).visible_given_hidden(h[5].expand(n, -1), generator)
    expected = joint[:, 5] @ v
    error = (expected * (1 - expected) / n).sqrt()
    assert ((draws.mean(0) - expected).abs() < 4.5 * error).all()  # 4.5 standard errors: 1 in 10^5 by chance
    draws = model.potential(each).hidden_given_visible(v[9].expand(n, -1), generator)
    expected = (-model.joint_energy(v[9], h, c)).softmax(0) @ h
    error = (expected * (1 - expected) / n).sqrt()
    assert ((draws.mean(0) - expected).abs() < 4.5 * error).all()


@pytest.mark.parametrize("sizes", [(3, 6), (6, 3), (5, 5), (1, 1)])
def test_exact_log_partition_whichever_layer_is_smaller(
    sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = grown(*sizes)
    expected = (-model.energy(states(sizes[0]))).logsumexp(0)
    for at_once in (2**22, 16, 1):  # one chunk, a few, one for each state
        monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", at_once)
        log_z, error = model.log_partition("exact")
        torch.testing.assert_close(log_z, expected)
        assert error == 0
        gradients = torch.autograd.grad(log_z, list(model.parameters()))
        wanted = torch.autograd.grad(expected, list(model.parameters()), retain_graph=True)
        for got, want in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(got, want)


def test_log_prob_is_normalised_for_every_context() -> None:
    model = grown(5, 3)
    assert math.isclose(model.log_prob(states(5)).exp().sum().item(), 1.0, rel_tol=1e-10)
    model = grown(5, 3, context=2)
    contexts = torch.eye(2, dtype=torch.float64).unsqueeze(1).expand(2, 32, 2)
    total = model.log_prob(states(5).expand(2, -1, -1), contexts).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(2, dtype=torch.float64))
    log_z = [model.log_partition("exact", context=c)[0] for c in torch.eye(2, dtype=torch.float64)]
    assert abs((log_z[0] - log_z[1]).item()) > 1e-3  # so the sum above says something about contexts


@pytest.mark.parametrize("given", ["model", "data"])
def test_ais_agrees_with_enumeration(given: str) -> None:
    model = grown(20, 6, scale=0.8)
    exact, _ = model.log_partition("exact")
    data = None if given == "model" else (torch.rand(500, 20, dtype=torch.float64) < 0.3).double()
    estimate, error = model.log_partition("ais", chains=400, temperatures=300, data=data, seed=3)
    assert 0 < error < 0.1
    assert abs(estimate - exact) < 4 * error  # 4 standard errors: 1 in 16,000 by chance, and the seed is fixed
    assert abs(estimate - exact) < 0.1
    again, _ = model.log_partition("ais", chains=400, temperatures=300, data=data, seed=3)
    assert torch.equal(again, estimate)


def test_ais_standard_error_is_the_spread_of_repeats() -> None:
    model = grown(12, 5)
    exact, _ = model.log_partition("exact")
    runs = [model.log_partition("ais", chains=60, temperatures=40, seed=s) for s in range(60)]
    z = torch.stack([(log_z - exact) / error for log_z, error in runs])
    assert 0.7 < z.std() < 1.4  # the sd of 60 unit normals has a standard error of 0.09
    assert abs(z.mean()) < 0.6  # 0.13 its standard error, and log's own bias is about half an error here


def test_reverse_ais_standard_error_is_the_spread_of_repeats() -> None:
    """Each run from draws of its own, by enumeration."""
    model = grown(8, 4)
    p = model.log_prob(states(8)).exp().detach()
    draws = states(8)[p.multinomial(60 * 60, replacement=True)].split(60)
    runs = (model.log_partition("reverse", samples=x, temperatures=20, seed=s) for s, x in enumerate(draws))
    assert_errors_are_the_spread(runs, model.log_partition("exact")[0])


def test_ais_with_context() -> None:
    model = grown(8, 4, context=3)
    context = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    exact, _ = model.log_partition("exact", context=context)
    estimate, error = model.log_partition("ais", context=context, chains=300, temperatures=200, seed=0)
    assert abs(estimate - exact) < 4 * error


def test_samples_follow_the_enumerated_probabilities() -> None:
    model = grown(4, 3, scale=0.7)
    model.sample_steps = 30
    x = model.sample(5000)
    expected = model.log_prob(states(4)).exp()
    count = (x.unsqueeze(1) == states(4)).all(-1).sum(0)
    chi2 = ((count - 5000 * expected).square() / (5000 * expected)).sum()
    assert chi2 < 15 + 5 * math.sqrt(30)  # 15 degrees of freedom, five standard deviations


@pytest.mark.parametrize("name", ["rbm", "boltzmann"])
def test_gradient_in_a_program_with_a_learned_context_and_a_scaled_plate(name: str) -> None:
    """A network makes the contexts, which have a likelihood of their own, and four rows stand for ten."""
    machine = RBM(4, 2, context=2) if name == "rbm" else BoltzmannMachine(3, hidden=1, context=2)
    machine = machine.double().train()
    with torch.no_grad():
        for parameter in machine.parameters():
            parameter.normal_(0, 0.5)
    machine.negative_steps = 30  # so many that the negatives are of the model itself
    net = nn.Linear(3, 2).double()
    features, y = torch.randn(4, 3).double(), torch.randn(4).double()
    x = states(machine.event_shape[0])[torch.tensor([1, 4, 6, 7])]

    def program(x: Tensor, features: Tensor, y: Tensor, rows: int) -> None:
        with pyro.plate("rows", rows, subsample=torch.arange(len(x))):
            context = net(features)
            pyro.sample("x", machine.condition(context), obs=x)
            pyro.sample("y", dist.Normal(context.sum(-1), 1.0), obs=y)

    parameters = [*machine.parameters(), *net.parameters()]

    def flat(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    context = net(features)
    log_prob = machine.log_prob(x, context) + dist.Normal(context.sum(-1), 1.0).log_prob(y)
    exact, copies, found = flat(10 / 4 * log_prob.sum()), 300, []
    for _ in range(40):
        many = [v.repeat(copies, *[1] * (v.dim() - 1)) for v in (x, features, y)]
        trace = poutine.trace(program).get_trace(*many, 10 * copies)
        found.append(flat(trace.log_prob_sum() / copies))
    assert_gradients_agree(torch.stack(found), exact)


def test_start_has_the_visible_biases() -> None:
    model = RBM(3, 2).double()
    with torch.no_grad():
        model.visible_bias.copy_(torch.tensor([-2.0, 0.0, 3.0]))
    mean = model.start(4000, generator=torch.Generator().manual_seed(0)).mean(0)
    p = model.visible_bias.detach().sigmoid()
    assert ((mean - p).abs() < 4.5 * (p * (1 - p) / 4000).sqrt()).all()


def test_visible_bias_from_data() -> None:
    model = RBM(3, 2)
    x = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    model.set_visible_bias(x)
    torch.testing.assert_close(model.visible_bias.sigmoid(), torch.tensor([0.75, 0.25, 0.5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_shapes_and_copies(dtype: torch.dtype) -> None:
    model = RBM(visible=6, hidden=3).to(dtype)
    x = torch.ones(2, 5, 6, dtype=dtype)
    assert model.energy(x).shape == (2, 5)
    assert model.energy(x).dtype == model.log_prob(x).dtype == dtype
    assert model.log_partition("exact")[0].dtype == torch.float64
    assert all(parameter.dim() > 0 for parameter in model.parameters())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied.energy(x), model.energy(x))
    assert model.support.check(x).all()
    assert not model.support.check(x / 2).any()


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="visible >= 1"):
        RBM(0, 3)
    with pytest.raises(ValueError, match='log_partition\\("ais"\\)'):
        RBM(30, 40).log_partition("exact")
    assert not RBM(30, 40).enumerable
    assert RBM(784, 12).enumerable
    with pytest.raises(ValueError, match='"exact" or "ais"'):
        RBM(3, 2).log_partition("bridge")
    with pytest.raises(ValueError, match="one context"):
        RBM(3, 2, context=2).log_partition("exact", context=torch.zeros(4, 2))
    with pytest.raises(ValueError, match="chains >= 2"):
        RBM(3, 2).log_partition("ais", chains=1)
    with pytest.raises(ValueError, match="rise from 0 to 1"):
        RBM(3, 2).log_partition("ais", temperatures=torch.tensor([0.0, 0.5]))
