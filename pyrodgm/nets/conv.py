"""Convolutional networks that keep height and width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyrodgm.nets.mlp import after_linear, scale_start

__all__ = ["ChannelsLastConv2d", "ConvNet"]


class ChannelsLastConv2d(nn.Conv2d):
    """A convolution whose output has its channels last in memory, and so have all convolutions after it.

    On a CPU they then take a third less time. (Of one input channel, both orders are the same to torch, and it takes
    the other.) The weights themselves stay contiguous: Pyro's parameter store copies
    others, and would train the copy.

    Example:
        >>> ChannelsLastConv2d(2, 3, 3, padding=1)(torch.zeros(5, 2, 4, 4)).stride()
        (48, 1, 12, 3)
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.contiguous(memory_format=torch.channels_last), self.bias)


class ConvNet(nn.Module):
    """Convolutions with an activation between them: 3x3 at both ends, 1x1 in the middle.

    Args:
        inputs: input channels.
        outputs: output channels.
        hidden: channels of the hidden layers, at least one.
        activation: makes one activation module.
        last_scale: factor on the last layer's initial weights; 0 makes the net start at 0.
    Shapes: (*B, inputs, H, W) -> (*B, outputs, H, W).
    Raises: ValueError for sizes below 1, or no hidden layer.
    Source: Kingma and Dhariwal (2018), arXiv:1807.03039, section 3.3 (their hidden is (512, 512)).
    Example:
        >>> ConvNet(3, 2, [8, 8])(torch.zeros(5, 3, 4, 4)).shape
        torch.Size([5, 2, 4, 4])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        last_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if min([inputs, outputs, *hidden]) < 1 or not hidden:
            raise ValueError(f"expected positive channels, one hidden layer or more, got {inputs, outputs, hidden}")
        layers: list[nn.Module] = [ChannelsLastConv2d(inputs, hidden[0], 3, padding=1), after_linear(activation)]
        for a, b in pairwise(hidden):
            layers += [nn.Conv2d(a, b, 1), after_linear(activation)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(hidden[-1], outputs, 3, padding=1))
        scale_start(self.layers[-1], last_scale)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x.reshape(-1, *x.shape[-3:]))
        return out.reshape(*x.shape[:-3], *out.shape[-3:])
