"""One graph for the whole loss: make_fx through Pyro's messengers, then torch.compile."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyrodgm.core import GenerativeModel
from pyrodgm.engine.surroundings import validation
from pyrodgm.objectives.base import Objective

__all__ = ["CompiledLoss", "compile_loss"]

_REASON = 300  # characters of an error that a warning repeats
_ROUNDING = 0.02  # of a gradient's norm: more than orders of summation explain, bfloat16's included


class _Loss(nn.Module):
    """The loss as a function of (x, context), with every tensor it needs among its parameters and buffers."""

    def __init__(self, model: GenerativeModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, context: Tensor | None, n: int) -> Tensor:
        return self.objective.loss(self.model, x, context, n=n)


class CompiledLoss:
    """A loss traced once for a batch shape and compiled; other shapes (a ragged last batch) run as they are.

    What Python computes (a schedule that counts its calls) is fixed when the loss is traced.

    Args:
        model, objective: whose loss; the objective has one player.
    """

    def __init__(self, model: GenerativeModel, objective: Objective) -> None:
        self.module = _Loss(model, objective)
        self.parameters = list(self.module.parameters())
        self.graph: Callable[..., Tensor] | None = None
        self.key: Any = None

    def __call__(self, x: Tensor, context: Tensor | None, n: int) -> Tensor:
        key = (x.shape, x.dtype, None if context is None else context.shape, n, self.module.training)
        if self.graph is None:
            self.graph, self.key = self._trace(x, context, n), key
        if key != self.key:
            return self.module(x, context, n)
        with torch.autocast(x.device.type, enabled=False):  # its casts are in the graph
            return self.graph(self.parameters, list(self.module.buffers()), x, context)

    def _trace(self, x: Tensor, context: Tensor | None, n: int) -> Callable[..., Tensor]:
        names = [k for k, _ in self.module.named_parameters()] + [k for k, _ in self.module.named_buffers()]

        def loss(parameters: list[Tensor], buffers: list[Tensor], x: Tensor, context: Tensor | None) -> Tensor:
            state = dict(zip(names, parameters + buffers, strict=True))
            return torch.func.functional_call(self.module, state, (x, context, n))

        with validation(False):
            graph = make_fx(loss)(self.parameters, list(self.module.buffers()), x, context)
        # Noise by torch's own generator, so a seed gives the same numbers as in eager mode.
        return torch.compile(graph, fullgraph=True, dynamic=False, options={"fallback_random": True})


def compile_loss(
    model: GenerativeModel, objective: Objective, x: Tensor, context: Tensor | None, n: int
) -> CompiledLoss | None:
    """The compiled loss, tried on one batch; None, with one warning that says why, where that fails.

    It fails, too, where the gradients are not the eager ones: tracing loses those of an inner ``autograd.grad``
    without a word. The trial leaves buffers, gradients and random state as they were.
    """
    if type(objective).forward is not Objective.forward:
        _warn(f"{type(objective).__name__} has losses for several players, and compiling needs one loss")
        return None
    compiled = CompiledLoss(model, objective)
    buffers = [b.clone() for b in compiled.module.buffers()]
    found: list[Tensor] = []
    for loss_of in (compiled, compiled, compiled.module):  # the first call traces, and takes noise to do so
        try:
            with torch.random.fork_rng([x.device] if x.is_cuda else []):
                found.append(_gradient(loss_of(x, context, n), compiled.parameters))
        except Exception as error:  # tracing runs arbitrary model code: whatever it raises means eager
            _warn(f"{type(error).__name__}: {' '.join(str(error).split())[:_REASON]}")
            return None
        finally:
            with torch.no_grad():
                for buffer, old in zip(compiled.module.buffers(), buffers, strict=True):
                    buffer.copy_(old)
    _, graph, eager = found
    near = (graph - eager).norm() <= _ROUNDING * eager.norm()  # and nan is not near
    if bool(~near & eager.isfinite().all()):
        _warn(f"its gradients are {100 * ((graph - eager).norm() / eager.norm()).item():.0f} % off in the traced graph")
        return None
    return compiled


def _gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """Of all parameters in a row."""
    if not loss.requires_grad:
        return loss.detach().reshape(1)
    wanted = [p for p in parameters if p.requires_grad]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(wanted, grads, strict=True)])


def _warn(reason: str) -> None:
    warnings.warn(f"compile=True fell back to eager: {reason}", stacklevel=2)
