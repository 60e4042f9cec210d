"""The multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """Linear layers with an activation between them.

    Args:
        inputs: input size.
        outputs: output size.
        hidden: widths of the hidden layers; none makes it linear.
        activation: makes one activation module.
        last_scale: factor on the last layer's initial weights; 0 makes the net start at 0.
    Shapes: (*B, inputs) -> (*B, outputs).
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
    ) -> None:
        sizes = [inputs, *hidden, outputs]
        if min(sizes) < 1:
            raise ValueError(f"expected positive layer sizes, got {sizes}")
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            layers.append(nn.Linear(a, b))
            if i < len(hidden):
                layers.append(activation())
        super().__init__(*layers)
        if last_scale != 1.0:
            with torch.no_grad():
                for parameter in layers[-1].parameters():
                    parameter.mul_(last_scale)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x
