"""Binary units with any links between them: their energy, their conditionals, their annealing path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["AnnealedMachine", "BoltzmannConditionals", "draw_units", "quadratic_energy"]


def quadratic_energy(s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """-s W s / 2 - b s, (*B, N) -> (*B,)."""
    return -0.5 * ((s @ weight) * s).sum(-1) - (s * bias).sum(-1)


def draw_units(logits: Tensor, low: float, generator: torch.Generator | None) -> Tensor:
    """1 with probability sigmoid(logits), else ``low``."""
    on = torch.empty_like(logits).uniform_(generator=generator) < logits.sigmoid()
    return torch.where(on, 1.0, low).to(logits.dtype)


class BoltzmannConditionals:
    r"""Every unit given the others, :math:`P(s_i = 1 \mid s_{-i}) = \sigma((1 - l) (b_i + \sum_j W_{ij} s_j))`.

    Args:
        weight: symmetric with zeros on the diagonal, (N, N).
        bias: (N,), or (chains, N) where each chain has a context of its own.
        groups: the places of units that are drawn together, on the weight's device; no link joins two of one group.
        low: l, 0 or -1, what a unit is when it is not 1.
    """

    def __init__(self, weight: Tensor, bias: Tensor, groups: Sequence[Tensor], low: float) -> None:
        self.weight, self.bias, self.groups, self.low = weight.detach(), bias.detach(), groups, low

    def sweep(self, s: Tensor, generator: torch.Generator | None = None, free: Tensor | None = None) -> Tensor:
        """Every unit once, the groups in order; where ``free`` (chains, N) is False a unit stays as it is."""
        s = s.clone()
        for units in self.groups:
            logits = (1 - self.low) * (s @ self.weight[:, units] + self.bias[..., units])  # (chains, group)
            drawn = draw_units(logits, self.low, generator)
            s[:, units] = drawn if free is None else torch.where(free[:, units], drawn, s[:, units])
        return s

    def discrete_energy(self, s: Tensor) -> Tensor:
        """E(s), for kernels that flip units: (chains, N) -> (chains,)."""
        return quadratic_energy(s, self.weight, self.bias)

    def path(self) -> AnnealedMachine:
        """From independent units with these biases to the machine."""
        return AnnealedMachine(self, self.bias)


class AnnealedMachine:
    """The path of :meth:`BoltzmannMachine.log_partition`: weights grow with beta, biases leave the base."""

    def __init__(self, target: BoltzmannConditionals, base: Tensor) -> None:
        self.target, self.base = target, base

    @property
    def base_log_partition(self) -> Tensor:
        return torch.logaddexp(self.base, self.target.low * self.base).sum()

    def start(self, chains: int, generator: torch.Generator | None = None) -> Tensor:
        logits = (1 - self.target.low) * self.base
        return draw_units(logits.expand(chains, -1), self.target.low, generator)

    def log_density(self, x: Tensor, beta: Tensor) -> Tensor:
        weight, bias = self.target.weight, self.target.bias
        return -quadratic_energy(x, beta * weight, torch.lerp(self.base, bias, beta))

    def move(self, x: Tensor, beta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self._conditionals(beta, self.target.groups).sweep(x, generator)

    def reverse_move(self, x: Tensor, beta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self._conditionals(beta, self.target.groups[::-1]).sweep(x, generator)

    def _conditionals(self, beta: Tensor, groups: Sequence[Tensor]) -> BoltzmannConditionals:
        bias = torch.lerp(self.base, self.target.bias, beta)
        return BoltzmannConditionals(beta * self.target.weight, bias, groups, self.target.low)
