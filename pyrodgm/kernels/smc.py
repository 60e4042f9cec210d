"""Sequential Monte Carlo from a reference to a target: the normaliser, and draws, by a population of particles."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrodgm.kernels.base import Kernel, Potential, refuse_memory
from pyrodgm.kernels.langevin import energy_and_gradient

__all__ = ["SMCEstimate", "sequential_monte_carlo", "systematic_resample"]

_HALVINGS = 40  # of an interval of inverse temperatures: below any float's step of a log weight


class SMCEstimate(NamedTuple):
    """What :func:`sequential_monte_carlo` finds.

    Attributes:
        log_z: (), nats; the mean of the runs' Z.
        standard_error: of log_z by the spread of the runs, ().
        positions: equally weighted draws of the target, (runs, N, *event).
        log_zs: of each run, (runs,).
        betas: inverse temperatures of each run, from 0 to 1.
    """

    log_z: Tensor
    standard_error: Tensor
    positions: Tensor
    log_zs: Tensor
    betas: list[list[float]]


class _Bridge:
    r""":math:`(1 - \beta) E_0 + \beta E_1`."""

    def __init__(self, reference: Potential, target: Potential, beta: float) -> None:
        self.reference, self.target, self.beta = reference, target, beta

    def __call__(self, x: Tensor) -> Tensor:
        return (1 - self.beta) * self.reference(x) + self.beta * self.target(x)

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        e0, g0 = energy_and_gradient(self.reference, x)
        e1, g1 = energy_and_gradient(self.target, x)
        return (1 - self.beta) * e0 + self.beta * e1, (1 - self.beta) * g0 + self.beta * g1


@torch.no_grad()
def sequential_monte_carlo(
    reference: Potential,
    target: Potential,
    start: Tensor,
    kernel: Kernel,
    *,
    moves: int = 5,
    ess: float = 0.5,
    base_log_partition: Tensor | float = 0.0,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> SMCEstimate:
    r"""log Z of exp(-E) and draws of it, from draws of a reference whose normaliser is known.

    .. math::
        f_\beta = e^{-(1 - \beta) E_0 - \beta E}, \qquad
        w_n = e^{-(\beta_k - \beta_{k-1}) (E(x_n) - E_0(x_n))}, \qquad
        \hat Z = Z_0 \prod_k \frac1N \sum_n w_n^{(k)}

    Each inverse temperature is the one at which the effective number of particles falls to ``ess`` N; then they are
    resampled systematically, the kernel is tuned to them (mass matrix by their variance, step size by dual averaging),
    and it moves them. Independent runs give the standard error.

    Args:
        reference: :math:`E_0`, (chains, *event) -> (chains,), of finite value at its own draws.
        target: E, of the same positions.
        start: exact draws of the reference, (runs, N, *event), runs >= 2.
        kernel: moves particles by energies: HMC, NUTS, MEADS, MALA, RandomWalk.
        moves: steps at each temperature.
        ess: share of the particles, inside (0, 1).
        base_log_partition: :math:`\log Z_0`, of :math:`e^{-E_0}`.
        generator: of all noise.
        progress: show a bar of the runs, with the inverse temperature of the present one.
    Raises: ValueError for fewer than two runs or particles, moves < 1, an ess outside (0, 1), or particles none of
        which has a probability; TypeError for a kernel that keeps no energies (SGLD, block Gibbs), or that has to run
        on from step to step (ParallelTempering, SGHMC).
    Source: Del Moral, Doucet and Jasra (2006), Sequential Monte Carlo samplers, JRSS B 68, section 3.3.2.3, with the
        adaptive temperatures of Jasra et al. (2011), Scand. J. Statist. 38.
    Example:
        >>> from pyrodgm.kernels import HMC
        >>> def wide(x): return (x / 3).square().sum(-1) / 2
        >>> def narrow(x): return x.square().sum(-1) / 2
        >>> found = sequential_monte_carlo(wide, narrow, 3 * torch.randn(4, 200, 1), HMC(), moves=2)
        >>> found.positions.shape
        torch.Size([4, 200, 1])
    """
    if start.dim() < 3 or len(start) < 2 or start.shape[1] < 2:
        raise ValueError(f"expected start (runs, particles, *event), two each at least, got {tuple(start.shape)}")
    if moves < 1 or not 0 < ess < 1:
        raise ValueError(f"expected moves >= 1 and 0 < ess < 1, got {moves} and {ess}")
    refuse_memory(kernel, "SMC")
    with tqdm(start, desc="runs", disable=not progress) as bar:
        runs = [_run(reference, target, x, kernel, moves, ess, generator, bar) for x in bar]
    log_zs = torch.stack([log_z for log_z, _, _ in runs]) + base_log_partition
    log_z = log_zs.logsumexp(0) - math.log(len(runs))
    error = (log_zs - log_z).exp().std() / math.sqrt(len(runs))
    return SMCEstimate(log_z, error, torch.stack([x for _, x, _ in runs]), log_zs, [betas for _, _, betas in runs])


def _run(
    reference: Potential,
    target: Potential,
    x: Tensor,
    kernel: Kernel,
    moves: int,
    ess: float,
    generator: torch.Generator | None,
    bar: Any,
) -> tuple[Tensor, Tensor, list[float]]:
    """log Z / Z_0, the particles and the inverse temperatures of one population (N, *event)."""
    betas, log_z = [0.0], x.new_zeros((), dtype=torch.float64)
    while betas[-1] < 1:
        gain = (reference(x) - target(x)).double().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        if not bool(gain.max().isfinite()):
            raise ValueError(
                f"expected particles of finite energy, got none among {len(x)}; take more of them, or a reference (a "
                "prior) that reaches where the target is"
            )
        beta = _next(betas[-1], gain, ess)
        log_weights = _weighed(gain, beta - betas[-1])
        log_z = log_z + log_weights.logsumexp(0) - math.log(len(x))
        x = x[systematic_resample(log_weights.softmax(0), generator)]
        betas.append(beta)
        bar.set_postfix(beta=f"{beta:.3g}")
        x, kernel = _moved(_Bridge(reference, target, beta), x, kernel, moves, generator)
    return log_z, x, betas


def _moved(
    potential: Potential, x: Tensor, kernel: Any, moves: int, generator: torch.Generator | None
) -> tuple[Tensor, Kernel]:
    """The particles after ``moves`` steps, and the kernel as it was tuned to them."""
    state = kernel.init(potential, x)
    if state.energy is None:
        raise TypeError(
            f"expected a kernel that accepts by energies for SMC, got {type(kernel).__name__}; use HMC, NUTS, MEADS, "
            "MALA or RandomWalk"
        )
    if hasattr(kernel, "one_step_acceptance"):  # whose step size and metric are tuned; MEADS reads both off its folds
        moments = kernel.metric.moments()
        moments.add(x, state.gradient)
        kernel = kernel.tuned(kernel.step_size, kernel.metric.estimated(moments, x))
    tuner = kernel.tuner(state, moves, generator)
    for _ in range(moves):
        before = state
        state, info = tuner.kernel.step(before, generator)
        tuner.update(before, state, info)
    return state.positions, tuner.kernel


def _weighed(gain: Tensor, step: float) -> Tensor:
    """step * gain, with the particles of no probability left out at any step."""
    return torch.where(gain == -torch.inf, gain, step * gain)


def _next(beta: float, gain: Tensor, ess: float) -> float:
    """The inverse temperature at which the effective share of the particles is ``ess``, 1 where it stays above."""

    def effective(step: float) -> float:
        w = _weighed(gain, step)
        return (2 * w.logsumexp(0) - (2 * w).logsumexp(0)).exp().item() / len(gain)

    if not effective(1 - beta) < ess:
        return 1.0
    low, high = 0.0, 1 - beta
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if effective(middle) < ess else (middle, high)
    return beta + high  # above low, so that it goes on even where no step keeps enough of them


def systematic_resample(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Indices of N particles, the n-th taken :math:`\lfloor N w_n \rfloor` or :math:`\lceil N w_n \rceil` times.

    .. math:: u_n = (n + u) / N, \quad u \sim U(0, 1)

    Args:
        weights: that sum to 1, (N,).
    Source: Carpenter, Clifford and Fearnhead (1999), Improved particle filter for nonlinear problems.
    Example:
        >>> systematic_resample(torch.tensor([0.0, 0.5, 0.5, 0.0]))
        tensor([1, 1, 2, 2])
    """
    n = len(weights)
    u = torch.rand((), generator=generator, dtype=weights.dtype, device=weights.device)
    points = (torch.arange(n, dtype=weights.dtype, device=weights.device) + u) / n
    return torch.searchsorted(weights.cumsum(0), points).clamp(max=n - 1)
