"""Convolutional networks from grids to a grid of another size, whose inputs and outputs are flat."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrodgm.nets.conv import ChannelsLastConv2d

__all__ = ["Grid", "GridNet"]


class Grid(NamedTuple):
    """C numbers at each of H x W places, and how they stand in a row.

    Attributes:
        channels: C.
        height: H.
        width: W.
        by_channel: channel by channel, as an image's do; else place by place, as embeddings do.
    Example:
        >>> Grid(3, 28, 28).halved(2)
        Grid(channels=3, height=7, width=7, by_channel=False)
    """

    channels: int
    height: int
    width: int
    by_channel: bool = False

    @property
    def places(self) -> int:
        """H * W."""
        return self.height * self.width

    @property
    def numbers(self) -> int:
        """C * H * W."""
        return self.channels * self.places

    def halved(self, times: int = 1) -> Grid:
        """The grid with half as many places each way, rounded up, so many times over."""
        size = [-(-n // 2**times) for n in (self.height, self.width)]
        return self._replace(height=size[0], width=size[1])

    def read(self, row: Tensor) -> Tensor:
        """(B, C * H * W) -> (B, C, H, W)."""
        if self.by_channel:
            return row.unflatten(-1, self[:3])
        return row.unflatten(-1, (self.height, self.width, self.channels)).movedim(-1, -3)

    def write(self, grid: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C * H * W)."""
        return (grid if self.by_channel else grid.movedim(-3, -1)).flatten(-3)


class GridNet(nn.Module):
    """Brings grids to one size, passes them through residual blocks, and goes on to the grid of the output.

    Each halving is a 3x3 convolution of stride 2, each doubling a transposed 4x4 convolution of stride 2 whose result
    is cut where the larger size is odd. A residual block is ReLU, 3x3 convolution to half of the channels, ReLU, 1x1
    convolution. Half of the channels, too, are those of sizes passed on the way.

    Args:
        inputs: what comes in, one behind the other.
        output: what goes out.
        at: the size (H, W) at which the inputs meet; default the output's.
        channels: of the residual blocks' way.
        blocks: residual blocks.
        context: size C of a vector behind the inputs, which is the same at every place.
    Shapes: (*B, the inputs' numbers + C) -> (*B, the output's numbers).
    Raises: ValueError for channels < 1, blocks < 0 or no input, or if halving does not lead from one size to the other.
    Source: Razavi et al. (2019), arXiv:1906.00446, section 3.1, and its appendix's sizes of filters.
    Example:
        >>> net = GridNet([Grid(1, 28, 28)], Grid(4, 7, 7), channels=8)
        >>> net(torch.zeros(5, 784)).shape
        torch.Size([5, 196])
    """

    def __init__(
        self,
        inputs: Sequence[Grid],
        output: Grid,
        *,
        at: tuple[int, int] | None = None,
        channels: int = 64,
        blocks: int = 2,
        context: int = 0,
    ) -> None:
        super().__init__()
        if not inputs or channels < 1 or blocks < 0:
            raise ValueError(
                f"expected one input or more, channels >= 1 and blocks >= 0, got {len(inputs)}, {channels} and {blocks}"
            )
        self.inputs, self.output, self.context = tuple(inputs), output, context
        self.sizes = [grid.numbers for grid in inputs] + [context] * bool(context)
        here = (output.height, output.width) if at is None else at
        ways = [_way(grid, Grid(channels, *here), last=False) for grid in inputs]
        joined = sum(channels if len(way) else grid.channels for way, grid in zip(ways, inputs, strict=True))
        half = max(1, channels // 2)
        self.ways = nn.ModuleList(ways)
        self.first = ChannelsLastConv2d(joined + context, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(), nn.Conv2d(channels, half, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(half, channels, 1)
            )
            for _ in range(blocks)
        )
        onwards = _way(Grid(channels, *here), output, last=True)
        self.onwards = onwards if len(onwards) else nn.Conv2d(channels, output.channels, 1)

    def forward(self, rows: Tensor) -> Tensor:
        parts = rows.reshape(-1, rows.shape[-1]).split(self.sizes, -1)
        grids = [way(grid.read(part)) for way, grid, part in zip(self.ways, self.inputs, parts, strict=False)]
        if self.context:
            grids.append(parts[-1][..., None, None].expand(-1, -1, *grids[0].shape[-2:]))
        h = self.first(torch.cat(grids, 1))
        for block in self.blocks:
            h = h + block(h)
        return self.output.write(self.onwards(F.relu(h))).reshape(*rows.shape[:-1], -1)


class _Double(nn.ConvTranspose2d):
    """Twice the places each way, or one less."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int]) -> None:
        super().__init__(inputs, outputs, 4, stride=2, padding=1)
        self.size = size

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(x, output_size)[..., : self.size[0], : self.size[1]]


def _way(start: Grid, end: Grid, last: bool) -> nn.Sequential:
    """Layers from one size to another, none where they are the same; a ReLU after each but ``last`` ones.

    Raises: ValueError if none of the two sizes is the other halved.
    """
    down = start.places >= end.places
    large, small = (start, end) if down else (end, start)
    sizes = [(large.height, large.width)]
    while sizes[-1] != (small.height, small.width):
        if sizes[-1][0] * sizes[-1][1] <= small.places:
            raise ValueError(
                f"expected a size that comes of halving {large.height} x {large.width}, rounded up, got "
                f"{small.height} x {small.width}; take Grid.halved"
            )
        sizes.append(tuple(-(-n // 2) for n in sizes[-1]))  # type: ignore[arg-type]
    if not down:
        sizes.reverse()
    between = max(1, (start if last else end).channels // 2)
    channels = [start.channels, *[between] * (len(sizes) - 2), end.channels]
    layers: list[nn.Module] = []
    for size, (a, b) in zip(sizes[1:], pairwise(channels), strict=False):
        layers.append(ChannelsLastConv2d(a, b, 3, stride=2, padding=1) if down else _Double(a, b, size))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*(layers[:-1] if last else layers))
