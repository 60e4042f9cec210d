"""torch.compile takes a flow's log-density in one graph, with its gradients; Pyro's validation, which looks, is off.

The graph runs as it was traced, without generated code: what is asked is whether it can be had, and is right.
"""

import pyro
import pytest
import torch
from cases import C, contexts, grow

from pyrodgm.tractable import MAF, NSF, RealNVP

FLOWS = {
    "RealNVP": lambda: RealNVP(3, 2, hidden=[8]),
    "MAF | context": lambda: MAF(3, 2, hidden=[8], context=C),
    "NSF": lambda: NSF(3, 2, hidden=[8]),
    "NSF autoregressive | context": lambda: NSF(3, 2, hidden=[8], autoregressive=True, context=C),
}


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does
@pytest.mark.parametrize("name", FLOWS)
def test_log_prob_in_one_graph(name):
    flow = grow(FLOWS[name]()).double().eval()
    x = torch.randn(6, 3).double()
    given = (x, contexts(6)) if flow.context else (x,)
    with pyro.validation_enabled(False):
        torch.compiler.reset()
        graph = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")  # raises where it cannot trace
        found, expected = graph(*given), flow.log_prob(*given)
        torch.testing.assert_close(found, expected)
        parameters = list(flow.parameters())
        weights = torch.randn(6).double()
        gradients = [torch.autograd.grad((weights * out).sum(), parameters) for out in (found, expected)]
        torch.testing.assert_close(*gradients)
        torch.testing.assert_close(graph(*[2 * v for v in given]), flow.log_prob(*[2 * v for v in given]))
    assert any(bool((g != 0).any()) for g in gradients[0])
