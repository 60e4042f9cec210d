"""Energy models with a log Z: by enumeration or annealing, once for each context, and what is normalised by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrodgm.core import Energy
from pyrodgm.kernels.ais import annealed_importance_sampling
from pyrodgm.kernels.ais_reverse import reverse_annealed_importance_sampling

__all__ = ["Normalised", "estimate_log_partition", "log_partitions", "normalised_log_prob", "one_context", "seeded"]


def normalised_log_prob(model: Energy, x: Tensor, context: Tensor | None, method: str, **options: Any) -> Tensor:
    r""":math:`-E(x) - \log Z` in nats, one log Z for each distinct context.

    Args:
        model: its ``log_partition`` takes ``context=``, one vector.
        x: (*B, *event).
        context: (*B, C) or None.
        method, options: of ``log_partition``.
    Shapes: returns (*B,).
    Example:
        >>> from pyrodgm.energy import RBM
        >>> normalised_log_prob(RBM(4, 2), torch.ones(3, 4), None, "exact").shape
        torch.Size([3])
    """
    x, context = model.check(x, context)
    log_z = log_partitions(model, context, method, **options)
    # the energy is rounded to the model's dtype, the difference is not rounded again before it is small
    return (-model.energy(x, context).double() - log_z).to(x.dtype)


def log_partitions(model: Energy, context: Tensor | None, method: str, **options: Any) -> Tensor:
    """log Z of every row's context, each distinct one computed once: (*B, C) -> (*B,), or () without context.

    Example:
        >>> from pyrodgm.energy import RBM
        >>> log_partitions(RBM(4, 2, context=1), torch.ones(3, 1), "exact").shape
        torch.Size([3])
    """
    if context is None:
        return model.log_partition(method, **options)[0]
    flat = context.reshape(-1, model.context)
    if flat.requires_grad and torch.is_grad_enabled():  # unique has no gradient
        contexts, index = flat, torch.arange(len(flat), device=flat.device)
    else:
        contexts, index = flat.unique(dim=0, return_inverse=True)
    log_zs = [model.log_partition(method, context=one, **options)[0] for one in contexts]
    return torch.stack(log_zs)[index].reshape(context.shape[:-1])


def seeded(device: torch.device, seed: int | None) -> torch.Generator | None:
    """A generator with this seed, None (torch's own) without."""
    return None if seed is None else torch.Generator(device).manual_seed(seed)


def one_context(model: Energy, context: Tensor | None) -> Tensor | None:
    """The context of one log Z, (C,) or None.

    Raises: ValueError for several.
    """
    _, context = model.check(None, context)
    if context is not None and context.dim() > 1:
        raise ValueError(
            f"expected one context of shape ({model.context},), got {tuple(context.shape)}; "
            "every context has a log Z of its own, so ask for one at a time"
        )
    return context


def estimate_log_partition(
    method: str,
    exact: Callable[[], Tensor],
    path: Callable[[], Any],
    samples: Tensor | None,
    chains: int,
    temperatures: int | Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """log Z and its standard error in float64, by "exact", "ais" or "reverse": (), ().

    Args:
        exact: enumerates.
        path: from a law of known log Z to the model's, see :func:`pyrodgm.kernels.annealed_importance_sampling`.
        samples: of the model as the path has them, for "reverse".
    Raises: ValueError for another method, or for "reverse" without samples.
    """
    if method == "exact":
        log_z = exact()
        return log_z, torch.zeros_like(log_z)
    if method not in ("ais", "reverse"):
        raise ValueError(f'expected method "exact" or "ais" or "reverse", got {method!r}')
    if method == "ais":
        estimate = annealed_importance_sampling(path(), chains, temperatures, generator)
    elif samples is None:
        raise ValueError('expected samples= of the model for "reverse", got none; pass model.sample(1000)')
    else:
        estimate = reverse_annealed_importance_sampling(path(), samples.double(), temperatures, generator)
    return estimate.log_z, estimate.standard_error


class Normalised(Energy):
    """An energy model of units that are drawn by what its weights give, with a log Z by enumeration or annealing."""

    mixed_precision = False  # probabilities that a shorter type rounds would be drawn wrongly

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, method: str = "exact", **options: Any) -> Tensor:
        r"""Normalised log-probability :math:`-E(x) - \log Z` in nats.

        Args:
            x: (*B, *event).
            context: (*B, C); every distinct one costs a log Z.
            method: how log Z is found; by ``"ais"`` it carries the error that :meth:`log_partition` reports.
            options: of :meth:`log_partition`.
        Shapes: returns (*B,).
        Raises: ValueError by ``"exact"`` for too many units.
        """
        return normalised_log_prob(self, x, context, method, **options)
