"""Autoregressive distributions over vectors: scored in one pass, sampled with every weight used once."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrodgm.distributions.conditionals import Conditional
from pyrodgm.nets.incremental import IncrementalPass
from pyrodgm.nets.masked import MaskedMLP
from pyrodgm.shapes import expand_to

__all__ = ["AutoregressiveDistribution", "MixtureOfOrders"]

_NUMBERS_AT_ONCE = 2**26  # inputs and outputs of the network that one pass of sampling holds


class AutoregressiveDistribution(TorchDistribution):
    r""":math:`p(x) = \prod_d p(x_d \mid x_{<d}, c)` with all conditionals from one masked network.

    Args:
        net: gives the parameters of every conditional, (*B, D) -> (*B, P, D).
        conditional: the family of one feature.
        context: (*B, C) or None; the batch shape is its leading shape.
        mask: which set of the network's degrees.
    Shapes: x (*S, *B, D) -> log_prob (*S, *B) in nats.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(
        self,
        net: MaskedMLP,
        conditional: Conditional,
        context: Tensor | None = None,
        mask: int | Tensor = 0,
        batch_shape: tuple[int, ...] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.net, self.conditional, self.context, self.index = net, conditional, context, mask
        if batch_shape is None:
            batch_shape = () if context is None else tuple(context.shape[:-1])
        super().__init__(torch.Size(batch_shape), torch.Size((net.features,)), validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.independent(self.conditional.support, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AutoregressiveDistribution:
        return AutoregressiveDistribution(
            self.net, self.conditional, self.context, self.index, batch_shape, validate_args=self._validate_args
        )

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        raw = self.net.flat(value, self.context, self.index).to(value.dtype)
        log_prob = self.conditional.log_prob(raw, value)
        return expand_to(log_prob, self.batch_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))  # (*S, *B, D)
        rows = shape[:-1].numel()
        context = (
            None if self.context is None else self.context.expand(*shape[:-1], -1).reshape(rows, self.context.shape[-1])
        )
        step = max(1, _NUMBERS_AT_ONCE // (shape[-1] * (self.net.outputs + (self.net.categories or 1))))
        parts = [
            self._pass(min(step, rows - i), None if context is None else context[i : i + step])
            for i in range(0, max(rows, 1), step)
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(shape)

    def _pass(self, rows: int, context: Tensor | None) -> Tensor:
        """Draws (N, D), a row of the context (N, C) each."""
        state = IncrementalPass(self.net, context, rows, int(self.index))
        for i in range(self.net.features):
            state.set(i, self.conditional.sample(state.parameters(i)))
        return state.result()


class MixtureOfOrders(TorchDistribution):
    r"""The ensemble of the distributions under each mask: :math:`p(x) = \frac1M \sum_m p_m(x)`.

    Source: Germain et al. (2015), arXiv:1502.03509, section 4.2; Uria et al. (2014), arXiv:1310.1757, section 3.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, members: list[AutoregressiveDistribution], validate_args: bool | None = None) -> None:
        self.members = members
        super().__init__(members[0].batch_shape, members[0].event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        return self.members[0].support

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixtureOfOrders:
        return MixtureOfOrders([m.expand(batch_shape) for m in self.members], validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return torch.logsumexp(torch.stack([m.log_prob(value) for m in self.members]), 0) - math.log(len(self.members))

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        rows = shape[:-1].numel()
        first = self.members[0]
        context = (
            None
            if first.context is None
            else first.context.expand(*shape[:-1], -1).reshape(rows, first.context.shape[-1])
        )
        weight = first.net.last.weight
        which = torch.randint(len(self.members), (rows,), device=weight.device)
        out = weight.new_empty(rows, shape[-1])
        for index, member in enumerate(self.members):
            chosen = (which == index).nonzero()[:, 0]
            if len(chosen):
                part = None if context is None else context[chosen]
                one = AutoregressiveDistribution(member.net, member.conditional, part, member.index)
                out[chosen] = one.sample(() if part is not None else (len(chosen),))
        return out.reshape(shape)
