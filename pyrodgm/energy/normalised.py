"""Normalised log-probabilities of energy models, and the states of binary layers that enumerations run over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrodgm.core import Energy

__all__ = ["binary_states", "log_odds", "log_partitions", "normalised_log_prob", "seeded"]


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
    contexts, index = context.reshape(-1, model.context).unique(dim=0, return_inverse=True)
    log_zs = [model.log_partition(method, context=one, **options)[0] for one in contexts]
    return torch.stack(log_zs)[index].reshape(context.shape[:-1])


def log_odds(x: Tensor) -> Tensor:
    """log-odds of every column's frequency of ones, with one pseudo-row of each value: (*B, V) -> (V,).

    Example:
        >>> log_odds(torch.tensor([[1.0], [0.0]]))
        tensor([0.])
    """
    ones = x.reshape(-1, x.shape[-1])
    on = ones.sum(0)
    return (on + 1).log() - (len(ones) - on + 1).log()


def seeded(device: torch.device, seed: int | None) -> torch.Generator | None:
    """A generator with this seed, None (torch's own) without."""
    return None if seed is None else torch.Generator(device).manual_seed(seed)


def binary_states(units: int, like: Tensor) -> Tensor:
    """Every state of a layer of zeros and ones, (2^units, units), of the dtype and on the device of ``like``.

    Example:
        >>> binary_states(2, torch.zeros(())).tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    """
    codes = torch.arange(2**units, device=like.device).unsqueeze(-1)
    return (codes >> torch.arange(units, device=like.device)).bitwise_and(1).to(like.dtype)
