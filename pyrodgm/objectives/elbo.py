"""The evidence lower bound of any Pyro program and guide, and Pyro's own ELBO objects as objectives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from pyrodgm.core import GenerativeModel, sample_sites
from pyrodgm.objectives.base import Objective

__all__ = ["ELBO", "PyroObjective"]


class ELBO(Objective):
    r"""The negative evidence lower bound of the model's program and guide.

    .. math:: -\frac1n \; \mathbb E_{q(z \mid x)} [ \log p(x, z) - \log q(z \mid x) ]

    in nats per datum, where plates scale local sites from the B rows to the n that they stand
    for, and a latent outside the data plate counts once. It equals ``pyro.infer.Trace_ELBO``
    (``TraceMeanField_ELBO`` with analytic KL) divided by n, and it never waits for the device, so
    it can be traced and compiled. A guide with a site that is not reparameterised goes to Pyro's
    own Trace_ELBO with its score-function terms.

    Args:
        particles: samples of the guide for each row.
        analytic_kl: use the closed form of KL(q || p) for every site pair that has one.
    Source: Kingma and Welling (2014), arXiv:1312.6114, eq. 3 and 7.
    Example:
        >>> import torch
        >>> from pyrodgm.latent import VAE
        >>> ELBO().loss(VAE.mlp(features=6, latent=2, hidden=[8]), torch.ones(4, 6)).shape
        torch.Size([])
    """

    held_out_name = "negative bound"

    def __init__(self, particles: int = 1, analytic_kl: bool = True) -> None:
        super().__init__()
        if particles < 1:
            raise ValueError(f"expected particles >= 1, got {particles}")
        self.particles, self.analytic_kl = particles, analytic_kl

    def check(self, model: GenerativeModel) -> None:
        if model.family not in ("latent", "tractable"):
            raise TypeError(
                f"expected a model with a normalised joint density, got the {model.family} model "
                f"{type(model).__name__}; an ELBO of it is no bound on anything"
            )

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        rows = len(x) if n is None else n
        guide_trace = self._trace(model.guide, x, context, n)
        latents = sample_sites(guide_trace)
        if not all(site["fn"].has_rsample for site in latents.values()):
            return self._score_function(model, x, context, n) / rows
        model_trace = self._trace(poutine.replay(model, trace=guide_trace), x, context, n)
        sums: dict[Any, Any] = {}  # of the sites under one plate scale
        for name, site in sample_sites(model_trace).items():
            sums[site["scale"]] = sums.get(site["scale"], 0.0) + self._term(site, latents.get(name))
        for name, site in latents.items():
            if name not in model_trace.nodes:  # an auxiliary site of the guide that the program does not have
                sums[site["scale"]] = sums.get(site["scale"], 0.0) - _total(site, _log_prob(site))
        total: Any = 0.0
        for scale, value in sums.items():
            total = total + value * (-scale / (rows * self.particles))
        return total

    def _term(self, site: Any, guide_site: Any) -> Tensor:
        """A site's share of the bound: its log-probability, or -KL(q || p) for a latent."""
        if guide_site is None:
            return _total(site, _log_prob(site))
        if self.analytic_kl and site["mask"] is None:
            try:
                return -kl_divergence(guide_site["fn"], site["fn"]).sum()
            except NotImplementedError:
                pass  # no closed form for this pair: take the sample's
        return _total(site, _log_prob(site)) - _total(guide_site, _log_prob(guide_site))

    def _trace(self, program: Callable[..., Any], x: Tensor, context: Tensor | None, n: int | None) -> Any:
        particles = pyro.plate("particles", self.particles, dim=-2) if self.particles > 1 else nullcontext()
        with poutine.trace() as handler, particles:
            program(x, context, n=n)
        return handler.trace

    def _score_function(self, model: GenerativeModel, x: Tensor, context: Tensor | None, n: int | None) -> Tensor:
        elbo = Trace_ELBO(num_particles=self.particles, vectorize_particles=self.particles > 1, max_plate_nesting=1)
        return elbo.differentiable_loss(model, model.guide, x, context, n=n)


def _log_prob(site: Any) -> Tensor:
    return site["fn"].log_prob(site["value"])


def _total(site: Any, term: Tensor) -> Tensor:
    return term.sum() if site["mask"] is None else (term * site["mask"]).sum()


class PyroObjective(Objective):
    """Any Pyro ELBO object as an objective: its differentiable loss divided by the rows.

    Args:
        elbo: such as ``TraceMeanField_ELBO()`` or ``TraceEnum_ELBO(max_plate_nesting=1)``.
    Raises: TypeError if the object has no ``differentiable_loss`` (RenyiELBO, TraceGraph_ELBO and
        ReweightedWakeSleep have none).
    Example:
        >>> import torch
        >>> from pyro.infer import TraceMeanField_ELBO
        >>> from pyrodgm.latent import VAE
        >>> vae = VAE.mlp(features=6, latent=2, hidden=[8])
        >>> PyroObjective(TraceMeanField_ELBO()).loss(vae, torch.ones(4, 6)).shape
        torch.Size([])
    """

    held_out_name = "negative bound"

    def __init__(self, elbo: Any) -> None:
        super().__init__()
        if not hasattr(elbo, "differentiable_loss"):
            raise TypeError(
                f"expected a Pyro ELBO with differentiable_loss, got {type(elbo).__name__}; "
                "for importance-weighted bounds use pyrodgm.objectives.ImportanceWeighted"
            )
        self.elbo = elbo

    def check(self, model: GenerativeModel) -> None:
        ELBO().check(model)

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        return self.elbo.differentiable_loss(model, model.guide, x, context, n=n) / (len(x) if n is None else n)
