"""InfoVAE: the bound with the latents' marginal held to the prior by a maximum mean discrepancy."""

from __future__ import annotations

import math

import torch
from pyro import poutine
from torch import Tensor

from pyrodgm.core import GenerativeModel, Latent
from pyrodgm.objectives.annealing import Schedule
from pyrodgm.objectives.base import Objective
from pyrodgm.objectives.elbo import ELBO
from pyrodgm.traces import check_reparameterised, latent_rows, refuse_masked, sample_sites, site_log_prob

__all__ = ["InfoVAE"]


class InfoVAE(Objective):
    r"""Reconstruction, a share of the KL, and the distance of the aggregate posterior to the prior.

    .. math:: \frac1B \sum_b \bigl\{ -E_q \log p(x_b \mid z) + (1 - \alpha) \, KL(q(z \mid x_b) \,\|\, p(z)) \bigr\}
        + (\alpha + \lambda - 1) \, MMD^2(q(z), p(z))

    The discrepancy has the kernel :math:`k(z, z') = \exp(-|z - z'|^2 / 2 s^2)` and is the unbiased
    U-statistic of the batch's draws against as many of the prior, so any prior and guide serve.
    alpha = 0, lambda = 1 is the ELBO; alpha = 1 the MMD-VAE.

    Args:
        alpha: information preference, <= 1.
        scale: lambda; alpha + lambda >= 1.
        bandwidth: s; default :math:`\sqrt Z`.
        particles: draws of the guide for each row.
    Raises: ValueError for alpha > 1, alpha + lambda < 1, or a bandwidth that is not positive; TypeError for a schedule
        as alpha or scale, and from ``loss`` if the guide, or a prior with parameters to train, is not reparameterised,
        or if a latent is masked.
    Source: Zhao et al. (2017), arXiv:1706.02262, eq. 6 and section 3.2; Gretton et al. (2012), eq. 3.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> InfoVAE(alpha=1.0).loss(VAE.mlp(features=6, latent=2, hidden=[8]), torch.ones(4, 6)).shape
        torch.Size([])
    """

    held_out_name = "negative bound"

    def __init__(
        self, alpha: float = 0.0, scale: float = 10.0, bandwidth: float | None = None, particles: int = 1
    ) -> None:
        super().__init__()
        for name, weight in (("alpha", alpha), ("scale", scale)):
            if isinstance(weight, Schedule):
                raise TypeError(
                    f"expected {name} as a number, got {type(weight).__name__}; anneal by ELBO(beta=) or BetaTCVAE, or "
                    "fit with one number after the other"
                )
        if not alpha <= 1 or not alpha + scale >= 1 or not math.isfinite(scale):
            raise ValueError(f"expected alpha <= 1 and alpha + scale >= 1, got alpha={alpha} and scale={scale}")
        if bandwidth is not None and not bandwidth > 0:
            raise ValueError(f"expected bandwidth > 0, got {bandwidth}")
        self.alpha, self.scale, self.bandwidth = float(alpha), float(scale), bandwidth
        self.bound = ELBO(particles, beta=1.0 - alpha)

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, Latent):
            raise TypeError(f"expected a Latent model (its latents have a prior), got {type(model).__name__}")

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        loss = self.bound.loss(model, x, context, n=n)
        if len(x) < 2:  # the last batch of an epoch: one row is no sample to compare
            return loss
        # the program on the rows, not replayed, draws its latents from the prior and scores x, which it need not sample
        traces = [poutine.trace(program).get_trace(x, context) for program in (model.guide, model)]
        for trace in traces:
            refuse_masked(trace, type(self).__name__)
        if torch.is_grad_enabled():
            check_reparameterised(traces[0])
            for name, site in sample_sites(traces[1]).items():
                if not site["is_observed"] and not site["fn"].has_rsample and site_log_prob(site).requires_grad:
                    raise TypeError(
                        f"expected a prior with rsample, or one that is not trained, got {name!r} without; freeze it "
                        "(prior.requires_grad_(False)), or use ELBO"
                    )
        drawn, prior = (latent_rows(trace, len(x)) for trace in traces)
        return loss + (self.alpha + self.scale - 1) * _mmd(drawn, prior, self.bandwidth)

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        return self.bound.held_out(model, x, context, n=n)


def _mmd(a: Tensor, b: Tensor, bandwidth: float | None) -> Tensor:
    """Unbiased squared discrepancy of two samples (B, Z), without a look at any value on the host."""
    scale = 2 * (a.shape[-1] if bandwidth is None else bandwidth**2)

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        squares = u.square().sum(-1).unsqueeze(-1) + v.square().sum(-1) - 2 * u @ v.mT
        return (-squares.clamp(min=0) / scale).exp()  # (B, B)

    pairs = len(a) * (len(a) - 1)
    # every row's kernel with itself is 1, by the formula and not only nearly
    own = [(kernel(u, u) - torch.eye(len(u), dtype=u.dtype, device=u.device)).sum() / pairs for u in (a, b)]
    return own[0] + own[1] - 2 * kernel(a, b).mean()
