"""A masked network whose weights something else computes."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from pyrodgm.nets import MaskedMLP
from pyrodgm.nets.incremental import IncrementalPass


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_parametrized_weights_are_those_that_act():
    torch.manual_seed(0)
    net = MaskedMLP(4, 2, [8], context=3).double()
    x, context = torch.randn(5, 4).double(), torch.randn(5, 3).double()
    with torch.no_grad():
        for layer in (net.layers[0], net.last):
            layer.weight.mul_(2)
        expected = net(x, context)
        for layer in (net.layers[0], net.last):
            layer.weight.mul_(0.5)
            parametrize.register_parametrization(layer, "weight", Doubled())
        torch.testing.assert_close(net(x, context), expected)
        torch.testing.assert_close(IncrementalPass(net, context, 5).parameters(0), expected[..., 0].T)
    (gradient,) = torch.autograd.grad(net(x, context).square().sum(), net.last.parametrizations.weight.original)
    assert bool((gradient != 0).any())
