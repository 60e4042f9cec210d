"""A masked network whose weights something else computes."""

import pytest
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


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.LayerNorm(6),
        lambda: nn.Softmax(-1),
        lambda: nn.GroupNorm(2, 6),
        lambda: nn.BatchNorm1d(6),
        lambda: nn.PReLU(6),
    ],
)
def test_activations_that_are_not_of_each_unit_alone_are_refused(norm):
    """Past a norm every output sees every input."""
    with pytest.raises(ValueError, match="expected an activation that is the same function of every unit"):
        MaskedMLP(4, 2, [6], activation=lambda: nn.Sequential(norm(), nn.ReLU()))


@pytest.mark.parametrize("activation", [nn.PReLU, nn.GELU, lambda: nn.Sequential(nn.SiLU(), nn.Dropout(0.5))])
def test_activations_of_each_unit_alone_are_taken(activation):
    net = MaskedMLP(4, 2, [6, 7], activation=activation)
    assert net.activation.training
    assert net(torch.randn(3, 4)).shape == (3, 2, 4)
    with torch.device("meta"):
        assert MaskedMLP(4, 2, [6], activation=activation).last.weight.is_meta
