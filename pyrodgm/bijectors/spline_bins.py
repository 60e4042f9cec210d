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
    """The bin that holds each u, on the axis of x and on that of y.

    Attributes:
        start: where it starts, (2, *S).
        length: how long it is, (2, *S).
        slopes: the raw slopes at its two knots, (2, *S); 0 at the ends of an interval.
        is_before: which of the bins but the last are before it, as 1 and 0, (K - 1, *S).
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

    Args:
        raw: (P, *S): K raw widths, K raw heights, then the raw slopes at the inner knots (P = 3 K - 1), or at all
            knots of a circle, whose last is its first (P = 3 K).
        u: (*S) in [0, 1], on the axis of y if ``inverse``.
    """
    weights = _softmax(raw, bins)
    parts = torch.lerp(weights, weights.new_full((), 1 / bins), LEAST * bins)
    with torch.no_grad():
        is_before = (u - parts[int(inverse), :-1].cumsum(0)).sign_().clamp_min_(0)  # truth values are slower to sum
        index = is_before.sum(0).nan_to_num_(0).long()
    start = (parts[:, :-1] * is_before).sum(1)
    length = parts.gather(1, _on_both_axes(index)).squeeze(1)
    places, are_inner = _knots(index, bins, circular)
    return Bin(start, length, raw[2 * bins :].gather(0, places) * are_inner, is_before, index)


def _softmax(raw: Tensor, bins: int) -> Tensor:
    """Of the raw widths and heights: (P, *S) -> (2, K, *S)."""
    return raw[: 2 * bins].unflatten(0, (2, bins)).contiguous().softmax(1)  # in whole rows


def _on_both_axes(index: Tensor) -> Tensor:
    return index.expand(2, 1, *index.shape)


def _knots(index: Tensor, bins: int, circular: bool) -> tuple[Tensor, Tensor | int]:
    """Where the raw slopes at the two knots of a bin are, (*S) -> (2, *S), and which knots have one: not the ends of an
    interval, whose raw slopes are 0."""
    if circular:
        return torch.stack((index, (index + 1) % bins)), 1
    knots = torch.stack((index - 1, index))
    places = knots.clamp(0, bins - 2)
    return places, places == knots


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

    With g the gradient of the bin's start and h that of its length, the gradient of a part is g for the bins before it,
    h for itself and 0 behind it; then comes that of the softmax, which is worked out again: what every layer of a flow
    keeps for its backward pass costs more time than the exponentials do.
    """
    start, length, _, is_before, index = found
    weights, share = _softmax(raw, bins), 1 - LEAST * bins
    count = index.to(start.dtype)
    mean = to_start * (start - LEAST * count) + to_length * (length - LEAST)  # of the gradient of p, under p
    to_raw = mean.new_empty(len(raw), *index.shape)  # and everything into it: memory is time
    to_parts = to_raw[: 2 * bins].unflatten(0, (2, bins))
    rest = -mean.unsqueeze(1)
    to_parts[:, -1:] = rest
    to_parts[:, :-1] = torch.addcmul(rest, is_before, to_start.unsqueeze(1), value=share)
    to_parts.scatter_add_(1, _on_both_axes(index), share * to_length.unsqueeze(1)).mul_(weights)
    places, are_inner = _knots(index, bins, circular)
    to_raw[2 * bins :].zero_().scatter_add_(0, places, to_slopes * are_inner)
    return to_raw
