"""Mixtures: of any distributions, and of one conditional distribution over a set of inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

from pyrodgm.core import Tractable, expand_to, join_context

__all__ = ["Aggregate", "MixtureDistribution"]


class MixtureDistribution(TorchDistribution):
    r"""A mixture of K distributions of any kind: :math:`p(x) = \sum_k \pi_k\, p_k(x)`.

    A draw with a batch shape asks every component for every row, as a batched distribution cannot
    be asked for some of its rows; without one, each component draws just its own rows.

    Args:
        logits: of the weights :math:`\pi`, (*B, K), in nats up to a constant.
        components: K distributions of one event shape; their batch shapes broadcast with B.
    Shapes: x (*S, *B, *event) -> log_prob (*S, *B) in nats.
    Raises: ValueError if the components are not K, or their event shapes differ.
    Example:
        >>> import pyro.distributions as dist
        >>> parts = [dist.Normal(0.0, 1.0), dist.Laplace(0.0, 1.0)]
        >>> MixtureDistribution(torch.zeros(2), parts).log_prob(torch.zeros(())).exp()
        tensor(0.4495)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(
        self,
        logits: Tensor,
        components: Sequence[Distribution],
        batch_shape: tuple[int, ...] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        events = {tuple(c.event_shape) for c in components}
        if len(components) != logits.shape[-1] or len(events) != 1:
            raise ValueError(
                f"expected {logits.shape[-1]} components of one event shape, got {len(components)} of {sorted(events)}"
            )
        self.logits, self.components = logits, list(components)
        if batch_shape is None:
            batch_shape = torch.broadcast_shapes(logits.shape[:-1], *(c.batch_shape for c in components))
        super().__init__(torch.Size(batch_shape), torch.Size(events.pop()), validate_args=validate_args)

    @property
    def support(self) -> Any:
        return self.components[0].support

    @property
    def mean(self) -> Tensor:
        """The weighted mean of the components' means, (*B, *event)."""
        shape = (*self.batch_shape, *self.event_shape)
        means = torch.stack([c.mean.expand(shape) for c in self.components], -1)
        weights = self.logits.softmax(-1)
        return (means * weights.reshape(*weights.shape[:-1], *[1] * len(self.event_shape), -1)).sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixtureDistribution:
        return MixtureDistribution(self.logits, self.components, tuple(batch_shape), validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        parts = torch.broadcast_tensors(*(c.log_prob(value) for c in self.components))
        log_prob = torch.logsumexp(torch.stack(parts, -1) + F.log_softmax(self.logits, -1), -1)
        return expand_to(log_prob, self.batch_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        lead = shape[: len(shape) - len(self.event_shape)]
        which = torch.distributions.Categorical(logits=self.logits.expand(*lead, -1)).sample()  # lead
        if all(not c.batch_shape for c in self.components):
            flat, drawn = which.flatten(), None
            for k, component in enumerate(self.components):
                chosen = (flat == k).nonzero()[:, 0]
                if len(chosen):
                    part = component.sample(torch.Size((len(chosen),)))
                    drawn = part.new_empty(len(flat), *self.event_shape) if drawn is None else drawn
                    drawn[chosen] = part
            assert drawn is not None
            return drawn.reshape(shape)
        index = which.reshape(*lead, *[1] * len(self.event_shape))
        result = None
        for k, component in enumerate(self.components):
            part = component.expand(self.batch_shape).sample(lead[: len(lead) - len(self.batch_shape)])
            result = part if result is None else torch.where(index == k, part, result)
        assert result is not None
        return result


class Aggregate(TorchDistribution):
    r"""A conditional density averaged over K inputs: :math:`p(z) = \frac1K \sum_k q(z \mid u_k, c)`.

    Each draw conditions on one input, so sampling costs as much as from one component.

    Args:
        posterior: q, whose context is one input (and c behind it).
        inputs: (K, D).
        context: c, (*B, C), or None.
    Shapes: z (*S, *B, Z) -> log_prob (*S, *B) in nats.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(
        self,
        posterior: Tractable,
        inputs: Tensor,
        context: Tensor | None = None,
        batch_shape: tuple[int, ...] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.posterior, self.inputs, self.context = posterior, inputs, context
        if batch_shape is None:
            batch_shape = () if context is None else tuple(context.shape[:-1])
        beside = None if context is None else context.unsqueeze(-2)  # (*B, C) -> (*B, 1, C), against (K, D)
        self._components = posterior.condition(join_context(inputs, beside))  # batch (*B, K)
        super().__init__(torch.Size(batch_shape), posterior.event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        return self._components.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Aggregate:
        return Aggregate(
            self.posterior, self.inputs, self.context, tuple(batch_shape), validate_args=self._validate_args
        )

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        each = self._components.log_prob(value.unsqueeze(-1 - len(self.event_shape)))  # (*S, *B, K)
        return expand_to(torch.logsumexp(each, -1) - math.log(len(self.inputs)), self.batch_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        lead = shape[: len(shape) - len(self.event_shape)]
        chosen = self.inputs[torch.randint(len(self.inputs), lead, device=self.inputs.device)]  # (*S, *B, D)
        return self.posterior.condition(join_context(chosen, self.context)).sample()
