"""A perceptron that sees its input again in every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["SkipMLP"]


class SkipMLP(nn.Module):
    r"""A perceptron whose input enters every layer, so no layer can lose it.

    .. math:: h_l = \sigma(W_l h_{l-1} + S_l z), \quad h_0 = z, \quad y = W h_L + S z

    As the net of a VAE's likelihood it makes the skip-VAE, whose latent is harder to ignore:
    ``Parametric(family, D, context=Z, net=SkipMLP(Z, outputs, hidden))``.

    Args:
        inputs: size of z.
        outputs: output size.
        hidden: widths of the hidden layers, at least one.
        activation: makes one activation module.
    Shapes: (*B, inputs) -> (*B, outputs).
    Raises: ValueError without hidden layers, where there is nothing to skip.
    Source: Dieng et al. (2019), arXiv:1807.04863, eq. 5-7.
    Example:
        >>> SkipMLP(3, 2, [8, 8])(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, inputs: int, outputs: int, hidden: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("expected at least one hidden layer, got none; use MLP")
        sizes = [0, *hidden]  # the first layer has z alone, the others z behind the layer below
        self.layers = nn.ModuleList(nn.Linear(a + inputs, b) for a, b in zip(sizes, [*hidden, outputs], strict=True))
        self.activation = activation()

    def forward(self, z: Tensor) -> Tensor:
        first, *rest = self.layers
        h = first(z)
        for layer in rest:
            h = layer(torch.cat((self.activation(h), z), -1))
        return h
