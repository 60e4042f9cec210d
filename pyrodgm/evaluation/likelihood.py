"""Held-out log-likelihood of any model by one call, with its standard error and the kind of number it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor
from tqdm import trange

from pyrodgm.core import Energy, GenerativeModel, Latent, Tractable, evaluating
from pyrodgm.evaluation.pareto import pareto_k
from pyrodgm.traces import is_unnormalised, sample_sites

__all__ = [
    "ImportanceEstimate",
    "LogLikelihood",
    "given_rows",
    "importance_estimate",
    "log_likelihood",
    "weights_in_parts",
]

_ELEMENTS_AT_ONCE = 2**22  # numbers, particles times rows times those of a row, that one pass of a latent model makes
_ELEMENTS_OF_A_ROW = 512  # at least: however few numbers the event has, a hidden layer makes some hundreds of them
_EXACT = ("exact", "grid")  # methods of a log Z whose error is none, or of a quadrature


class LogLikelihood(NamedTuple):
    """Mean log-likelihood of rows in nats per datum.

    Attributes:
        value: the mean, or nan where a model has no density.
        standard_error: of the mean over rows (and of log Z, where that is estimated).
        kind: "exact", "bound" (a lower bound, in expectation), "AIS estimate" or "importance estimate" (of log Z), or
            "none": the model can only be sampled, or a site of its program lacks its normaliser (an energy prior).
    """

    value: float
    standard_error: float
    kind: str


def log_likelihood(
    model: GenerativeModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    particles: int = 500,
    batch_size: int = 500,
    progress: bool = False,
    **partition: Any,
) -> LogLikelihood:
    r"""Mean log p(x | context) of held-out rows.

    Exact for tractable models; for latent ones the importance-weighted bound
    :math:`\log \frac1K \sum_k p(x, z_k) / q(z_k \mid x)` with K = ``particles``; for energy models
    -E(x) - log Z, with log Z by enumeration or quadrature where the model can and by AIS otherwise, once for each
    distinct context.

    Args:
        x: (B, *event).
        context: (B, C).
        particles: K for latent models.
        batch_size: rows at once; particles are split too, so memory stays bounded.
        progress: show a bar over the rows.
        **partition: options of the energy model's ``log_partition``, such as ``chains=1000``, and its ``method``.
    Raises: ValueError for no row, a wrong shape or a count below 1; TypeError for what is no tensor of the model's
        type, or options of a partition beside another model.
    Source: Burda et al. (2016), arXiv:1509.00519; Salakhutdinov and Murray (2008).
    Example:
        >>> from pyrodgm.tractable import StandardNormal
        >>> log_likelihood(StandardNormal(1), torch.zeros(10, 1)).kind
        'exact'
    """
    for name, count in (("particles", particles), ("batch_size", batch_size)):
        if count < 1:
            raise ValueError(f"expected {name} >= 1, got {count}")
    if partition and not isinstance(model, Energy):
        raise TypeError(f"expected {', '.join(partition)} for an energy model alone, got a {type(model).__name__}")
    x, context = given_rows(model, x, context)
    if isinstance(model, Tractable):
        rows = _rows(model.log_prob, model, x, context, batch_size, progress)
        return LogLikelihood(*_mean(rows), "exact")
    if isinstance(model, Latent):
        if unnormalised_site(model, x, context) is not None:
            return LogLikelihood(math.nan, math.nan, "none")

        def bound(part: Tensor, part_context: Tensor | None) -> Tensor:
            parts = [w.logsumexp(0) for w in weights_in_parts(model, part, part_context, particles)]
            return torch.stack(parts).logsumexp(0) - math.log(particles)  # (B,)

        return LogLikelihood(*_mean(_rows(bound, model, x, context, batch_size, progress)), "bound")
    if isinstance(model, Energy):
        return _energy_likelihood(model, x, context, batch_size, progress, partition)
    return LogLikelihood(math.nan, math.nan, "none")


def given_rows(model: GenerativeModel, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x (B, *event) and its context (B, C) as the model computes with them, on its device.

    Raises: ValueError for no row, or another shape; TypeError for what is no tensor of the model's type.
    """
    x, context = model.check(x, context)
    if x.dim() != 1 + len(model.event_shape) or len(x) == 0:
        event = ", ".join(map(str, model.event_shape))
        raise ValueError(f"expected at least one row, x of shape (rows, {event}), got {tuple(x.shape)}")
    if context is not None and tuple(context.shape) != (len(x), model.context):
        raise ValueError(f"expected context of shape ({len(x)}, {model.context}), got {tuple(context.shape)}")
    return x.to(model.device), None if context is None else context.to(model.device)


class ImportanceEstimate(NamedTuple):
    """Held-out likelihood of a latent model with how far its importance sampling can be trusted.

    Attributes:
        value: mean over the rows of the importance-weighted bound, in nats per datum.
        standard_error: of the mean over rows.
        sampling_error: of the mean by the particles alone, with these rows; the bound also lies below log p(x)
            by about half a row's relative variance of the mean weight.
        rows: the bound of each row, (B,).
        khat: Pareto shape of each row's weights, (B,): above :func:`khat_threshold` the row's estimate is not reliable.
        effective: effective number of particles of each row, (B,).
    """

    value: float
    standard_error: float
    sampling_error: float
    rows: Tensor
    khat: Tensor
    effective: Tensor


def importance_estimate(
    model: Latent,
    x: Tensor,
    context: Tensor | None = None,
    *,
    particles: int = 5000,
    batch_size: int = 100,
    progress: bool = False,
) -> ImportanceEstimate:
    r"""log p(x | context) of a latent model by importance sampling, with the diagnosis of its weights.

    .. math:: \log \frac1K \sum_k w_k, \qquad ESS = \frac{(\sum_k w_k)^2}{\sum_k w_k^2}, \qquad
        \text{relative variance of the mean weight} \approx \frac{1}{ESS} - \frac1K

    Args:
        model: any latent model.
        x, context: rows, (B, *event) and (B, C).
        particles: K >= 25; they are drawn in parts, so memory holds K weights of ``batch_size`` rows.
        batch_size: rows at once.
        progress: show a bar over the rows.
    Raises: ValueError for no row or fewer than 25 particles, of which no tail can be fitted; TypeError for a program
        with a site that is known up to its normaliser, such as an energy prior.
    Source: Burda et al. (2016), arXiv:1509.00519, section 5; Vehtari et al. (2024), arXiv:1507.02646.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> found = importance_estimate(VAE.mlp(features=6, latent=2, hidden=[8]), torch.ones(4, 6), particles=100)
        >>> found.khat.shape, bool((found.effective <= 100).all())
        (torch.Size([4]), True)
    """
    if particles < 25:
        raise ValueError(f"expected at least 25 particles to judge the weights by, got {particles}")
    x, context = given_rows(model, x, context)
    site = unnormalised_site(model, x, context)
    if site is not None:
        raise TypeError(f"expected normalised sites, got {site!r} known up to its log Z; weights miss that constant")

    def figures(part: Tensor, part_context: Tensor | None) -> Tensor:
        weights = torch.cat(list(weights_in_parts(model, part, part_context, particles))).double()  # (K, B)
        total = weights.logsumexp(0)
        effective = (2 * total - (2 * weights).logsumexp(0)).exp()
        return torch.stack((total - math.log(particles), pareto_k(weights), effective), -1)

    rows, khat, effective = _rows(figures, model, x, context, batch_size, progress).unbind(-1)
    sampling = (1 / effective - 1 / particles).clamp(min=0).sum().sqrt().item() / len(rows)
    return ImportanceEstimate(*_mean(rows), sampling, rows, khat, effective)


def unnormalised_site(model: Latent, x: Tensor, context: Tensor | None) -> str | None:
    """The name of a site of the program whose density lacks its normaliser, if there is one, by one row of x."""
    with evaluating(model), torch.random.fork_rng([x.device] if x.is_cuda else []):
        row = model.check(x[:1], None if context is None else context[:1])  # no particles: not all programs broadcast
        guide = poutine.trace(model.guide).get_trace(*row)
        trace = poutine.trace(poutine.replay(model, trace=guide)).get_trace(*row)
    return next((name for name, site in sample_sites(trace).items() if is_unnormalised(site)), None)


def weights_in_parts(model: Latent, x: Tensor, context: Tensor | None, particles: int) -> Iterator[Tensor]:
    """log_weights (K, B) in parts of the particles that fit memory."""
    chunk = max(1, _ELEMENTS_AT_ONCE // max(1, x.numel(), _ELEMENTS_OF_A_ROW * len(x)))
    for i in range(0, particles, chunk):
        yield model.log_weights(x, context, particles=min(chunk, particles - i))


def _energy_likelihood(
    model: Energy, x: Tensor, context: Tensor | None, batch_size: int, progress: bool, partition: dict[str, Any]
) -> LogLikelihood:
    """-E(x) - log Z, with the log Z of every row's own context."""
    contexts: list[Tensor | None] = [None]
    index = torch.zeros(len(x), dtype=torch.long, device=x.device)
    if context is not None:
        distinct, index = context.unique(dim=0, return_inverse=True)
        contexts = list(distinct)
    with evaluating(model):
        found = [_log_partition(model, one, **partition) for one in contexts]
    log_zs, errors = (torch.stack([log_z[i].double() for log_z, _ in found]) for i in (0, 1))
    value, spread = _mean(-_rows(model.energy, model, x, context, batch_size, progress).double() - log_zs[index])
    share = torch.bincount(index, minlength=len(found)) / len(x)
    error = (share * errors).square().sum().sqrt().item()
    kind = next((kind for _, kind in found if kind != "exact"), "exact")
    return LogLikelihood(value, math.hypot(spread, error), kind)


def _log_partition(
    model: Energy, context: Tensor | None, method: str | None = None, **options: Any
) -> tuple[tuple[Tensor, Tensor], str]:
    """log Z of one context and its error, by the best method that the model has, and the kind of likelihood by it."""
    given = {} if context is None else {"context": context}
    if method is not None:
        estimate = "importance estimate" if method == "importance" else "AIS estimate"
        return model.log_partition(method, **given, **options), "exact" if method in _EXACT else estimate
    for known in _EXACT:
        with suppress(ValueError):  # too many units, or dimensions
            return model.log_partition(known, **given), "exact"
    return model.log_partition("ais", **given, **options), "AIS estimate"


def _rows(
    score: Any, model: GenerativeModel, x: Tensor, context: Tensor | None, batch_size: int, progress: bool = False
) -> Tensor:
    """score over all rows, in batches, in eval mode: (B,)."""
    with evaluating(model):
        return torch.cat(
            [
                score(x[i : i + batch_size], None if context is None else context[i : i + batch_size])
                for i in trange(0, len(x), batch_size, desc="batches of rows", disable=not progress)
            ]
        )


def _mean(rows: Tensor) -> tuple[float, float]:
    rows = rows.double()
    error = rows.std().item() / math.sqrt(len(rows)) if len(rows) > 1 else math.nan
    return rows.mean().item(), error
