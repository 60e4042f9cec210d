"""What is missing of incomplete rows: by a chain over a latent model's z, and by importance resampling of it."""

from __future__ import annotations

from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrodgm.core import Latent, evaluating
from pyrodgm.distributions.factors import factors
from pyrodgm.guides.program import Pushed
from pyrodgm.shapes import observed_part
from pyrodgm.traces import sample_sites, site_log_prob

__all__ = ["draw_missing", "resample_missing"]

_IMPUTED = 8  # rows whose guides make up the proposal


def draw_missing(model: Latent, x: Tensor, mask: Tensor, context: Tensor | None, steps: int) -> Tensor:
    """What :meth:`Latent.complete` returns, with the arguments and errors that it has."""
    x, context = model.check_rows(x, context)
    if steps < 0:
        raise ValueError(f"expected steps >= 0, got {steps}")
    with evaluating(model), poutine.block():
        drawn: Any = poutine.trace(model).get_trace(None, context, n=len(x)).nodes["x"]
        factors(drawn["fn"])  # what is observed must not tell of what is missing but by way of z
        observed = observed_part(x, mask)
        filled = torch.where(observed, x, drawn["value"])
        trace = poutine.trace(model.guide).get_trace(filled, context)
        for _ in range(steps):
            draw: Any = poutine.replay(model, trace=trace)(None, context, n=len(x))
            filled = torch.where(observed, x, draw)
            trace = _metropolis(model, trace, filled, context)
        return filled


def _metropolis(model: Latent, current: Any, x: Tensor, context: Tensor | None) -> Any:
    """One independence-Metropolis move of the latents, row by row, with q(z | x) as the proposal."""
    proposed = poutine.trace(model.guide).get_trace(x, context)
    old = poutine.trace(poutine.replay(model.guide, trace=current)).get_trace(x, context)
    weight = {
        key: model.row_log_prob(poutine.trace(poutine.replay(model, trace=q)).get_trace(x, context))
        - model.row_log_prob(q)
        for key, q in (("old", old), ("new", proposed))
    }
    accept = torch.rand_like(weight["new"]).log() < weight["new"] - weight["old"]  # (B,)
    for name, site in sample_sites(proposed).items():
        new, kept = site["value"], cast(Tensor, old.nodes[name]["value"])
        site["value"] = torch.where(accept.reshape(-1, *[1] * (new.dim() - 1)), new, kept)
    return proposed


def resample_missing(
    model: Latent, x: Tensor, mask: Tensor, context: Tensor | None = None, *, particles: int = 200, rounds: int = 4
) -> Tensor:
    r"""Draws from p(x_missing | x_observed): z by importance resampling, then x_missing from the likelihood.

    .. math:: w_k \propto \frac{p(x_o \mid z_k)\, p(z_k)}{m(z_k)}, \qquad
        m(z) = \frac1{J + 1} \Bigl( p(z) + \sum_{j=1}^J q(z \mid x_o, x_m^{(j)}) \Bigr)

    A guide reads whole rows. One filling-in would make it too sure of itself, so the proposal m mixes the guides of J
    = 8 of them, and the prior, which bounds the weights. The fillings-in are draws of the model at first; each round's
    are drawn from the z that it resamples, and the last round gives the answer. It is that of p(x_missing | x_observed)
    as K grows, whatever the guide and the rounds.

    Args:
        model: its likelihood has independent coordinates given z.
        x: (B, *event); what stands where mask is False does not matter.
        mask: True where x is observed, broadcast against x.
        context: (B, C).
        particles: K, shared out among the parts of m.
        rounds: of proposals.
    Shapes: returns (B, *event); the observed part is x itself.
    Raises: ValueError for fewer than 9 particles or no round; TypeError if the coordinates are dependent given z, or if
        the guide's density is a bound; and as ``Latent.complete`` for the mask.
    Source: Rubin (1988), Using the SIR algorithm; the mixture's weights: Veach and Guibas (1995), Cappe et al. (2004).
    Example:
        >>> from pyrodgm.latent import VAE
        >>> vae = VAE.mlp(features=6, latent=2, hidden=[8])
        >>> resample_missing(vae, torch.ones(3, 6), torch.arange(6) < 4, particles=20).shape
        torch.Size([3, 6])
    """
    if particles <= _IMPUTED or rounds < 1:
        raise ValueError(f"expected particles > {_IMPUTED} and rounds >= 1, got {particles} and {rounds}")
    x, context = model.check_rows(x, context)
    with evaluating(model), poutine.block():
        observed = observed_part(x, mask)
        filled = [torch.where(observed, x, model(None, context, n=len(x))) for _ in range(_IMPUTED)]
        for i in range(rounds):
            z, log_w = _weigh(model, filled, observed, context, particles)
            count = _IMPUTED if i + 1 < rounds else 1
            chosen = log_w.softmax(0).T.multinomial(count, replacement=True).T  # (K, B) -> (J, B)
            picked = {k: v[chosen, torch.arange(len(x), device=v.device)] for k, v in z.items()}
            program = poutine.replay(model, trace=_trace_of(picked))
            draws = model.particle_trace(program, count, None, context, len(x)).nodes["x"]["value"]  # (J, B, *event)
            filled = [torch.where(observed, x, draw) for draw in draws]
        return filled[0]


def _weigh(
    model: Latent, filled: list[Tensor], observed: Tensor, context: Tensor | None, particles: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Draws of the mixture and their log-weights: each site (K, B, ...), (K, B)."""
    rows = len(observed)
    share = -(-particles // (len(filled) + 1))
    drawn = [sample_sites(model.particle_trace(model.guide, share, x, context)) for x in filled]
    reverse = [name for name, site in drawn[0].items() if isinstance(site["fn"], dist.Unit)]
    if reverse:
        raise TypeError(
            f"expected a guide that knows its density, got {type(model.guide).__name__} with the factor {reverse[0]!r} "
            "that bounds it; give the model another guide"
        )
    # A value that was pushed through a transform follows from the draw that it came of.
    names = [name for name, site in drawn[0].items() if not isinstance(site["fn"], Pushed)]
    prior = sample_sites(model.particle_trace(model, share, None, context, rows))
    latents = {k for k, site in prior.items() if not site["is_observed"] and k != "x"}
    defensive = set(names) == latents  # else the guide cannot score what the prior draws
    parts = [*drawn, *[prior] * defensive]
    values = {k: torch.cat([_wide(p[k], share, rows) for p in parts]) for k in names}
    count = share * len(parts)
    scored = [model.particle_trace(_given(model.guide, values), count, x, context) for x in filled]
    z = {k: _wide(site, count, rows) for k, site in sample_sites(scored[0]).items()}
    program = sample_sites(model.particle_trace(_given(model, z), count, filled[0], context))
    log_prior = _log_prob({k: site for k, site in program.items() if k != "x"}, count, rows)
    log_parts = [_log_prob(sample_sites(trace), count, rows) for trace in scored] + [log_prior] * defensive
    log_mixture = torch.stack(log_parts).logsumexp(0)
    return z, log_prior + _seen(program["x"]["fn"], filled[0], observed) - log_mixture


def _seen(likelihood: Any, x: Tensor, observed: Tensor) -> Tensor:
    """log p(x_observed | z), (K, B)."""
    each = factors(likelihood).log_prob(x)  # (K, B, *event)
    return torch.where(observed, each, 0.0).flatten(2).sum(-1)


def _log_prob(sites: dict[str, Any], count: int, rows: int) -> Tensor:
    total: Any = 0.0
    for site in sites.values():
        total = total + site_log_prob(site)
    return total.expand(count, rows)


def _wide(site: Any, count: int, rows: int) -> Tensor:
    """A site's value with every particle and row in it, (K, B, *event)."""
    value = site["value"]
    event = value.shape[value.dim() - site["fn"].event_dim :]
    return value.expand(count, rows, *event)


def _given(program: Any, values: dict[str, Tensor]) -> Any:
    return poutine.replay(program, trace=_trace_of(values))


def _trace_of(values: dict[str, Tensor]) -> poutine.Trace:
    trace = poutine.Trace()
    for name, value in values.items():
        trace.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={}, fn=None)
    return trace
