"""MEADS: generalised HMC of one leapfrog step a move, whose settings are read off the other chains."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyrodgm.kernels.base import Info, Kernel, Potential, State, Tuner
from pyrodgm.kernels.hamiltonian import DIVERGENCE, fused, leapfrog_step
from pyrodgm.kernels.langevin import energy_and_gradient
from pyrodgm.kernels.metric import Diagonal, Moments

__all__ = ["MEADS", "largest_eigenvalue"]


def largest_eigenvalue(rows: Tensor) -> Tensor:
    r"""An estimate of the largest eigenvalue of :math:`E x x^\top` from few rows, (..., n, D) -> (...).

    .. math:: \hat\lambda = \frac{\mathrm{tr}\, \hat\Sigma^2}{\mathrm{tr}\, \hat\Sigma}, \quad
        \hat\Sigma = \tfrac1n \sum_i x_i x_i^\top

    The eigenvalues' mean weighted by themselves: below the largest one of :math:`\hat\Sigma`, which few rows make far
    too large.

    Source: Hoffman and Sountsov (2022), algorithm 2.
    Example:
        >>> largest_eigenvalue(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
        tensor(2.)
    """
    n, size = rows.shape[-2:]
    gram = rows @ rows.mT if n <= size else rows.mT @ rows  # the same squares either way
    return gram.square().sum((-2, -1)) / n / rows.square().sum((-2, -1)).clamp(min=torch.finfo(rows.dtype).tiny)


class _Settings(NamedTuple):
    """Of every chain: step by coordinate (chains, *event), share of the momentum kept and shift of the level (chains,),
    whether it moves (chains,) of bool."""

    step: Tensor
    keep: Tensor
    shift: Tensor
    active: Tensor


class MEADS(Kernel):
    r"""Maximum-eigenvalue adaptation of damping and step size: momentum that persists, settings from other chains.

    A move refreshes the momentum in part, takes one leapfrog step and tests it against a level u on (-1, 1) that
    drifts instead of being drawn anew, so that rejections, which turn the momentum round, come in rows and are rare
    between:

    .. math::
        p &\leftarrow e^{-\gamma \epsilon} p + \sqrt{1 - e^{-2 \gamma \epsilon}} \, \xi, \quad \xi \sim N(0, I), \qquad
        u \leftarrow \bigl(u + 1 + \delta \bmod 2\bigr) - 1, \quad \delta = \tfrac12 (1 - e^{-2 \gamma \epsilon}) \\
        & |u| < e^{-\Delta H}: \; (x, p, u) \leftarrow (x', p', u e^{\Delta H}), \quad \text{else } p \leftarrow -p

    in coordinates divided by :math:`\sigma`. The chains are in K folds. Those of fold k have :math:`\sigma` and
    :math:`\epsilon` of fold k - 1, and in turn one fold stands still, so that no setting depends on what it moves:

    .. math::
        \epsilon_k = \min\Bigl(1, \frac{c}{\sqrt{\hat\lambda(\sigma_{k-1} \nabla E)}}\Bigr), \qquad
        \gamma_k \epsilon_k = \max\Bigl(\frac{\epsilon_k}{\sqrt{\hat\lambda((x - \bar x) / \sigma_k)}}, \frac1t\Bigr)

    with :math:`\hat\lambda` of :func:`largest_eigenvalue` and t the moves so far; every K moves the chains are dealt
    into folds anew. This leaves the target invariant from the first move and needs no warm-up to be right. With one
    (``pyrodgm.mcmc``), the settings of its second half are averaged and then fixed, and all chains move at once.

    Args:
        step_size: :math:`\epsilon`; None to read all settings off the folds in every move.
        damping: :math:`\gamma`, given together with step_size.
        metric: :math:`\sigma^2` with them.
        folds: K.
        moves: in one step of the kernel, each with one gradient; only the last position is told.
        multiplier: c.
    Shapes: positions (chains, *event); momentum and level lie in the state's memory.
    Raises: ValueError for settings that are not positive, step_size without damping, fewer than two folds, and from
        ``step`` and ``tuner`` for less than two chains a fold.
    Source: Hoffman and Sountsov (2022), Tuning-free generalized Hamiltonian Monte Carlo, AISTATS, algorithms 1-3; the
        level: Neal (2020), arXiv:2001.11950. Chains that fill no whole fold move with the others but are not counted;
        fixed settings after warm-up are ours.
    Example:
        >>> kernel = MEADS(moves=3)
        >>> state = kernel.init(lambda x: x.square().sum(-1) / 2, torch.randn(16, 3))
        >>> state, info = kernel.step(state)
        >>> state.positions.shape, [part.shape for part in state.memory]
        (torch.Size([16, 3]), [torch.Size([16, 3]), torch.Size([16])])
    """

    def __init__(
        self,
        step_size: float | None = None,
        damping: float | None = None,
        metric: Diagonal | None = None,
        folds: int = 4,
        moves: int = 10,
        multiplier: float = 0.5,
    ) -> None:
        if (step_size is None) != (damping is None):
            raise ValueError(f"expected step_size and damping together, or neither, got {step_size} and {damping}")
        for name, value in (("step_size", step_size), ("damping", damping), ("multiplier", multiplier)):
            if value is not None and not value > 0:
                raise ValueError(f"expected {name} > 0, got {value}")
        if folds < 2 or moves < 1:
            raise ValueError(f"expected folds >= 2 and moves >= 1, got folds={folds} and moves={moves}")
        if metric is not None and not isinstance(metric, Diagonal):
            raise TypeError(f"expected a Diagonal metric, got {type(metric).__name__}")
        self.step_size, self.damping = step_size, damping
        self.metric = Diagonal() if metric is None else metric
        self.folds, self.moves, self.multiplier = folds, moves, multiplier

    @torch.no_grad()
    def init(self, potential: Potential, positions: Tensor) -> State:
        x = positions.detach().contiguous()
        once = getattr(potential, "eager", None)  # no graph is worth one call
        return State(x, potential, *(energy_and_gradient(potential, x) if once is None else once(x)))

    @torch.no_grad()
    def step(self, state: State, generator: torch.Generator | None = None) -> tuple[State, Info]:
        x, potential, energy, gradient, done, memory = state
        if energy is None or gradient is None:
            raise ValueError("expected a state with its energy and gradient, got none; make it by MEADS.init")
        if memory:
            p, level = memory
        else:  # of their stationary law
            p = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            level = 2 * torch.rand(energy.shape, generator=generator, dtype=x.dtype, device=x.device) - 1
        settings = self._fixed(x)
        accepted, active = torch.zeros_like(energy), torch.zeros_like(energy)
        diverging, hamiltonian = torch.zeros_like(energy, dtype=torch.bool), energy
        order, move = None, None
        for t in range(done * self.moves, (done + 1) * self.moves):
            if self.step_size is None:
                if order is None or t % self.folds == 0:
                    order = torch.randperm(len(x), generator=generator, device=x.device)
                settings = self.measured(potential, x, gradient, order, t)[0]
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            given = (x, p, level, energy, gradient, noise, *settings, accepted, active, diverging)
            move = fused(potential, _moved, *given) if move is None else move
            x, p, level, energy, gradient, accepted, active, diverging, hamiltonian = move(*given)
        info = Info(
            accepted / active.clamp(min=1), diverging=diverging, steps=active.to(torch.long), energy=hamiltonian
        )
        return State(x, potential, energy, gradient, done + 1, (p, level)), info

    def _fixed(self, x: Tensor) -> _Settings:
        """The same for all chains; of no meaning where there is no step size."""
        step, rate = self.step_size or 0.0, (self.step_size or 0.0) * (self.damping or 0.0)
        each = x.new_empty(len(x))
        return _Settings(
            (step * self.metric.inverse(x).sqrt()).expand_as(x).contiguous(),
            torch.full_like(each, math.exp(-rate)),
            torch.full_like(each, -math.expm1(-2 * rate) / 2),
            torch.ones_like(each, dtype=torch.bool),
        )

    def measured(
        self, potential: Potential, x: Tensor, gradient: Tensor, order: Tensor, t: int
    ) -> tuple[_Settings, Tensor, Tensor]:
        """The settings of move ``t`` from 0, and of each fold step size and damping.

        Args:
            order: of the chains, dealt to the folds like cards.
        """
        self.check(len(x))
        chains = torch.arange(len(x), device=x.device)
        fold = torch.empty_like(order).scatter_(0, order, chains % self.folds)
        whole = order[: len(x) // self.folds * self.folds].unflatten(0, (-1, self.folds)).T.contiguous()
        floor = x.new_full((), 1 / (t + 1))
        given = (x, gradient, whole, fold, floor, x.new_full((), self.multiplier))
        step, keep, shift, sizes, dampings = fused(potential, _measured, *given)(*given)
        return _Settings(step, keep, shift, fold != t % self.folds), sizes, dampings

    def check(self, chains: int) -> None:
        """Raise ValueError where there are too few chains to read settings off."""
        if chains < 2 * self.folds:
            raise ValueError(
                f"expected {2 * self.folds} chains at least for {self.folds} folds, got {chains}; run more, or give "
                "step_size and damping"
            )

    def tuner(self, state: State, steps: int, generator: torch.Generator | None = None) -> MEADSTuner:
        return MEADSTuner(self, state, steps)

    def tuned(self, step_size: float | None, damping: float | None, metric: Diagonal) -> MEADS:
        """The same kernel with other settings."""
        return MEADS(step_size, damping, metric, self.folds, self.moves, self.multiplier)


class MEADSTuner(Tuner):
    """Steps with the folds' own settings; those of the second half, averaged over folds and steps, are kept.

    Args:
        kernel: to tune.
        state: of the chains.
        steps: of warm-up.
    Raises: ValueError for less than two chains a fold.
    """

    def __init__(self, kernel: MEADS, state: State, steps: int) -> None:
        kernel.check(len(state.positions))
        self._steps, self._done = steps, 0
        self._moments = Moments()
        self._sizes: list[Tensor] = []
        self._dampings: list[Tensor] = []
        self._meads = kernel.tuned(None, None, kernel.metric)
        super().__init__(self._meads)

    def update(self, before: State, after: State, info: Info) -> None:
        self._done += 1
        x, gradient = after.positions, after.gradient
        if 2 * self._done > self._steps and gradient is not None:
            order = torch.arange(len(x), device=x.device)
            _, sizes, dampings = self._meads.measured(
                after.potential, x, gradient, order, self._done * self._meads.moves
            )
            self._moments.add(x)
            self._sizes.append(sizes)
            self._dampings.append(dampings)
        if self._done >= self._steps:
            step_size, damping = (
                torch.stack(found).log().mean().exp().item() for found in (self._sizes, self._dampings)
            )
            metric = self._meads.metric.estimated(self._moments, x)
            self.kernel = self._meads.tuned(step_size, damping, Diagonal(metric.inverse_mass))


def _measured(
    _: Potential, x: Tensor, gradient: Tensor, whole: Tensor, fold: Tensor, floor: Tensor, multiplier: Tensor
) -> tuple[Tensor, ...]:
    """Step by coordinate, share of the momentum kept and shift of the level of every chain; of every fold step size
    and damping.

    Args:
        whole: chains of each fold, (K, n).
        fold: of each chain, (chains,).
        floor: of the damping of one move.
    """
    rows = x.flatten(1)[whole]  # (K, n, D)
    slopes = gradient.flatten(1).nan_to_num(0.0, 0.0, 0.0)[whole]
    mean = rows.mean(1, keepdim=True)
    centred = rows - mean
    scale = centred.square().mean(1, keepdim=True).sqrt()
    # chains that start from one point have no scale to tell
    scale = torch.where(scale > 10 * torch.finfo(x.dtype).eps * mean.abs(), scale, 1.0)
    sizes = (multiplier * largest_eigenvalue(slopes * scale).rsqrt()).clamp(max=1).roll(1)
    rates = torch.maximum(sizes * largest_eigenvalue(centred / scale).rsqrt(), floor)
    step = (sizes.unsqueeze(-1) * scale.squeeze(1).roll(1, 0))[fold].reshape(x.shape)
    return step, (-rates).exp()[fold], (-torch.expm1(-2 * rates) / 2)[fold], sizes, rates / sizes


def _moved(
    potential: Potential,
    x: Tensor,
    p: Tensor,
    level: Tensor,
    energy: Tensor,
    gradient: Tensor,
    noise: Tensor,
    step: Tensor,
    keep: Tensor,
    shift: Tensor,
    active: Tensor,
    accepted: Tensor,
    counted: Tensor,
    diverging: Tensor,
) -> tuple[Tensor, ...]:
    """One move: position, momentum, level, energy, gradient, then what is counted, and the Hamiltonian."""
    shape = (-1, *[1] * (x.dim() - 1))
    part = keep.reshape(shape)
    refreshed = part * p + (1 - part.square()).sqrt() * noise
    drifted = torch.remainder(level + 1 + shift, 2) - 1
    y, q, energy_y, gradient_y = leapfrog_step(potential, x, refreshed, gradient, step, torch.ones_like(x[0]))
    before = energy + refreshed.square().flatten(1).sum(-1) / 2
    after = energy_y + q.square().flatten(1).sum(-1) / 2
    log_ratio = (before - after).nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
    accept = active & (drifted.abs() < log_ratio.exp())
    moved = accept.reshape(shape)
    momentum = torch.where(active.reshape(shape), torch.where(moved, q, -refreshed), p)
    # of the level's dtype where the energies have another: the graph of the first move is that of all
    tested = torch.where(accept, drifted / log_ratio.exp(), drifted).to(level.dtype)
    return (
        torch.where(moved, y, x),
        momentum,
        torch.where(active, tested, level),
        torch.where(accept, energy_y, energy),
        torch.where(moved, gradient_y, gradient),
        accepted + torch.where(active, log_ratio.clamp(max=0).exp(), 0.0),
        counted + active.to(x.dtype),
        diverging | (active & (log_ratio < -DIVERGENCE)),
        torch.where(accept, after, before),
    )
