"""Weights that change with the steps of a run, counted on the device so that compiled and resumed runs agree."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

__all__ = ["CyclicalAnnealing", "LinearAnnealing", "Schedule"]


class Schedule(nn.Module, ABC):
    """A weight as a function of the steps taken; calling it in training mode gives the weight and counts a step.

    The count is a buffer: it is saved with the run, it never comes to the host, and a traced loss
    moves it as an eager one does.

    Attributes:
        step: calls in training mode so far, ().
    """

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def weight(self, step: Tensor) -> Tensor:
        """The weight at a step, () -> ()."""

    def forward(self) -> Tensor:
        weight = self.weight(self.step)
        if self.training:
            self.step.add_(1)
        return weight


class LinearAnnealing(Schedule):
    r"""From ``start`` to ``end`` in a straight line of ``steps`` steps, after ``wait`` steps at ``start``.

    .. math:: \beta_t = \text{start} + (\text{end} - \text{start}) \min(1, \max(0, t - \text{wait}) / \text{steps})

    Args:
        steps: length of the line.
        start, end: weights >= 0.
        wait: steps before the line begins.
    Raises: ValueError for steps < 1, wait < 0 or a negative weight.
    Source: Bowman et al. (2016), arXiv:1511.06349, section 3.1; Sønderby et al. (2016), arXiv:1602.02282, section 2.2.
    Example:
        >>> beta = LinearAnnealing(4)
        >>> [beta().item() for _ in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    def __init__(self, steps: int, start: float = 0.0, end: float = 1.0, wait: int = 0) -> None:
        super().__init__()
        if steps < 1 or wait < 0:
            raise ValueError(f"expected steps >= 1 and wait >= 0, got {steps} and {wait}")
        _check_weights(start, end)
        self.steps, self.start, self.end, self.wait = steps, float(start), float(end), wait

    def weight(self, step: Tensor) -> Tensor:
        fraction = ((step - self.wait).to(torch.get_default_dtype()) / self.steps).clamp(0.0, 1.0)
        return self.start + (self.end - self.start) * fraction


class CyclicalAnnealing(Schedule):
    r"""Cycles of ``period`` steps: a line from ``start`` to ``end`` over the share ``ramp``, then ``end``.

    .. math:: \beta_t = \text{start} + (\text{end} - \text{start}) \min(1, \tau / \text{ramp}), \qquad
        \tau = (t \bmod \text{period}) / \text{period}

    Args:
        period: steps of a cycle.
        ramp: share of a cycle that rises, in (0, 1].
        start, end: weights >= 0.
        cycles: after so many the weight stays at ``end``; None goes on for ever.
    Raises: ValueError for period < 1, ramp outside (0, 1], cycles < 1 or a negative weight.
    Source: Fu et al. (2019), arXiv:1903.10145, eq. 6-7 (with period = T / M and ramp = R).
    Example:
        >>> beta = CyclicalAnnealing(4)
        >>> [beta().item() for _ in range(6)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5]
    """

    def __init__(
        self, period: int, ramp: float = 0.5, start: float = 0.0, end: float = 1.0, cycles: int | None = None
    ) -> None:
        super().__init__()
        if period < 1 or not 0 < ramp <= 1 or (cycles is not None and cycles < 1):
            raise ValueError(f"expected period >= 1, 0 < ramp <= 1 and cycles >= 1, got {period}, {ramp}, {cycles}")
        _check_weights(start, end)
        self.period, self.ramp, self.start, self.end, self.cycles = period, ramp, float(start), float(end), cycles

    def weight(self, step: Tensor) -> Tensor:
        phase = (step % self.period).to(torch.get_default_dtype()) / self.period
        weight = self.start + (self.end - self.start) * (phase / self.ramp).clamp(max=1.0)
        if self.cycles is None:
            return weight
        return torch.where(step < self.cycles * self.period, weight, torch.full_like(weight, self.end))


def _check_weights(*weights: float) -> None:
    for weight in weights:
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"expected finite weights >= 0, got {weight}")
