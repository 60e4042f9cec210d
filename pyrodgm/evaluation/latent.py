"""How a latent model uses its latents: active units, information, KL by dimension, distance to the prior."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyrodgm.core import Latent, evaluating
from pyrodgm.distributions.factors import dimension_kl, kl_or_draw
from pyrodgm.evaluation.likelihood import given_rows
from pyrodgm.evaluation.two_sample import mmd
from pyrodgm.traces import latent_rows, sample_sites

__all__ = [
    "ActiveUnits",
    "LatentUse",
    "active_units",
    "aggregate_distance",
    "kl_per_dimension",
    "latent_use",
    "mutual_information",
]

_PAIRS_AT_ONCE = 2**20  # log q(z_i | x_j) that are computed together


class ActiveUnits(NamedTuple):
    """Variances over the data of the posterior means.

    Attributes:
        variances: :math:`Var_x E_q[z_d \\mid x]` of each latent dimension, (Z,).
        active: number of those above the threshold.
    """

    variances: Tensor
    active: int


class LatentUse(NamedTuple):
    """What :func:`latent_use` measures, in nats where it is not a count.

    Attributes:
        active: number of active units.
        units: number of latent dimensions Z.
        kl: mean of KL(q(z | x) || p(z)) over the rows.
        information: mutual information of x and z under q, at most log of the rows measured.
        distance: squared MMD of the aggregate posterior to the prior.
    """

    active: int
    units: int
    kl: float
    information: float
    distance: float

    @property
    def collapsed(self) -> bool:
        """No active unit, or less than 0.05 nats about x in all of z: then samples of z say nothing of x."""
        return self.active == 0 or self.information < 0.05


def active_units(
    model: Latent,
    x: Tensor,
    context: Tensor | None = None,
    *,
    threshold: float = 0.01,
    particles: int = 100,
    batch_size: int = 500,
) -> ActiveUnits:
    r"""Latent dimensions whose posterior mean varies with x: :math:`Var_x E_{q(z \mid x)}[z_d] > 0.01`.

    Where q has no mean in closed form, it is the mean of ``particles`` draws, whose own variance is taken off.

    Args:
        model: any latent model with continuous latents.
        x, context: rows, (B, *event) and (B, C), at least two.
        threshold: least variance of an active unit.
        particles: draws for each row.
        batch_size: rows at once.
    Raises: ValueError for fewer than two rows.
    Source: Burda et al. (2016), arXiv:1509.00519, section 5.2.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> active_units(VAE.mlp(features=6, latent=3, hidden=[8]), torch.rand(20, 6).round()).variances.shape
        torch.Size([3])
    """
    if len(x) < 2:
        raise ValueError(f"expected at least two rows, got {len(x)}")
    means, noise = [], []
    with evaluating(model):
        for part, part_context in _batches(model, x, context, batch_size):
            mean, variance = _posterior_mean(model, part, part_context, particles)
            means.append(mean)
            noise.append(variance)
    variances = torch.cat(means).double().var(0) - torch.cat(noise).double().mean(0)
    return ActiveUnits(variances, int((variances > threshold).sum()))


def kl_per_dimension(
    model: Latent, x: Tensor, context: Tensor | None = None, *, particles: int = 10, batch_size: int = 500
) -> Tensor:
    r"""Mean over the rows of :math:`KL(q(z_d \mid x) \,\|\, p(z_d))`, in closed form where there is one.

    Args:
        model: its prior and guide have independent dimensions.
        x, context: rows, (B, *event) and (B, C).
        particles: draws for each row where there is no closed form.
        batch_size: rows at once.
    Shapes: returns (Z,) in nats.
    Raises: TypeError if the dimensions of prior or guide are dependent: then only their sum is defined.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> kl_per_dimension(VAE.mlp(features=6, latent=3, hidden=[8]), torch.ones(4, 6)).shape
        torch.Size([3])
    """
    total: Any = 0.0
    with evaluating(model):
        for part, part_context in _batches(model, x, context, batch_size):
            kls = [_dimensions(*pair) for pair in _site_pairs(model, part, part_context, particles)]
            total = total + torch.cat([kl.reshape(-1, len(part), kl.shape[-1]).mean(0) for kl in kls], -1).sum(0)
    return total / len(x)


def mutual_information(model: Latent, x: Tensor, context: Tensor | None = None, *, batch_size: int = 500) -> float:
    r"""Information of z about which row x is, :math:`I_q = E \log q(z \mid x) - \log \frac1B \sum_j q(z \mid x_j)`.

    It is the exact quantity of the rows given, by one draw of z for each, and at most log B, in nats; the mean KL
    to the prior is I_q plus KL(q(z) || p(z)).

    Args:
        model: its guide has one latent site with a density.
        x, context: rows, (B, *event) and (B, C).
        batch_size: rows at once.
    Source: Hoffman and Johnson (2016), ELBO surgery, eq. 2-3; Dieng et al. (2019), arXiv:1807.04863, section 2.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> abs(mutual_information(VAE.mlp(features=6, latent=2, hidden=[8]), torch.ones(20, 6))) < 1e-6  # equal rows
        True
    """
    log_ratio = []
    with evaluating(model):
        parts = list(_batches(model, x, context, batch_size))
        posteriors = [model.posterior(part, part_context) for part, part_context in parts]
        for q in posteriors:
            z = q.sample()
            own = q.log_prob(z)
            step = max(1, _PAIRS_AT_ONCE // batch_size)
            for z_part, own_part in zip(z.split(step), own.split(step), strict=True):
                pairs = [other.log_prob(z_part.unsqueeze(1)).logsumexp(1) for other in posteriors]
                log_ratio.append(own_part - torch.stack(pairs).logsumexp(0) + math.log(len(x)))
    # rounding of the logarithms alone makes it negative; in this order nan stays nan
    return max(torch.cat(log_ratio).double().mean().item(), 0.0)


def aggregate_distance(
    model: Latent, x: Tensor, context: Tensor | None = None, *, bandwidth: float | None = None, batch_size: int = 500
) -> float:
    r"""Squared MMD between one draw of q(z | x) for each row and as many draws of the prior, unbiased.

    Args:
        model: any latent model.
        x, context: rows, (B, *event) and (B, C), at least two.
        bandwidth: of the Gaussian kernel, see :func:`pyrodgm.evaluation.mmd`.
        batch_size: rows at once.
    Source: Zhao et al. (2017), arXiv:1706.02262, section 3.2.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> aggregate_distance(VAE.mlp(features=6, latent=2, hidden=[8]), torch.ones(20, 6)) < 1.0
        True
    """
    drawn: dict[str, list[Tensor]] = {"guide": [], "prior": []}
    with evaluating(model), poutine.block():
        for part, part_context in _batches(model, x, context, batch_size):
            # the program on given rows draws its latents from the prior and need not sample x
            for name, program in (("guide", model.guide), ("prior", model)):
                drawn[name].append(latent_rows(poutine.trace(program).get_trace(part, part_context), len(part)))
    return mmd(torch.cat(drawn["guide"]), torch.cat(drawn["prior"]), bandwidth).item()


def latent_use(model: Latent, x: Tensor, context: Tensor | None = None, *, batch_size: int = 500) -> LatentUse:
    """Active units, KL, information and the distance to the prior of one model on the same rows.

    Args:
        model: any latent model with one latent site.
        x, context: rows, (B, *event) and (B, C), at least two.
        batch_size: rows at once.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> latent_use(VAE.mlp(features=6, latent=3, hidden=[8]), torch.rand(20, 6).round()).units
        3
    """
    units = active_units(model, x, context, batch_size=batch_size)
    kl = 0.0
    with evaluating(model):
        for part, part_context in _batches(model, x, context, batch_size):
            pairs = _site_pairs(model, part, part_context, 10)
            kl += sum(_whole(*pair).reshape(-1, len(part)).mean(0).double().sum().item() for pair in pairs)
    information = mutual_information(model, x, context, batch_size=batch_size)
    distance = aggregate_distance(model, x, context, batch_size=batch_size)
    return LatentUse(units.active, len(units.variances), kl / len(x), information, distance)


def _batches(
    model: Latent, x: Tensor, context: Tensor | None, batch_size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows and contexts on the model's device, in its floating type."""
    x, context = given_rows(model, x, context)
    for i in range(0, len(x), batch_size):
        yield x[i : i + batch_size], None if context is None else context[i : i + batch_size]


def _posterior_mean(model: Latent, x: Tensor, context: Tensor | None, particles: int) -> tuple[Tensor, Tensor]:
    """E[z | x] and the variance of its estimate, (B, Z) each."""
    with poutine.block():
        sites = list(sample_sites(poutine.trace(model.guide).get_trace(x, context)).values())
        if len(sites) == 1:  # the mean of a site does not hang on other draws
            try:
                mean = sites[0]["fn"].mean
            except NotImplementedError:
                pass  # a flow's mean has no closed form: it is estimated below
            else:
                mean = mean.expand(len(x), *mean.shape[1:]).reshape(len(x), -1)
                return mean, torch.zeros_like(mean)
        draws = sample_sites(model.particle_trace(model.guide, max(2, particles), x, context)).values()
    own = [s["value"] for s in draws if not s["infer"].get("is_auxiliary")]
    z = torch.cat([value.reshape(max(2, particles), len(x), -1) for value in own], -1)  # (K, B, Z)
    return z.mean(0), z.var(0) / len(z)


def _site_pairs(model: Latent, x: Tensor, context: Tensor | None, particles: int) -> list[tuple[Any, Any, bool]]:
    """The latent sites in the guide's trace and, with the same values, in the program's; whether a closed KL is right.

    It is not where the guide draws them in another order: a parent of a site would hang on the site itself.
    """
    with poutine.block():
        drawn = model.particle_trace(model.guide, particles, x, context)
        program = model.particle_trace(poutine.replay(model, trace=drawn), particles, x, context)
    sites = sample_sites(drawn)
    hidden = [name for name, site in sites.items() if site["infer"].get("is_auxiliary")]
    if hidden:
        raise TypeError(
            f"expected a guide with a density at each latent site, got {type(model.guide).__name__}, whose density is "
            f"at {', '.join(hidden)}; use an Amortized or MeanField guide, or measure the whole bound"
        )
    names = [name for name in sites if name in program.nodes]
    ordered = names == [name for name in program.nodes if name in sites]
    return [(sites[name], program.nodes[name], ordered) for name in names]


def _dimensions(q: Any, p: Any, analytic: bool) -> Tensor:
    """KL of each dimension of a site, (*B, Z)."""
    kl = dimension_kl(q["fn"], p["fn"], q["value"], analytic)
    shape = q["fn"].batch_shape
    return kl.expand(shape + q["fn"].event_shape).reshape(*shape, -1)


def _whole(q: Any, p: Any, analytic: bool) -> Tensor:
    """KL of a site, (*B,)."""
    return kl_or_draw(q["fn"], p["fn"], q["value"], analytic).expand(q["fn"].batch_shape)
