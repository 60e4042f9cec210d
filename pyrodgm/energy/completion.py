"""Incomplete rows of a Boltzmann machine: what is missing given what is observed, by enumeration or by clamping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrodgm.draws import one_of
from pyrodgm.energy.linked_units import draw_units
from pyrodgm.energy.states import binary_states
from pyrodgm.shapes import observed_part

if TYPE_CHECKING:
    from pyrodgm.energy.boltzmann import BoltzmannMachine

__all__ = ["Incomplete"]

_NUMBERS_AT_ONCE = 2**22  # of rows times states, 32 MB


class Incomplete:
    r"""Rows of which a part is observed, beside the machine that fills in the rest.

    .. math:: p(x_m \mid x_o) = \frac{e^{-E(x_m, x_o)}}{\sum_{x_m'} e^{-E(x_m', x_o)}}

    Args:
        machine: a Boltzmann machine of V visible units.
        x: (*B, V); what stands where mask is False does not matter.
        mask: True where x is observed, broadcast against x.
        context: (*B, C) or None.
    Raises: TypeError for a mask that is not boolean; ValueError if it does not broadcast against x, or what is observed
        is not in the support.
    Example:
        >>> from pyrodgm.energy import BoltzmannMachine
        >>> rows = Incomplete(BoltzmannMachine(4), torch.ones(2, 4), torch.tensor([True, False, True, False]))
        >>> rows.marginals()[:, 0].round(decimals=3).tolist()
        [1.0, 1.0]
    """

    def __init__(self, machine: BoltzmannMachine, x: Tensor, mask: Tensor, context: Tensor | None = None) -> None:
        x, context = machine.check(x, context)
        self.machine, self.shape, low = machine, x.shape, machine.low
        self.observed = observed_part(x, mask).reshape(-1, machine.visible)
        self.rows = torch.where(self.observed, x.reshape(-1, machine.visible), low)
        if not bool(machine.support.check(self.rows).all()):
            raise ValueError(f"expected observed units of {low:g} or 1, got others; set mask False where missing")
        self.context = None
        if context is not None:
            self.context = context.expand(*x.shape[:-1], machine.context).reshape(-1, machine.context)

    @torch.no_grad()
    def marginals(self) -> Tensor:
        """P(x_i = 1 | the observed part), exact: (*B, V)."""
        ones = binary_states(self.machine.visible, self.rows)
        return torch.cat([p @ ones for p in self._posteriors(self._states(ones))]).reshape(self.shape)

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """x ~ p(x | the observed part), exact: (*B, V)."""
        states = self._states(binary_states(self.machine.visible, self.rows))
        index = [one_of(p, generator) for p in self._posteriors(states)]
        return states[torch.cat(index)].reshape(self.shape)

    @torch.no_grad()
    def draw_clamped(self, steps: int, generator: torch.Generator | None = None) -> Tensor:
        """x after ``steps`` Gibbs sweeps with the observed units clamped, from a start at random: (*B, V)."""
        visible, low = self.machine.visible, self.machine.low
        conditionals = self.machine.potential(self.context)
        logits = ((1 - low) * conditionals.bias).expand(len(self.rows), -1)
        s = draw_units(logits, low, generator)
        s[:, :visible] = torch.where(self.observed, self.rows, s[:, :visible])
        free = torch.ones_like(s, dtype=torch.bool)
        free[:, :visible] = ~self.observed
        for _ in range(steps):
            s = conditionals.sweep(s, generator, free)
        return s[:, :visible].reshape(self.shape)

    def _states(self, ones: Tensor) -> Tensor:
        """Every visible state, (2^V, V)."""
        return self.machine.low + (1 - self.machine.low) * ones

    def _posteriors(self, states: Tensor) -> Iterator[Tensor]:
        """p(every visible state | the observed part of the row), in batches of rows: (b, 2^V) each."""
        machine = self.machine
        chunks = states.split(max(1, _NUMBERS_AT_ONCE >> machine.hidden))

        def energies(one: Tensor | None) -> Tensor:
            each = [machine.energy(part, None if one is None else one.expand(len(part), -1)) for part in chunks]
            return torch.cat(each)

        shared = energies(None) if self.context is None else torch.empty(0)
        step = max(1, _NUMBERS_AT_ONCE // states.numel())
        for i in range(0, len(self.rows), step):
            x, observed = self.rows[i : i + step].unsqueeze(1), self.observed[i : i + step].unsqueeze(1)
            agrees = ((states == x) | ~observed).all(-1)  # (b, 2^V)
            energy = shared
            if self.context is not None:
                energy = torch.stack([energies(one) for one in self.context[i : i + step]])
            yield (-energy).expand(agrees.shape).masked_fill(~agrees, -torch.inf).softmax(-1)
