"""Guides that read q(z | x) off a network."""

from __future__ import annotations

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrodgm.core import Tractable, data_plate
from pyrodgm.shapes import join_context

__all__ = ["Amortized"]


class Amortized(nn.Module):
    """q(z | x, context) by any tractable model that conditions on x: a Gaussian, a flow, a mixture.

    Args:
        posterior: its context is x flattened, with the model's context behind it.
        site: name of the latent site.
    Shapes: x (B, *event), context (B, C) -> z (B, Z).
    Source: Kingma and Welling (2014), arXiv:1312.6114, section 2.3.
    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyrodgm.tractable import Parametric
        >>> Amortized(Parametric(dist.Normal, 2, context=6))(torch.zeros(5, 6)).shape
        torch.Size([5, 2])
    """

    def __init__(self, posterior: Tractable, site: str = "z") -> None:
        super().__init__()
        self.posterior, self.site = posterior, site

    def condition(self, x: Tensor, context: Tensor | None = None) -> TorchDistribution:
        """q(z | x, context), batch shape (B,)."""
        return self.posterior.condition(join_context(x.flatten(1), context))

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        if x is None:
            raise ValueError("expected x: the guide reads q(z | x) off the data; call the model to draw from the prior")
        with data_plate(x, context, n):
            return pyro.sample(self.site, self.condition(x, context))
