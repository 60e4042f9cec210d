"""A network of (time, x, context) whose time and context gate and shift every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["ConcatSquash", "ConcatSquashMLP"]


class ConcatSquash(nn.Module):
    r"""One layer: :math:`h = (W x + b) \odot \sigma(V s + d) + U s`, with s = (t, context).

    Args:
        inputs: size of x.
        outputs: size of h.
        context: size C of the context.
        zero: start at h = 0.
    Shapes: x (*B, inputs), s (*B, 1 + C) or (1 + C) -> (*B, outputs).
    Source: Grathwohl et al. (2019), arXiv:1810.01367, appendix B.1; there s is the time alone.
    """

    def __init__(self, inputs: int, outputs: int, context: int = 0, zero: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(1 + context, outputs)
        self.shift = nn.Linear(1 + context, outputs, bias=False)
        if zero:
            with torch.no_grad():
                for p in (*self.linear.parameters(), *self.shift.parameters()):
                    p.zero_()

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        return torch.addcmul(self.shift(s), self.linear(x), torch.sigmoid(self.gate(s)))


class ConcatSquashMLP(nn.Module):
    """Concat-squash layers with an activation between them: the velocity field of a continuous flow.

    With a bounded activation the velocity is bounded too, so solutions stay finite from any start.

    Args:
        features: D, the size of x and of the output.
        context: size C of the context, 0 for none.
        hidden: widths of the hidden layers.
        activation: makes one smooth activation module.
    Shapes: t (), x (*B, D), context (*B, C) -> (*B, D).
    Raises: ValueError if a size is not positive.
    Source: Grathwohl et al. (2019), arXiv:1810.01367, appendix B.1.
    Example:
        >>> ConcatSquashMLP(3)(torch.tensor(0.5), torch.zeros(4, 3)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        features: int,
        *,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        sizes = [features, *hidden, features]
        if min(sizes) < 1:
            raise ValueError(f"expected positive layer sizes, got {sizes}")
        last = len(hidden)
        self.layers = nn.ModuleList(ConcatSquash(a, b, context, i == last) for i, (a, b) in enumerate(pairwise(sizes)))
        self.activations = nn.ModuleList(activation() for _ in hidden)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        s = t.reshape(1)
        if context is not None:
            s = torch.cat((s.expand(*context.shape[:-1], 1), context), -1)  # (*B, 1 + C)
        for layer, activation in zip(self.layers, self.activations, strict=False):
            x = activation(layer(x, s))
        return self.layers[-1](x, s)
