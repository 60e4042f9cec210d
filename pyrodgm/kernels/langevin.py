"""Metropolis kernels whose proposals are one Gaussian step: with the gradient (MALA) and without."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrodgm.kernels.base import Info, Kernel, Potential, State

__all__ = ["MALA", "RandomWalk", "energy_and_gradient"]


def energy_and_gradient(potential: Potential, positions: Tensor) -> tuple[Tensor, Tensor]:
    """(E, dE/dx) of every chain: (chains, *event) -> (chains,), (chains, *event), cut from any graph.

    A potential that has a quicker way has a method ``energy_and_gradient`` of its own.
    Raises: TypeError if the potential is no energy.
    """
    own = getattr(potential, "energy_and_gradient", None)
    if own is not None:
        return own(positions)
    if not callable(potential):
        raise TypeError(
            f"expected an energy, (chains, *event) -> (chains,), got {type(potential).__name__}; "
            "kernels that move by gradients do not sample from conditionals, BlockGibbs does"
        )
    with torch.enable_grad():
        x = positions.detach().requires_grad_()
        energy = potential(x)
        (gradient,) = torch.autograd.grad(energy.sum(), x)
    return energy.detach(), gradient


class MALA(Kernel):
    r"""Metropolis-adjusted Langevin algorithm: a step down the gradient, noise, an exact correction.

    .. math::
        x' &= x - \tfrac{\epsilon^2}{2} \nabla E(x) + \epsilon \xi, \quad \xi \sim N(0, I) \\
        \alpha &= \min\bigl(1, \exp(E(x) - E(x') + \tfrac12 |\xi|^2 - \tfrac12 |\xi'|^2)\bigr), \quad
        \xi' = \xi - \tfrac{\epsilon}{2} (\nabla E(x) + \nabla E(x'))

    where :math:`-\xi'` is the noise of the way back. One gradient a step: the state keeps energies and
    gradients. A proposal whose energy is NaN is refused.

    Args:
        step_size: :math:`\epsilon`, the standard deviation of the noise (of the source's step h, the square root).
    Shapes: positions (chains, *event).
    Raises: ValueError if step_size is not positive.
    Source: Roberts and Tweedie (1996), Exponential convergence of Langevin distributions and their
        discrete approximations.
    Example:
        >>> kernel = MALA(0.5)
        >>> state = kernel.init(lambda x: x.square().sum(-1) / 2, torch.zeros(8, 3))
        >>> state, info = kernel.step(state)
        >>> state.positions.shape, info.accept_prob.shape
        (torch.Size([8, 3]), torch.Size([8]))
    """

    def __init__(self, step_size: float) -> None:
        self.step_size = _positive(step_size)

    def init(self, potential: Potential, positions: Tensor) -> State:
        return State(positions.detach(), potential, *energy_and_gradient(potential, positions))

    def step(self, state: State, generator: torch.Generator | None = None) -> tuple[State, Info]:
        x, potential, energy, gradient, moves, _ = state
        if energy is None or gradient is None:
            raise ValueError("expected a state with its energy and gradient, got none; make it by MALA.init")
        epsilon = self.step_size
        noise = _normal_like(x, generator)
        y = x - epsilon**2 / 2 * gradient + epsilon * noise
        energy_y, gradient_y = energy_and_gradient(potential, y)
        drift = epsilon / 2 * (gradient + gradient_y)
        # |noise|^2 / 2 - |noise - drift|^2 / 2, without cancelling the two large squares
        log_ratio = energy - energy_y + (drift * (noise - drift / 2)).flatten(1).sum(-1)
        accept, accept_prob = _metropolis(log_ratio, generator)
        moved = accept.reshape(-1, *[1] * (x.dim() - 1))
        return State(
            torch.where(moved, y, x),
            potential,
            torch.where(accept, energy_y, energy),
            torch.where(moved, gradient_y, gradient),
            moves + 1,
        ), Info(accept_prob)


class RandomWalk(Kernel):
    r"""Random-walk Metropolis: :math:`x' = x + \epsilon \xi`, taken with probability min(1, exp(E(x) - E(x'))).

    Args:
        step_size: :math:`\epsilon`, the standard deviation of a step.
    Shapes: positions (chains, *event).
    Raises: ValueError if step_size is not positive.
    Source: Metropolis et al. (1953); Roberts and Tweedie (1996), Geometric convergence of
        multidimensional Hastings and Metropolis algorithms.
    Example:
        >>> kernel = RandomWalk(1.0)
        >>> state, info = kernel.step(kernel.init(lambda x: x.abs().sum(-1), torch.zeros(8, 2)))
        >>> state.energy.shape
        torch.Size([8])
    """

    def __init__(self, step_size: float) -> None:
        self.step_size = _positive(step_size)

    def init(self, potential: Potential, positions: Tensor) -> State:
        with torch.no_grad():
            return State(positions.detach(), potential, potential(positions))

    @torch.no_grad()
    def step(self, state: State, generator: torch.Generator | None = None) -> tuple[State, Info]:
        x, potential, energy, _, moves, _ = state
        if energy is None:
            raise ValueError("expected a state with its energy, got none; make it by RandomWalk.init")
        y = x + self.step_size * _normal_like(x, generator)
        energy_y = potential(y)
        accept, accept_prob = _metropolis(energy - energy_y, generator)
        x = torch.where(accept.reshape(-1, *[1] * (x.dim() - 1)), y, x)
        return State(x, potential, torch.where(accept, energy_y, energy), None, moves + 1), Info(accept_prob)


def _positive(step_size: float) -> float:
    if not step_size > 0:
        raise ValueError(f"expected step_size > 0 (the standard deviation of a step), got {step_size}")
    return float(step_size)


def _normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def _metropolis(log_ratio: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Which chains move, and with what probability; a NaN ratio never moves."""
    accept_prob = log_ratio.clamp(max=0).exp().nan_to_num(0.0)
    u = torch.rand(log_ratio.shape, generator=generator, dtype=log_ratio.dtype, device=log_ratio.device)
    return u < accept_prob, accept_prob
