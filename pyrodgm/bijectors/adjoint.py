"""The adjoint method as autograd functions, which ``vmap`` can map: its rows go into the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

if TYPE_CHECKING:
    from pyrodgm.bijectors.ode import Path

__all__ = ["AdjointSolve"]


class AdjointSolve(Function):
    """A path with adjoint gradients; ``vmap`` puts its rows into the batch, where they belong."""

    @staticmethod
    def forward(path: Path, x: Tensor, context: Tensor | None, probes: Tensor, *parameters: Tensor) -> Any:
        return path.run(lambda net: path.solve(net, x, context, probes), parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.path = inputs[0]
        ctx.save_for_backward(output[0], *inputs[2:])

    @staticmethod
    def backward(ctx: Any, to_y: Tensor, to_q: Tensor) -> Any:
        y, context, probes, *parameters = ctx.saved_tensors
        wants = (ctx.needs_input_grad[2], any(ctx.needs_input_grad[4:]))
        found = list(_Adjoint.apply(ctx.path, wants, y, to_y, to_q, context, probes, *parameters))
        to_x = found.pop(0)
        to_context = found.pop(0) if wants[0] else None
        return None, to_x, to_context, None, *(found or [None] * len(parameters))

    @staticmethod
    def vmap(info: Any, dims: Any, path: Path, x: Tensor, context: Tensor | None, probes: Tensor, *rest: Tensor) -> Any:
        _refuse_batched(dims[4:])
        rows = [_fold(t, d, info.batch_size) for t, d in zip((x, context), dims[1:3], strict=True)]
        return AdjointSolve.apply(path, *rows, _fold_probes(probes, dims[3]), *rest), (0, 0)


class _Adjoint(Function):
    @staticmethod
    def forward(
        path: Path, wants: Any, y: Tensor, to_y: Tensor, to_q: Tensor, context: Any, probes: Tensor, *rest: Tensor
    ) -> Any:
        if wants[1]:
            rest = tuple(parameter.detach().requires_grad_() for parameter in rest)
        return path.run(lambda net: path.adjoint(net, y, to_y, to_q, context, probes, wants), rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: torch.func wants the method."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("adjoint gradients are of first order only; build the flow with ODESolver(adjoint=False)")

    @staticmethod
    def vmap(info: Any, dims: Any, path: Path, wants: Any, *rest: Any) -> Any:
        _refuse_batched(dims[7:])
        rows = [_fold(t, d, info.batch_size) for t, d in zip(rest[:4], dims[2:6], strict=True)]
        probes, parameters = _fold_probes(rest[4], dims[6]), rest[5:]
        if not wants[1]:
            found = _Adjoint.apply(path, wants, *rows, probes, *parameters)
            return found, (0,) * len(found)
        # Each of the mapped rows has a gradient of the parameters of its own.
        each = [
            _Adjoint.apply(path, wants, *(None if r is None else r[i] for r in rows), _at(probes, i), *parameters)
            for i in range(info.batch_size)
        ]
        found = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
        return found, (0,) * len(found)


def _fold(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    if tensor is None:
        return None
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _fold_probes(probes: Tensor, dim: int | None) -> Tensor:
    return probes.unsqueeze(1) if dim is None else probes.movedim(dim, 0).movedim(0, 1)


def _at(probes: Tensor, i: int) -> Tensor:
    return probes[:, i if probes.shape[1] > 1 else 0]


def _refuse_batched(dims: Any) -> None:
    if any(dim is not None for dim in dims):
        raise NotImplementedError("vmap over the parameters of a continuous flow: loop over the members instead")
