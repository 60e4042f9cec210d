"""Gibbs with gradients: flips of discrete units that the gradient of the energy picks."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from pyrodgm.draws import one_of
from pyrodgm.kernels.base import Info, Kernel, Potential, State
from pyrodgm.kernels.langevin import energy_and_gradient

__all__ = ["CategoricalGibbsWithGradients", "GibbsWithGradients", "LocallyInformed"]


class LocallyInformed(Kernel):
    """Moves that are picked by half their gain in log p to the first order, with the exact correction.

    Args:
        flips: moves a step, each with its own correction.
        levels: of flat groups of units, one of which is 1; None for other positions.
    """

    def __init__(self, flips: int, levels: int | None = None) -> None:
        if flips < 1:
            raise ValueError(f"expected flips >= 1, got {flips}")
        self.flips, self.levels = flips, levels

    @abstractmethod
    def logits(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Half the first-order gain of each move, (chains, moves); minus infinity for a move to the same place."""

    @abstractmethod
    def moved(self, x: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
        """Where the moves (chains,) lead, and the moves that lead back."""

    @abstractmethod
    def check(self, positions: Tensor) -> None:
        """Raise ValueError for positions that are none of the states."""

    def energy_of(self, potential: Any) -> Potential:
        """The energy of discrete positions: that of a machine's conditionals, else the potential itself.

        Raises: TypeError for a machine whose units come in groups that this kernel would break.
        """
        levels = getattr(potential, "levels", None)
        if levels is not None and levels != self.levels:
            raise TypeError(
                f"expected a kernel for groups of {levels} levels, got {self!r}; use "
                f"CategoricalGibbsWithGradients(levels={levels})"
            )
        return getattr(potential, "discrete_energy", potential)

    def init(self, potential: Any, positions: Tensor) -> State:
        energy = self.energy_of(potential)
        self.check(positions)
        return State(positions.detach(), energy, *energy_and_gradient(energy, positions))

    def step(self, state: State, generator: torch.Generator | None = None) -> tuple[State, Info]:
        probabilities = []
        for _ in range(self.flips):
            state, accept_prob = self._flip(state, generator)
            probabilities.append(accept_prob)
        return state._replace(moves=state.moves + 1), Info(torch.stack(probabilities).mean(0))

    def _flip(self, state: State, generator: torch.Generator | None) -> tuple[State, Tensor]:
        x, potential, energy, gradient = state[:4]
        if energy is None or gradient is None:
            raise ValueError("expected a state with its energy and gradient, got none; make it by the kernel's init")
        log_q = self.logits(x, gradient).log_softmax(-1)  # (chains, moves)
        choice = one_of(log_q.exp(), generator).unsqueeze(-1)  # (chains, 1)
        y, back = self.moved(x, choice.squeeze(-1))
        energy_y, gradient_y = energy_and_gradient(potential, y)
        log_q_y = self.logits(y, gradient_y).log_softmax(-1)
        log_ratio = energy - energy_y + (log_q_y.gather(1, back.unsqueeze(-1)) - log_q.gather(1, choice)).squeeze(-1)
        accept_prob = log_ratio.clamp(max=0).exp().nan_to_num(0.0)
        u = torch.rand(accept_prob.shape, generator=generator, dtype=accept_prob.dtype, device=x.device)
        accept = u < accept_prob
        wide = accept.reshape(-1, *[1] * (x.dim() - 1))
        return State(
            torch.where(wide, y, x),
            potential,
            torch.where(accept, energy_y, energy),
            torch.where(wide, gradient_y, gradient),
            state.moves,
        ), accept_prob


class GibbsWithGradients(LocallyInformed):
    r"""Flips one binary unit at a time, the one that the gradient expects to gain most.

    .. math::
        d_i(x) = (\bar x_i - x_i) \, \partial_i f(x), \quad q(i \mid x) = \mathrm{softmax}_i\bigl(d(x) / 2\bigr), \quad
        \alpha = \min\Bigl(1, e^{f(x') - f(x)} \frac{q(i \mid x')}{q(i \mid x)}\Bigr)

    with f = -E and :math:`\bar x_i` the other value of a unit. The energy is asked for its gradient at discrete points,
    so it must be a differentiable function; the correction is exact, whatever the gradient says. Machines of this
    library take it as their ``kernel``: the potential of an RBM is then E(x) without its hidden units.

    Args:
        flips: moves a step, one gradient each.
        low, high: the two values of a unit: 0 and 1, or -1 and 1.
    Shapes: positions (chains, *event), all ``low`` or ``high``.
    Raises: ValueError for flips < 1, or positions of other values; TypeError for a potential that is no energy, or
        whose units come in groups.
    Source: Grathwohl et al. (2021), Oops I took a gradient, arXiv:2102.04509.
    Example:
        >>> from pyrodgm.energy import RBM
        >>> kernel = GibbsWithGradients(flips=3)
        >>> state, info = kernel.step(kernel.init(RBM(visible=6, hidden=3).energy, torch.zeros(5, 6)))
        >>> state.positions.shape
        torch.Size([5, 6])
    """

    def __init__(self, flips: int = 1, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__(flips)
        if not low < high:
            raise ValueError(f"expected low < high, got {low} and {high}")
        self.low, self.high = low, high

    def check(self, positions: Tensor) -> None:
        if not bool(((positions == self.low) | (positions == self.high)).all()):
            raise ValueError(
                f"expected positions of {self.low} and {self.high}, got other values; set low= and high=, and "
                "scaled=False inside ParallelTempering"
            )

    def logits(self, x: Tensor, gradient: Tensor) -> Tensor:
        return (-(self.low + self.high - 2 * x) * gradient / 2).flatten(1)

    def moved(self, x: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
        chosen = (
            torch.zeros_like(x.flatten(1), dtype=torch.bool).scatter(1, choice.unsqueeze(-1), True).reshape(x.shape)
        )
        return torch.where(chosen, self.low + self.high - x, x), choice


class CategoricalGibbsWithGradients(LocallyInformed):
    r"""Changes one categorical unit at a time to the value that the gradient expects to gain most.

    .. math::
        d_{ik}(x) = \nabla f(x)_{ik} - x_i^\top \nabla f(x)_i, \quad
        q(i, k \mid x) = \mathrm{softmax}_{ik}\bigl(d(x) / 2\bigr)

    over the values k that unit i does not have, with the exact correction of :class:`GibbsWithGradients`.

    Args:
        flips: moves a step, one gradient each.
        levels: K of positions in flat groups, as :class:`~pyrodgm.energy.SoftmaxUnits` are; None for (chains, D, K).
    Shapes: positions one-hot, (chains, D, K), or (chains, D K) with ``levels``.
    Raises: ValueError for flips < 1, or positions that are not one-hot.
    Source: Grathwohl et al. (2021), arXiv:2102.04509; there a move may lead to the same place.
    Example:
        >>> kernel = CategoricalGibbsWithGradients()
        >>> x = torch.nn.functional.one_hot(torch.zeros(5, 4).long(), 3).float()
        >>> state, info = kernel.step(kernel.init(lambda x: -x[..., 1].sum(-1), x))
        >>> state.positions.sum(-1).unique()
        tensor([1.])
    """

    def __init__(self, flips: int = 1, levels: int | None = None) -> None:
        super().__init__(flips, levels)

    def _groups(self, x: Tensor) -> Tensor:
        """(chains, D, K)."""
        return x if self.levels is None else x.unflatten(-1, (-1, self.levels))

    def check(self, positions: Tensor) -> None:
        flat = self.levels is not None and positions.dim() == 2 and positions.shape[1] % self.levels == 0
        x = self._groups(positions) if flat else positions
        fits = x.dim() == 3 and flat == (self.levels is not None)
        one_hot = ((x == 0) | (x == 1)).all(-1) & (x.sum(-1) == 1)
        if not fits or not bool(one_hot.all()):
            raise ValueError(
                f"expected one-hot positions (chains, D, K), or (chains, D K) with levels=K, got "
                f"{tuple(positions.shape)} and levels={self.levels}; use torch.nn.functional.one_hot(x, K).float()"
            )

    def logits(self, x: Tensor, gradient: Tensor) -> Tensor:
        x, gradient = self._groups(x), self._groups(gradient)
        gain = (x * gradient).sum(-1, keepdim=True) - gradient  # of f = -E
        return (gain / 2).masked_fill(x == 1, -torch.inf).flatten(1)

    def moved(self, x: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
        y = self._groups(x).clone()
        values = y.shape[-1]
        unit, value = choice // values, choice % values
        rows = torch.arange(len(x), device=x.device)
        back = unit * values + y[rows, unit].argmax(-1)
        y[rows, unit] = torch.nn.functional.one_hot(value, values).to(x.dtype)
        return y.reshape(x.shape), back
