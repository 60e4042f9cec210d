"""Whole numbers as the cells of a continuous density: what makes a flow a model of grey levels."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrodgm.core import Latent, Tractable, data_plate, evaluating
from pyrodgm.distributions.quantized import Quantized
from pyrodgm.guides.dequantization import UniformDequantization, VariationalDequantization
from pyrodgm.shapes import observed_part

__all__ = ["Dequantized"]


class Dequantized(Latent):
    r"""Whole numbers x = floor(L z) of a continuous z with any exact density.

    .. math:: P(x \mid c) = \int_{[x, x+1)^D / L} p(z \mid c) \, dz
        \ge \exp \mathbb E_{q(z \mid x)} [ \log p(z \mid c) - \log q(z \mid x) ]

    The program is z ~ density, x certain given z; the guide spreads x over its cell. So the ELBO is the
    dequantization bound, ``log_weights`` gives the importance-weighted one, and the guide that is the density
    within the cell makes both exact. Bits per dimension are
    ``pyrodgm.data.bits_per_dim(bound, D, levels=1)``: the cells are in the bound already.

    Args:
        density: density of z, with most of its mass on [0, 1) (what lies beyond belongs to the end cells).
        levels: L; x is one of 0 .. L - 1.
        guide: None for uniform noise, or a Tractable on (0, 1)^event given x (see
            :class:`~pyrodgm.guides.VariationalDequantization`) whose context is D + C.
    Shapes: x (B, *event), context (B, C), z (B, *event).
    Raises: ValueError if levels < 2 or the guide's sizes do not fit the density's.
    Source: Theis et al. (2016), arXiv:1511.01844, section 3.1; Ho et al. (2019), arXiv:1902.00275, eq. 5-7.
    Example:
        >>> from pyrodgm.bijectors import AffineCoupling, Elementwise, Sigmoid
        >>> from pyrodgm.tractable import Flow, StandardNormal
        >>> model = Dequantized(Flow(StandardNormal(2), [AffineCoupling(2), Elementwise(2, Sigmoid())]), levels=4)
        >>> model.log_weights(model.sample(3), particles=5).shape
        torch.Size([5, 3])
    """

    def __init__(self, density: Tractable, levels: int, guide: Tractable | None = None) -> None:
        super().__init__(tuple(density.event_shape), density.context)
        if guide is not None:
            wants = density.event_shape.numel() + density.context
            if guide.event_shape != density.event_shape or guide.context != wants:
                raise ValueError(
                    f"expected a guide over {tuple(density.event_shape)} with context={wants} (x and the context), "
                    f"got {tuple(guide.event_shape)} with context={guide.context}"
                )
        self.density, self.levels = density, levels
        self.guide = UniformDequantization(levels) if guide is None else VariationalDequantization(guide, levels)

    @property
    def prior(self) -> Tractable:
        """The density of z."""
        return self.density

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.integer_interval(0, self.levels - 1), len(self.event_shape))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Quantized:
        """P(x | z): certain."""
        return Quantized(z, self.levels, len(self.event_shape))

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        x, context = self.check(x, context)
        with data_plate(x, context, n):
            z = pyro.sample("z", self.density.condition(context))
            return pyro.sample("x", self.decode(z), obs=x)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        x, context = self.check(x, context)
        self.density.initialize((x + torch.rand_like(x)) / self.levels, context)

    def complete(self, x: Tensor, mask: Tensor, context: Tensor | None = None, *, steps: int = 100) -> Tensor:
        """Fill in what is missing by Metropolis moves of z, one coordinate at a time.

        x is certain given z, so a chain that goes through x would stand still. A coordinate that is observed moves
        within its cell, one that is missing over all of [0, 1); the proposals are uniform, the density accepts.

        Args:
            x: (B, *event); what stands where mask is False does not matter.
            mask: True where x is observed, broadcast against x.
            steps: sweeps over all D coordinates.
        Shapes: returns (B, *event); the observed part is x itself.
        Raises: ValueError or TypeError as ``Latent.complete`` does for the mask.
        """
        x, context = self.check_rows(x, context)
        if steps < 0:
            raise ValueError(f"expected steps >= 0, got {steps}")
        observed = observed_part(x, mask).flatten(1)
        flat = torch.where(observed, x.flatten(1), 0.0)
        low, width = flat / self.levels, torch.where(observed, 1 / self.levels, 1.0).to(x.dtype)

        with evaluating(self):
            d = self.density.condition(context)
            z = low + width * torch.rand_like(low)
            now = d.log_prob(z.unflatten(-1, self.event_shape))
            for _ in range(steps):
                for i in torch.randperm(z.shape[-1]).tolist():
                    moved = z.clone()
                    moved[:, i] = low[:, i] + width[:, i] * torch.rand_like(now)
                    then = d.log_prob(moved.unflatten(-1, self.event_shape))
                    accept = torch.rand_like(now).log() < then - now
                    z, now = torch.where(accept.unsqueeze(-1), moved, z), torch.where(accept, then, now)
        filled = (z * self.levels).floor().clamp(0, self.levels - 1)
        return torch.where(observed, flat, filled).unflatten(-1, self.event_shape)
