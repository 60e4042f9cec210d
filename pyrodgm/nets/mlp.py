"""The multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["MLP", "ColumnLinear", "MLPCritic", "after_linear", "by_columns", "scale_start"]


class MLP(nn.Sequential):
    """Linear layers with an activation between them.

    Args:
        inputs: input size.
        outputs: output size.
        hidden: widths of the hidden layers; none makes it linear.
        activation: makes one activation module.
        last_scale: factor on the last layer's initial weights; 0 makes the net start at 0.
        columns: lay the outputs out by columns: the same numbers, those of one output for all rows side by side in
            memory, for those who work output by output.
    Shapes: (*B, inputs) -> (*B, outputs).
    Raises: ValueError for sizes below 1.
    Example:
        >>> MLP(3, 2, [8])(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        last_scale: float = 1.0,
        columns: bool = False,
    ) -> None:
        sizes = [inputs, *hidden, outputs]
        if min(sizes) < 1:
            raise ValueError(f"expected positive layer sizes, got {sizes}")
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(sizes)):
            last = i == len(hidden)
            layers.append(ColumnLinear(a, b) if last and columns else nn.Linear(a, b))
            if not last:
                layers.append(after_linear(activation))
        scale_start(layers[-1], last_scale)
        super().__init__(*layers)


class ColumnLinear(nn.Linear):
    """A linear layer whose result is laid out by columns."""

    def forward(self, x: Tensor) -> Tensor:
        return by_columns(x, self.weight, self.bias)


def after_linear(activation: Callable[[], nn.Module]) -> nn.Module:
    """An activation; a ReLU works in place, on the fresh output of the linear map before it."""
    return nn.ReLU(inplace=True) if activation is nn.ReLU else activation()


@torch.no_grad()
def scale_start(layer: nn.Module, factor: float) -> None:
    """Multiply the initial weights and biases of a layer; 0 makes it start at 0."""
    if factor != 1.0:
        for parameter in layer.parameters():
            parameter.mul_(factor)


def by_columns(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear map whose result is laid out by columns: (*B, inputs) -> (*B, outputs)."""
    out = torch.addmm(bias.unsqueeze(1), weight, x.reshape(-1, x.shape[-1]).t()).t()
    return out if x.dim() == 2 else out.reshape(*x.shape[:-1], len(weight))


class MLPCritic(nn.Module):
    """A perceptron that scores rows, beside their context where there is one.

    Args:
        features: number of elements of one x, which is flattened.
        context: size C of the conditioning vector, 0 for none.
        hidden: widths of the hidden layers.
    Shapes: x (B, *event), context (B, C) -> (B,).
    Example:
        >>> MLPCritic(4)(torch.zeros(3, 2, 2)).shape
        torch.Size([3])
    """

    def __init__(self, features: int, *, context: int = 0, hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        self.net = MLP(features + context, 1, hidden, activation=lambda: nn.LeakyReLU(0.2))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x.flatten(1)
        return self.net(x if context is None else torch.cat((x, context), -1)).squeeze(-1)
