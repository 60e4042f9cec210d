"""Hamiltonian Monte Carlo over vectorised chains."""

from __future__ import annotations

import math

import torch

from pyrodgm.kernels.adaptation import StepAndMetricTuner
from pyrodgm.kernels.base import Info, Kernel, Potential, State
from pyrodgm.kernels.hamiltonian import acceptance_of_one_step, at_rest, halton, move
from pyrodgm.kernels.metric import Diagonal, Metric

__all__ = ["HMC"]


class HMC(Kernel):
    r"""Trajectories of Hamilton's equations as proposals.

    .. math::
        H(x, p) = E(x) + \tfrac12 p^\top M^{-1} p, \quad p \sim N(0, M), \quad
        L = \lceil u_t \, 2 T / \epsilon \rceil, \quad \alpha = \min(1, \exp(H(x, p) - H(x', p')))

    :math:`u_t` runs through a Halton sequence on (0, 1), one value a step for all chains, so that trajectories of
    mean length T meet no period of the target. Warm-up sets :math:`\epsilon` by dual averaging and the metric by
    Stan's windows, each shared by all chains: many chains need few steps.

    Args:
        length: T, mean time of a trajectory, in the units that the metric makes of the target: pi / 2 takes an
            isotropic Gaussian to an independent point.
        step_size: :math:`\epsilon`, where warm-up starts.
        metric: kind of mass matrix, :class:`Diagonal`, :class:`LowRank` or :class:`Dense`, and where warm-up starts.
        target: acceptance probability that warm-up aims at, a harmonic mean over the chains.
        jitter: vary the length; False keeps it at T.
        max_steps: L is at most so many.
    Shapes: positions (chains, *event).
    Raises: ValueError if length or step_size is not positive, target is not inside (0, 1), or max_steps < 1.
    Source: Duane et al. (1987); Neal (2011), MCMC using Hamiltonian dynamics, sections 3 and 4.2; warm-up: Hoffman
        and Gelman (2014), arXiv:1111.4246, algorithm 5.
    Example:
        >>> kernel = HMC(step_size=0.3)
        >>> state = kernel.init(lambda x: x.square().sum(-1) / 2, torch.zeros(8, 3))
        >>> state, info = kernel.step(state)
        >>> state.positions.shape, info.accept_prob.shape
        (torch.Size([8, 3]), torch.Size([8]))
    """

    def __init__(
        self,
        length: float = math.pi / 2,
        step_size: float = 0.1,
        metric: Metric | None = None,
        target: float = 0.651,
        jitter: bool = True,
        max_steps: int = 1000,
    ) -> None:
        check_settings(step_size, target)
        if not length > 0:
            raise ValueError(f"expected length > 0 (the mean time of a trajectory), got {length}")
        if max_steps < 1:
            raise ValueError(f"expected max_steps >= 1, got {max_steps}")
        self.length, self.step_size, self.target = length, step_size, target
        self.metric = Diagonal() if metric is None else metric
        self.jitter, self.max_steps = jitter, max_steps

    def init(self, potential: Potential, positions: torch.Tensor) -> State:
        return at_rest(potential, positions, self.metric)

    def step(self, state: State, generator: torch.Generator | None = None) -> tuple[State, Info]:
        length = 2 * self.length * halton(state.moves + 1) if self.jitter else self.length
        steps = min(max(1, math.ceil(length / self.step_size)), self.max_steps)
        return move(state, self.step_size, self.metric, steps, generator)

    def tuner(self, state: State, steps: int, generator: torch.Generator | None = None) -> StepAndMetricTuner:
        return StepAndMetricTuner(self, state, steps, generator)

    def tuned(self, step_size: float, metric: Metric) -> HMC:
        """The same kernel with another step size and metric."""
        return HMC(self.length, step_size, metric, self.target, self.jitter, self.max_steps)

    def one_step_acceptance(
        self, state: State, step_size: float, metric: Metric, generator: torch.Generator | None
    ) -> float:
        """Mean acceptance probability of one leapfrog step over the chains."""
        return acceptance_of_one_step(state, step_size, metric, generator)


def check_settings(step_size: float, target: float) -> None:
    """Raise ValueError for a step size or an acceptance that cannot be meant."""
    if not step_size > 0:
        raise ValueError(f"expected step_size > 0, got {step_size}")
    if not 0 < target < 1:
        raise ValueError(f"expected target inside (0, 1) (an acceptance probability), got {target}")
