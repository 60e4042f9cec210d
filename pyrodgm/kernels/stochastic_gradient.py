"""Markov chains whose gradients come from minibatches: stochastic gradient Langevin dynamics and HMC."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pyrodgm.kernels.base import Info, Kernel, Potential, State
from pyrodgm.kernels.langevin import energy_and_gradient

__all__ = ["SGHMC", "SGLD", "Minibatch", "NoisyGradient"]


@runtime_checkable
class NoisyGradient(Protocol):
    """A potential with an unbiased estimate of its gradient; another potential gives the gradient itself."""

    def noisy_gradient(self, positions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Like positions, (chains, *event), with noise from ``generator``."""


class Minibatch:
    r"""An energy that is a sum over rows of data, its gradient from a few of them.

    .. math::
        U(x) = E_0(x) + \sum_{i=1}^N \ell(x, y_i), \qquad
        \nabla \tilde U(x) = \nabla E_0(x) + \frac{N}{n} \sum_{i \in S} \nabla \ell(x, y_i)

    Every chain draws n rows S of its own, with replacement, from the kernel's generator: the estimate is unbiased.
    Called, it gives U itself over all rows, so that any kernel takes it.

    Args:
        prior: :math:`E_0` of one point, (*event) -> ().
        row: :math:`\ell` of one point and a few rows, (*event), (n, ...), ... -> (n,).
        data: tensors of N rows each.
        batch_size: n.
    Raises: ValueError for tensors of different lengths, or a batch_size below 1.
    Source: Welling and Teh (2011), eq. 4.
    Example:
        >>> y = torch.randn(1000)
        >>> potential = Minibatch(lambda x: x.square().sum() / 2, lambda x, y: (y - x).square() / 2, y, batch_size=10)
        >>> potential(torch.zeros(8, 1)).shape, potential.noisy_gradient(torch.zeros(8, 1)).shape
        (torch.Size([8]), torch.Size([8, 1]))
    """

    def __init__(
        self, prior: Callable[[Tensor], Tensor], row: Callable[..., Tensor], *data: Tensor, batch_size: int
    ) -> None:
        if not data or any(len(d) != len(data[0]) for d in data):
            raise ValueError(f"expected data of one length, got {[len(d) for d in data]}")
        if batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, got {batch_size}")
        self.prior, self.row, self.data, self.batch_size = prior, row, data, batch_size

    def _energy(self, x: Tensor, *rows: Tensor) -> Tensor:
        return self.prior(x) + len(self.data[0]) / len(rows[0]) * self.row(x, *rows).sum()

    def __call__(self, positions: Tensor) -> Tensor:
        return torch.func.vmap(lambda x: self._energy(x, *self.data))(positions)

    def noisy_gradient(self, positions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        shape = (len(positions), self.batch_size)
        which = torch.randint(len(self.data[0]), shape, generator=generator, device=positions.device)
        rows = [d[which] for d in self.data]  # (chains, n, ...)
        return torch.func.vmap(torch.func.grad(self._energy))(positions, *rows)


def _gradient(potential: Potential, x: Tensor, generator: torch.Generator | None) -> Tensor:
    if isinstance(potential, NoisyGradient):
        return potential.noisy_gradient(x, generator)
    return energy_and_gradient(potential, x)[1]


def _normal(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


class SGLD(Kernel):
    r"""Stochastic gradient Langevin dynamics: gradient steps with as much noise as makes them sample.

    .. math::
        x_{t+1} = x_t - \tfrac{\epsilon_t^2}{2} \nabla \tilde U(x_t) + \epsilon_t \xi_t, \quad
        \epsilon_t^2 = \epsilon^2 (1 + t / b)^{-\gamma}

    No step is refused, so the law is off by O(:math:`\epsilon^2`), and further by the gradient's noise: with an exact
    gradient of precision matrix P its stationary covariance is :math:`(P (I - \epsilon^2 P / 4))^{-1}`. Steps that
    fall (0.5 < gamma <= 1) take the error to 0, and want draws weighted by :math:`\epsilon_t^2`
    (``sample_stats["step_size"]`` squared).

    Args:
        step_size: :math:`\epsilon`, the standard deviation of the noise, as of :class:`MALA` (the source's epsilon is
            its square).
        decay: :math:`\gamma`, 0 for a constant step.
        delay: b.
    Shapes: positions (chains, *event).
    Raises: ValueError if step_size or delay is not positive, or decay is negative.
    Source: Welling and Teh (2011), Bayesian learning via stochastic gradient Langevin dynamics, ICML, eq. 4.
    Example:
        >>> kernel = SGLD(0.1)
        >>> y = torch.randn(1000)
        >>> potential = Minibatch(lambda x: x.square().sum() / 2, lambda x, y: (y - x).square() / 2, y, batch_size=10)
        >>> kernel.step(kernel.init(potential, torch.zeros(8, 1)))[0].positions.shape
        torch.Size([8, 1])
    """

    def __init__(self, step_size: float, decay: float = 0.0, delay: float = 1.0) -> None:
        if not step_size > 0 or not delay > 0 or not decay >= 0:
            raise ValueError(f"expected step_size > 0, delay > 0 and decay >= 0, got {step_size}, {delay} and {decay}")
        self.step_size, self.decay, self.delay = step_size, decay, delay

    def step_size_at(self, t: int) -> float:
        r""":math:`\epsilon_t`, t from 0."""
        return self.step_size * (1 + t / self.delay) ** (-self.decay / 2)

    def init(self, potential: Any, positions: Tensor) -> State:
        return State(positions.detach(), potential)

    @torch.no_grad()
    def step(self, state: State, generator: torch.Generator | None = None) -> tuple[State, Info]:
        x = state.positions
        epsilon = self.step_size_at(state.moves)
        gradient = _gradient(state.potential, x, generator)
        y = x - epsilon**2 / 2 * gradient + epsilon * _normal(x, generator)
        return State(y, state.potential, moves=state.moves + 1), Info(torch.ones_like(x.flatten(1)[:, 0]))


class SGHMC(Kernel):
    r"""Stochastic gradient HMC: momentum with friction against the gradient's noise.

    .. math::
        x_{t+1} &= x_t + v_t \\
        v_{t+1} &= (1 - \alpha) v_t - \epsilon^2 \nabla \tilde U(x_{t+1})
            + \sqrt{2 (\alpha - \hat\beta)} \, \epsilon \xi_t

    No step is refused: the law is off by O(:math:`\epsilon^2`), and by the noise of the gradient that
    :math:`\hat\beta = \epsilon^2 V / 2` does not stand for, V the variance of :math:`\nabla \tilde U`. With an exact
    gradient of precision matrix P its stationary covariance is
    :math:`(P (I - \epsilon^2 P / (4 - 2 \alpha)))^{-1}`.

    Args:
        step_size: :math:`\epsilon`, the square root of the source's learning rate :math:`\eta`.
        friction: :math:`\alpha` in (0, 1]; one less the decay of momentum.
        noise: :math:`\hat\beta`, from 0 up to alpha.
    Shapes: positions (chains, *event); v lies in the state's memory.
    Raises: ValueError for settings outside these ranges.
    Source: Chen, Fox and Guestrin (2014), Stochastic gradient Hamiltonian Monte Carlo, arXiv:1402.4102, eq. 15.
    Example:
        >>> kernel = SGHMC(0.05)
        >>> state, info = kernel.step(kernel.init(lambda x: x.square().sum(-1) / 2, torch.zeros(8, 3)))
        >>> state.positions.shape, state.memory[0].shape
        (torch.Size([8, 3]), torch.Size([8, 3]))
    """

    remembers = True

    def __init__(self, step_size: float, friction: float = 0.1, noise: float = 0.0) -> None:
        if not step_size > 0 or not 0 < friction <= 1 or not 0 <= noise <= friction:
            raise ValueError(
                "expected step_size > 0, friction in (0, 1] and noise in [0, friction], got "
                f"{step_size}, {friction} and {noise}"
            )
        self.step_size, self.friction, self.noise = step_size, friction, noise

    def init(self, potential: Any, positions: Tensor) -> State:
        return State(positions.detach(), potential, memory=(torch.zeros_like(positions),))

    @torch.no_grad()
    def step(self, state: State, generator: torch.Generator | None = None) -> tuple[State, Info]:
        if not state.memory:
            raise ValueError("expected a state with its velocity, got none; make it by SGHMC.init")
        (v,) = state.memory
        x = state.positions + v
        gradient = _gradient(state.potential, x, generator)
        scale = self.step_size * math.sqrt(2 * (self.friction - self.noise))
        v = (1 - self.friction) * v - self.step_size**2 * gradient + scale * _normal(x, generator)
        told = Info(torch.ones_like(x.flatten(1)[:, 0]))
        return State(x, state.potential, moves=state.moves + 1, memory=(v,)), told
