"""Linear maps: the way back by solves, for few rows, and by the inverse matrix, for many."""

import torch

from pyrodgm.bijectors import LULinear


def test_both_ways_back_are_the_inverse():
    """Values, ladj and gradients of 200 rows at once, by the inverse matrix, and of one row at a time, by solves."""
    torch.manual_seed(0)
    layer = LULinear(7, rotation=True).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    y = torch.randn(200, 7, dtype=torch.float64)
    found = []
    for groups in ([y], y.split(1)):
        parts = [layer.condition().inverse_and_ladj(rows) for rows in groups]
        x, ladj = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        loss = x.square().sum() + ladj.sum()
        found.append((x, ladj, *torch.autograd.grad(loss, list(layer.parameters()))))
    for many, single in zip(*found, strict=True):
        torch.testing.assert_close(many, single)
    forth, ladj = layer.condition().call_and_ladj(found[0][0])
    torch.testing.assert_close(forth, y)
    torch.testing.assert_close(ladj, -found[0][1])
