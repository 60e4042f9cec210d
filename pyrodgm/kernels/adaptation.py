"""Tuning of Hamiltonian kernels over all chains at once: step size by dual averaging, metric by Stan's windows."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from pyrodgm.kernels.base import Info, Kernel, State, Tuner
from pyrodgm.kernels.metric import Metric

__all__ = ["DualAveraging", "Hamiltonian", "StepAndMetricTuner", "reasonable_step_size", "windows"]


class DualAveraging:
    r"""Nesterov's dual averaging of the log step size, until the acceptance is :math:`\delta`.

    .. math::
        \bar H_t &= \bigl(1 - \tfrac{1}{t + t_0}\bigr) \bar H_{t-1} + \tfrac{1}{t + t_0} (\delta - \alpha_t) \\
        \log \epsilon_t &= \mu - \frac{\sqrt t}{\gamma} \bar H_t, \quad
        \log \bar\epsilon_t = t^{-\kappa} \log \epsilon_t + (1 - t^{-\kappa}) \log \bar\epsilon_{t-1}

    with :math:`\mu = \log 10 \epsilon_0`, :math:`\gamma = 0.05`, :math:`t_0 = 10`, :math:`\kappa = 0.75`.

    Args:
        step_size: :math:`\epsilon_0`.
        target: :math:`\delta`.
    Attributes:
        step_size: :math:`\epsilon_t`, to try next.
        average: :math:`\bar\epsilon_t`, to keep at the end.
    Source: Hoffman and Gelman (2014), The No-U-Turn sampler, algorithm 5, eq. 6.
    Example:
        >>> averaging = DualAveraging(1.0, target=0.8)
        >>> averaging.update(0.1)  # too few accepted
        >>> averaging.step_size < 10.0
        True
    """

    gamma, t0, kappa = 0.05, 10.0, 0.75

    def __init__(self, step_size: float, target: float) -> None:
        self.step_size = self.average = step_size
        self.target = target
        self._mu = math.log(10 * step_size)
        self._t, self._error, self._log_average = 0, 0.0, 0.0

    def update(self, accept_prob: float) -> None:
        """Take in the acceptance probability of one step with ``step_size``."""
        self._t += 1
        t = self._t
        self._error += (self.target - accept_prob - self._error) / (t + self.t0)
        log_step = self._mu - math.sqrt(t) / self.gamma * self._error
        self._log_average += t**-self.kappa * (log_step - self._log_average)
        self.step_size, self.average = math.exp(log_step), math.exp(self._log_average)


class Hamiltonian(Protocol):
    """A kernel whose step size and metric can be tuned."""

    step_size: float
    metric: Metric
    target: float

    def tuned(self, step_size: float, metric: Metric) -> Kernel:
        """The same kernel with these."""

    def one_step_acceptance(
        self, state: State, step_size: float, metric: Metric, generator: torch.Generator | None
    ) -> float:
        """Mean acceptance probability of one leapfrog step over the chains."""


def reasonable_step_size(
    kernel: Hamiltonian, state: State, step_size: float, metric: Metric, generator: torch.Generator | None = None
) -> float:
    """Doubles or halves a step size until one leapfrog step is accepted about half the time, over all chains.

    Source: Hoffman and Gelman (2014), algorithm 4.
    """
    grow = kernel.one_step_acceptance(state, step_size, metric, generator) > 0.5
    for _ in range(60):  # 2^60 either way: a flat energy would go on for ever
        following = step_size * 2 if grow else step_size / 2
        if (kernel.one_step_acceptance(state, following, metric, generator) > 0.5) != grow:
            return step_size if grow else following
        step_size = following
    return step_size


def windows(steps: int, chains: int = 1) -> tuple[int, list[int]]:
    """The step after which draws count for the metric, and the steps after which a window ends and it is renewed.

    Windows of 25, 50, 100, ... draws after a first phase of 75, the last one stretched to 50 steps before the end (a
    third of them at most: the step size needs some to settle); none below 20 steps. C chains need a
    C-th of the steps for as many draws, but at least 5 in the first window: so early windows are short and mend a
    metric that makes every step dear.

    Source: Stan reference manual, section 15.2 (automatic parameter tuning); the pooling is ours.
    Example:
        >>> windows(1000)
        (75, [100, 150, 250, 450, 950])
        >>> windows(1000, chains=64)
        (15, [20, 30, 50, 90, 170, 330, 950])
    """
    if steps < 20:
        return steps, []
    size = max(5, math.ceil(25 / chains))
    first, last = 3 * size, min(50, steps // 3)
    stop = steps - last
    if first + size > stop:
        return int(0.15 * steps), [stop]
    ends, end = [], first
    while end < stop:
        end = stop if end + 3 * size > stop else end + size  # no room for this window and its double: stretch it
        ends.append(end)
        size *= 2
    return first, ends


class StepAndMetricTuner(Tuner):
    """Step size after every step, metric at the end of every window, both shared by the chains.

    Args:
        kernel: to tune.
        state: of the chains.
        steps: of warm-up.
        generator: of the momenta that the first step size is tried with.

    The acceptance is averaged over the chains harmonically, so that chains that stick weigh most: by the plain mean a
    few that start far out, where the step is too long for them, would never leave.

    Source: Hoffman and Gelman (2014); the harmonic mean: Hoffman et al. (2021), section 3.1.
    """

    def __init__(self, kernel: Hamiltonian, state: State, steps: int, generator: torch.Generator | None = None) -> None:
        self._base, self._generator = kernel, generator
        self._steps, self._done = steps, 0
        self._start, self._ends = windows(steps, len(state.positions))
        self.metric = kernel.metric
        self._moments = self.metric.moments()
        self._restart(kernel.step_size, state)
        super().__init__(self._build(self._averaging.step_size))

    def _build(self, step_size: float) -> Kernel:
        return self._base.tuned(step_size, self.metric)

    def _restart(self, step_size: float, state: State) -> None:
        step_size = reasonable_step_size(self._base, state, step_size, self.metric, self._generator)
        self._averaging = DualAveraging(step_size, self._base.target)

    def update(self, before: State, after: State, info: Info) -> None:
        self._done += 1
        self._averaging.update(_mean(info.accept_prob))
        if self._ends and self._start < self._done <= self._ends[-1]:
            self._moments.add(after.positions, after.gradient)
        if self._done in self._ends and self._moments.count > 1:
            self.metric = self.metric.estimated(self._moments, after.positions)
            self._moments = self.metric.moments()
            self._restart(self._averaging.average, after)
        last = self._done >= self._steps
        self.kernel = self._build(self._averaging.average if last else self._averaging.step_size)


def _mean(accept_prob: Tensor) -> float:
    # the floor keeps one stuck chain in a thousand from halting them all
    return 1 / accept_prob.clamp(min=1e-2).reciprocal().mean().item()
