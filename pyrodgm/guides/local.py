"""A guide with variational parameters for each row, and the inner loop that fits them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn
from torch.distributions import biject_to

from pyrodgm.core import Latent, data_plate
from pyrodgm.distributions.factors import factors
from pyrodgm.guides.stopped import stopped
from pyrodgm.shapes import is_real
from pyrodgm.traces import mask_of, sample_sites

__all__ = ["Local", "refine"]

_DRAWS = 32  # from which a start is read where it has no moments in closed form


class Local(nn.Module):
    r"""Independent Gaussians on unconstrained space, with a mean and a scale for each row of one batch.

    .. math:: z_b = T(\mu_b + \sigma_b \epsilon_b), \qquad \epsilon_b \sim N(0, I)

    where T maps onto the support of the site. What a mask leaves out there has no weight
    here either.

    Args:
        model: whose latent sites, all in the data plate and continuous, it samples.
        x: the rows (B, *event).
        context: (B, C).
        from_guide: start at the moments of the model's guide, else at the prior's means with a tenth of its scales,
            which keeps the first steps quiet.
    Shapes: parameters (B, *event of the unconstrained site).
    Raises: TypeError for a discrete site; ValueError for a latent outside the data plate, and from ``forward`` for
        another number of rows; under Pyro's validation, also for a site that starts as a point.
    Source: Hoffman et al. (2013), arXiv:1206.7051, section 2.2.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> x = torch.ones(4, 6)
        >>> Local(VAE.mlp(features=6, latent=2, hidden=[8]), x)(x)["z"].shape
        torch.Size([4, 2])
    """

    def __init__(self, model: Latent, x: Tensor, context: Tensor | None = None, *, from_guide: bool = True) -> None:
        super().__init__()
        self.rows = len(x)
        self.supports: dict[str, Any] = {}
        self.masks: dict[str, Any] = {}
        self.loc, self.log_scale = nn.ParameterDict(), nn.ParameterDict()
        program = model.guide if from_guide else model
        with torch.no_grad():
            trace = model.particle_trace(program, _DRAWS, x, context)
            found = sample_sites(trace)
            sites = {k: s for k, s in found.items() if not s["is_observed"] and not s["infer"].get("is_auxiliary")}
            for name, site in sites.items():
                self._add(name, site, alone=len(sites) == 1, share=1.0 if from_guide else 0.1)

    def _add(self, name: str, site: Any, alone: bool, share: float) -> None:
        if not any(frame.name == "data" for frame in site["cond_indep_stack"]):
            raise ValueError(f"expected latents inside the data plate, got {name!r} outside; it belongs to no row")
        support = site["fn"].support
        if support.is_discrete:
            raise TypeError(f"expected continuous latents, got the discrete site {name!r}; use ReweightedWakeSleep")
        moments = _moments(site["fn"]) if alone else None
        if moments is None:
            draws = biject_to(support).inv(site["value"])  # (K, B, *event)
            draws = draws.expand(_DRAWS, self.rows, *draws.shape[2:])
            moments = draws.mean(0), draws.std(0)
        mean, scale = (m.expand(self.rows, *m.shape[1:]).clone() for m in moments)
        if is_validation_enabled() and not bool(((scale > 0) & mean.isfinite()).all()):
            raise ValueError(
                f"expected a site with some spread and finite moments, got {name!r} without; start at the prior by "
                "from_guide=False, or keep the model's own guide if it is a point"
            )
        self.supports[name] = support
        mask = mask_of(site)
        if mask is not None:
            mask = torch.as_tensor(mask, device=mean.device)
            self.masks[name] = mask[0] if mask.dim() > 1 else mask  # (K, B): particles of one site are alike
        self.loc[name], self.log_scale[name] = nn.Parameter(mean), nn.Parameter((share * scale).log())

    def condition(self, name: str) -> TorchDistribution:
        """The distribution of one site, batch shape (B,)."""
        loc, scale = self.loc[name], self.log_scale[name].exp()
        q = dist.Normal(loc, scale, validate_args=False).to_event(loc.dim() - 1)
        if is_real(self.supports[name]):
            return q
        return dist.TransformedDistribution(q, [biject_to(self.supports[name])])

    def forward(self, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> dict[str, Tensor]:
        if len(x) != self.rows:
            raise ValueError(f"expected the {self.rows} rows that the parameters belong to, got {len(x)}")
        with data_plate(x, context, n):
            return {name: self._sample(name) for name in self.supports}

    def _sample(self, name: str) -> Tensor:
        with poutine.mask(mask=self.masks[name]) if name in self.masks else nullcontext():
            return pyro.sample(name, self.condition(name))


def refine(
    model: Latent,
    x: Tensor,
    context: Tensor | None = None,
    *,
    steps: int = 50,
    lr: float = 0.1,
    particles: int = 1,
    from_guide: bool = True,
) -> Local:
    """Variational parameters of the rows at hand that maximise the bound of a model that stays as it is.

    Adam with a step size that falls to 0, and the gradient without the score term, whose noise vanishes where q is
    the posterior.

    Args:
        model: any latent model with continuous latents.
        x, context: the rows.
        steps: of Adam; 0 gives the start.
        lr: first step size.
        particles: draws for each row and step.
        from_guide: start at the model's guide, else at the prior, see :class:`Local`.
    Shapes: x (B, *event), context (B, C).
    Raises: ValueError for steps < 0 or particles < 1; see :class:`Local`.
    Source: Kim et al. (2018), arXiv:1802.02550, section 3; Krishnan et al. (2018), arXiv:1710.06085.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> vae, x = VAE.mlp(features=6, latent=2, hidden=[8]), torch.ones(4, 6)
        >>> refine(vae, x, steps=5).condition("z").batch_shape
        torch.Size([4])
    """
    if steps < 0 or particles < 1:
        raise ValueError(f"expected steps >= 0 and particles >= 1, got {steps} and {particles}")
    x, context = model.check(x, context)
    local = Local(model, x, context, from_guide=from_guide)
    parameters = list(local.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        with torch.enable_grad():
            loss = -_log_weights(model, local, x, context, particles).mean(0).sum()
        gradients = torch.autograd.grad(loss, parameters)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        optimizer.step()
    return local.requires_grad_(False)


def _log_weights(model: Latent, local: Local, x: Tensor, context: Tensor | None, particles: int) -> Tensor:
    drawn = model.particle_trace(local, particles, x, context)
    program = model.particle_trace(poutine.replay(model, trace=drawn), particles, x, context)
    scored = model.particle_trace(poutine.replay(stopped(local), trace=drawn), particles, x, context)
    return model.row_log_prob(program) - model.row_log_prob(scored)  # (K, B)


def _moments(fn: Any) -> tuple[Tensor, Tensor] | None:
    """Mean and scale (B, *event) of a Gaussian site with independent dimensions, None for another."""
    try:
        q = factors(fn)
    except TypeError:
        return None
    if not isinstance(q, torch.distributions.Normal):
        return None
    mean, scale = (m.expand(fn.batch_shape + fn.event_shape) for m in (q.mean, q.stddev))
    return mean[0], scale[0]  # (K, B, *event): particles of one site are alike
