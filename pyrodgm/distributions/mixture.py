"""Mixtures: of any distributions, and of one conditional distribution over a set of inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional as F

from pyrodgm.core import Tractable, expand_to, join_context
from pyrodgm.draws import draw_from

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
            order = which.flatten().argsort(stable=True)  # rows of the first component first
            counts = which.flatten().bincount(minlength=len(self.components)).tolist()
            pairs = zip(self.components, counts, strict=True)
            drawn = torch.cat([c.sample(torch.Size((count,))) for c, count in pairs if count])
            return drawn[order.argsort()].reshape(shape)
        index = which.reshape(*lead, *[1] * len(self.event_shape))
        rows = lead[: len(lead) - len(self.batch_shape)]
        result, *others = (c.expand(self.batch_shape).sample(rows) for c in self.components)
        for k, part in enumerate(others, 1):
            result = torch.where(index == k, part, result)
        return result


class Aggregate(TorchDistribution):
    r"""A conditional density averaged over K inputs: :math:`p(z) = \frac1K \sum_k q(z \mid u_k, c)`.

    Each draw conditions on one input, so sampling costs as much as from one component.

    Args:
        posterior: q, whose context is one input (and c behind it).
        inputs: (K, D).
        context: c, (*B, C), or None.
    Shapes: z (*S, *B, Z) -> log_prob (*S, *B) in nats.
    Source: Tomczak and Welling (2018), arXiv:1705.07120, eq. 9.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> Aggregate(RealNVP(features=2, context=3), torch.zeros(5, 3)).log_prob(torch.zeros(4, 2)).shape
        torch.Size([4])
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
        new = self._get_checked_instance(Aggregate, _instance)
        new.posterior, new.inputs, new.context = self.posterior, self.inputs, self.context
        new._components = self._components  # conditioning on K inputs anew would cost a pass of the network
        super(Aggregate, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        q = self._components
        rows = len(self.event_shape) == 1 and isinstance(q, Independent)
        if rows and isinstance(q.base_dist, Normal) and value.device.type != "mps":
            each = _all_normals(q.base_dist, value)  # (*S, *B, K)
        else:
            each = q.log_prob(value.unsqueeze(-1 - len(self.event_shape)))
        return expand_to(torch.logsumexp(each, -1) - math.log(len(self.inputs)), self.batch_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        lead = shape[: len(shape) - len(self.event_shape)]
        chosen = self.inputs[torch.randint(len(self.inputs), lead, device=self.inputs.device)]  # (*S, *B, D)
        return draw_from(self.posterior.condition(join_context(chosen, self.context)))


def _all_normals(normal: Normal, value: Tensor) -> Tensor:
    r"""The log-density of each value under each of K normals: value (*S, *B, Z), parameters (*B, K, Z) -> (*S, *B, K).

    .. math:: \sum_d \frac{(z_d - \mu_d)^2}{\sigma_d^2} = \sum_d \frac{z_d^2}{\sigma_d^2}
        - 2 \sum_d \frac{z_d \mu_d}{\sigma_d^2} + \sum_d \frac{\mu_d^2}{\sigma_d^2}

    by two matrix products, which make no tensor of B x K x Z numbers; in float64, or the terms would cancel badly.
    """
    z, mean, scale = value.double().unsqueeze(-2), normal.loc.double(), normal.scale.double()
    precision = scale.pow(-2)
    squares = ((z * z) @ precision.mT - 2 * z @ (mean * precision).mT).squeeze(-2)
    constant = (mean * mean * precision + 2 * scale.log() + math.log(2 * math.pi)).sum(-1)
    return (-0.5 * (squares + constant)).to(value.dtype)
