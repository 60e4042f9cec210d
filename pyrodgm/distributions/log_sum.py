"""Sums of exponentials whose gradients leave out what cannot count."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["log_sum", "that_count"]

_NEGLIGIBLE = 50.0  # nats below the largest: a share of 2e-22, in no digit of a sum of double precision


def that_count(terms: Tensor, dim: int) -> Tensor:
    """Terms of a logsumexp, -inf in place of those without a part in any digit of it.

    Their gradients would be denormal numbers, on which a processor's products take many times as long: importance
    weights and responsibilities of mixtures are mostly such.

    Example:
        >>> that_count(torch.tensor([0.0, -1.0, -60.0]), 0)
        tensor([ 0., -1., -inf])
    """
    return terms.masked_fill(terms < terms.detach().amax(dim, keepdim=True) - _NEGLIGIBLE, -math.inf)


def log_sum(terms: Tensor, dim: int) -> Tensor:
    """logsumexp over one dimension, with gradient exactly 0 for terms that do not count."""
    return torch.logsumexp(that_count(terms, dim), dim)
