"""Linear maps under a staircase mask: in large products the blocks above the stairs are never multiplied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

__all__ = ["blocks_of", "staircase_linear", "weight_gradient"]

Block = tuple[slice, slice]  # rows of the weight, and the columns that they see

_LEAST = 2**18  # weights below which one product is faster than several
_MANY = 2**19  # weights from which four steps are faster than two
_WORTH = 0.8  # of the dense work, at most
_WORK = 2**26  # multiplications of the dense product below which calling several costs more than it saves


def blocks_of(mask: Tensor, runs: int = 1) -> list[Block] | None:
    """The blocks that cover a mask of few steps, or None where one dense product is as fast.

    Args:
        mask: (rows, columns), 0 where a weight never acts.
        runs: how many times the rows climb the stairs.
    Example:
        >>> blocks_of(torch.ones(1024, 1024).tril())[0]
        (slice(0, 256, None), slice(0, 256, None))
    """
    rows = len(mask)
    if mask.numel() < _LEAST or rows // runs < 64:
        return None
    steps = runs * (4 if mask.numel() >= _MANY else 2)
    blocks, area = [], 0
    for i in range(steps):
        start, end = rows * i // steps, rows * (i + 1) // steps
        seen = (mask[start:end] != 0).any(0).nonzero()[:, 0].tolist()
        low, high = (seen[0], seen[-1] + 1) if seen else (0, 0)
        blocks.append((slice(start, end), slice(low, high)))
        area += (end - start) * (high - low)
    return blocks if area <= _WORTH * mask.numel() else None


def staircase_linear(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, blocks: list[Block]) -> Tensor:
    r""":math:`x (W \odot M)^\top + b` with products of the blocks only, forwards and backwards.

    For few rows, on accelerators, under transforms of ``torch.func``, autocast and tracing it is the dense formula.

    Shapes: x (*B, columns), weight and mask (rows, columns), bias (rows,) -> (*B, rows).
    Example:
        >>> mask = torch.ones(512, 512).tril()
        >>> x, weight, bias = torch.randn(4, 512), torch.randn(512, 512), torch.zeros(512)
        >>> y = staircase_linear(x, weight, bias, mask, blocks_of(mask))
        >>> torch.allclose(y, x @ (weight * mask).T, atol=1e-3)
        True
    """
    if x.numel() * len(weight) < _WORK or not _plain(x):
        return F.linear(x, weight * mask, bias)
    out = _Staircase.apply(x.reshape(-1, x.shape[-1]), weight, bias, mask, blocks)
    return out if x.dim() == 2 else out.reshape(*x.shape[:-1], -1)


def _plain(x: Tensor) -> bool:
    """Whether ordinary eager autograd on the CPU runs, where many small products cost little."""
    return (
        not torch.compiler.is_compiling()  # asked first: torch.compile cannot trace two of the questions below
        and x.device.type == "cpu"
        and type(x) is Tensor
        and not torch._C._are_functorch_transforms_active()
        and torch.utils._python_dispatch._get_current_dispatch_mode() is None
        and not torch.is_autocast_enabled("cpu")
    )


def weight_gradient(into: Tensor, x: Tensor, mask: Tensor, blocks: list[Block] | None) -> Tensor:
    """The gradient of a masked weight: of what x (N, columns) feeds, ``into`` (N, rows) -> (rows, columns)."""
    if blocks is None:
        return (into.t() @ x).mul_(mask)
    found = x.new_zeros(mask.shape)
    for rows, columns in blocks:
        block = torch.mm(into[:, rows].t(), x[:, columns], out=found[rows, columns])
        block.mul_(mask[rows, columns])
    return found


class _Staircase(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, blocks: list[Block]) -> Tensor:
        masked = torch.empty_like(weight)  # outside of the blocks it is never read
        out = x.new_empty(len(x), len(weight))
        for rows, columns in blocks:
            torch.mul(weight[rows, columns], mask[rows, columns], out=masked[rows, columns])
            torch.addmm(bias[rows], x[:, columns], masked[rows, columns].t(), out=out[:, rows])
        ctx.save_for_backward(x, weight, mask, masked)
        ctx.blocks = blocks
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, mask, masked = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody differentiates the gradient: give it a graph
            return grad @ (weight * mask), (grad.t() @ x) * mask, grad.sum(0), None, None
        to_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        if to_x is not None:
            for rows, columns in ctx.blocks:
                to_x[:, columns].addmm_(grad[:, rows], masked[rows, columns])
        return to_x, weight_gradient(grad, x, mask, ctx.blocks), grad.sum(0), None, None
