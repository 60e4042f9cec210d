"""The sequential way of an autoregressive bijector: its gradient belongs to the weights that it went by."""

import pyro.distributions as dist
import pytest
import torch
from cases import BIJECTORS, C, assert_gradients_are_slopes, contexts, grow
from torch.func import functional_call

from pyrodgm.bijectors import (
    Autoregressive,
    Coupling,
    LeakyReLU,
    MaskedCoupling,
    RationalQuadraticSpline,
    autoregressive,
)
from pyrodgm.bridges.pyro import PyroTransform
from pyrodgm.nets.incremental import _MOST


def rows(features, n=5):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def built(features=4, **options):
    torch.manual_seed(0)
    return grow(Autoregressive(features, hidden=[12], **options)).double()


def test_gradients_are_those_of_the_weights_that_were_passed_in():
    """As hypernetworks and MAML pass them: the module itself holds others."""
    layer, context = built(context=C), contexts(5)
    passed = {name: 0.5 * p.detach() for name, p in layer.named_parameters()}
    leaves = {name: value.clone().requires_grad_() for name, value in passed.items()}
    x, ladj = functional_call(layer.inv, {f"bijector.{k}": v for k, v in leaves.items()}, (rows(4), context))
    found = torch.autograd.grad((x.sin() + ladj.unsqueeze(-1)).sum(), list(leaves.values()))
    layer.load_state_dict(passed, strict=False)
    x, ladj = layer.inv(rows(4), context)
    expected = torch.autograd.grad((x.sin() + ladj.unsqueeze(-1)).sum(), list(layer.parameters()))
    torch.testing.assert_close(found, expected)


def test_weights_changed_between_the_two_passes_are_an_error():
    layer = built()
    loss = layer.inv(rows(4))[0].square().sum()
    with torch.no_grad():
        layer.net.last.weight.add_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_frozen_weights_have_no_gradient():
    layer, context = built(context=C), contexts(5).requires_grad_()
    layer.net.last.requires_grad_(False)
    y = rows(4).requires_grad_()
    layer.inv(y, context)[0].square().sum().backward()
    for name, p in layer.named_parameters():
        assert (p.grad is None) is name.startswith("net.last."), name
    assert bool((context.grad != 0).any())
    assert bool((y.grad != 0).any())


@pytest.mark.parametrize("way", ["call_and_ladj", "inverse_and_ladj"])
def test_gradients_across_chunks_are_slopes(way):
    """Of more features than one chunk holds, through two hidden layers."""
    torch.manual_seed(0)
    features = 2 * _MOST + 3
    layer, y = grow(Autoregressive(features, context=C, hidden=[30, 40]), 0.1).double(), rows(features)
    context = contexts(5)

    def total():
        x, ladj = getattr(layer.condition(context), way)(y)
        return x.asinh().sum() + ladj.square().sum()

    assert_gradients_are_slopes(total, {"y": [y], "the parameters": list(layer.parameters()), "the context": [context]})


def test_in_pyros_own_distributions_a_maf_is_scored_without_a_sequential_step(monkeypatch):
    layer, y = built().inv, rows(4)
    base = dist.Normal(torch.zeros(4).double(), 1.0).to_event(1)
    x, ladj = layer.condition().inverse_and_ladj(y)
    expected = base.log_prob(x) + ladj

    def sequential(*_):
        raise AssertionError("a sequential step")

    monkeypatch.setattr(autoregressive, "_solve", sequential)
    for transform in (layer.condition(), PyroTransform(layer)):
        torch.testing.assert_close(dist.TransformedDistribution(base, [transform]).log_prob(y), expected)


def test_what_is_printed_names_the_univariate_map():
    assert "LeakyReLU(bound=1.5)" in repr(Autoregressive(3, LeakyReLU(1.5)))
    shown = repr(Coupling(4, RationalQuadraticSpline(5), flip=True))
    assert "RationalQuadraticSpline(bins=5, bound=3.0), split=2, flip=True" in shown
    assert "ScaleShift(bound=2.0)" in repr(MaskedCoupling(torch.arange(3) < 1))


@pytest.mark.parametrize("activation", [torch.nn.SiLU, torch.nn.ELU, torch.nn.Hardtanh])
def test_gradients_under_activations_in_place(activation):
    layer = built(activation=lambda: activation(inplace=True))
    y = rows(4)

    def total():
        x, ladj = layer.inv(y)
        return x.sin().sum() + ladj.sum()

    assert_gradients_are_slopes(total, {"y": [y], "the parameters": list(layer.parameters())})


@pytest.mark.parametrize("name", [name for name in BIJECTORS if name.startswith("Autoregressive")])
def test_x_alone_is_the_x_of_the_fused_pass(name):
    """Without gradients, where neither ladj nor a graph is asked for, out to where splines have their tails."""
    layer, y = grow(BIJECTORS[name].build()).double(), 3 * rows(BIJECTORS[name].event[0], 50)
    y = layer(y)[0].detach()
    x, ladj = layer.inv(y)
    transform = layer.condition()
    with torch.no_grad():
        alone, (fused, fused_ladj) = transform.inv(y), transform.inverse_and_ladj(y)
    torch.testing.assert_close(alone, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((fused, fused_ladj), (x, ladj), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer(x), (y, -ladj), rtol=1e-8, atol=1e-8)
