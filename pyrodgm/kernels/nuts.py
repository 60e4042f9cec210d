"""The no-U-turn sampler over vectorised chains: no recursion, one leapfrog step of all chains at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrodgm.kernels.adaptation import StepAndMetricTuner
from pyrodgm.kernels.base import Info, Kernel, Potential, State
from pyrodgm.kernels.hamiltonian import DIVERGENCE, acceptance_of_one_step
from pyrodgm.kernels.hmc import check_settings
from pyrodgm.kernels.langevin import energy_and_gradient
from pyrodgm.kernels.metric import Diagonal, Metric

__all__ = ["NUTS"]


class _Point(NamedTuple):
    """Of every chain: position, momentum, energy, its gradient."""

    x: Tensor
    p: Tensor
    energy: Tensor
    gradient: Tensor


class _Draw(NamedTuple):
    """The point that a tree would give, of every chain, and the log of the tree's weight."""

    x: Tensor
    energy: Tensor
    gradient: Tensor
    hamiltonian: Tensor
    log_weight: Tensor


def _where(condition: Tensor, new: Any, old: Any) -> Any:
    """Field by field, chain by chain: new where the condition (chains,) holds."""
    wide = condition.reshape(-1, *[1] * (new[0].dim() - 1))
    return type(old)(*(torch.where(condition if n.dim() == 1 else wide, n, o) for n, o in zip(new, old, strict=True)))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(-1)


class NUTS(Kernel):
    r"""No-U-turn sampler: a trajectory doubles forwards or backwards until it turns back on itself.

    Points of the trajectory have weight :math:`\exp(-H)`; the next state is drawn among them, within a new half by
    progressive sampling, between old and new half with probability :math:`\min(1, w_{new} / w_{old})`. A (sub)tree from
    :math:`p_-` to :math:`p_+` has turned when

    .. math:: v_- \cdot \tilde\rho \le 0 \quad\text{or}\quad v_+ \cdot \tilde\rho \le 0, \qquad
        \tilde\rho = \sum_i p_i - \tfrac12 (p_- + p_+), \quad v = M^{-1} p

    All chains step together, those that have finished stand still; momenta at the left ends of the open subtrees,
    at most one a doubling, replace the recursion.

    Args:
        step_size: :math:`\epsilon`, where warm-up starts.
        metric: kind of mass matrix, :class:`Diagonal` or :class:`Dense`, and where warm-up starts.
        target: mean acceptance over a trajectory that warm-up aims at.
        max_depth: doublings at most.
    Shapes: positions (chains, *event).
    Raises: ValueError if step_size is not positive, target is not inside (0, 1), or max_depth < 1.
    Source: Hoffman and Gelman (2014), arXiv:1111.4246; multinomial weights and turning: Betancourt (2017),
        arXiv:1701.02434, appendix A; iteration: Phan et al. (2019), arXiv:1912.11554, algorithm 2; chains in
        step: Lao and Dillon (2020), Unrolled implementation of the no-U-turn sampler.
    Example:
        >>> kernel = NUTS(step_size=0.5)
        >>> state, info = kernel.step(kernel.init(lambda x: x.square().sum(-1) / 2, torch.zeros(8, 3)))
        >>> state.positions.shape, info.depth.shape
        (torch.Size([8, 3]), torch.Size([8]))
    """

    def __init__(
        self, step_size: float = 0.1, metric: Metric | None = None, target: float = 0.8, max_depth: int = 10
    ) -> None:
        check_settings(step_size, target)
        if max_depth < 1:
            raise ValueError(f"expected max_depth >= 1, got {max_depth}")
        self.step_size, self.target, self.max_depth = step_size, target, max_depth
        self.metric = Diagonal() if metric is None else metric

    def init(self, potential: Potential, positions: Tensor) -> State:
        return State(positions.detach(), potential, *energy_and_gradient(potential, positions))

    @torch.no_grad()
    def step(self, state: State, generator: torch.Generator | None = None) -> tuple[State, Info]:
        x, potential, energy, gradient, moves, _ = state
        if energy is None or gradient is None:
            raise ValueError("expected a state with its energy and gradient, got none; make it by NUTS.init")
        tree = _Tree(self, potential, _Point(x, self.metric.momentum(x, generator), energy, gradient), generator)
        for depth in range(self.max_depth):
            tree.double(depth)
            if not bool(tree.going.any()):
                break
        draw = tree.draw
        info = Info(
            tree.accepted / tree.steps,
            diverging=tree.diverging,
            steps=tree.steps,
            depth=tree.depth,
            energy=draw.hamiltonian,
        )
        return State(draw.x, potential, draw.energy, draw.gradient, moves + 1), info

    def tuner(self, state: State, steps: int, generator: torch.Generator | None = None) -> StepAndMetricTuner:
        return StepAndMetricTuner(self, state, steps, generator)

    def tuned(self, step_size: float, metric: Metric) -> NUTS:
        """The same kernel with another step size and metric."""
        return NUTS(step_size, metric, self.target, self.max_depth)

    def one_step_acceptance(
        self, state: State, step_size: float, metric: Metric, generator: torch.Generator | None
    ) -> float:
        """Mean acceptance probability of one leapfrog step over the chains."""
        return acceptance_of_one_step(state, step_size, metric, generator)


class _Tree:
    """The trajectories of all chains while they grow.

    Attributes:
        going: chains that double again, (chains,) of bool.
        draw: the next state so far.
        accepted, steps: sum of the acceptance probabilities and number of the leapfrog steps.
        depth: doublings that were finished or cut off.
        diverging: chains whose energy left the surface.
    """

    def __init__(self, kernel: NUTS, potential: Potential, start: _Point, generator: torch.Generator | None) -> None:
        self.metric, self.step_size = kernel.metric, kernel.step_size
        self.potential, self.generator = potential, generator
        self.start_energy = start.energy + self.metric.kinetic(start.p)
        self.left = self.right = start
        self.momentum_sum = start.p
        zero = torch.zeros_like(start.energy)
        self.draw = _Draw(start.x, start.energy, start.gradient, self.start_energy, zero)
        self.going = torch.ones_like(zero, dtype=torch.bool)
        self.diverging = torch.zeros_like(self.going)
        self.accepted, self.steps = zero, zero.long()
        self.depth = self.steps

    def _uniform(self, *lead: int) -> Tensor:
        energy = self.start_energy
        return torch.rand((*lead, len(energy)), generator=self.generator, dtype=energy.dtype, device=energy.device)

    def _turned(self, left: Tensor, right: Tensor, momentum_sum: Tensor) -> Tensor:
        middle = momentum_sum - (left + right) / 2
        velocity = self.metric.velocity(middle)
        return (_dot(left, velocity) <= 0) | (_dot(right, velocity) <= 0)

    def _leapfrog(self, z: _Point, signed: Tensor) -> _Point:
        """One step of ``signed`` (chains, 1, ...) times the step size."""
        p = z.p - signed / 2 * z.gradient
        x = z.x + signed * self.metric.velocity(p)
        energy, gradient = energy_and_gradient(self.potential, x)
        return _Point(x, p - signed / 2 * gradient, energy, gradient)

    def double(self, depth: int) -> None:
        """Grow every going chain by a subtree of 2^depth points at a random end."""
        forward, takes = self._uniform() < 0.5, self._uniform()
        uniform = self._uniform(2**depth)
        sub = _where(forward, self.right, self.left)
        wide = forward.reshape(-1, *[1] * (sub.x.dim() - 1))
        signed = self.step_size * (2 * wide.to(sub.x.dtype) - 1)
        growing, complete = self.going, self.going
        momentum_sum = torch.zeros_like(sub.p)
        empty = torch.full_like(sub.energy, -torch.inf)
        draw = self.draw._replace(log_weight=empty)
        momenta: dict[int, tuple[Tensor, Tensor]] = {}  # left ends of open subtrees: p, and the sum up to it
        for leaf in range(2**depth):
            new = self._leapfrog(sub, signed)
            hamiltonian = new.energy + self.metric.kinetic(new.p)
            log_weight = (self.start_energy - hamiltonian).nan_to_num(nan=-torch.inf, posinf=-torch.inf)
            diverging = growing & (log_weight < -DIVERGENCE)
            self.steps = self.steps + growing.long()
            self.accepted = self.accepted + torch.where(growing, log_weight.clamp(max=0).exp(), 0.0)
            total = torch.logaddexp(draw.log_weight, log_weight)
            taken = growing & (uniform[leaf] < (log_weight - total).exp())
            candidate = _Draw(new.x, new.energy, new.gradient, hamiltonian, total)
            draw = _where(taken, candidate, draw)._replace(log_weight=torch.where(growing, total, draw.log_weight))
            sub = _where(growing, new, sub)
            momentum_sum = momentum_sum + new.p
            turned = torch.zeros_like(growing)
            first, last = _open_subtrees(leaf)
            if leaf % 2 == 0:
                momenta[last] = new.p, momentum_sum
            else:
                for i in range(last, first - 1, -1):
                    p, up_to = momenta[i]
                    turned = turned | self._turned(p, new.p, momentum_sum - up_to + p)
            self.diverging = self.diverging | diverging
            complete = complete & ~(growing & (turned | diverging))
            growing = growing & ~turned & ~diverging
            if leaf + 1 < 2**depth and not bool(growing.any()):
                break
        self._join(forward, takes, sub, draw, momentum_sum, complete)

    def _join(
        self, forward: Tensor, takes: Tensor, sub: _Point, draw: _Draw, momentum_sum: Tensor, complete: Tensor
    ) -> None:
        """Add the whole subtrees to the trajectories; chains whose subtree was cut off are done."""
        taken = complete & (takes < (draw.log_weight - self.draw.log_weight).exp())
        total = torch.logaddexp(self.draw.log_weight, draw.log_weight)
        self.draw = _where(taken, draw, self.draw)._replace(
            log_weight=torch.where(complete, total, self.draw.log_weight)
        )
        self.right = _where(complete & forward, sub, self.right)
        self.left = _where(complete & ~forward, sub, self.left)
        wide = complete.reshape(-1, *[1] * (sub.x.dim() - 1))
        self.momentum_sum = torch.where(wide, self.momentum_sum + momentum_sum, self.momentum_sum)
        self.depth = self.depth + self.going.long()
        self.going = complete & ~self._turned(self.left.p, self.right.p, self.momentum_sum)


def _open_subtrees(leaf: int) -> tuple[int, int]:
    """Places (first, last) of the left ends of those subtrees that end at ``leaf``, counted from 0, in time order.

    An even leaf is a left end and is kept at place ``last``; an odd one closes a subtree for each of
    its trailing ones.
    """
    last = (leaf >> 1).bit_count()
    trailing = (~leaf & (leaf + 1)).bit_length() - 1
    return last - trailing + 1, last
