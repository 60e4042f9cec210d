r"""Visible units of a restricted Boltzmann machine, each an exponential family with the hidden units in its parameters.

.. math:: p(v \mid h) = \exp\bigl(g(v) + T(v)^\top m - A(m)\bigr), \qquad m = b + W^\top h
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyrodgm.energy.states import log_odds

__all__ = ["BernoulliUnits", "GaussianUnits", "SoftmaxUnits", "VisibleUnits", "draw_bernoulli"]


def draw_bernoulli(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """0 or 1 with P(1) = sigmoid(logits), which it overwrites; uniform_ and lt_ take 2/3 of bernoulli_'s time."""
    return torch.empty_like(logits).uniform_(generator=generator).lt_(logits.sigmoid_())


class VisibleUnits(nn.Module, ABC):
    """A family of visible units; the location m has the size V of the event.

    Source: Welling, Rosen-Zvi and Hinton (2005), Exponential family harmoniums, NeurIPS 17.
    """

    @property
    @abstractmethod
    def support(self) -> Any:
        """Pyro's constraint of one unit or group, whose event is V."""

    @abstractmethod
    def statistic(self, v: Tensor) -> Tensor:
        """T(v), (*B, V) -> (*B, V)."""

    @abstractmethod
    def carrier(self, v: Tensor) -> Tensor | float:
        """g(v) summed over units, (*B, V) -> (*B,), or the number that it always is."""

    @abstractmethod
    def log_partition(self, location: Tensor) -> Tensor:
        """A(m) summed over units, (*B, V) -> (*B,)."""

    @abstractmethod
    def draw(self, location: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """v ~ p(v | m), (*B, V) -> (*B, V); it may overwrite the location."""

    @abstractmethod
    def location(self, x: Tensor) -> Tensor:
        """The m of independent units that fit the rows, (*B, V) -> (V,)."""

    def check(self, visible: int) -> None:
        """Raise ValueError if these units cannot fill an event of that size."""


class BernoulliUnits(VisibleUnits):
    r"""Units of 0 and 1: :math:`T(v) = v`, :math:`A(m) = \sum_i \log(1 + e^{m_i})`.

    Example:
        >>> BernoulliUnits().log_partition(torch.zeros(2)).exp()
        tensor(4.)
    """

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.boolean, 1)

    def statistic(self, v: Tensor) -> Tensor:
        return v

    def carrier(self, v: Tensor) -> float:
        return 0.0

    def log_partition(self, location: Tensor) -> Tensor:
        return softplus(location).sum(-1)

    def draw(self, location: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return draw_bernoulli(location, generator)

    def location(self, x: Tensor) -> Tensor:
        return log_odds(x)


class GaussianUnits(VisibleUnits):
    r"""Real units with learned scales: :math:`v \mid h \sim N(b + W^\top h, \sigma^2)`.

    .. math:: T(v) = v / \sigma^2, \quad g(v) = -\sum_i \frac{v_i^2}{2 \sigma_i^2}, \quad
        A(m) = \sum_i \frac{m_i^2}{2 \sigma_i^2} + \log \sigma_i \sqrt{2 \pi}

    so that, up to a constant in v, :math:`E(v, h) = \sum_i (v_i - b_i)^2 / 2 \sigma_i^2 - c^\top h - h^\top W T(v)`.

    Args:
        visible: V.
    Attributes:
        log_scale: log sigma, (V,); 0 at first, so standardise the data.
    Source: Cho, Ilin and Raiko (2011), Improved learning of Gaussian-Bernoulli RBMs, ICANN.
    Example:
        >>> GaussianUnits(2).statistic(torch.ones(2)).tolist()
        [1.0, 1.0]
    """

    def __init__(self, visible: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(visible))

    def check(self, visible: int) -> None:
        if len(self.log_scale) != visible:
            raise ValueError(
                f"expected {visible} Gaussian units, got {len(self.log_scale)}; use GaussianUnits({visible})"
            )

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, 1)

    def _precision(self, like: Tensor) -> Tensor:
        return (-2 * self.log_scale.to(like.dtype)).exp()

    def statistic(self, v: Tensor) -> Tensor:
        return v * self._precision(v)

    def carrier(self, v: Tensor) -> Tensor:
        return -0.5 * (v.square() * self._precision(v)).sum(-1)

    def log_partition(self, location: Tensor) -> Tensor:
        constant = self.log_scale.to(location.dtype).sum() + 0.5 * len(self.log_scale) * math.log(2 * math.pi)
        return 0.5 * (location.square() * self._precision(location)).sum(-1) + constant

    def draw(self, location: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.empty_like(location).normal_(generator=generator)
        return location + self.log_scale.detach().to(location.dtype).exp() * noise

    def location(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1]).mean(0)


class _OneHotGroups(constraints.Constraint):
    """Groups of ``levels`` numbers, each a one-hot vector."""

    is_discrete = True
    event_dim = 1

    def __init__(self, levels: int) -> None:
        self.levels = levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        group = value.unflatten(-1, (-1, self.levels))
        return (((group == 0) | (group == 1)).all(-1) & (group.sum(-1) == 1)).all(-1)


class SoftmaxUnits(VisibleUnits):
    r"""Categorical units, each a one-hot group of L numbers: :math:`A(m) = \sum_g \log \sum_l e^{m_{gl}}`.

    Args:
        levels: L >= 2; the V of the machine is L times the number of groups.
    Raises: ValueError for fewer than two levels.
    Source: Salakhutdinov, Mnih and Hinton (2007), Restricted Boltzmann machines for collaborative filtering, ICML.
    Example:
        >>> SoftmaxUnits(3).draw(torch.zeros(4, 6)).unflatten(-1, (2, 3)).sum(-1).unique()
        tensor([1.])
    """

    def __init__(self, levels: int) -> None:
        if levels < 2:
            raise ValueError(f"expected levels >= 2, got {levels}")
        super().__init__()
        self.levels = levels

    def check(self, visible: int) -> None:
        if visible % self.levels:
            raise ValueError(f"expected visible as a multiple of {self.levels} levels, got {visible}")

    @property
    def support(self) -> Any:
        return _OneHotGroups(self.levels)

    def statistic(self, v: Tensor) -> Tensor:
        return v

    def carrier(self, v: Tensor) -> float:
        return 0.0

    def log_partition(self, location: Tensor) -> Tensor:
        return self._groups(location).logsumexp(-1).sum(-1)

    def draw(self, location: Tensor, generator: torch.Generator | None = None) -> Tensor:
        logits = self._groups(location)
        # the first of independent exponential clocks with these rates rings in group after group
        index = (logits - torch.empty_like(logits).exponential_(generator=generator).log()).argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, index, 1.0).flatten(-2)

    def location(self, x: Tensor) -> Tensor:
        """log-frequencies, with one pseudo-row of each level."""
        rows = x.reshape(-1, x.shape[-1])
        return ((rows.sum(0) + 1) / (len(rows) + self.levels)).log()

    def _groups(self, location: Tensor) -> Tensor:
        return location.unflatten(-1, (-1, self.levels))  # (*B, V) -> (*B, V / L, L)
