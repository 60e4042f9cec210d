"""The no-U-turn sampler over vectorised chains: no recursion, one leapfrog step of all chains at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrodgm.kernels.adaptation import StepAndMetricTuner
from pyrodgm.kernels.base import Info, Kernel, Potential, State
from pyrodgm.kernels.hamiltonian import DIVERGENCE, acceptance_of_one_step, at_rest, fused, leapfrog_step
from pyrodgm.kernels.hmc import check_settings
from pyrodgm.kernels.metric import Diagonal, Metric, kinetic, velocity

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
    wide = _wide(condition, new[0])
    return type(old)(*(torch.where(condition if n.dim() == 1 else wide, n, o) for n, o in zip(new, old, strict=True)))


def _wide(condition: Tensor, like: Tensor) -> Tensor:
    return condition.reshape(-1, *[1] * (like.dim() - 1))


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
        metric: kind of mass matrix, :class:`Diagonal`, :class:`LowRank` or :class:`Dense`, and where warm-up starts.
        target: mean acceptance over a trajectory that warm-up aims at, a harmonic mean over the chains.
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
        return at_rest(potential, positions, self.metric)

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
        self.inverse_mass, self.step_size = kernel.metric.inverse(start.x), kernel.step_size
        self.potential, self.generator = potential, generator
        self.start_energy = start.energy + kinetic(self.inverse_mass, start.p)
        self.left = self.right = start
        self.momentum_sum = start.p
        zero = torch.zeros_like(start.energy)
        self.draw = _Draw(start.x, start.energy, start.gradient, self.start_energy, zero)
        self.going = torch.ones_like(zero, dtype=torch.bool)
        self.diverging = torch.zeros_like(self.going)
        self.accepted, self.steps = zero, zero.long()
        self.depth = self.steps
        self._bound: dict[Any, Any] = {}

    def _uniform(self, *lead: int) -> Tensor:
        energy = self.start_energy
        return torch.rand((*lead, len(energy)), generator=self.generator, dtype=energy.dtype, device=energy.device)

    def double(self, depth: int) -> None:
        """Grow every going chain by a subtree of 2^depth points at a random end."""
        forward, takes, uniform = self._uniform() < 0.5, self._uniform(), self._uniform(2**depth)
        z = _where(forward, self.right, self.left)
        signed = self.step_size * (2 * _wide(forward, z.x).to(z.x.dtype) - 1)
        growing, momentum_sum = self.going, torch.zeros_like(z.p)
        draw = self.draw._replace(log_weight=torch.full_like(z.energy, -torch.inf))
        momenta: dict[int, tuple[Tensor, Tensor]] = {}  # left ends of open subtrees: p, and the sum up to it
        for leaf in range(2**depth):
            z = _Point(*self._fused(leapfrog_step, z.x, z.p, z.gradient, signed, self.inverse_mass))
            tallies = (self.steps, self.accepted, self.diverging)
            given = (growing, uniform[leaf], self.start_energy, momentum_sum, self.inverse_mass, *z, *draw, *tallies)
            growing, momentum_sum, self.steps, self.accepted, self.diverging, *new = self._fused(_take_in, *given)
            draw = _Draw(*new)
            first, last = _open_subtrees(leaf)
            if leaf % 2 == 0:
                momenta[last] = z.p, momentum_sum
                continue
            for i in range(last, first - 1, -1):
                growing = self._fused(_unless_turned, growing, *momenta[i], z.p, momentum_sum, self.inverse_mass)
            if leaf + 1 < 2**depth and not bool(growing.any()):
                break
        self.depth = self.depth + self.going.long()
        self._join(forward, takes, z, draw, momentum_sum, growing)

    def _fused(self, function: Any, *tensors: Tensor) -> Any:
        """``function`` of these tensors, whose shapes are the same wherever a tree calls it."""
        bound = self._bound.get(function)
        if bound is None:
            bound = self._bound[function] = fused(self.potential, function, *tensors)
        return bound(*tensors)

    def _join(
        self, forward: Tensor, takes: Tensor, end: _Point, draw: _Draw, momentum_sum: Tensor, complete: Tensor
    ) -> None:
        """Add the whole subtrees to the trajectories; chains whose subtree was cut off are done."""
        given = (forward, takes, momentum_sum, complete, self.inverse_mass, *end, *draw)
        self.going, self.momentum_sum, *rest = self._fused(
            _joined, *given, *self.left, *self.right, *self.draw, self.momentum_sum
        )
        self.left, self.right, self.draw = _Point(*rest[:4]), _Point(*rest[4:8]), _Draw(*rest[8:])


def _joined(
    _: Any,
    forward: Tensor,
    takes: Tensor,
    momentum_sum: Tensor,
    complete: Tensor,
    inverse_mass: Tensor,
    *rest: Tensor,
) -> tuple[Tensor, ...]:
    """The trajectories with their new subtrees.

    Args:
        rest: outer :class:`_Point` and :class:`_Draw` of the subtree; left, right, :class:`_Draw` and sum of the
            momenta of the trajectory.
    Returns: chains that go on, sum of the momenta, and the fields of left, right, draw.
    """
    end, left, right = _Point(*rest[:4]), _Point(*rest[9:13]), _Point(*rest[13:17])
    sub, draw = _Draw(*rest[4:9]), _Draw(*rest[17:22])
    taken = complete & (takes < (sub.log_weight - draw.log_weight).exp())
    total = torch.where(complete, torch.logaddexp(draw.log_weight, sub.log_weight), draw.log_weight)
    draw = _where(taken, sub, draw)
    right, left = _where(complete & forward, end, right), _where(complete & ~forward, end, left)
    momentum_sum = torch.where(_wide(complete, end.x), rest[22] + momentum_sum, rest[22])
    going = complete & ~_turned(left.p, right.p, momentum_sum, inverse_mass)
    return going, momentum_sum, *left, *right, *draw[:4], total


def _turned(left: Tensor, right: Tensor, momentum_sum: Tensor, inverse_mass: Tensor) -> Tensor:
    v = velocity(inverse_mass, momentum_sum - (left + right) / 2)
    return (_dot(left, v) <= 0) | (_dot(right, v) <= 0)


def _unless_turned(
    _: Any, growing: Tensor, left: Tensor, up_to_left: Tensor, right: Tensor, up_to_right: Tensor, inverse_mass: Tensor
) -> Tensor:
    """Chains that grow on after a subtree between two ends, given the sums of the momenta up to either."""
    return growing & ~_turned(left, right, up_to_right - up_to_left + left, inverse_mass)


def _take_in(
    _: Any,
    growing: Tensor,
    uniform: Tensor,
    start_energy: Tensor,
    momentum_sum: Tensor,
    inverse_mass: Tensor,
    *rest: Tensor,
) -> tuple[Tensor, ...]:
    """A new leaf of every chain: its weight, whether it is drawn, what is counted.

    Args:
        rest: the leaf's :class:`_Point`, the subtree's :class:`_Draw`, steps, accepted, diverging.
    Returns: chains that grow on, sum of the momenta, steps, accepted, diverging, and the fields of the draw.
    """
    new, draw, (steps, accepted, diverging) = _Point(*rest[:4]), _Draw(*rest[4:9]), rest[9:]
    hamiltonian = new.energy + kinetic(inverse_mass, new.p)
    log_weight = (start_energy - hamiltonian).nan_to_num(nan=-torch.inf, posinf=-torch.inf)
    left_surface = growing & (log_weight < -DIVERGENCE)
    total = torch.logaddexp(draw.log_weight, log_weight)
    taken = growing & (uniform < (log_weight - total).exp())
    chosen = _where(taken, _Draw(new.x, new.energy, new.gradient, hamiltonian, total), draw)
    return (
        growing & ~left_surface,
        momentum_sum + new.p,
        steps + growing.long(),
        accepted + torch.where(growing, log_weight.clamp(max=0).exp(), 0.0),
        diverging | left_surface,
        *chosen[:4],
        torch.where(growing, total, draw.log_weight),
    )


def _open_subtrees(leaf: int) -> tuple[int, int]:
    """Places (first, last) of the left ends of those subtrees that end at ``leaf``, counted from 0, in time order.

    An even leaf is a left end and is kept at place ``last``; an odd one closes a subtree for each of
    its trailing ones.
    """
    last = (leaf >> 1).bit_count()
    trailing = (~leaf & (leaf + 1)).bit_length() - 1
    return last - trailing + 1, last
