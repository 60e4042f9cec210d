"""Tempered transitions: long moves of a Gibbs chain through hotter versions of its target."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pyrodgm.kernels.ais_reverse import ReversiblePath
from pyrodgm.kernels.base import Info, Kernel, State

__all__ = ["Annealable", "TemperedTransitions"]


@runtime_checkable
class Annealable(Protocol):
    """A potential that knows a path from an easy density to its own."""

    def path(self) -> ReversiblePath:
        """The path; its end is the target."""


class TemperedTransitions(Kernel):
    r"""Heat a chain step by step, cool it again, accept the end by Metropolis; then one ordinary move.

    .. math::
        \log a = \sum_{i=1}^n \log \frac{f_{\beta_i}(\hat x_{i-1})}{f_{\beta_{i-1}}(\hat x_{i-1})}
        + \log \frac{f_{\beta_{i-1}}(\check x_{i-1})}{f_{\beta_i}(\check x_{i-1})}, \qquad
        \hat x_i \sim T_{\beta_i}(\cdot \mid \hat x_{i-1}), \quad
        \check x_{i-1} \sim \tilde T_{\beta_i}(\cdot \mid \check x_i)

    with :math:`1 = \beta_0 > \dots > \beta_n` = ``hottest``. It leaves the target invariant and crosses between modes
    that Gibbs moves do not leave. Set as ``model.kernel`` it makes the samples and the negatives of an RBM or
    Boltzmann machine; one step costs 2n + 1 moves.

    Args:
        steps: n >= 1.
        hottest: :math:`\beta_n`, from 0 up to but not 1.
    Shapes: positions (chains, N).
    Raises: ValueError for steps or a hottest that do not fit; TypeError from ``init`` for a potential without a path.
    Source: Neal (1996), Statistics and Computing 6; Salakhutdinov (2009), Learning in Markov random fields
        using tempered transitions, NeurIPS.
    Example:
        >>> from pyrodgm.energy import RBM
        >>> rbm = RBM(visible=6, hidden=3)
        >>> rbm.kernel = TemperedTransitions(steps=5, hottest=0.5)
        >>> rbm.run_kernel(torch.zeros(4, 6), None, steps=2).shape
        torch.Size([4, 6])
    """

    def __init__(self, steps: int = 10, hottest: float = 0.5) -> None:
        if steps < 1 or not 0 <= hottest < 1:
            raise ValueError(f"expected steps >= 1 and 0 <= hottest < 1, got steps={steps} and hottest={hottest}")
        self.steps, self.hottest = steps, hottest

    def init(self, potential: Any, positions: Tensor) -> State:
        if not isinstance(potential, Annealable):
            raise TypeError(
                f"expected a potential with path(), got {type(potential).__name__}; pass model.potential() of an RBM "
                "or a Boltzmann machine"
            )
        return State(positions, potential)

    def step(self, state: State, generator: torch.Generator | None = None) -> tuple[State, Info]:
        old, path = state.positions, state.potential.path()
        betas = torch.linspace(1, self.hottest, self.steps + 1, dtype=old.dtype, device=old.device)
        x, log_accept = old, old.new_zeros(len(old))
        for i in range(1, len(betas)):
            log_accept = log_accept + path.log_density(x, betas[i]) - path.log_density(x, betas[i - 1])
            x = path.move(x, betas[i], generator)
        for i in range(len(betas) - 1, 0, -1):
            x = path.reverse_move(x, betas[i], generator)
            log_accept = log_accept + path.log_density(x, betas[i - 1]) - path.log_density(x, betas[i])
        accept = torch.empty_like(log_accept).uniform_(generator=generator).log() < log_accept
        x = path.move(torch.where(accept.unsqueeze(-1), x, old), betas[0], generator)
        return State(x, state.potential), Info(log_accept.clamp(max=0).exp())
