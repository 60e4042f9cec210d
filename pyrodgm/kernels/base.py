r"""Contract 5, read this file first: a Markov kernel is an (init, step) pair over vectorised chains.

``init(potential, positions) -> state`` and ``step(state, generator) -> (state, info)``; the
leading dimension of positions is the chain. ``tuner(state, steps)`` is what adapts it while the chains
warm up, over all of them together. The same kernel makes an energy model's negatives,
refines a latent posterior, and runs the posterior of any Pyro program (:meth:`Kernel.pyro`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

__all__ = ["Info", "Kernel", "State", "Tuner", "refuse_memory", "shown"]

Potential = Callable[[Tensor], Tensor]


class State(NamedTuple):
    """Where the chains are.

    Attributes:
        positions: (chains, *event).
        potential: what the kernel was initialised with; for energy kernels, (chains, *event) -> (chains,).
        energy: potential at the positions, (chains,), or None for kernels that do not need it.
        gradient: of the energy, like positions, or None.
        moves: steps made so far, which a quasi-random sequence reads.
        memory: what else a kernel keeps between steps (momenta, hot replicas), (chains, ...) each.
    """

    positions: Tensor
    potential: Any
    energy: Tensor | None = None
    gradient: Tensor | None = None
    moves: int = 0
    memory: tuple[Tensor, ...] = ()


class Info(NamedTuple):
    """What one step did.

    Attributes:
        accept_prob: (chains,), 1 where the kernel always moves.
        diverging: (chains,) of bool, where the integrator left the energy surface; None without integrator.
        steps: leapfrog steps of each chain, (chains,), or None.
        depth: doublings of each chain's trajectory, (chains,), or None.
        energy: Hamiltonian of the state reached, (chains,), or None.
        proposal: positions and momenta before the Metropolis test, each like positions, or None.
        inner: what a kernel of kernels has to tell besides, or None.
    """

    accept_prob: Tensor
    diverging: Tensor | None = None
    steps: Tensor | None = None
    depth: Tensor | None = None
    energy: Tensor | None = None
    proposal: tuple[Tensor, Tensor] | None = None
    inner: Any = None


class Tuner:
    """How a kernel is tuned while the chains warm up; this one leaves it as it is.

    A kernel never changes: before each warm-up step one asks the tuner for the kernel to use, after it one
    tells the tuner what happened. What ``kernel`` is at the end is what the draws are made with.

    Args:
        kernel: what warm-up starts from.
    Attributes:
        kernel: for the next step.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def update(self, before: State, after: State, info: Info) -> None:
        """Learn from one step of ``self.kernel``."""


def shown(thing: Any) -> str:
    """The class of a kernel or a metric with its settings, those that are set; of a tensor the shape."""

    def text(value: Any) -> str:
        if isinstance(value, Tensor):
            return f"tensor{tuple(value.shape)}"
        return f"{value:.4g}" if isinstance(value, float) else repr(value)

    settings = {k: v for k, v in vars(thing).items() if v is not None and not k.startswith("_")}
    return f"{type(thing).__name__}({', '.join(f'{k}={text(v)}' for k, v in settings.items())})"


def refuse_memory(kernel: Kernel, user: str) -> None:
    """Raise TypeError, in the name of ``user``, for a kernel that has to run on without a new start."""
    if kernel.remembers:
        raise TypeError(
            f"expected a kernel that leaves the model's law alone from its first step for {user}, got "
            f"{type(kernel).__name__}, which keeps replicas or velocities between steps; keep it for sample() and "
            "mcmc(), and use MALA, HMC or a Gibbs kernel here"
        )


class Kernel(ABC):
    """A Markov kernel that leaves exp(-potential) invariant.

    Source of the form: Lao et al. (2020), tfp.mcmc, arXiv:2002.01184 (one step of a kernel over a batch of chains).
    """

    # Whether it keeps more than positions between steps, so that a few steps from init do not leave p alone.
    remembers: ClassVar[bool] = False

    @abstractmethod
    def init(self, potential: Any, positions: Tensor) -> State:
        """The state of chains that stand at ``positions``, (chains, *event)."""

    @abstractmethod
    def step(self, state: State, generator: torch.Generator | None = None) -> tuple[State, Info]:
        """One move of every chain; noise comes from ``generator``, or torch's own."""

    def __repr__(self) -> str:
        return shown(self)

    def tuner(self, state: State, steps: int, generator: torch.Generator | None = None) -> Tuner:
        """What tunes this kernel in ``steps`` warm-up steps of the chains that stand at ``state``."""
        return Tuner(self)

    def pyro(self, model: Callable[..., Any]) -> Any:
        """This kernel as a ``pyro.infer.mcmc.MCMCKernel``, over a Pyro program's latent sites or an energy's x."""
        from pyrodgm.core import Energy
        from pyrodgm.kernels.pyro_adapter import PyroKernel, PyroMachineKernel

        return PyroMachineKernel(self, model) if isinstance(model, Energy) else PyroKernel(self, model)
