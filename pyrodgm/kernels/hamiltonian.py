"""One move along a Hamiltonian trajectory of a given number of leapfrog steps."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrodgm.kernels.base import Info, Potential, State
from pyrodgm.kernels.langevin import energy_and_gradient
from pyrodgm.kernels.metric import Metric

__all__ = ["acceptance_of_one_step", "halton", "leapfrog", "move"]

DIVERGENCE = 1000.0  # nats of energy error; Stan's bound


def leapfrog(
    potential: Potential, x: Tensor, p: Tensor, gradient: Tensor, step_size: float, metric: Metric, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""``steps`` leapfrog steps of all chains; half steps of the momentum between two steps are joined.

    .. math:: p \mathrel{-}= \tfrac\epsilon2 \nabla E(x), \quad x \mathrel{+}= \epsilon M^{-1} p, \quad
        p \mathrel{-}= \tfrac\epsilon2 \nabla E(x)

    Returns: positions, momenta, energies (chains,), gradients.
    Source: Neal (2011), MCMC using Hamiltonian dynamics, eq. 2.28-2.30.
    """
    p = p - step_size / 2 * gradient
    for i in range(steps):
        x = x + step_size * metric.velocity(p)
        energy, gradient = energy_and_gradient(potential, x)
        p = p - (step_size if i < steps - 1 else step_size / 2) * gradient
    return x, p, energy, gradient


def move(
    state: State, step_size: float, metric: Metric, steps: int, generator: torch.Generator | None = None
) -> tuple[State, Info]:
    r"""Fresh momenta, a trajectory, and the Metropolis test :math:`\min(1, \exp(H - H'))`.

    A trajectory whose energy is not finite is refused.
    """
    x, potential, energy, gradient, moves, _ = state
    if energy is None or gradient is None:
        raise ValueError("expected a state with its energy and gradient, got none; make it by the kernel's init")
    p = metric.momentum(x, generator)
    y, q, energy_y, gradient_y = leapfrog(potential, x, p, gradient, step_size, metric, steps)
    before, after = energy + metric.kinetic(p), energy_y + metric.kinetic(q)
    log_ratio = (before - after).nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
    accept_prob = log_ratio.clamp(max=0).exp()
    u = torch.rand(accept_prob.shape, generator=generator, dtype=x.dtype, device=x.device)
    accept = u < accept_prob
    moved = accept.reshape(-1, *[1] * (x.dim() - 1))
    new = State(
        torch.where(moved, y, x),
        potential,
        torch.where(accept, energy_y, energy),
        torch.where(moved, gradient_y, gradient),
        moves + 1,
    )
    info = Info(
        accept_prob,
        diverging=log_ratio < -DIVERGENCE,
        steps=torch.full_like(energy, steps, dtype=torch.long),
        energy=torch.where(accept, after, before),
        proposal=(y, q),
    )
    return new, info


def acceptance_of_one_step(
    state: State, step_size: float, metric: Metric, generator: torch.Generator | None = None
) -> float:
    """Mean acceptance probability of one leapfrog step over the chains."""
    _, info = move(state, step_size, metric, 1, generator)
    return info.accept_prob.mean().item()


def halton(index: int) -> float:
    """Element ``index`` >= 1 of the base-2 Halton sequence, in (0, 1).

    Source: Halton (1960), On the efficiency of certain quasi-random sequences of points.
    Example:
        >>> [halton(i) for i in (1, 2, 3)]
        [0.5, 0.25, 0.75]
    """
    value, part = 0.0, 0.5
    while index:
        value += part * (index & 1)
        index >>= 1
        part /= 2
    return value
