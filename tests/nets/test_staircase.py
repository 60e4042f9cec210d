"""The staircase product is the masked product: values, gradients, second derivatives, and under torch.func."""

import pytest
import torch
from torch.func import jacrev, vmap

from pyrodgm.nets import MaskedMLP, staircase
from pyrodgm.nets.staircase import blocks_of, staircase_linear

D = 640


@pytest.fixture(autouse=True)
def blocks_for_few_rows_too(monkeypatch):
    monkeypatch.setattr(staircase, "_WORK", 0)


def case(runs=1, flip=False):
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(D, D, dtype=torch.float64).tril().repeat(runs, 1)
    mask = mask.flip(1) if flip else mask
    x, weight, bias, grad = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((5, D), (runs * D, D), (runs * D,), (5, runs * D))
    )
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), mask, grad


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("runs", [1, 2])
def test_values_and_gradients(runs, flip):
    x, weight, bias, mask, grad = case(runs, flip)
    blocks = blocks_of(mask, runs)
    assert blocks is not None
    dense = torch.nn.functional.linear(x, weight * mask, bias)
    ours = staircase_linear(x, weight, bias, mask, blocks)
    torch.testing.assert_close(ours, dense)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (x, weight, bias), grad), torch.autograd.grad(dense, (x, weight, bias), grad)
    )


def test_no_number_outside_of_the_blocks_is_used():
    x, weight, bias, mask, _ = case()
    blocks = blocks_of(mask)
    poisoned = weight.detach().clone()
    poisoned[0, D - 1] = float("nan")
    assert staircase_linear(x, poisoned, bias, mask, blocks).isfinite().all()


def test_second_derivatives_and_torch_func():
    x, weight, bias, mask, _ = case()
    blocks = blocks_of(mask)

    def norm_of_gradient(product):
        y = product(x).square().sum()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), (x, weight))

    def ours(x):
        return staircase_linear(x, weight, bias, mask, blocks)

    def dense(x):
        return torch.nn.functional.linear(x, weight * mask, bias)

    torch.testing.assert_close(norm_of_gradient(ours), norm_of_gradient(dense))
    torch.testing.assert_close(vmap(jacrev(ours))(x), vmap(jacrev(dense))(x))


def test_masked_network_with_blocks_is_the_one_without():
    torch.manual_seed(0)
    net = MaskedMLP(D, 2, [D], order=torch.arange(D).flip(0)).double()
    assert all(blocks is not None for blocks in net.blocks)
    x = torch.randn(3, D, dtype=torch.float64)
    y = net(x)
    net.blocks = [None] * len(net.blocks)
    torch.testing.assert_close(y, net(x))


def test_where_one_product_is_as_fast():
    assert blocks_of(torch.ones(64, 64).tril()) is None  # small
    assert blocks_of(torch.ones(1024, 1024)) is None  # no stairs
    assert blocks_of(torch.ones(1024, 1024).tril()[torch.randperm(1024)]) is None  # no order


def test_few_rows_take_the_dense_product(monkeypatch):
    monkeypatch.setattr(staircase, "_WORK", 100 * D * D)
    x, weight, bias, mask, _ = case()
    few, many = (staircase_linear(x[:1].expand(n, D), weight, bias, mask, blocks_of(mask)) for n in (99, 100))
    assert "Staircase" in type(many.grad_fn).__name__
    assert "Staircase" not in type(few.grad_fn).__name__
    torch.testing.assert_close(few, many[:99])


def test_torch_compile_takes_a_network_with_blocks_in_one_graph():
    net = MaskedMLP(43, 2, [512, 512])
    assert any(net.blocks)
    x = torch.randn(300, 43)  # enough rows for the blocks
    graph = torch.compile(net, fullgraph=True, backend="eager")  # raises where it cannot trace
    torch.testing.assert_close(graph(x), net(x), rtol=1e-4, atol=1e-5)
