r"""Solving :math:`\dot x = v(t, x)` with integrals along the path, and the gradients of the solution.

Everything here runs in a variable s from 0 to 1, whichever way time runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call

from pyrodgm.bijectors.trace import Trace

__all__ = ["ODESolver", "Path"]

_ROUNDINGS = 32  # a tolerance of fewer roundings than this asks an adaptive solver for what its numbers do not hold


@dataclass(frozen=True)
class ODESolver:
    r"""How a continuous flow is integrated and differentiated.

    Args:
        method: one of torchdiffeq's, adaptive ("dopri5", "dopri8", "bosh3") or fixed ("rk4", "midpoint", "euler").
        rtol, atol: the largest error of a step in any element of any row; raised to what the dtype can hold.
        steps: how many steps a fixed method takes.
        adjoint: gradients by the adjoint equation: memory does not grow with the steps, and
            ``torch.func`` transforms work. False backpropagates through the solver: the exact gradient of
            the discrete solution, of any order.
        options: more options of torchdiffeq's method, such as ``{"max_num_steps": 1000}``.
    Raises: ValueError for tolerances that are not positive or steps < 1.
    Source: Chen et al. (2018), arXiv:1806.07366, algorithm 1. Departures: errors are the largest, not the root mean
        square, so a row is as accurate in a batch as alone; those of the parameters' integrals, which feed back
        nothing, are left out (Kidger et al., 2021, arXiv:2009.09457).
    Example:
        >>> (end,) = ODESolver(rtol=1e-6).integrate(lambda s, state: (-state[0],), (torch.ones(1),), watched=1)
        >>> torch.allclose(end, torch.tensor([1.0]).neg().exp(), atol=1e-5)
        True
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 20
    adjoint: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"expected rtol > 0 and atol > 0, got {self.rtol} and {self.atol}")
        if self.steps < 1:
            raise ValueError(f"expected steps >= 1, got {self.steps}")

    def integrate(self, rates: Callable[[Tensor, Any], Any], state: tuple[Tensor, ...], watched: int) -> Any:
        """The state at s = 1; the first ``watched`` parts of it steer the step size."""
        like = state[0]
        least = _ROUNDINGS * torch.finfo(like.dtype).eps
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=like.device)
        if self.method in ("euler", "midpoint", "rk4", "heun2", "heun3", "explicit_adams", "implicit_adams"):
            options: dict[str, Any] = {"step_size": 1 / self.steps}
            ends = ends.to(like.dtype)
        else:
            # A step must end at 1: in between, the solver interpolates to a lower order than it steps. A first step
            # that the solver chose would carry a gradient, which only an exact integrand's errors cancel.
            options = {"step_t": ends[1:], "first_step": 0.05, "norm": lambda parts: _largest(parts[:watched])}
        found = odeint()(
            rates,
            state,
            ends,
            rtol=max(self.rtol, least),
            atol=max(self.atol, least),
            method=self.method,
            options={**options, **self.options},
        )
        return tuple(part[-1] for part in found)


def odeint() -> Callable[..., Any]:
    """torchdiffeq's solver.

    Raises: ImportError that names the extra.
    """
    try:
        import torchdiffeq
    except ImportError as error:
        raise ImportError("continuous flows need torchdiffeq: pip install 'pyrodgm[flows]'") from error
    return torchdiffeq.odeint


def _largest(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([part.abs().amax() if part.numel() else part.new_zeros(()) for part in parts]).amax()


class _Holder(nn.Module):
    """Runs a task on a net, so that ``functional_call`` swaps its parameters once for a whole solve."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, task: Callable[[nn.Module], Any]) -> Any:
        return task(self.net)


class Path:
    r"""Solutions of the flow of one velocity field in one direction.

    .. math:: \dot x = v(t, x, c), \quad \dot q = \big( \mathrm{tr} J,\; |v|^2,\; \|J\|_F^2 \big),
        \quad J = \partial v / \partial x

    from t = 0 to T, or with ``backwards`` from T to 0 (then q is the integral in that direction). The adjoint
    state of x moves by :math:`\dot a = -\partial (a^\top v + g^\top \dot q) / \partial x`.

    Args:
        net: v, (t (), x (*B, D), context (*B, C) or None) -> (*B, D).
        trace: estimates what q needs of J.
        solver: how to integrate.
        time: T.
        backwards: from T to 0.
        costs: integrate the last two parts of q, too.
    """

    def __init__(
        self, net: nn.Module, trace: Trace, solver: ODESolver, time: float, backwards: bool, costs: bool = False
    ) -> None:
        self.net, self.trace, self.solver, self.costs = net, trace, solver, costs
        self.start, self.speed = (time, -time) if backwards else (0.0, time)
        self.names = [f"net.{name}" for name, _ in net.named_parameters()]

    def __call__(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The end of the path and its integrals: (*B, D), (*B, C) -> (*B, D), (*B, R), R = 1 or 3."""
        probes = self.trace.probes(x)
        if not self.solver.adjoint:
            return self.solve(self.net, x, context, probes)
        return _Solve.apply(self, x, context, probes, *self.net.parameters())

    def run(self, task: Callable[[nn.Module], Any], parameters: tuple[Tensor, ...]) -> Any:
        """task(net) with these parameters in the net."""
        return functional_call(_Holder(self.net), dict(zip(self.names, parameters, strict=True)), (task,))

    def rates(self, net: nn.Module, s: Tensor, x: Tensor, context: Tensor | None, probes: Tensor) -> Any:
        """v and the rate of q in time (not in s), with a graph where gradients are on."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if graph and x.requires_grad else x.detach().requires_grad_()
            v = net(self.start + self.speed * s, x, context)

            def products(u: Tensor) -> Tensor:
                u = u.expand(len(u), *v.shape)
                if len(u) == 1:
                    return torch.autograd.grad(v, x, u[0], create_graph=graph, retain_graph=True)[0].unsqueeze(0)
                return torch.autograd.grad(v, x, u, create_graph=graph, retain_graph=True, is_grads_batched=True)[0]

            trace, frobenius = self.trace.estimate(products, probes)
            parts = [trace, v.square().sum(-1), frobenius] if self.costs else [trace]
            q = torch.stack(parts, -1)
        return (v, q) if graph else (v.detach(), q.detach())

    def solve(self, net: nn.Module, x: Tensor, context: Tensor | None, probes: Tensor) -> tuple[Tensor, Tensor]:
        def rates(s: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            v, q = self.rates(net, s, state[0], context, probes)
            return self.speed * v, self.speed * q

        return self.solver.integrate(rates, (x, x.new_zeros(*x.shape[:-1], 3 if self.costs else 1)), watched=2)

    def adjoint(
        self, net: nn.Module, y: Tensor, to_y: Tensor, to_q: Tensor, context: Tensor | None, probes: Tensor, wants: Any
    ) -> tuple[Tensor, ...]:
        """Gradients in x, and as ``wants`` says in the context and the parameters, from those in (y, q) at the end."""
        leaves = [context.detach().requires_grad_()] if wants[0] and context is not None else []
        context = leaves[0] if leaves else context
        watched = 2 + len(leaves)
        if wants[1]:
            leaves += net.parameters()
        # The equation is linear in the gradients: scaled to 1, they meet the tolerances whatever the size of a loss.
        size = _largest((to_y, to_q)).clamp_min(torch.finfo(y.dtype).tiny)
        to_q = to_q / size

        def rates(s: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                x = state[0].detach().requires_grad_()
                v, q = self.rates(net, 1 - s, x, context, probes)
                through = (v * state[1]).sum() + (q * to_q).sum()
                found = torch.autograd.grad(through, [x, *leaves], materialize_grads=True)
            return -self.speed * v.detach(), *(self.speed * g for g in found)

        start = (y, to_y / size, *(torch.zeros_like(leaf) for leaf in leaves))
        return tuple(size * g for g in self.solver.integrate(rates, start, watched)[1:])


class _Solve(Function):
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
        return _Solve.apply(path, *rows, _fold_probes(probes, dims[3]), *rest), (0, 0)


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
