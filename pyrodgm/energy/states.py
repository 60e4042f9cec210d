"""States of binary layers: all of them, sums over them, what rows say of their frequencies, and units of -1 and 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.utils.checkpoint import checkpoint

__all__ = ["Spins", "binary_states", "deep_sizes", "log_odds", "summed_in_chunks"]


def deep_sizes(visible: int, hidden: Sequence[int]) -> tuple[int, ...]:
    """The sizes of all layers of a deep machine, from x up.

    Raises: ValueError for sizes below 1 or fewer than two hidden layers.
    """
    sizes = (visible, *hidden)
    if len(sizes) < 3 or min(sizes) < 1:
        raise ValueError(
            f"expected visible >= 1 and at least two hidden sizes >= 1, got {visible} and {list(hidden)}; "
            "one hidden layer is an RBM"
        )
    return sizes


def summed_in_chunks(chunk: Callable[[Tensor], Tensor], parts: Sequence[Tensor], *given: Tensor) -> Tensor:
    """log of the sum of exp(chunk(part)) over the parts, ().

    Args:
        chunk: the log of the sum over the states of a part, ().
        given: tensors that chunk reads; where one wants a gradient, chunks are computed twice rather than all kept.
    """
    again = len(parts) > 1 and torch.is_grad_enabled() and any(t.requires_grad for t in given)
    found = [checkpoint(chunk, part, use_reentrant=False) if again else chunk(part) for part in parts]
    return torch.stack(found).logsumexp(0)


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
