"""The evidence lower bound of any Pyro program and guide, and Pyro's own ELBO objects as objectives."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import nullcontext
from functools import reduce
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import kl_divergence

from pyrodgm.core import GenerativeModel
from pyrodgm.guides.stopped import refuse_noise, stopped
from pyrodgm.objectives.annealing import Schedule
from pyrodgm.objectives.base import Objective
from pyrodgm.objectives.free_bits import FreeBits
from pyrodgm.traces import SiteRecord, check_guide_sites, refuse_auxiliary, sample_sites, site_log_prob

__all__ = ["ELBO", "PyroObjective"]


class ELBO(Objective):
    r"""The negative evidence lower bound of the model's program and guide.

    .. math:: -\frac1n \; \mathbb E_{q(z \mid x)} [ \log p(x, z) - \log q(z \mid x) ]

    in nats per datum, where plates scale local sites from the B rows to the n that they stand
    for, and a latent outside the data plate counts once. It equals ``pyro.infer.Trace_ELBO``
    (``TraceMeanField_ELBO`` with analytic KL) divided by n, and it never waits for the device, so
    it can be traced and compiled. A KL in closed form holds at the draws of a site's parents, so it
    is taken only where the guide draws the latents in the program's order; in another (bottom-up) each
    counts by its draw. A guide with a site that is not reparameterised goes to Pyro's own Trace_ELBO
    with its score-function terms.

    Three options change what is trained, and none the held-out score, which is the plain bound:
    ``beta`` weighs the latents' terms (a number, or a schedule that anneals it), ``free_bits`` puts a
    floor under the KL of each latent, and ``stl`` leaves the score of the guide out of the gradient.

    Args:
        particles: samples of the guide for each row.
        analytic_kl: use the closed form of KL(q || p) for every site pair that has one, see above.
        beta: weight of the latents' terms, >= 0.
        free_bits: floor for latents inside the data plate; it comes before beta.
        stl: "sticking the landing": the guide's density has a gradient by way of z only, whose
            variance goes to 0 as q comes to the posterior. It needs samples, so no KL is analytic.
    Raises: ValueError for particles < 1 or beta < 0, and from ``loss`` for a ``poutine.scale`` of one number a row;
        TypeError from ``loss`` if free bits or stl meet a guide that is not reparameterised, or free bits one that
        draws its sites packed together (FullCovariance, FlowGuide); under Pyro's validation ValueError if stl meets
        one with dropout.
    Source: Kingma and Welling (2014), arXiv:1312.6114, eq. 3 and 7; beta: Higgins et al. (2017), eq. 4;
        free bits: Kingma et al. (2016), arXiv:1606.04934, eq. 15; stl: Roeder et al. (2017), arXiv:1703.09194, eq. 8.
    Example:
        >>> import torch
        >>> from pyrodgm.latent import VAE
        >>> ELBO().loss(VAE.mlp(features=6, latent=2, hidden=[8]), torch.ones(4, 6)).shape
        torch.Size([])
    """

    held_out_name = "negative bound"

    def __init__(
        self,
        particles: int = 1,
        analytic_kl: bool = True,
        beta: float | Schedule = 1.0,
        free_bits: FreeBits | None = None,
        stl: bool = False,
    ) -> None:
        super().__init__()
        if particles < 1:
            raise ValueError(f"expected particles >= 1, got {particles}")
        if not isinstance(beta, Schedule) and not beta >= 0:
            raise ValueError(f"expected beta >= 0, got {beta}")
        self.particles, self.analytic_kl, self.stl = particles, analytic_kl and not stl, stl
        self.beta = beta if isinstance(beta, Schedule) else float(beta)
        if free_bits is not None and not isinstance(free_bits, FreeBits):
            raise TypeError(f"expected free_bits as FreeBits(nats), got {free_bits!r}; use FreeBits(0.25)")
        self.free_bits = free_bits

    def check(self, model: GenerativeModel) -> None:
        if model.family not in ("latent", "tractable"):
            raise TypeError(
                f"expected a model with a normalised joint density, got the {model.family} model "
                f"{type(model).__name__}; an ELBO of it is no bound on anything"
            )

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        rows = len(x) if n is None else n
        beta = self.beta() if isinstance(self.beta, Schedule) else self.beta
        guide_trace = self._trace(model.guide, x, context, n)
        latents = sample_sites(guide_trace)
        if not all(site["fn"].has_rsample for site in latents.values()):
            return self._score_function(model, x, context, n, beta) / rows
        model_trace = self._trace(model, x, context, n, guide_trace)
        check_guide_sites(guide_trace, model_trace)
        if self.free_bits is not None:
            refuse_auxiliary(guide_trace, "free bits")
        if self.stl:
            scored = self._trace(stopped(model.guide), x, context, n, guide_trace)
            refuse_noise(model.guide, guide_trace, scored, {k: site["value"] for k, site in latents.items()})
            # A factor's parameters (those of r in Hierarchical) are the bound's, not the draws': they keep a gradient.
            latents = {k: latents[k] if isinstance(s["fn"], dist.Unit) else s for k, s in sample_sites(scored).items()}
        # Else a site's parents in the program may hang on the site in the guide, and a KL at their draws is no term.
        analytic = self.analytic_kl and (
            len(latents) == 1
            or [k for k in model_trace.nodes if k in latents] == [k for k in latents if k in model_trace.nodes]
        )
        sums: dict[Any, list[Tensor]] = {}  # of the sites under one plate scale
        for name, site in sample_sites(model_trace).items():
            if isinstance(site["scale"], Tensor) and site["scale"].dim():
                raise ValueError(
                    f"expected one number as poutine.scale, got one of shape {tuple(site['scale'].shape)} at {name!r}; "
                    "use PyroObjective(Trace_ELBO())"
                )
            term = self._term(site, latents.get(name), analytic)
            sums.setdefault(site["scale"], []).append(_weighed(term, beta) if name in latents else term)
        for name, site in latents.items():
            if name not in model_trace.nodes:  # an auxiliary site of the guide that the program does not have
                sums.setdefault(site["scale"], []).append(-_weighed(site_log_prob(site).sum(), beta))
        parts = [_total(terms) * (-scale / (rows * self.particles)) for scale, terms in sums.items()]
        return _total(parts)

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        with torch.no_grad():
            return ELBO(self.particles, self.analytic_kl).loss(model, x, context, n=n)

    def _term(self, site: Any, guide_site: Any, analytic: bool) -> Tensor:
        """A site's share of the bound: its log-probability, or -KL(q || p) for a latent."""
        if guide_site is None:
            return site_log_prob(site).sum()
        if self.free_bits is not None and any(frame.name == "data" for frame in site["cond_indep_stack"]):
            return -self.free_bits(guide_site, site, analytic)
        # Of a point with a density (Pyro's autoguides push draws that way) Pyro's KL forgets the density.
        if analytic and site["mask"] is None and not isinstance(guide_site["fn"], dist.Delta):
            try:
                return -kl_divergence(guide_site["fn"], site["fn"]).sum()
            except NotImplementedError:
                pass  # no closed form for this pair: take the sample's
        return site_log_prob(site).sum() - site_log_prob(guide_site).sum()

    def _trace(
        self, program: Callable[..., Any], x: Tensor, context: Tensor | None, n: int | None, replayed: Any = None
    ) -> Any:
        particles = pyro.plate("particles", self.particles, dim=-2) if self.particles > 1 else nullcontext()
        again = nullcontext() if replayed is None else ReplayMessenger(trace=replayed)
        with SiteRecord() as record, particles, again:
            program(x, context, n=n)
        return record

    def _score_function(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None, n: int | None, beta: float | Tensor
    ) -> Tensor:
        if self.stl or self.free_bits is not None:
            raise TypeError(
                f"expected a reparameterised guide for stl and free bits, got {type(model.guide).__name__}, a site of "
                "which has no rsample; leave them out"
            )
        elbo = Trace_ELBO(num_particles=self.particles, vectorize_particles=self.particles > 1, max_plate_nesting=1)
        if isinstance(beta, float) and beta == 1.0:
            return elbo.differentiable_loss(model, model.guide, x, context, n=n)
        with _Tempered(beta):
            return elbo.differentiable_loss(model, model.guide, x, context, n=n)


def _weighed(term: Tensor, beta: float | Tensor) -> Tensor:
    return term if isinstance(beta, float) and beta == 1.0 else beta * term


def _total(terms: list[Tensor]) -> Any:
    """Their sum, without adding a 0: a step of a small model takes as long as a hundred such products and sums."""
    return reduce(operator.add, terms) if terms else 0.0


class _Tempered(Messenger):
    """Weighs the log-probabilities of latent sites by beta."""

    def __init__(self, beta: float | Tensor) -> None:
        super().__init__()
        self.weight = beta

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.weight


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
