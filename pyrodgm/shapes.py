"""Shapes: context beside x, log-probabilities of a batch shape, masks, supports."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["base_constraint", "expand_to", "is_real", "join_context", "observed_part"]


def base_constraint(support: Any) -> Any:
    """A constraint without its declared event dimensions."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def is_real(support: Any) -> bool:
    """Whether a support is all numbers, by its type: a copy of ``constraints.real`` is another object."""
    return isinstance(base_constraint(support), type(constraints.real))


def join_context(x: Tensor, context: Tensor | None, event_dim: int = 1) -> Tensor:
    """``x`` beside the context (*B, C) along its first event dimension: (*B, D, ...) -> (*B, D + C, ...).

    Leading dimensions broadcast; the context is the same at every place of the other event dimensions.
    """
    if context is None:
        return x
    event = x.shape[-event_dim:]
    lead = torch.broadcast_shapes(x.shape[:-event_dim], context.shape[:-1])
    size = context.shape[-1]
    beside = context.reshape(*context.shape, *[1] * (event_dim - 1)).expand(*lead, size, *event[1:])
    return torch.cat((x.expand(*lead, *event), beside), -event_dim)


def expand_to(values: Tensor, batch_shape: torch.Size) -> Tensor:
    """values broadcast with ``batch_shape``; free where they have that shape, as they mostly do."""
    if not batch_shape or values.shape == batch_shape:
        return values
    return values.expand(torch.broadcast_shapes(values.shape, batch_shape))


def observed_part(x: Tensor, mask: Tensor) -> Tensor:
    """``mask`` with the shape of x: True where x is observed.

    Raises: TypeError for a mask that is not boolean; ValueError if it does not broadcast against x, or if what is
        observed is not finite.
    Example:
        >>> observed_part(torch.zeros(2, 3), torch.tensor([True, False, True])).shape
        torch.Size([2, 3])
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"expected mask as a boolean tensor, True where x is observed, got {got}; use mask.bool()")
    try:
        observed = mask.to(x.device).expand_as(x)
    except RuntimeError as error:
        raise ValueError(
            f"expected mask to broadcast against x of shape {tuple(x.shape)}, got {tuple(mask.shape)}"
        ) from error
    if not bool((x.isfinite() | ~observed).all()):
        raise ValueError("expected finite numbers where mask is True, got others; set mask False where x is missing")
    return observed
