"""The incremental pass over more features than one chunk holds: each step's parameters are a full pass's."""

import pytest
import torch

from pyrodgm.nets.masked import _CHUNK, IncrementalPass, MaskedMLP

D = 2 * _CHUNK + 3


def check_across_chunks(hidden=(30, 40), direct=True, context=0):
    torch.manual_seed(0)
    net = MaskedMLP(D, 2, hidden, context, direct=direct).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p))
    x = torch.randn(5, D, dtype=torch.float64)
    c = torch.randn(5, context, dtype=torch.float64) if context else None
    with torch.no_grad():
        full, state = net(x, c), IncrementalPass(net, c, 5, 0)
        for i, d in enumerate(net.ranks[0].argsort().tolist()):
            torch.testing.assert_close(state.parameters(i), full[..., d].T)
            state.set(i, x[:, d])
        torch.testing.assert_close(state.result(), x, rtol=0, atol=0)


@pytest.mark.parametrize("hidden", [(), (30,), (30, 40), (5, 60, 7)], ids=str)
@pytest.mark.parametrize(("direct", "context"), [(False, 0), (True, 3)])
def test_across_chunks(hidden, direct, context):
    check_across_chunks(hidden, direct, context)
