"""What chains run on: the posterior of a Pyro program, or an energy model, as a potential with its sites."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyrodgm.core import Energy
from pyrodgm.engine.batched import BatchedEnergy, has_no_rule
from pyrodgm.engine.subsampled import SubsampledEnergy
from pyrodgm.engine.surroundings import validation
from pyrodgm.engine.unconstrained import UnconstrainedProgram

__all__ = ["EnergyTarget", "ProgramTarget", "Target", "as_target", "moved"]

_MOST = 2**22  # of the program's values in flight
_TRIES = 100  # fresh starts of a chain whose energy is not finite; Stan's number
_TRIES_NEARER = 20  # of one whose energy is finite and too large


class Target(ABC):
    """A density over positions (chains, *event).

    Attributes:
        potential: what ``kernel.init`` wants.
        dtype, device: of the positions.
    """

    potential: Any
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def start(self, chains: int, initial: Any, generator: torch.Generator) -> Tensor:
        """Where the chains begin, (chains, *event)."""

    @abstractmethod
    def sites(self, positions: Tensor) -> dict[str, Tensor]:
        """The values of the program's sites, (n, *event) -> name to (n, *site shape)."""


class ProgramTarget(Target):
    """The latent sites of a Pyro program; see :class:`~pyrodgm.engine.unconstrained.UnconstrainedProgram`.

    Args:
        program, args, kwargs: the program and what it is called with.
        compile: compile the energy's graph.
    """

    def __init__(
        self, program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], compile: bool
    ) -> None:
        self.program = UnconstrainedProgram(program, args, kwargs)
        self.potential = (SubsampledEnergy if self.program.subsampled else BatchedEnergy)(self.program, compile)
        self.dtype, self.device = self.program.dtype, self.program.device

    def start(self, chains: int, initial: Any, generator: torch.Generator) -> Tensor:
        """Uniform on (-2, 2) in the unconstrained space, drawn again where the energy is not finite, as in Stan.

        Where it is so large that rounding takes a nat, a few times too.

        Raises: ValueError if no start of some chain is finite, or the given one is not.
        """
        if initial is not None:
            x = self._given(chains, initial)
            bad = self._energy(x).isinf()
            if bool(bad.any()):
                raise ValueError(
                    f"expected initial= of finite energy, got another one for chain {int(bad.nonzero()[0])}; "
                    "start inside the supports"
                )
            return x
        x = self._uniform(chains, generator)
        energy = self._energy(x)
        # Of an energy beyond 1 / eps differences of a nat are lost in rounding: no step is short enough to be accepted.
        known = 1 / torch.finfo(self.dtype).eps
        for i in range(_TRIES):
            far = energy >= (known if i < _TRIES_NEARER else torch.inf)
            if not bool(far.any()):
                return x
            fresh = self._uniform(chains, generator)
            its = self._energy(fresh)
            nearer = far & (its < energy)
            x, energy = torch.where(nearer.unsqueeze(-1), fresh, x), torch.where(nearer, its, energy)
        raise ValueError(
            f"expected a finite energy somewhere in (-2, 2)^{self.program.size} of the unconstrained space, got none "
            f"in {_TRIES} tries for {int(far.sum())} chains; pass initial=, or mend the program"
        )

    def _uniform(self, chains: int, generator: torch.Generator) -> Tensor:
        shape = (chains, self.program.size)
        return 4 * torch.rand(shape, generator=generator, dtype=self.dtype, device=self.device) - 2

    def _energy(self, x: Tensor) -> Tensor:
        """|E|, infinite where energy or gradient is not finite."""
        energy, gradient = self.potential.eager(x)
        return torch.where(energy.isfinite() & gradient.isfinite().all(-1), energy.abs(), torch.inf)

    def _given(self, chains: int, initial: Any) -> Tensor:
        """Values of the sites, one for all chains or (chains, *site shape) each."""
        first = {k: slot for k, slot in self.program.slots.items() if k in initial}
        values = {k: torch.as_tensor(v, device=self.device) for k, v in initial.items()}
        with torch.no_grad():
            shapes = {k: v.shape for k, v in self.program.constrain(self._middle()).items()}
        own = [k for k in first if values[k].shape == (chains, *shapes[k])]
        rows = [
            self.program.unconstrain(
                {k: (v[i] if k in own else v).to(first[k].dtype if k in first else None) for k, v in values.items()}
            )
            for i in range(chains if own else 1)
        ]
        return torch.stack(rows).expand(chains, -1).contiguous()

    def _middle(self) -> Tensor:
        return torch.zeros(self.program.size, dtype=self.dtype, device=self.device)

    @torch.no_grad()
    def sites(self, positions: Tensor) -> dict[str, Tensor]:
        with validation(False):
            rows = max(1, _MOST // max(1, self.program.width))  # the program runs with its likelihood
            try:
                return torch.func.vmap(self.program.constrain, randomness="different", chunk_size=rows)(positions)
            except RuntimeError as error:
                if not has_no_rule(error):
                    raise
                parts = [self.program.constrain(x) for x in positions]
                return {k: torch.stack([part[k] for part in parts]) for k in parts[0]}


class EnergyTarget(Target):
    """An energy model's x; kernels that sample from conditionals get them from ``model.potential()``.

    Args:
        model: in eval mode while the chains run.
        context: (C,) or (chains, C).
        compile: compile the energy's graph.
    """

    def __init__(self, model: Energy, context: Tensor | None, compile: bool) -> None:
        self.model, self.context = model, context
        potential = model.potential(context)
        self.potential = BatchedEnergy(potential, compile, batched=True) if callable(potential) else potential
        self.dtype, self.device = model.dtype, model.device

    def start(self, chains: int, initial: Any, generator: torch.Generator) -> Tensor:
        if initial is None:
            context = None if self.context is None else self.context.expand(chains, -1)
            return self.model.start(chains, context)
        x = self.model.check_x(initial["x"] if isinstance(initial, dict) else initial)
        return x.expand(chains, *self.model.event_shape).contiguous()

    def sites(self, positions: Tensor) -> dict[str, Tensor]:
        return {"x": positions}


def as_target(
    program: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device | None, compile: bool
) -> Target:
    """The target of a program or of an energy model, on ``device``.

    Raises: TypeError if the first argument cannot be called, or is an energy model with hidden units of its own.
    """
    if not callable(program):
        raise TypeError(f"expected a Pyro program or an energy model, got {type(program).__name__}")
    if device is not None:
        if isinstance(program, nn.Module):
            program.to(device)
        args, kwargs = moved(args, device), moved(kwargs, device)
    if isinstance(program, Energy):
        if program.moves_hidden:
            raise TypeError(
                f"expected an energy model whose kernel moves x itself, got {type(program).__name__}, whose kernel "
                "moves hidden units too; use model.sample(n)"
            )
        return EnergyTarget(program, *_context(args, kwargs), compile)
    target = ProgramTarget(program, args, kwargs, compile)
    if device is not None and target.device != torch.empty(0, device=device).device:  # cuda is one of them, by number
        raise ValueError(
            f"expected the program's values on {device}, got them on {target.device}; make its tensors there"
        )
    return target


def _context(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor | None]:
    given = [*args, *kwargs.values()]
    if len(given) > 1 or set(kwargs) - {"context"}:
        raise TypeError(f"expected at most a context with an energy model, got {len(given)} arguments")
    return (given[0] if given else None,)


def moved(value: Any, device: torch.device) -> Any:
    """Every tensor in nested lists, tuples and dictionaries on the device; the rest as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: moved(v, device) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(moved(v, device) for v in value)
    return value
