"""Alternating Gibbs sampling of two layers, each a product of independent units given the other."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pyrodgm.kernels.base import Info, Kernel, State

__all__ = ["BlockGibbs", "Conditionals"]


@runtime_checkable
class Conditionals(Protocol):
    """What :class:`BlockGibbs` samples from: p(h | v) and p(v | h), each for all the chains at once."""

    def hidden_given_visible(self, v: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """h ~ p(h | v), (chains, V) -> (chains, H)."""

    def visible_given_hidden(self, h: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """v ~ p(v | h), (chains, H) -> (chains, V)."""


class BlockGibbs(Kernel):
    r"""One sweep: h ~ p(h | v), then v ~ p(v | h); it leaves p(v) invariant and always moves.

    .. math:: T(v' \mid v) = \sum_h p(v' \mid h) \, p(h \mid v)

    Shapes: positions v (chains, V).
    Raises: TypeError from ``init`` if the potential is no pair of conditionals.
    Source: Geman and Geman (1984); Hinton (2002), Training products of experts, section 4.
    Example:
        >>> from pyrodgm.energy import RBM
        >>> rbm = RBM(visible=6, hidden=3)
        >>> kernel = BlockGibbs()
        >>> state, info = kernel.step(kernel.init(rbm.potential(), torch.zeros(5, 6)))
        >>> state.positions.shape
        torch.Size([5, 6])
    """

    def init(self, potential: Any, positions: Tensor) -> State:
        if not isinstance(potential, Conditionals):
            raise TypeError(
                "expected conditionals (hidden_given_visible, visible_given_hidden) as BlockGibbs samples from them, "
                f"got {type(potential).__name__}; pass rbm.potential(), or use MALA or RandomWalk with an energy"
            )
        return State(positions, potential)

    def step(self, state: State, generator: torch.Generator | None = None) -> tuple[State, Info]:
        h = state.potential.hidden_given_visible(state.positions, generator)
        v = state.potential.visible_given_hidden(h, generator)
        return State(v, state.potential), Info(v.new_ones(()).expand(len(v)))
