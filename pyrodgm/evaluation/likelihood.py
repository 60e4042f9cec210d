"""Held-out log-likelihood of any model by one call, with its standard error and the kind of number it is."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrodgm.core import Energy, GenerativeModel, Latent, Tractable, evaluating

__all__ = ["LogLikelihood", "log_likelihood"]


class LogLikelihood(NamedTuple):
    """Mean log-likelihood of rows in nats per datum.

    Attributes:
        value: the mean, or nan where a model has no density.
        standard_error: of the mean over rows (and of log Z, where that is estimated).
        kind: "exact", "bound" (a lower bound, in expectation), "AIS estimate", or "none".
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
    **partition: Any,
) -> LogLikelihood:
    r"""Mean log p(x | context) of held-out rows.

    Exact for tractable models; for latent ones the importance-weighted bound
    :math:`\log \frac1K \sum_k p(x, z_k) / q(z_k \mid x)` with K = ``particles``; for energy models
    -E(x) - log Z, with log Z by enumeration where the model can and by AIS otherwise.

    Args:
        x: (B, *event).
        context: (B, C).
        particles: K for latent models.
        batch_size: rows at once; particles are split too, so memory stays bounded.
        **partition: options of the energy model's ``log_partition``, such as ``chains=1000``.
    Source: Burda et al. (2016), arXiv:1509.00519; Salakhutdinov and Murray (2008).
    Example:
        >>> from pyrodgm.tractable import StandardNormal
        >>> log_likelihood(StandardNormal(1), torch.zeros(10, 1)).kind
        'exact'
    """
    if len(x) == 0:
        raise ValueError("expected at least one row, got none")
    x = x.to(model.device)
    context = None if context is None else context.to(model.device)
    if isinstance(model, Tractable):
        rows = _rows(model.log_prob, model, x, context, batch_size)
        return LogLikelihood(*_mean(rows), "exact")
    if isinstance(model, Latent):
        chunk = max(1, min(particles, 50))

        def bound(part: Tensor, part_context: Tensor | None) -> Tensor:
            sizes = [min(chunk, particles - i) for i in range(0, particles, chunk)]
            parts = [model.log_weights(part, part_context, particles=k).logsumexp(0) for k in sizes]
            return torch.stack(parts).logsumexp(0) - math.log(particles)  # (B,)

        return LogLikelihood(*_mean(_rows(bound, model, x, context, batch_size)), "bound")
    if isinstance(model, Energy):
        return _energy_likelihood(model, x, context, batch_size, partition)
    return LogLikelihood(math.nan, math.nan, "none")


def _energy_likelihood(
    model: Energy, x: Tensor, context: Tensor | None, batch_size: int, partition: dict[str, Any]
) -> LogLikelihood:
    if context is not None:
        raise ValueError(
            "expected no context: each context has a log Z of its own; score rows of one context at a time"
        )
    try:
        log_z, error = model.log_partition("exact")
        kind = "exact"
    except ValueError:
        log_z, error = model.log_partition("ais", **partition)
        kind = "AIS estimate"
    value, spread = _mean(-_rows(model.energy, model, x, None, batch_size).double() - log_z.double())
    return LogLikelihood(value, math.hypot(spread, float(error)), kind)


def _rows(score: Any, model: GenerativeModel, x: Tensor, context: Tensor | None, batch_size: int) -> Tensor:
    """score over all rows, in batches, in eval mode: (B,)."""
    with evaluating(model):
        return torch.cat(
            [
                score(x[i : i + batch_size], None if context is None else context[i : i + batch_size])
                for i in range(0, len(x), batch_size)
            ]
        )


def _mean(rows: Tensor) -> tuple[float, float]:
    rows = rows.double()
    error = rows.std().item() / math.sqrt(len(rows)) if len(rows) > 1 else math.nan
    return rows.mean().item(), error
