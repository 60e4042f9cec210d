"""Free bits: a floor under the KL of a latent, so that training has nothing to gain from an unused one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pyrodgm.distributions.factors import dimension_kl, kl_or_draw
from pyrodgm.traces import mask_of

__all__ = ["FreeBits"]


class FreeBits(nn.Module):
    r"""The KL of a latent site with each group of dimensions counted as at least ``nats``.

    .. math:: \sum_j \max\bigl(\lambda, \; \tfrac1B \sum_b KL(q(z_{bj} \mid x_b) \,\|\, p(z_{bj})) \bigr)

    Args:
        nats: lambda, for each group.
        group: dimensions in a group, in the order of the flattened latent: 1 gives each dimension its
            own floor, None makes the whole site one group (as any prior and guide allow).
    Raises: ValueError for nats < 0 or group < 1.
    Source: Kingma et al. (2016), arXiv:1606.04934, eq. 15.
    Example:
        >>> import torch
        >>> from pyrodgm.latent import VAE
        >>> from pyrodgm.objectives import ELBO
        >>> objective = ELBO(free_bits=FreeBits(0.25))
        >>> objective.loss(VAE.mlp(features=6, latent=2, hidden=[8]), torch.ones(4, 6)).shape
        torch.Size([])
    """

    def __init__(self, nats: float, group: int | None = 1) -> None:
        super().__init__()
        if not (nats >= 0 and math.isfinite(nats)):
            raise ValueError(f"expected finite nats >= 0, got {nats}")
        if group is not None and group < 1:
            raise ValueError(f"expected group >= 1 dimensions, or None for the whole site, got {group}")
        self.nats, self.group = float(nats), group

    def forward(self, q_site: Any, p_site: Any, analytic: bool = True) -> Tensor:
        """The floored KL of a site summed over its rows and particles, ().

        Args:
            q_site, p_site: the site in the guide's and the program's trace, with one value.
            analytic: use the closed form where there is one.
        Raises: TypeError if groups are asked for and the dimensions are not independent.
        """
        kl = self._groups(q_site["fn"], p_site["fn"], q_site["value"], analytic)  # (*B, G)
        batch = kl.shape[:-1]
        kl, mask = kl.flatten(0, -2), mask_of(p_site)
        if mask is None:
            return len(kl) * kl.mean(0).clamp(min=self.nats).sum()
        seen = torch.as_tensor(mask, device=kl.device).expand(batch).reshape(-1, 1)  # rows that count
        rows = seen.sum()
        means = torch.where(seen, kl, 0.0).sum(0) / rows.clamp(min=1)
        return rows * means.clamp(min=self.nats).sum()

    def _groups(self, q: Any, p: Any, value: Tensor, analytic: bool) -> Tensor:
        if self.group is None:
            return kl_or_draw(q, p, value, analytic).unsqueeze(-1)
        kl = dimension_kl(q, p, value, analytic)
        kl = kl.expand(q.batch_shape + q.event_shape).flatten(len(q.batch_shape)) if q.event_shape else kl.unsqueeze(-1)
        if kl.shape[-1] % self.group:
            raise ValueError(f"expected a latent of a multiple of group={self.group} dimensions, got {kl.shape[-1]}")
        return kl.unflatten(-1, (-1, self.group)).sum(-1)
