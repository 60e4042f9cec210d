"""The incremental pass over more features than one chunk holds: each step's parameters are a full pass's."""

import copy

import pytest
import torch

from pyrodgm.nets.incremental import _MOST, IncrementalPass
from pyrodgm.nets.masked import MaskedMLP, one_hot

D = 2 * _MOST + 3


def check_across_chunks(hidden=(30, 40), direct=True, context=0, categories=0):
    torch.manual_seed(0)
    net = MaskedMLP(D, 2, hidden, context=context, direct=direct, categories=categories).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p))
    x = torch.randn(5, D, dtype=torch.float64)
    if categories:
        x = torch.randint(categories, x.shape).double()
    c = torch.randn(5, context, dtype=torch.float64) if context else None
    check_steps(net, x, c)


@torch.no_grad()
def check_steps(net, x, c=None):
    """Each step's parameters are those of a full pass, and the result is what the steps were given."""
    full, state = net(x, c), IncrementalPass(net, c, len(x), 0)
    for i, d in enumerate(net.ranks[0].argsort().tolist()):
        torch.testing.assert_close(state.parameters(i), full[..., d].T)
        state.set(i, x[:, d])
    torch.testing.assert_close(state.result(), x, rtol=0, atol=0)


@pytest.mark.parametrize("hidden", [(), (30,), (30, 40), (5, 60, 7)], ids=str)
@pytest.mark.parametrize(("direct", "context"), [(False, 0), (True, 3)])
def test_across_chunks(hidden, direct, context):
    check_across_chunks(hidden, direct, context)


@pytest.mark.parametrize("hidden", [(), (30, 40)], ids=str)
@pytest.mark.parametrize(("direct", "context"), [(False, 0), (True, 3)])
def test_codes_across_chunks(hidden, direct, context):
    check_across_chunks(hidden, direct, context, categories=3)


def check_follows_the_degrees_that_are_loaded():
    """A pass keeps what it needs of the degrees with the network; another order in a state dict ends that."""
    torch.manual_seed(0)
    nets = [MaskedMLP(5, 2, (20, 20), order=torch.randperm(5)).double() for _ in range(2)]
    x = torch.randn(4, 5, dtype=torch.float64)
    assert not torch.equal(nets[0].ranks, nets[1].ranks)
    for net in nets:
        check_steps(net, x)
    nets[0].load_state_dict(nets[1].state_dict())
    check_steps(nets[0], x)
    check_steps(copy.deepcopy(nets[0]), x)


def test_follows_the_degrees_that_are_loaded():
    check_follows_the_degrees_that_are_loaded()


@pytest.mark.parametrize(("features", "rows"), [(1, 5), (3, 1)])
def test_result_has_memory_of_its_own(features, rows):
    state = IncrementalPass(MaskedMLP(features, 2, (8,)), None, rows)
    with torch.no_grad():
        for i in range(features):
            state.parameters(i)
            state.set(i, torch.ones(rows))
    state.result().zero_()
    assert bool((state.values == 1).all())


def test_one_hot():
    codes = torch.tensor([[0, 2, 1]])
    torch.testing.assert_close(one_hot(codes.double(), 3), torch.nn.functional.one_hot(codes, 3).double())
    with pytest.raises(ValueError, match="categories >= 2"):
        MaskedMLP(2, 1, [4], categories=1)
