"""Where a value falls among the bins of a rational-quadratic spline, with a backward pass in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LEAST", "locate"]

LEAST = 1e-3  # of a bin's width and height, as parts of the interval, and of a slope


def locate(raw: Tensor, u: Tensor, bins: int, inverse: bool, circular: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    r"""The bin that holds u, on the axis of x and on that of y.

    Widths and heights are parts of [0, 1]: :math:`\ell + (1 - K \ell) \, p_k` with p the softmax of the raw numbers and
    :math:`\ell` = ``LEAST``.

    Args:
        raw: (*B, P, D): K raw widths, K raw heights, then the raw slopes at the inner knots (P = 3 K - 1), or at all
            knots of a circle, whose last is its first (P = 3 K).
        u: (*B, D) in [0, 1], on the axis of y if ``inverse``.
    Shapes: returns (*B, 2, D) each: where the bin starts and how long it is, on x and on y, and the raw slopes at its
        two knots; 0 at the ends of an interval.
    """
    run: Any = _Locate.apply if torch.is_grad_enabled() else _Locate.forward
    start, length, slopes, *_ = run(raw, u, bins, inverse, circular)
    return start, length, slopes


def _logits(raw: Tensor, bins: int) -> Tensor:
    """Raw widths and heights, (*B, 2, K, D)."""
    return raw[..., : 2 * bins, :].unflatten(-2, (2, bins))


def _knots(index: Tensor, bins: int, circular: bool) -> Tensor:
    """The two knots of a bin, (*B, 1, D) -> (*B, 2, D): 0 .. K, or on a circle 0 .. K - 1."""
    return torch.cat((index, (index + 1) % bins if circular else index + 1), -2)


class _Locate(torch.autograd.Function):
    """Autograd would pass over all bins a dozen times; here their gradient is written once.

    With g the gradient of the bin's start and h that of its length, times 1 - K l, the gradient of p_j is g for the
    bins before it, h for itself and 0 behind it; then comes that of the softmax. Its sums and exponentials are written
    out: over a middle dimension torch's softmax takes as long as all the rest.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(raw: Tensor, u: Tensor, bins: int, inverse: bool, circular: bool) -> tuple[Tensor, ...]:
        logits, free = _logits(raw, bins), 1 - LEAST * bins
        weights = (logits - logits.amax(-2, keepdim=True)).exp_()  # (*B, 2, K, D)
        right = weights.cumsum(-2)
        total = right[..., -1, :]  # (*B, 2, D)
        axis = int(inverse)
        least = LEAST * torch.arange(1, bins, dtype=raw.dtype, device=raw.device).unsqueeze(-1)
        edges = torch.addcmul(least, right[..., axis, :-1, :], free / total[..., axis, :].unsqueeze(-2))
        index = (u.unsqueeze(-2) >= edges).sum(-2, keepdim=True)  # (*B, 1, D)
        both = index.unsqueeze(-3).expand(*total.shape[:-1], 1, total.shape[-1])
        part = weights.gather(-2, both).squeeze(-2) / total  # (*B, 2, D)
        before = right.gather(-2, both).squeeze(-2) / total - part
        slopes = raw[..., 2 * bins :, :] if circular else F.pad(raw[..., 2 * bins :, :], (0, 0, 1, 1))
        ends = slopes.gather(-2, _knots(index, bins, circular))
        return LEAST * index + free * before, LEAST + free * part, ends, weights, total, index

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        raw, _, ctx.bins, _, ctx.circular = inputs
        start, length, _, *plain = output
        ctx.mark_non_differentiable(*plain)
        ctx.save_for_backward(raw, start, length, *plain)

    @staticmethod
    def backward(ctx: Any, to_start: Tensor, to_length: Tensor, to_slopes: Tensor, *_: Any) -> tuple[Any, ...]:
        raw, start, length, weights, total, index = ctx.saved_tensors
        bins, free = ctx.bins, 1 - LEAST * ctx.bins
        is_before = (torch.arange(bins, device=raw.device).unsqueeze(-1) < index).to(raw.dtype).unsqueeze(-3)
        both = index.unsqueeze(-3).expand(*total.shape[:-1], 1, total.shape[-1])
        if torch.is_grad_enabled():  # for a second derivative all that depends on raw is worked out again
            weights = _logits(raw, bins).softmax(-2)
            total = torch.ones_like(total)
            before, part = (weights * is_before).sum(-2), weights.gather(-2, both).squeeze(-2)
        else:
            before, part = (start - LEAST * index) / free, (length - LEAST) / free
        g, h = free * to_start, free * to_length
        mean = (g * before + h * part) / total  # of p's gradient, under p
        to_raw = is_before * (g / total).unsqueeze(-2)  # what follows is done in place: memory is what takes time
        to_raw = to_raw.scatter_add_(-2, both, (h / total).unsqueeze(-2)).sub_(mean.unsqueeze(-2)).mul_(weights)
        pad = 0 if ctx.circular else 1
        count = bins + pad  # of the knots
        to_ends = to_slopes.new_zeros(*raw.shape[:-2], count, raw.shape[-1])
        to_ends = to_ends.scatter_add_(-2, _knots(index, bins, ctx.circular), to_slopes)[..., pad : count - pad, :]
        return torch.cat((to_raw.flatten(-3, -2), to_ends), -2), None, None, None, None
