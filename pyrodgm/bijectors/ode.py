r"""Solving :math:`\dot x = v(t, x)` with integrals along the path, and the gradients of the solution.

Everything here runs in a variable s from 0 to 1, whichever way time runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyrodgm.bijectors.adjoint import AdjointSolve
from pyrodgm.bijectors.base import in_its_precision
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
        with in_its_precision(like):  # a solver that compares steps needs the digits of the velocity, too
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
        trace: estimates what q needs of J; None leaves q out (R = 0).
        solver: how to integrate.
        time: T.
        backwards: from T to 0.
        costs: integrate the last two parts of q, too.
    """

    def __init__(
        self,
        net: nn.Module,
        trace: Trace | None,
        solver: ODESolver,
        time: float,
        backwards: bool,
        costs: bool = False,
    ) -> None:
        self.net, self.trace, self.solver = net, trace, solver
        self.costs, self.integrals = costs, 0 if trace is None else 3 if costs else 1
        self.start, self.speed = (time, -time) if backwards else (0.0, time)
        self.names = [f"net.{name}" for name, _ in net.named_parameters()]

    def __call__(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The end of the path and its integrals: (*B, D), (*B, C) -> (*B, D), (*B, R), R = 0, 1 or 3."""
        probes = x.new_zeros(1) if self.trace is None else self.trace.probes(x)
        if not self.solver.adjoint:
            return self.solve(self.net, x, context, probes)
        return AdjointSolve.apply(self, x, context, probes, *self.net.parameters())

    def run(self, task: Callable[[nn.Module], Any], parameters: tuple[Tensor, ...]) -> Any:
        """task(net) with these parameters in the net."""
        return functional_call(_Holder(self.net), dict(zip(self.names, parameters, strict=True)), (task,))

    def rates(self, net: nn.Module, s: Tensor, x: Tensor, context: Tensor | None, probes: Tensor) -> Any:
        """v and the rate of q in time (not in s), with a graph where gradients are on."""
        if self.trace is None:
            return net(self.start + self.speed * s, x, context), x.new_zeros(*x.shape[:-1], 0)
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

        return self.solver.integrate(rates, (x, x.new_zeros(*x.shape[:-1], self.integrals)), watched=2)

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
