"""Where a value falls among the bins of a rational-quadratic spline, and the gradient of that in closed form.

Everything here has the raw numbers in the leading dimension and the values behind it, so each pass over the bins runs
along whole rows of memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LEAST", "Bin", "bin_gradient", "find_bin"]

LEAST = 1e-3  # of a bin's width and height, as parts of the interval, and of a slope


class Bin(NamedTuple):
    """The bin that holds each u, on the axis of x and on that of y, and what its gradient is made of.

    Attributes:
        start: where it starts, (2, *S).
        length: how long it is, (2, *S).
        slopes: the raw slopes at its two knots, (2, *S); 0 at the ends of an interval.
        is_before: which bins are before it, (K, *S).
        number: which one it is, (*S).
    """

    start: Tensor
    length: Tensor
    slopes: Tensor
    is_before: Tensor
    number: Tensor


def find_bin(raw: Tensor, u: Tensor, bins: int, inverse: bool, circular: bool = False) -> Bin:
    r"""The bin of each u. Widths and heights are parts of [0, 1]: :math:`\ell + (1 - K \ell) \, p_k` with p the softmax
    of the raw numbers and :math:`\ell` = ``LEAST``.

    The softmax is written out: its sums give the knots as well.

    Args:
        raw: (P, *S): K raw widths, K raw heights, then the raw slopes at the inner knots (P = 3 K - 1), or at all
            knots of a circle, whose last is its first (P = 3 K).
        u: (*S) in [0, 1], on the axis of y if ``inverse``.
    """
    weights, free = _weights(raw, bins), 1 - LEAST * bins
    right = weights.cumsum(1)
    total = right[:, -1]
    with torch.no_grad():
        least = LEAST * torch.arange(1, bins + 1, dtype=raw.dtype, device=raw.device)
        least[-1] += 1  # the right end, which no u is behind
        least = least.reshape(bins, *[1] * u.dim())
        edges = torch.addcmul(least, right[int(inverse)], free / total[int(inverse)])
        is_before = edges <= u
        count = is_before.to(raw.dtype).sum(0)  # numbers: sums of truth values take three times as long
        index = count.long()
    both = _on_both_axes(index)
    part = weights.gather(1, both).squeeze(1) / total
    before = right.gather(1, both).squeeze(1) / total - part
    slopes = raw[2 * bins :]
    if not circular:
        slopes = F.pad(slopes, (*[0, 0] * u.dim(), 1, 1))
    ends = slopes.gather(0, _knots(index, bins, circular))
    return Bin(LEAST * count + free * before, LEAST + free * part, ends, is_before, index)


def _weights(raw: Tensor, bins: int) -> Tensor:
    """Exponentials of the raw widths and heights up to a factor, (2, K, *S), laid out in whole rows."""
    logits = raw[: 2 * bins].unflatten(0, (2, bins)).clone(memory_format=torch.contiguous_format)
    return logits.sub_(logits.detach().amax(1, keepdim=True)).exp_()


def _on_both_axes(index: Tensor) -> Tensor:
    return index.expand(2, 1, *index.shape)


def _knots(index: Tensor, bins: int, circular: bool) -> Tensor:
    """The two knots of a bin, (*S) -> (2, *S): 0 .. K, or on a circle 0 .. K - 1."""
    return torch.stack((index, (index + 1) % bins if circular else index + 1))


def bin_gradient(
    raw: Tensor,
    found: Bin,
    to_start: Tensor,
    to_length: Tensor,
    to_slopes: Tensor,
    bins: int,
    circular: bool = False,
) -> Tensor:
    r"""The gradient of the raw numbers, (P, *S), from those of a bin's start, length and raw slopes, (2, *S) each.

    With g the gradient of the bin's start and h that of its length, times :math:`1 - K \ell`, the gradient of p_j is
    g for the bins before it, h for itself and 0 behind it; then comes that of the softmax, which is worked out again:
    what every layer of a flow keeps for its backward pass costs more time than the exponentials do.
    """
    start, length, _, is_before, index = found
    weights, free = _weights(raw, bins), 1 - LEAST * bins
    total = weights.sum(1)
    g, h = to_start * (free / total), to_length * (free / total)
    least = LEAST * index.to(start.dtype)  # of the bins before it
    mean = (g * (start - least) + h * (length - LEAST)) / free  # of p's gradient, under p
    to_parts = torch.addcmul(-mean.unsqueeze(1), is_before.to(raw.dtype), g.unsqueeze(1))
    to_parts = to_parts.scatter_add_(1, _on_both_axes(index), h.unsqueeze(1)).mul_(weights)  # in place: memory is time
    pad = 0 if circular else 1
    to_knots = to_slopes.new_zeros(bins + pad, *index.shape)
    to_knots = to_knots.scatter_add_(0, _knots(index, bins, circular), to_slopes)[pad:bins]
    return torch.cat((to_parts.flatten(0, 1), to_knots))
