"""ChEES-HMC: Hamiltonian trajectories whose length is tuned over many chains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrodgm.kernels.adaptation import StepAndMetricTuner
from pyrodgm.kernels.base import Info, Kernel, Potential, State
from pyrodgm.kernels.hamiltonian import acceptance_of_one_step, at_rest, halton, move
from pyrodgm.kernels.hmc import check_settings
from pyrodgm.kernels.metric import Diagonal, Metric

__all__ = ["ChEES", "chees_gradient"]

_MORE = 10  # steps of a trajectory that starts anew, after moves of single steps


def chees_gradient(
    before: Tensor, proposal: tuple[Tensor, Tensor], accept_prob: Tensor, time: float, metric: Metric
) -> Tensor:
    r"""Gradient of the ChEES criterion by the log of the trajectory length, over the chains, ().

    .. math::
        \hat g = \frac{\sum_m \alpha_m t (\|x'_m - \bar x'\|^2 - \|x_m - \bar x\|^2) \, (x'_m - \bar x') \cdot v'_m}
        {\sum_m \alpha_m}

    Norm and scalar product are those of the metric, :math:`x^\top M x`, so :math:`x \cdot v = x^\top p`.

    Args:
        before: x, (chains, *event).
        proposal: x' and its momentum, before the Metropolis test.
        accept_prob: :math:`\alpha`, (chains,).
        time: t, that the trajectory took.
        metric: M.
    Source: Hoffman et al. (2021), An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian Monte
        Carlo, section 3.1; there M is the identity.
    Example:
        >>> x = torch.randn(10, 2)
        >>> chees_gradient(x, (x, x), torch.ones(10), 1.0, Diagonal())  # as far out as before: no change
        tensor(0.)
    """
    ends, momentum = proposal
    used = ends.isfinite().flatten(1).all(-1) & (accept_prob > 0)
    weight = torch.where(used, accept_prob, 0.0)
    wide = used.reshape(-1, *[1] * (before.dim() - 1))
    d_before = before - before.mean(0)
    ends = torch.where(wide, ends, before)
    d_after = ends - ends.mean(0)

    def norm(d: Tensor) -> Tensor:
        return (d * metric.weigh(d)).flatten(1).sum(-1)

    gained = (norm(d_after) - norm(d_before)) * (d_after * torch.where(wide, momentum, 0.0)).flatten(1).sum(-1)
    return time * (weight * gained).sum() / weight.sum().clamp(min=1e-12)


class ChEES(Kernel):
    r"""Hamiltonian Monte Carlo whose warm-up also tunes the trajectory length.

    Each step takes :math:`L = \lceil u_t T / \epsilon \rceil` leapfrog steps, the same for all chains, :math:`u_t`
    from a Halton sequence. T climbs the change in the estimator of the expected square,

    .. math:: \mathrm{ChEES}(T) = \tfrac14 E\bigl[(\|x' - E x\|^2 - \|x - E x\|^2)^2\bigr]

    by Adam on log T, with gradients from all chains; the step size aims at a harmonic mean acceptance of 0.651 and
    the metric is renewed in Stan's windows. No chain waits for another, so it is the kernel for many chains.

    Args:
        length: T, where warm-up starts; one step if None.
        step_size: :math:`\epsilon`, where warm-up starts.
        metric: kind of mass matrix, :class:`Diagonal`, :class:`LowRank` or :class:`Dense`, and where warm-up starts.
        target: acceptance probability that warm-up aims at.
        max_steps: L is at most so many.
    Shapes: positions (chains, *event).
    Raises: ValueError if length or step_size is not positive, target is not inside (0, 1), or max_steps < 1; from
        ``tuner`` for less than two chains.
    Source: Hoffman, Radul and Sountsov (2021), An adaptive-MCMC scheme for setting trajectory lengths in
        Hamiltonian Monte Carlo, AISTATS, algorithm 1. Departures: the metric, new starts of the length when that is
        renewed (if the units change much, or trajectories were single steps), and ends of the length average.
    Example:
        >>> kernel = ChEES()
        >>> state = kernel.init(lambda x: x.square().sum(-1) / 2, torch.randn(8, 3))
        >>> tuner = kernel.tuner(state, steps=5)
        >>> after, info = tuner.kernel.step(state)
        >>> tuner.update(state, after, info)
    """

    def __init__(
        self,
        length: float | None = None,
        step_size: float = 0.1,
        metric: Metric | None = None,
        target: float = 0.651,
        max_steps: int = 1000,
    ) -> None:
        check_settings(step_size, target)
        if length is not None and not length > 0:
            raise ValueError(f"expected length > 0 (the longest time of a trajectory), got {length}")
        if max_steps < 1:
            raise ValueError(f"expected max_steps >= 1, got {max_steps}")
        self.length, self.step_size, self.target, self.max_steps = length, step_size, target, max_steps
        self.metric = Diagonal() if metric is None else metric

    def init(self, potential: Potential, positions: Tensor) -> State:
        return at_rest(potential, positions, self.metric)

    def step(self, state: State, generator: torch.Generator | None = None) -> tuple[State, Info]:
        length = self.step_size if self.length is None else self.length
        steps = min(max(1, math.ceil(halton(state.moves + 1) * length / self.step_size)), self.max_steps)
        return move(state, self.step_size, self.metric, steps, generator)

    def tuner(self, state: State, steps: int, generator: torch.Generator | None = None) -> ChEESTuner:
        if len(state.positions) < 2:
            raise ValueError(
                f"expected two chains at least to tune a trajectory length over, got {len(state.positions)}; use NUTS"
            )
        return ChEESTuner(self, state, steps, generator)

    def tuned(self, step_size: float, metric: Metric) -> ChEES:
        """The same kernel with another step size and metric."""
        return ChEES(self.length, step_size, metric, self.target, self.max_steps)

    def with_length(self, length: float) -> ChEES:
        """The same kernel with another trajectory length."""
        return ChEES(length, self.step_size, self.metric, self.target, self.max_steps)

    def one_step_acceptance(
        self, state: State, step_size: float, metric: Metric, generator: torch.Generator | None
    ) -> float:
        """Mean acceptance probability of one leapfrog step over the chains."""
        return acceptance_of_one_step(state, step_size, metric, generator)


class ChEESTuner(StepAndMetricTuner):
    """Beside step size and metric the trajectory length: Adam on its log, averaged over the steps at the end.

    Args: as those of :class:`~pyrodgm.kernels.adaptation.StepAndMetricTuner`.
    """

    rate, beta2 = 0.025, 0.95

    def __init__(self, kernel: ChEES, state: State, steps: int, generator: torch.Generator | None = None) -> None:
        self._chees = kernel
        self._length = self._average = kernel.length
        self._second, self._updates = 0.0, 0
        super().__init__(kernel, state, steps, generator)

    def _build(self, step_size: float) -> ChEES:
        if self._length is None:
            self._length = self._average = step_size
        length = self._average if self._done >= self._steps else self._length
        return self._chees.with_length(length or step_size).tuned(step_size, self.metric)

    def update(self, before: State, after: State, info: Info) -> None:
        used = self.kernel
        if isinstance(used, ChEES) and info.proposal is not None and info.steps is not None:
            time = used.step_size * int(info.steps[0])
            gradient = chees_gradient(before.positions, info.proposal, info.accept_prob, time, used.metric).item()
            if math.isfinite(gradient):
                self._ascend(gradient, used)
        old, step = self.metric, self._averaging.average
        super().update(before, after, info)
        if self.metric is not old and self._length is not None:
            if self._length < 2 * step:  # single steps have told nothing of longer trajectories
                self._length = self._average = min(_MORE * step, math.pi / 2)
            else:
                self._length = self._average = self._converted(self._length, old.stretch(self.metric))
            self._second, self._updates = 0.0, 0
            self.kernel = self._build(self._averaging.step_size)

    def _converted(self, length: float, stretch: float) -> float:
        """A length in units of the new metric, whose longest direction is shorter by ``stretch``.

        The criterion has a maximum in every period, the first one is meant: where the units have changed much the
        length starts anew, from a quarter period of an isotropic Gaussian.
        """
        return length / stretch if 2 / 3 < stretch < 3 / 2 else math.pi / 2

    def _ascend(self, gradient: float, used: ChEES) -> None:
        """One step of Adam; the length stays within the most steps that are allowed.

        It has no lower bound by the step size, whose first trials are ten times too long: a short one takes one step.
        """
        self._updates += 1
        self._second += (1 - self.beta2) * (gradient**2 - self._second)
        scale = math.sqrt(self._second / (1 - self.beta2**self._updates)) + 1e-12
        length = (self._length or used.step_size) * math.exp(self.rate * gradient / scale)
        self._length = min(length, used.max_steps * used.step_size)
        weight = self._updates**-0.5
        self._average = math.exp(
            weight * math.log(self._length) + (1 - weight) * math.log(self._average or self._length)
        )
