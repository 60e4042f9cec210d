"""A perceptron's outputs by columns are those by rows."""

from __future__ import annotations

import pytest
import torch

from pyrodgm.nets import MLP


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3), (0, 3)])
def test_columns_change_only_the_place_in_memory(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    rows, columns = MLP(3, 4, [8]).double(), MLP(3, 4, [8], columns=True).double()
    columns.load_state_dict(rows.state_dict())
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    by_rows, by_columns = rows(x), columns(x)
    torch.testing.assert_close(by_columns, by_rows)
    if x.dim() == 2 and len(x):
        assert by_columns.stride() == (1, len(x))
    weight = torch.randn_like(by_rows)
    found = torch.autograd.grad(by_columns, [x, *columns.parameters()], weight)
    torch.testing.assert_close(found, torch.autograd.grad(by_rows, [x, *rows.parameters()], weight))


def test_hooks_of_the_last_layer_run() -> None:
    net = MLP(3, 4, [8], columns=True)
    expected = net(torch.ones(2, 3))
    net[-1].register_forward_hook(lambda module, given, made: 2 * made)
    torch.testing.assert_close(net(torch.ones(2, 3)), 2 * expected)
