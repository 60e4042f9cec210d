"""One move along a Hamiltonian trajectory of a given number of leapfrog steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyrodgm.kernels.base import Info, Potential, State
from pyrodgm.kernels.langevin import energy_and_gradient
from pyrodgm.kernels.metric import Metric, kinetic, velocity

__all__ = ["acceptance_of_one_step", "at_rest", "fused", "halton", "leapfrog", "leapfrog_step", "move", "steps_of"]

DIVERGENCE = 1000.0  # nats of energy error; Stan's bound


def fused(potential: Potential, function: Callable[..., Any], *tensors: Tensor) -> Callable[..., Any]:
    """``function(potential, *tensors)`` as a function of tensors like these alone.

    A potential that compiles has a method ``fused`` of its own and makes one graph of it, see
    :class:`~pyrodgm.engine.batched.BatchedEnergy`; with any other the function runs operation by operation.
    """
    own = getattr(potential, "fused", None)
    return partial(function, potential) if own is None else own(function, *tensors)


def leapfrog_step(
    potential: Potential, x: Tensor, p: Tensor, gradient: Tensor, step_size: Tensor, inverse_mass: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""One leapfrog step of all chains, of a signed size each, (chains, 1, ...).

    .. math:: p \mathrel{-}= \tfrac\epsilon2 \nabla E(x), \quad x \mathrel{+}= \epsilon M^{-1} p, \quad
        p \mathrel{-}= \tfrac\epsilon2 \nabla E(x)

    Returns: positions, momenta, energies (chains,), gradients.
    Source: Neal (2011), MCMC using Hamiltonian dynamics, eq. 2.28-2.30.
    """
    p = p - step_size / 2 * gradient
    x = x + step_size * velocity(inverse_mass, p)
    energy, gradient = energy_and_gradient(potential, x)
    return x, p - step_size / 2 * gradient, energy, gradient


def steps_of(step_size: float, x: Tensor) -> Tensor:
    """A step size for each chain, (chains, 1, ...)."""
    return x.new_full((len(x), *[1] * (x.dim() - 1)), step_size)


def leapfrog(
    potential: Potential, x: Tensor, p: Tensor, gradient: Tensor, step_size: float, metric: Metric, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``steps`` times :func:`leapfrog_step`: positions, momenta, energies (chains,), gradients."""
    size, inverse_mass = steps_of(step_size, x), metric.inverse(x)
    step = fused(potential, leapfrog_step, x, p, gradient, size, inverse_mass)
    x, p, energy, gradient = step(x, p, gradient, size, inverse_mass)
    for _ in range(steps - 1):
        x, p, energy, gradient = step(x, p, gradient, size, inverse_mass)
    return x, p, energy, gradient


@torch.no_grad()
def at_rest(potential: Potential, positions: Tensor, metric: Metric) -> State:
    """The state of chains at ``positions``, by a step of no length in the graph of the trajectories."""
    x = positions.detach().contiguous()
    zero = torch.zeros_like(x)
    _, _, energy, gradient = leapfrog(potential, x, zero, zero, 0.0, metric, 1)
    return State(x, potential, energy, gradient)


@torch.no_grad()
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
    uniform = torch.rand(energy.shape, generator=generator, dtype=x.dtype, device=x.device)
    given = (x, p, energy, gradient, y, q, energy_y, gradient_y, uniform, metric.inverse(x))
    x, energy, gradient, accept_prob, diverging, hamiltonian = fused(potential, _metropolis, *given)(*given)
    info = Info(
        accept_prob,
        diverging=diverging,
        steps=torch.full_like(energy, steps, dtype=torch.long),
        energy=hamiltonian,
        proposal=(y, q),
    )
    return State(x, potential, energy, gradient, moves + 1), info


def _metropolis(
    _: Any,
    x: Tensor,
    p: Tensor,
    energy: Tensor,
    gradient: Tensor,
    y: Tensor,
    q: Tensor,
    energy_y: Tensor,
    gradient_y: Tensor,
    uniform: Tensor,
    inverse_mass: Tensor,
) -> tuple[Tensor, ...]:
    """Positions, energies, gradients after the test; acceptance probability, divergence, Hamiltonian of each chain."""
    before = energy + kinetic(inverse_mass, p)
    after = energy_y + kinetic(inverse_mass, q)
    log_ratio = (before - after).nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
    accept_prob = log_ratio.clamp(max=0).exp()
    accept = uniform < accept_prob
    moved = accept.reshape(-1, *[1] * (x.dim() - 1))
    return (
        torch.where(moved, y, x),
        torch.where(accept, energy_y, energy),
        torch.where(moved, gradient_y, gradient),
        accept_prob,
        log_ratio < -DIVERGENCE,
        torch.where(accept, after, before),
    )


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
