"""Gibbs sampling of binary units that are linked in any way, one group of unlinked units after another."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pyrodgm.kernels.base import Info, Kernel, State

__all__ = ["GibbsSweep", "Sweepable", "colour"]


@runtime_checkable
class Sweepable(Protocol):
    """What :class:`GibbsSweep` samples from."""

    def sweep(self, s: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Every unit once from its conditional given the others, (chains, N) -> a new (chains, N)."""


class GibbsSweep(Kernel):
    r"""One sweep over all units, :math:`s_g \sim p(s_g \mid s_{-g})` for each group g in turn; all chains at once.

    Units of one group share no link, so they are drawn together (chromatic Gibbs); with every pair linked each
    group is one unit and the sweep is sequential. Each draw leaves p(s) invariant, so their composition does.

    Shapes: positions s (chains, N).
    Raises: TypeError from ``init`` if the potential has no ``sweep``.
    Source: Geman and Geman (1984), IEEE PAMI 6; Gonzalez et al. (2011), Parallel Gibbs sampling, AISTATS.
    Example:
        >>> from pyrodgm.energy import BoltzmannMachine
        >>> kernel = GibbsSweep()
        >>> state, info = kernel.step(kernel.init(BoltzmannMachine(6).potential(), torch.zeros(5, 6)))
        >>> state.positions.shape
        torch.Size([5, 6])
    """

    def init(self, potential: Any, positions: Tensor) -> State:
        if not isinstance(potential, Sweepable):
            raise TypeError(
                f"expected a potential with sweep(s, generator), got {type(potential).__name__}; "
                "pass boltzmann_machine.potential(), or use MALA or RandomWalk with an energy"
            )
        return State(positions, potential)

    def step(self, state: State, generator: torch.Generator | None = None) -> tuple[State, Info]:
        s = state.potential.sweep(state.positions, generator)
        return State(s, state.potential), Info(s.new_ones(()).expand(len(s)))


def colour(links: Tensor) -> tuple[tuple[int, ...], ...]:
    """Groups of units such that no link joins two of one group: a greedy colouring, the most linked units first.

    Args:
        links: symmetric, of bool, (N, N).
    Raises: ValueError if links is not square.
    Source: Welsh and Powell (1967), The Computer Journal 10(1).
    Example:
        >>> chain = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).bool()
        >>> colour(chain)
        ((1,), (0, 2))
    """
    if links.dim() != 2 or links.shape[0] != links.shape[1]:
        raise ValueError(f"expected links of shape (N, N), got {tuple(links.shape)}")
    neighbours = [set(row.nonzero().flatten().tolist()) for row in links]
    groups: list[list[int]] = []
    for unit in sorted(range(len(neighbours)), key=lambda i: -len(neighbours[i])):
        free = next((group for group in groups if not neighbours[unit].intersection(group)), None)
        if free is None:
            groups.append([unit])
        else:
            free.append(unit)
    return tuple(tuple(group) for group in groups)
