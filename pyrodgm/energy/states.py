"""States of binary layers: all of them, what rows say of their frequencies, and units of -1 and 1."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Spins", "binary_states", "log_odds"]


def binary_states(units: int, like: Tensor) -> Tensor:
    """Every state of a layer of zeros and ones, (2^units, units), of the dtype and on the device of ``like``.

    Example:
        >>> binary_states(2, torch.zeros(())).tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    """
    codes = torch.arange(2**units, device=like.device).unsqueeze(-1)
    return (codes >> torch.arange(units, device=like.device)).bitwise_and(1).to(like.dtype)


def log_odds(x: Tensor) -> Tensor:
    """log-odds of every column's frequency of ones, with one pseudo-row of each value: (*B, V) -> (V,).

    Example:
        >>> log_odds(torch.tensor([[1.0], [0.0]]))
        tensor([0.])
    """
    ones = x.reshape(-1, x.shape[-1])
    on = ones.sum(0)
    return (on + 1).log() - (len(ones) - on + 1).log()


class Spins(constraints.Constraint):
    """-1 or 1."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        return (value == -1) | (value == 1)
