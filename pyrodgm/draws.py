"""Draws that the host does not wait for: torch's own look at their parameters first, which stops a GPU each time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["draw_from", "one_of"]


@torch.no_grad()
def one_of(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""An index for each row of weights, :math:`P(k) \propto w_k`, by a race of exponential times, (*B, K) -> (*B,).

    What ``weights.multinomial(1)`` draws, number for number, without its checks.

    Args:
        weights: finite and >= 0, some of each row above 0.
    Example:
        >>> one_of(torch.tensor([[0.0, 3.0, 0.0], [1.0, 0.0, 0.0]]))
        tensor([1, 0])
    """
    return (weights / torch.empty_like(weights).exponential_(generator=generator)).argmax(-1)


@torch.no_grad()
def draw_from(distribution: Any, sample_shape: Any = torch.Size()) -> Tensor:
    """A draw without gradients; where there is ``rsample``, by it: a Normal's ``sample`` asks whether scales are >= 0.

    Example:
        >>> draw_from(torch.distributions.Normal(torch.zeros(3), 1.0), (2,)).shape
        torch.Size([2, 3])
    """
    draw = distribution.rsample if distribution.has_rsample else distribution.sample
    return draw(torch.Size(sample_shape))
