"""Grids: their order in a row, the sizes on the way, and the network against the same layers by hand."""

import pytest
import torch
from torch.nn import functional as F

from pyrodgm.nets import Grid, GridNet


def test_rows_are_read_and_written_in_their_order():
    row = torch.arange(2 * 3 * 4.0).reshape(1, -1)
    image, places = Grid(2, 3, 4, by_channel=True), Grid(2, 3, 4)
    assert torch.equal(image.read(row), row.reshape(1, 2, 3, 4))
    assert torch.equal(places.read(row), row.reshape(1, 3, 4, 2).permute(0, 3, 1, 2))
    for grid in (image, places):
        assert torch.equal(grid.write(grid.read(row)), row)
        assert (grid.numbers, grid.places) == (24, 12)


@pytest.mark.parametrize("size", [1, 2, 5, 7, 28, 33])
def test_halving_twice_is_halving_two_times(size):
    grid = Grid(1, size, 2 * size)
    assert grid.halved(2) == grid.halved().halved()
    assert grid.halved().height == (size + 1) // 2


def test_the_network_by_hand():
    """Two grids and a context, one brought up, one as it is; a block; then up twice, cut from 6 x 8 to 5 x 7."""
    torch.manual_seed(0)
    small, here, out = Grid(3, 1, 1), Grid(2, 2, 2), Grid(4, 7, 5, by_channel=True)
    net = GridNet([small, here], out, at=(2, 2), channels=6, blocks=1, context=2).double()
    rows = torch.randn(3, 5, 3 + 8 + 2).double()
    a, b, c = rows.flatten(0, 1).split([3, 8, 2], -1)
    up = net.ways[0][0]
    a = F.conv_transpose2d(a.reshape(-1, 3, 1, 1), up.weight, up.bias, stride=2, padding=1).relu()
    b = b.reshape(-1, 2, 2, 2).permute(0, 3, 1, 2)
    h = torch.cat((a, b, c.reshape(-1, 2, 1, 1).expand(-1, -1, 2, 2)), 1)
    h = F.conv2d(h, net.first.weight, net.first.bias, padding=1)
    first, last = net.blocks[0][1], net.blocks[0][3]
    inner = F.conv2d(h.relu(), first.weight, first.bias, padding=1).relu()
    assert inner.shape[1] == 3
    h = (h + F.conv2d(inner, last.weight, last.bias)).relu()
    one, two = net.onwards[0], net.onwards[2]
    assert len(net.onwards) == 3
    h = F.conv_transpose2d(h, one.weight, one.bias, stride=2, padding=1)[..., :4, :3].relu()
    assert h.shape[1] == 3
    h = F.conv_transpose2d(h, two.weight, two.bias, stride=2, padding=1)[..., :7, :5]
    torch.testing.assert_close(net(rows), h.flatten(1).reshape(3, 5, -1))


def test_the_way_down_by_hand():
    torch.manual_seed(0)
    net = GridNet([Grid(1, 5, 7, by_channel=True)], Grid(3, 2, 2), channels=6, blocks=0).double()
    x = torch.randn(4, 35).double()
    one, two = net.ways[0][0], net.ways[0][2]
    h = F.conv2d(x.reshape(4, 1, 5, 7), one.weight, one.bias, stride=2, padding=1).relu()
    assert h.shape[1:] == (3, 3, 4)
    h = F.conv2d(h, two.weight, two.bias, stride=2, padding=1).relu()
    h = F.conv2d(h, net.first.weight, net.first.bias, padding=1).relu()
    h = F.conv2d(h, net.onwards.weight, net.onwards.bias)
    torch.testing.assert_close(net(x), h.permute(0, 2, 3, 1).flatten(1))


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: GridNet([], Grid(1, 2, 2)), "one input or more.*got 0, 64 and 2"),
        (lambda: GridNet([Grid(1, 2, 2)], Grid(1, 2, 2), channels=0), "channels >= 1"),
        (lambda: GridNet([Grid(1, 2, 2)], Grid(1, 2, 2), blocks=-1), "blocks >= 0"),
        (
            lambda: GridNet([Grid(1, 28, 28)], Grid(1, 6, 6)),
            r"halving 28 x 28, rounded up, got 6 x 6; take Grid.halved",
        ),
        (lambda: GridNet([Grid(1, 4, 8)], Grid(1, 4, 4)), "halving 4 x 8, rounded up, got 4 x 4"),
        (lambda: GridNet([Grid(1, 3, 3)], Grid(1, 7, 7)), "halving 7 x 7, rounded up, got 3 x 3"),
    ],
)
def test_mistakes_are_named(build, match):
    with pytest.raises(ValueError, match=match):
        build()
