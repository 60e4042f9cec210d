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
    Shift,
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
    check_gradients_across_chunks(way)


def check_gradients_across_chunks(way):
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


class SquareInPlace(torch.nn.Module):
    """Works in place and has no flag that says so."""

    def forward(self, x):
        return x.mul_(x.detach())


def test_an_activation_that_works_in_place_leaves_the_sums_alone():
    layer, y = built(7, activation=SquareInPlace), rows(7)
    with torch.no_grad():
        torch.testing.assert_close(layer(layer.inv(y)[0])[0], y)


def by_both_ways(layer, y, context):
    """Gradients of a function of x and ladj: the sequential way's, and plain autograd's of D passes."""
    leaves = [y, *(() if context is None else (context,)), *layer.parameters()]
    transform = layer.condition(context)
    for way in (transform.inverse_and_ladj(y), transform._by_passes(y, context)):
        total = (way[0].asinh().sum(-1) * way[1].sin()).sum()
        yield torch.autograd.grad(total, leaves, materialize_grads=True)  # without units no activation acts


@pytest.mark.parametrize("hidden", [[], [14], [9, 14, 11]])
@pytest.mark.parametrize("activation", [torch.nn.ReLU, torch.nn.PReLU, torch.nn.SiLU])
@pytest.mark.parametrize("context", [0, C])
def test_gradients_are_autograds(hidden, activation, context):
    check_gradients_are_autograds(hidden, activation, context)


def check_gradients_are_autograds(hidden, activation, context):
    torch.manual_seed(0)
    order = torch.tensor([2, 0, 5, 1, 3, 4])
    layer = grow(Autoregressive(6, context=context, hidden=hidden, activation=activation, order=order)).double()
    y = rows(6).requires_grad_()
    found, expected = by_both_ways(layer, y, contexts(5).requires_grad_() if context else None)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("univariate", [RationalQuadraticSpline(4), LeakyReLU(1.5), Shift()])
def test_gradients_are_autograds_for_every_map(univariate):
    layer = built(6, univariate=univariate)
    found, expected = by_both_ways(layer, rows(6).requires_grad_(), None)
    torch.testing.assert_close(found, expected)


def test_gradients_of_wide_layers_are_autograds():
    """Whose products go by blocks under the stairs, and whose chunks hold few features."""
    torch.manual_seed(0)
    layer = grow(Autoregressive(8, hidden=[512, 512]), 0.02).double()
    assert any(layer.net.blocks)
    found, expected = by_both_ways(layer, rows(8).requires_grad_(), None)
    torch.testing.assert_close(found, expected)


def test_gradients_go_through_parametrizations():
    layer, y = built(), rows(4)
    torch.nn.utils.parametrizations.weight_norm(layer.net.layers[0])

    def total():
        x, ladj = layer.inv(y)
        return x.sin().sum() + ladj.sum()

    assert_gradients_are_slopes(total, {"the parameters": list(layer.parameters())})


def test_a_graph_that_is_kept_gives_the_gradient_twice():
    layer = built()
    x, ladj = layer.inv(rows(4))
    loss = (x.sin() + ladj.unsqueeze(-1)).sum()
    first = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, list(layer.parameters())), first)
