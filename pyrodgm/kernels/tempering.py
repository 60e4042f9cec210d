"""Parallel tempering: replicas of a chain at rising temperatures that swap their places."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrodgm.kernels.base import Info, Kernel, Potential, State, Tuner
from pyrodgm.kernels.discrete import LocallyInformed
from pyrodgm.kernels.langevin import energy_and_gradient

__all__ = ["LadderTuner", "ParallelTempering", "Swaps", "even_ladder"]


class Swaps(NamedTuple):
    """What one step did between the replicas; ``info.inner`` of :class:`ParallelTempering`.

    Attributes:
        info: of the kernel inside, over all replicas, (chains * R,) each.
        accept_prob: of the swap of replicas r and r + 1, (chains, R - 1), NaN where none was tried.
    """

    info: Info
    accept_prob: Tensor


class _Heated:
    r""":math:`\beta_r E(x)` over replicas (chains * R, *event), in units :math:`y = \sqrt{\beta_r} x` where scaled."""

    def __init__(self, potential: Potential, betas: Tensor, scaled: bool) -> None:
        self.potential, self.betas, self.scaled = potential, betas, scaled

    def factors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """beta and the scale of x of every row of ``like``, (rows,) and (rows, 1, ...)."""
        betas = self.betas.to(like).repeat(len(like) // len(self.betas))
        scale = betas.sqrt() if self.scaled else torch.ones_like(betas)
        return betas, scale.reshape(-1, *[1] * (like.dim() - 1))

    def __call__(self, y: Tensor) -> Tensor:
        betas, scale = self.factors(y)
        return betas * self.potential(y / scale)

    def energy_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        betas, scale = self.factors(y)
        energy, gradient = energy_and_gradient(self.potential, y / scale)
        return betas * energy, betas.reshape(scale.shape) * gradient / scale


class ParallelTempering(Kernel):
    r"""R replicas of every chain, of the laws :math:`\propto \exp(-\beta_r E(x))`, that move and then swap places.

    .. math::
        \alpha_{r, r + 1} = \min\bigl(1, \exp((\beta_r - \beta_{r+1}) (E(x_r) - E(x_{r+1})))\bigr), \qquad
        1 = \beta_1 > \dots > \beta_R > 0

    Odd and even pairs are tried in turn, which is not reversible: a replica keeps its direction along the ladder, and
    round trips take O(R) steps rather than O(R^2). The first replica is the chain, the hot ones cross between modes
    for it. Warm-up tunes the kernel over all replicas, and the ladder until all pairs reject alike.

    Args:
        kernel: that moves by energies and corrects itself exactly, such as ``HMC()`` or ``RandomWalk(0.5)``; for
            Boltzmann machines ``GibbsWithGradients()``.
        replicas: R >= 2.
        hottest: :math:`\beta_R` of a geometric ladder, in (0, 1).
        betas: the ladder itself, from 1 down, instead of both.
        adapt: tune the ladder between its ends too.
        scaled: move replica r in units of :math:`\beta_r^{-1/2}`, in which a Gaussian target looks the same at all
            temperatures, so that one step size and metric fit all; False for discrete positions.
    Shapes: positions (chains, *event); replicas lie in the state's memory, (chains, R - 1, *event).
    Raises: ValueError for a ladder that does not fall from 1 to a positive end, and from ``init`` for an energy that
        belongs to its rows, such as a conditional model's under a context of each chain; TypeError from ``init`` for a
        kernel that keeps no energies.
    Source: Swendsen and Wang (1986), Phys. Rev. Lett. 57; Syed et al. (2022), Non-reversible parallel tempering,
        JRSS B 84, algorithms 1 and 4.
    Example:
        >>> from pyrodgm.kernels import HMC
        >>> kernel = ParallelTempering(HMC(step_size=0.5), replicas=4, hottest=0.05)
        >>> state = kernel.init(lambda x: (x.abs() - 5).square().sum(-1), torch.full((8, 1), 5.0))
        >>> state, info = kernel.step(state)
        >>> state.positions.shape, info.inner.accept_prob.shape
        (torch.Size([8, 1]), torch.Size([8, 3]))
    """

    remembers = True

    def __init__(
        self,
        kernel: Kernel,
        replicas: int = 8,
        hottest: float = 0.01,
        betas: Tensor | Sequence[float] | None = None,
        adapt: bool = True,
        scaled: bool = True,
    ) -> None:
        if betas is None:
            if replicas < 2 or not 0 < hottest < 1:
                raise ValueError(
                    f"expected replicas >= 2 and hottest inside (0, 1), got replicas={replicas} and hottest={hottest}"
                )
            betas = hottest ** torch.linspace(0, 1, replicas, dtype=torch.float64)
        self.betas = torch.as_tensor(betas, dtype=torch.float64)
        if self.betas.dim() != 1 or len(self.betas) < 2 or self.betas[0] != 1 or not self.betas[-1] > 0:
            raise ValueError("expected betas from 1 down to a positive end, two at least; e.g. [1.0, 0.3, 0.1]")
        if bool((self.betas.diff() >= 0).any()):
            raise ValueError(f"expected betas that fall, got {self.betas.tolist()}")
        self.kernel, self.adapt, self.scaled = kernel, adapt, scaled

    def init(self, potential: Any, positions: Tensor) -> State:
        if isinstance(self.kernel, LocallyInformed):
            potential = self.kernel.energy_of(potential)
        replicas = len(self.betas)
        x = positions.detach().unsqueeze(1).expand(-1, replicas, *positions.shape[1:]).flatten(0, 1)
        heated = _Heated(potential, self.betas, self.scaled)
        try:
            inner = self.kernel.init(heated, x * heated.factors(x)[1])
        except RuntimeError as error:
            energy_and_gradient(potential, positions)  # what fails by itself says so
            raise ValueError(
                f"expected an energy of any number of rows, and {len(x)} replicas of {len(positions)} chains make it "
                "fail; of a conditional model sample one context, (C,), at a time"
            ) from error
        if inner.energy is None or inner.memory:
            raise TypeError(
                f"expected a kernel that accepts by energies, got {type(self.kernel).__name__}; use HMC, NUTS, ChEES, "
                "MALA or RandomWalk, for discrete units GibbsWithGradients"
            )
        return self._outer(inner, potential)

    def step(self, state: State, generator: torch.Generator | None = None) -> tuple[State, Info]:
        inner, info = self.kernel.step(self.inner(state), generator)
        chains, replicas = len(state.positions), len(self.betas)
        moved = self._outer(inner, state.potential)
        parts, accept_prob = self._swap(_with_hot(moved), state.moves % 2, generator)
        diverging, steps = (
            None if v is None else v.reshape(chains, replicas)[:, 0] for v in (info.diverging, info.steps)
        )
        accepted = info.accept_prob.reshape(chains, replicas)[:, 0]
        told = Info(accepted, diverging, steps, inner=Swaps(info, accept_prob))
        return _as_state(parts, state.potential, state.moves + 1), told

    def _swap(self, parts: list[Tensor], parity: int, generator: torch.Generator | None) -> tuple[list[Tensor], Tensor]:
        """Try the pairs (r, r + 1) of one parity; positions, energies, gradients: (chains, R, ...) each."""
        x, energy = parts[:2]
        betas = self.betas.to(x.device, energy.dtype)
        chains, replicas = energy.shape
        low = torch.arange(parity, replicas - 1, 2, device=x.device)
        log_ratio = (betas[low] - betas[low + 1]) * (energy[:, low] - energy[:, low + 1])
        accept_prob = log_ratio.clamp(max=0).exp().nan_to_num(0.0)  # two infinite energies stay where they are
        u = torch.rand(accept_prob.shape, generator=generator, dtype=energy.dtype, device=x.device)
        accept = (u < accept_prob).long()
        order = torch.arange(replicas, device=x.device).repeat(chains, 1)
        order[:, low] += accept
        order[:, low + 1] -= accept
        rows = torch.arange(chains, device=x.device).unsqueeze(-1)
        told = energy.new_full((chains, replicas - 1), torch.nan)
        told[:, low] = accept_prob
        return [part[rows, order] for part in parts], told

    def inner(self, state: State) -> State:
        """The state of the kernel inside, over all replicas: (chains * R, ...)."""
        x, energy, *gradient = (part.flatten(0, 1) for part in _with_hot(state))
        heated = _Heated(state.potential, self.betas, self.scaled)
        betas, scale = heated.factors(x)
        slope = betas.reshape(scale.shape) * gradient[0] / scale if gradient else None
        return State(x * scale, heated, betas * energy, slope, state.moves)

    def _outer(self, inner: State, potential: Potential) -> State:
        """The chains, with the hot replicas in memory, from what the kernel inside has."""
        y, heated, energy, gradient, moves, _ = inner
        betas, scale = heated.factors(y)
        parts = [y / scale, energy / betas]
        if gradient is not None:
            parts.append(gradient * scale / betas.reshape(scale.shape))
        return _as_state([part.unflatten(0, (-1, len(self.betas))) for part in parts], potential, moves)

    def tuner(self, state: State, steps: int, generator: torch.Generator | None = None) -> LadderTuner:
        return LadderTuner(self, state, steps, generator)

    def tuned(self, kernel: Kernel, betas: Tensor) -> ParallelTempering:
        """The same with another kernel inside and another ladder."""
        other = copy.copy(self)
        other.kernel, other.betas = kernel, betas
        return other


class LadderTuner(Tuner):
    """The tuner of the kernel inside over all replicas; the ladder is renewed after 16, 32, 64, ... steps.

    Args:
        kernel: to tune.
        state: of the chains.
        steps: of warm-up.
        generator: of the noise that the tuner of the kernel inside needs.
    """

    kernel: ParallelTempering

    def __init__(
        self, kernel: ParallelTempering, state: State, steps: int, generator: torch.Generator | None = None
    ) -> None:
        self._tuner = kernel.kernel.tuner(kernel.inner(state), steps, generator)
        self._renewal, self._done = 16, 0
        self._rejected: list[Tensor] = []
        super().__init__(kernel.tuned(self._tuner.kernel, kernel.betas))

    def update(self, before: State, after: State, info: Info) -> None:
        kernel, swaps = self.kernel, info.inner
        self._tuner.update(kernel.inner(before), kernel.inner(after), swaps.info)
        self._rejected.append(1 - swaps.accept_prob.mean(0))  # NaN for the pairs of the other parity
        self._done += 1
        betas = kernel.betas
        if kernel.adapt and self._done == self._renewal:
            betas = even_ladder(betas, torch.stack(self._rejected).nanmean(0).to(betas))
            self._rejected, self._renewal = [], 2 * self._renewal
        self.kernel = kernel.tuned(self._tuner.kernel, betas)


def even_ladder(betas: Tensor, rejected: Tensor) -> Tensor:
    r"""The ladder with the same ends on which all pairs reject alike, as far as the rates of this one tell.

    .. math:: \Lambda(\beta_r) = \sum_{s < r} \rho_s, \qquad \beta'_r = \Lambda^{-1}\bigl(\tfrac{r}{R - 1} \Lambda\bigr)

    with :math:`\log \beta` linear in :math:`\Lambda` between two rungs.

    Args:
        betas: falling, (R,).
        rejected: :math:`\rho_s`, mean rejection of each pair, (R - 1,).
    Source: Syed et al. (2022), algorithm 4; the interpolation is ours.
    Example:
        >>> even_ladder(torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.2, 0.2]))
        tensor([1.0000, 0.5000, 0.2500])
    """
    rates = rejected.clamp(min=1e-3)  # pairs that never reject keep a little room, so that the map has an inverse
    barrier = torch.cat((rates.new_zeros(1), rates.cumsum(0)))
    wanted = barrier[-1] * torch.linspace(0, 1, len(betas), dtype=barrier.dtype, device=barrier.device)
    right = torch.searchsorted(barrier, wanted).clamp(1, len(betas) - 1)
    part = (wanted - barrier[right - 1]) / rates[right - 1]
    logs = betas.log()
    found = (logs[right - 1] + part * (logs[right] - logs[right - 1])).exp()
    return torch.cat((betas[:1], found[1:-1], betas[-1:]))


def _with_hot(state: State) -> list[Tensor]:
    """Positions, energies and, where there are, gradients of all replicas, (chains, R, ...) each."""
    cold = [v for v in (state.positions, state.energy, state.gradient) if v is not None]
    if len(cold) != len(state.memory):
        raise ValueError("expected a state with its hot replicas, got none; make it by ParallelTempering.init")
    return [torch.cat((c.unsqueeze(1), hot), 1) for c, hot in zip(cold, state.memory, strict=True)]


def _as_state(parts: list[Tensor], potential: Potential, moves: int) -> State:
    x, energy, *gradient = (part[:, 0] for part in parts)
    memory = tuple(part[:, 1:] for part in parts)
    return State(x, potential, energy, gradient[0] if gradient else None, moves, memory)
