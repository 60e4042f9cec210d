"""The KL of the latents taken apart: mutual information, total correlation, dimension-wise KL."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from pyrodgm.core import GenerativeModel, Latent
from pyrodgm.distributions.factors import factors
from pyrodgm.objectives.annealing import Schedule
from pyrodgm.objectives.base import Objective
from pyrodgm.objectives.elbo import ELBO
from pyrodgm.traces import check_reparameterised, refuse_masked, sample_sites, site_log_prob

__all__ = ["BetaTCVAE", "KLTerms", "log_aggregate"]


class KLTerms(NamedTuple):
    """Means over the rows, in nats; their sum is the one-sample estimate of the mean KL(q(z | x) || p(z)).

    Attributes:
        information: the mutual information, :math:`E \\log q(z \\mid x) - \\log q(z)`.
        correlation: the total correlation, :math:`E \\log q(z) - \\sum_d \\log q(z_d)`.
        dimensions: :math:`E \\sum_d \\log q(z_d) - \\log p(z)`, the dimension-wise KL where p factorises.
    """

    information: Tensor
    correlation: Tensor
    dimensions: Tensor


def log_aggregate(log_q: Tensor, n: int, stratified: bool = True) -> Tensor:
    r"""log q(z_i) for the aggregate posterior :math:`q(z) = \frac1n \sum_j q(z \mid x_j)` from a batch of its rows.

    Weighted sampling (biased): :math:`\frac1{nB} \sum_j q(z_i \mid x_j)`.
    Stratified: :math:`\frac1n q(z_i \mid x_i) + \frac{n - 1}{n (B - 1)} \sum_{j \ne i} q(z_i \mid x_j)`, unbiased
    for q(z) and exact where the batch is the data set. The paper gives the other rows two different
    weights of that sum; equal ones have the same mean and less variance.

    Args:
        log_q: log q(z_i | x_j), (B, B) or (B, B, Z).
        n: size of the data set.
    Shapes: returns (B,) or (B, Z) in nats.
    Source: Chen et al. (2018), arXiv:1802.04942, appendix C.1 (weighted) and C.2, eq. S6 (stratified).
    Example:
        >>> log_aggregate(torch.zeros(3, 3), 10).abs().max() < 1e-6
        tensor(True)
    """
    rows = len(log_q)
    if not stratified:
        return log_q.logsumexp(1) - math.log(n * rows)
    own = torch.eye(rows, dtype=torch.bool, device=log_q.device)
    other = math.log(n - 1) - math.log(n) - math.log(rows - 1)
    weights = torch.where(own, log_q.new_full((), -math.log(n)), log_q.new_full((), other))
    return (log_q + weights.reshape(rows, rows, *[1] * (log_q.dim() - 2))).logsumexp(1)


class BetaTCVAE(Objective):
    r"""The bound with a weight on each part of its KL; beta on the total correlation disentangles.

    .. math:: \frac1B \sum_b -\log p(x_b \mid z_b) + \alpha \, I_q(x; z)
        + \beta \, KL\bigl(q(z) \,\|\, \textstyle\prod_d q(z_d)\bigr) + \gamma \, E \log \frac{\prod_d q(z_d)}{p(z)}

    The prior is any tractable one; the guide's dimensions have to be independent given x. With weights 1
    it is the ELBO of one sample, whatever the estimate of q(z). A batch of one row, the last of an epoch, tells nothing
    of q(z): its loss is the plain bound's.

    The held-out score is the plain bound.

    Args:
        beta: weight of the total correlation, a number or a schedule that anneals it; so the next two.
        alpha: weight of the mutual information.
        gamma: weight of the dimension-wise KL.
        stratified: estimate q(z) by stratified sampling, else by weighted sampling, see :func:`log_aggregate`.
    Raises: ValueError for a negative weight; TypeError from ``loss`` if the guide's dimensions are dependent, or not
        reparameterised, if a latent is masked, and under Pyro's validation if the guide draws a site given another.
    Source: Chen et al. (2018), arXiv:1802.04942, eq. 2 and 4.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> BetaTCVAE(6.0).loss(VAE.mlp(features=6, latent=2, hidden=[8]), torch.ones(4, 6), n=100).shape
        torch.Size([])
    """

    held_out_name = "negative bound"

    def __init__(
        self,
        beta: float | Schedule = 6.0,
        alpha: float | Schedule = 1.0,
        gamma: float | Schedule = 1.0,
        stratified: bool = True,
    ) -> None:
        super().__init__()
        if not all(isinstance(weight, Schedule) or weight >= 0 for weight in (beta, alpha, gamma)):
            raise ValueError(f"expected weights >= 0, got beta={beta}, alpha={alpha}, gamma={gamma}")
        self.beta, self.alpha, self.gamma = (w if isinstance(w, Schedule) else float(w) for w in (beta, alpha, gamma))
        self.stratified = stratified

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, Latent):
            raise TypeError(f"expected a Latent model (its latents have a prior), got {type(model).__name__}")

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        alpha, beta, gamma = self._weights()
        if len(x) < 2:  # the last batch of an epoch: one row tells nothing of q(z)
            return ELBO(analytic_kl=False).loss(model, x, context, n=n)
        likelihood, terms = self.terms(model, x, context, n=n)
        return alpha * terms.information + beta * terms.correlation + gamma * terms.dimensions - likelihood

    def _weights(self) -> list[float | Tensor]:
        """alpha, beta and gamma of this step, which a schedule counts once, however many weights it is."""
        given = (self.alpha, self.beta, self.gamma)
        now = {schedule: schedule() for schedule in {w for w in given if isinstance(w, Schedule)}}
        return [now[w] if isinstance(w, Schedule) else w for w in given]

    def terms(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> tuple[Tensor, KLTerms]:
        """The mean log p(x | z) and the parts of the KL, of one draw for each row."""
        rows = len(x)
        if rows < 2:
            raise ValueError(f"expected at least two rows to estimate q(z), got {rows}")
        guide_trace = poutine.trace(model.guide).get_trace(x, context)
        if torch.is_grad_enabled():
            check_reparameterised(guide_trace)
        program = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x, context)
        for trace in (guide_trace, program):
            refuse_masked(trace, type(self).__name__)
        guide_sites, sites = sample_sites(guide_trace), sample_sites(program)
        of_pairs = []  # [i, j] = log q(z_i | x_j), (B, B, Z)
        for site in guide_sites.values():
            z = site["value"].reshape(rows, 1, *site["fn"].event_shape)
            of_pairs.append(factors(site["fn"]).log_prob(z).reshape(rows, rows, -1))
        _refuse_dependent(model, guide_trace, x, context)
        pairs = torch.cat(of_pairs, -1)
        log_q = pairs.sum(-1).diagonal()  # (B,)
        joint = log_aggregate(pairs.sum(-1), n or rows, self.stratified)  # (B,)
        single = log_aggregate(pairs, n or rows, self.stratified).sum(-1)  # (B, Z) -> (B,)
        log_prior = torch.stack([site_log_prob(sites[name]) for name in guide_sites]).sum(0)
        observed = torch.stack([site_log_prob(site) for name, site in sites.items() if name not in guide_sites]).sum(0)
        return observed.mean(), KLTerms((log_q - joint).mean(), (joint - single).mean(), (single - log_prior).mean())

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        return ELBO().held_out(model, x, context, n=n)


def _refuse_dependent(model: GenerativeModel, guide_trace: Any, x: Tensor, context: Tensor | None) -> None:
    """Under Pyro's validation, see that no site of the guide reads another: q(z_i | x_j) would be at the wrong one.

    Raises: TypeError if, with the rows of all draws turned round, a site's density is another.
    """
    sites = sample_sites(guide_trace)
    if len(sites) < 2 or not is_validation_enabled():
        return
    with torch.no_grad(), poutine.block():
        turned = guide_trace.copy()
        for name, site in sites.items():
            turned.nodes[name] = {**site, "value": site["value"].roll(1, 0)}
        again: Any = poutine.trace(poutine.replay(model.guide, trace=turned)).get_trace(x, context)
        for name, site in sites.items():
            first, second = (s["fn"].log_prob(site["value"]) for s in (site, again.nodes[name]))
            if not torch.allclose(first, second, rtol=1e-3, atol=1e-3):
                raise TypeError(
                    f"expected a guide whose sites are independent given x, got {name!r} that reads another (or noise "
                    "of its own); use ELBO, or a guide that draws them all off x"
                )
