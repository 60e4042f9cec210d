"""Importance-weighted and Renyi bounds."""

from __future__ import annotations

import math
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrodgm.core import GenerativeModel, Latent
from pyrodgm.distributions.log_sum import log_sum, that_count
from pyrodgm.guides.stopped import refuse_noise, stopped
from pyrodgm.objectives.base import Objective
from pyrodgm.traces import check_guide_sites, check_reparameterised, sample_sites

__all__ = ["ImportanceWeighted"]


class ImportanceWeighted(Objective):
    r"""The negative importance-weighted bound (alpha = 0) or Renyi bound of order alpha, row by row.

    .. math:: -\frac1B \sum_b \frac{1}{1 - \alpha} \log \frac1K \sum_k w_{bk}^{1 - \alpha},
        \qquad w_{bk} = \frac{p(x_b, z_{bk})}{q(z_{bk} \mid x_b)}

    The plate's scale stays outside the logarithm, so subsampling leaves it a bound.

    ``doubly`` takes the doubly reparameterised gradient (DReG), whose mean is the same and whose
    signal-to-noise ratio for the guide does not fall with K:

    .. math:: \nabla_\phi = \sum_k \bigl( \alpha \tilde w_k + (1 - \alpha) \tilde w_k^2 \bigr)
        \frac{\partial \log w_k}{\partial z_k} \frac{\partial z_k}{\partial \phi}, \qquad
        \tilde w_k = \frac{w_k^{1 - \alpha}}{\sum_j w_j^{1 - \alpha}}

    which is DReG at alpha = 0 and "sticking the landing" at alpha = 1; between them the same step (reparameterise
    the score term, equation 5 of the paper, with :math:`\partial \tilde w_k / \partial \log w_k =
    (1 - \alpha) \tilde w_k (1 - \tilde w_k)`) gives the mixture.

    Args:
        particles: K.
        alpha: order of the Renyi divergence; 0 is IWAE, 1 the ELBO.
        doubly: use the gradient above for the guide; its sites have to be reparameterised and a function of x.
    Raises: ValueError for particles < 1; from ``loss`` with gradients TypeError if a site of a guide that is trained
        has no rsample (of an :class:`~pyrodgm.latent.M2` the class, known or not), and under Pyro's validation
        ValueError if a doubly reparameterised guide has noise of its own, such as dropout.
    Source: Burda et al. (2016), arXiv:1509.00519, eq. 8; Li and Turner (2016), arXiv:1602.02311, eq. 13;
        Tucker et al. (2019), arXiv:1810.04152, eq. 5-8.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> ImportanceWeighted(5).loss(VAE.mlp(features=6, latent=2, hidden=[8]), torch.ones(4, 6)).shape
        torch.Size([])
    """

    held_out_name = "negative bound"

    def __init__(self, particles: int = 5, alpha: float = 0.0, doubly: bool = False) -> None:
        super().__init__()
        if particles < 1:
            raise ValueError(f"expected particles >= 1, got {particles}")
        self.particles, self.alpha, self.doubly = particles, float(alpha), doubly

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, Latent):
            raise TypeError(f"expected a Latent model (one with log_weights), got {type(model).__name__}")

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        latent = cast(Latent, model)
        if type(latent).log_weights is not Latent.log_weights and not self.doubly:  # a model that knows better ones
            return self._bound(latent.log_weights(x, context, particles=self.particles))
        x, context = latent.check_rows(x, context)
        drawn = latent.particle_trace(latent.guide, self.particles, x, context)
        if torch.is_grad_enabled():
            if self.doubly or any(p.requires_grad for p in latent.guide.parameters()):
                check_reparameterised(drawn)
            if self.doubly:
                return self._doubly(latent, drawn, x, context)
        return self._bound(latent.weigh(drawn, self.particles, x, context))

    def _bound(self, log_weights: Tensor) -> Tensor:
        if self.alpha == 1.0:
            return -log_weights.mean()
        power = 1.0 - self.alpha
        bound = (log_sum(power * log_weights, 0) - math.log(self.particles)) / power  # (K, B) -> (B,)
        return -bound.mean()

    def _doubly(self, model: Latent, drawn: Any, x: Tensor, context: Tensor | None) -> Tensor:
        """The bound's value, with the gradient of the class for the guide and the plain one for the model."""
        sites = sample_sites(drawn)
        draws = {name: site["value"] for name, site in sites.items()}
        factors = [name for name, site in sites.items() if isinstance(site["fn"], dist.Unit)]  # which draw nothing
        leaves = {name: z.detach().requires_grad_() for name, z in draws.items() if name not in factors}
        for name, z in leaves.items():
            sites[name]["value"] = z
        scored = model.particle_trace(poutine.replay(stopped(model.guide), trace=drawn), self.particles, x, context)
        refuse_noise(model.guide, drawn, scored, draws)
        if factors:  # their parameters (those of r in Hierarchical) are the bound's, as the model's are
            own = model.particle_trace(poutine.replay(model.guide, trace=drawn), self.particles, x, context)
            for name in factors:
                scored.nodes[name]["fn"] = own.nodes[name]["fn"]
        program = model.particle_trace(poutine.replay(model, trace=drawn), self.particles, x, context)
        check_guide_sites(drawn, program)
        log_weights = model.row_log_prob(program) - model.row_log_prob(scored)  # (K, B)
        log_share = that_count((1 - self.alpha) * log_weights.detach(), 0).log_softmax(0)
        factor = self.alpha * log_share.exp() + (1 - self.alpha) * that_count(2 * log_share, 0).exp()
        slopes = torch.autograd.grad((factor * log_weights).sum(), list(leaves.values()), retain_graph=True)
        loss = self._bound(log_weights)
        for (name, leaf), slope in zip(leaves.items(), slopes, strict=True):
            along = (slope * (draws[name] - leaf.detach())).sum()  # 0, with the gradient of the path
            loss = loss - along / len(x)
        return loss
