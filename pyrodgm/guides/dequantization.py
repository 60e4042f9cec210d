"""Guides of whole numbers: where in its cell each one lies."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution, Uniform
from torch import Tensor, nn

from pyrodgm.core import Tractable, data_plate
from pyrodgm.distributions.quantized import Spread
from pyrodgm.shapes import join_context

__all__ = ["UniformDequantization", "VariationalDequantization"]


class _OpenUniform(Uniform):
    """A uniform distribution on [0, 1) whose draws are never 0, where flows have logits that end the density."""

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return super().rsample(sample_shape).clamp(min=torch.finfo(self.low.dtype).eps)


class UniformDequantization(nn.Module):
    r"""z = (x + u) / L with u uniform on [0, 1)^event.

    Args:
        levels: L; x is one of 0 .. L - 1.
        site: name of the latent site.
    Shapes: x (B, *event) -> z (B, *event).
    Raises: ValueError if levels < 2.
    Source: Theis et al. (2016), arXiv:1511.01844, section 3.1; Uria et al. (2013).
    Example:
        >>> guide = UniformDequantization(levels=4)
        >>> bool((guide(torch.tensor([[0.0, 3.0]])) * 4).floor().equal(torch.tensor([[0.0, 3.0]])))
        True
    """

    def __init__(self, levels: int, site: str = "z") -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"expected levels >= 2, got {levels}")
        self.levels, self.site = levels, site

    def noise(self, x: Tensor, context: Tensor | None) -> TorchDistribution:
        """The distribution of u, batch shape (B,)."""
        return _OpenUniform(torch.zeros_like(x), torch.ones_like(x), validate_args=False).to_event(x.dim() - 1)

    def condition(self, x: Tensor, context: Tensor | None = None) -> TorchDistribution:
        """q(z | x, context), batch shape (B,)."""
        return Spread(x, self.noise(x, context), self.levels)

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        if x is None:
            raise ValueError("expected x: the guide spreads the data; call the model to draw from the prior")
        with data_plate(x, context, n):
            return pyro.sample(self.site, self.condition(x, context))


class VariationalDequantization(UniformDequantization):
    r"""z = (x + u) / L with u from any density on (0, 1)^event that conditions on x.

    Args:
        flow: density of u whose samples lie in (0, 1), such as a flow that ends in a sigmoid; its context is x,
            scaled to [-1, 1] and flattened, with the model's context behind it. A coupling over images lays a context
            beside every pixel: all C H W numbers H W times for each row and coupling, 160 MB at 64 images of 28 x 28.
        levels: L.
        site: name of the latent site.
    Shapes: x (B, *event), context (B, C) -> z (B, *event).
    Raises: ValueError if levels < 2.
    Source: Ho et al. (2019), arXiv:1902.00275, section 3.1, eq. 6-7.
    Example:
        >>> from pyrodgm.bijectors import AffineCoupling, Elementwise, Sigmoid
        >>> from pyrodgm.tractable import Flow, StandardNormal
        >>> flow = Flow(StandardNormal(2), [AffineCoupling(2, context=2), Elementwise(2, Sigmoid())])
        >>> VariationalDequantization(flow, levels=4)(torch.tensor([[0.0, 3.0]])).shape
        torch.Size([1, 2])
    """

    def __init__(self, flow: Tractable, levels: int, site: str = "z") -> None:
        super().__init__(levels, site)
        self.flow = flow

    def noise(self, x: Tensor, context: Tensor | None) -> TorchDistribution:
        scaled = x.flatten(1) * (2 / (self.levels - 1)) - 1
        return self.flow.condition(join_context(scaled, context))
