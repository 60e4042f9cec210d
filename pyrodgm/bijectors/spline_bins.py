"""Where a value falls among the bins of a rational-quadratic spline, and the gradient of that in closed form.

Everything here has the raw numbers in the leading dimension and the values behind it, so each pass over the bins runs
along whole rows of memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LEAST", "Bin", "bin_gradient", "find_bin"]

LEAST = 1e-3  # of a bin's width and height, as parts of the interval, and of a slope


class Bin(NamedTuple):
    """The bin that holds each u, on the axis of x and on that of y, and what its gradient is made of.

    Attributes:
        start: where it starts, (2, *S).
        length: how long it is, (2, *S).
        slopes: the raw slopes at its two knots, (2, *S); 0 at the ends of an interval.
        is_before: which of the bins but the last are before it, as 1 and 0, (K - 1, *S).
        number: which one it is, (*S).
        highest: the largest raw width and height, (2, 1, *S).
        scale: what takes exponentials to parts of the interval, (2, *S).
    """

    start: Tensor
    length: Tensor
    slopes: Tensor
    is_before: Tensor
    number: Tensor
    highest: Tensor
    scale: Tensor


def find_bin(raw: Tensor, u: Tensor, bins: int, inverse: bool, circular: bool = False) -> Bin:
    r"""The bin of each u. Widths and heights are parts of [0, 1]: :math:`\ell + (1 - K \ell) \, p_k` with p the softmax
    of the raw numbers and :math:`\ell` = ``LEAST``.

    The softmax is written out: its sums give the knots as well.

    Args:
        raw: (P, *S): K raw widths, K raw heights, then the raw slopes at the inner knots (P = 3 K - 1), or at all
            knots of a circle, whose last is its first (P = 3 K).
        u: (*S) in [0, 1], on the axis of y if ``inverse``.
    """
    logits = raw[: 2 * bins].unflatten(0, (2, bins)).contiguous()  # in whole rows
    highest = logits.detach().amax(1, keepdim=True)
    weights = (logits - highest).exp_()
    scale = (1 - LEAST * bins) / weights.sum(1)
    axis = int(inverse)
    with torch.no_grad():
        least = torch.arange(1, bins, dtype=raw.dtype, device=raw.device).mul_(LEAST).reshape(-1, *[1] * u.dim())
        edges = torch.addcmul(least, weights[axis, :-1].cumsum(0), scale[axis])
        is_before = (u - edges).sign_().clamp_min_(0)  # numbers: truth values cost three times as much to sum
        count = is_before.sum(0).nan_to_num_(0)
        index = count.long()
    start = torch.addcmul(LEAST * count, (weights[:, :-1] * is_before).sum(1), scale)
    length = LEAST + weights.gather(1, _on_both_axes(index)).squeeze(1) * scale
    slopes = raw[2 * bins :].gather(0, _knots(index, bins, circular))
    if not circular:
        slopes = slopes * _are_inner(count, bins)
    return Bin(start, length, slopes, is_before, index, highest, scale)


def _on_both_axes(index: Tensor) -> Tensor:
    return index.expand(2, 1, *index.shape)


def _knots(index: Tensor, bins: int, circular: bool) -> Tensor:
    """Where the raw slopes at the two knots of a bin are, (*S) -> (2, *S); for an interval's ends any place."""
    if circular:
        return torch.stack((index, (index + 1) % bins))
    return torch.stack((index - 1, index)).clamp(0, bins - 2)


def _are_inner(count: Tensor, bins: int) -> Tensor:
    """0 at the ends of an interval, whose raw slopes are 0, and 1 at the other knots: (*S) -> (2, *S)."""
    return torch.stack((count, (bins - 1) - count)).clamp_max(1)


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
    start, length, _, is_before, index, highest, scale = found
    g, h = to_start * scale, to_length * scale
    count = index.to(start.dtype)
    mean = (g * (start - LEAST * count) + h * (length - LEAST)) / (1 - LEAST * bins)  # of p's gradient, under p
    weights = (raw[: 2 * bins].unflatten(0, (2, bins)).contiguous() - highest).exp_()
    to_raw = g.new_empty(len(raw), *index.shape)  # and everything into it: memory is time
    to_parts = to_raw[: 2 * bins].unflatten(0, (2, bins))
    rest = -mean.unsqueeze(1)
    to_parts[:, -1:] = rest
    to_parts[:, :-1] = torch.addcmul(rest, is_before, g.unsqueeze(1))
    to_parts.scatter_add_(1, _on_both_axes(index), h.unsqueeze(1)).mul_(weights)
    if not circular:
        to_slopes = to_slopes * _are_inner(count, bins)
    to_raw[2 * bins :].zero_().scatter_add_(0, _knots(index, bins, circular), to_slopes)
    return to_raw
