"""Importance-weighted and Renyi bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrodgm.core import GenerativeModel, Latent
from pyrodgm.objectives.base import Objective

__all__ = ["ImportanceWeighted"]


class ImportanceWeighted(Objective):
    r"""The negative importance-weighted bound (alpha = 0) or Renyi bound of order alpha, row by row.

    .. math:: -\frac1B \sum_b \frac{1}{1 - \alpha} \log \frac1K \sum_k w_{bk}^{1 - \alpha},
        \qquad w_{bk} = \frac{p(x_b, z_{bk})}{q(z_{bk} \mid x_b)}

    The plate's scale stays outside the logarithm, so subsampling leaves it a bound.

    Args:
        particles: K.
        alpha: order of the Renyi divergence; 0 is IWAE, 1 the ELBO.
    Source: Burda et al. (2016), arXiv:1509.00519, eq. 8; Li and Turner (2016), arXiv:1602.02311, eq. 13.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> ImportanceWeighted(5).loss(VAE.mlp(features=6, latent=2, hidden=[8]), torch.ones(4, 6)).shape
        torch.Size([])
    """

    held_out_name = "negative bound"

    def __init__(self, particles: int = 5, alpha: float = 0.0) -> None:
        super().__init__()
        if particles < 1:
            raise ValueError(f"expected particles >= 1, got {particles}")
        self.particles, self.alpha = particles, float(alpha)

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, Latent):
            raise TypeError(f"expected a Latent model (one with log_weights), got {type(model).__name__}")

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        log_weights = model.log_weights(x, context, particles=self.particles)  # type: ignore[operator]  # (K, B)
        if self.alpha == 1.0:
            return -log_weights.mean()
        power = 1.0 - self.alpha
        bound = (torch.logsumexp(power * log_weights, 0) - math.log(self.particles)) / power  # (K, B) -> (B,)
        return -bound.mean()
