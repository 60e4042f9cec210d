r"""Contract 5, read this file first: a Markov kernel is an (init, step) pair over vectorised chains.

``init(potential, positions) -> state`` and ``step(state, generator) -> (state, info)``; the
leading dimension of positions is the chain. The same kernel makes an energy model's negatives,
refines a latent posterior, and runs the posterior of any Pyro program (:meth:`Kernel.pyro`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Info", "Kernel", "State"]

Potential = Callable[[Tensor], Tensor]


class State(NamedTuple):
    """Where the chains are.

    Attributes:
        positions: (chains, *event).
        potential: what the kernel was initialised with; for energy kernels, (chains, *event) -> (chains,).
        energy: potential at the positions, (chains,), or None for kernels that do not need it.
        gradient: of the energy, like positions, or None.
    """

    positions: Tensor
    potential: Any
    energy: Tensor | None = None
    gradient: Tensor | None = None


class Info(NamedTuple):
    """What one step did: ``accept_prob`` (chains,), 1 where the kernel always moves."""

    accept_prob: Tensor


class Kernel(ABC):
    """A Markov kernel that leaves exp(-potential) invariant.

    Source of the form: Lao et al. (2020), tfp.mcmc, arXiv:2002.01184 (one step of a kernel over a batch of chains).
    """

    @abstractmethod
    def init(self, potential: Any, positions: Tensor) -> State:
        """The state of chains that stand at ``positions``, (chains, *event)."""

    @abstractmethod
    def step(self, state: State, generator: torch.Generator | None = None) -> tuple[State, Info]:
        """One move of every chain; noise comes from ``generator``, or torch's own."""

    def pyro(self, model: Callable[..., Any]) -> Any:
        """This kernel as a ``pyro.infer.mcmc.MCMCKernel`` over the latent sites of a Pyro program."""
        from pyrodgm.kernels.pyro_adapter import PyroKernel

        return PyroKernel(self, model)
