"""Mixtures: of any distributions, and of one conditional distribution over a set of inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, constraints, transform_to
from torch.nn import functional as F

from pyrodgm.core import Tractable
from pyrodgm.distributions.log_sum import log_sum
from pyrodgm.draws import draw_from
from pyrodgm.shapes import base_constraint, expand_to, is_real, join_context

__all__ = ["Aggregate", "MixtureDistribution"]


class _Union(constraints.Constraint):
    """What lies in one of several supports at least, all of them discrete or all continuous."""

    def __init__(self, supports: Sequence[Any], event_dim: int) -> None:
        self.supports, self.event_dim = list(supports), event_dim
        self.is_discrete = supports[0].is_discrete
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        each = [_within(s, value, self.event_dim) for s in self.supports]
        return torch.stack(torch.broadcast_tensors(*each)).any(0)

    def __repr__(self) -> str:
        return " or ".join(map(repr, self.supports))


class MixtureDistribution(TorchDistribution):
    r"""A mixture of K distributions of any kind: :math:`p(x) = \sum_k \pi_k\, p_k(x)`.

    A draw with a batch shape asks every component for every row, as a batched distribution cannot
    be asked for some of its rows; without one, each component draws just its own rows. Where the components' supports
    are not alike, the mixture's is their union, and each component has density 0 outside its own.

    Args:
        logits: of the weights :math:`\pi`, (*B, K), in nats up to a constant.
        components: K distributions of one event shape; their batch shapes broadcast with B.
    Shapes: x (*S, *B, *event) -> log_prob (*S, *B) in nats.
    Raises: ValueError if the components are not K, their event shapes differ, or their supports are not alike and some
        discrete, others continuous, or without a known point.
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
        self._supports = _unlike(self.components)  # None where they are alike
        self._points = [_point(s, self.event_shape, logits) for s in self._supports or ()]

    @property
    def support(self) -> Any:
        if self._supports is None:
            return self.components[0].support
        whole = next((s for s in self._supports if is_real(s)), None)
        return _Union(self._supports, len(self.event_shape)) if whole is None else whole

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
        log_prob = log_sum(self.parts(value) + F.log_softmax(self.logits, -1), -1)
        return expand_to(log_prob, self.batch_shape)

    def parts(self, value: Tensor) -> Tensor:
        """The log-density under each component, -inf outside its support: (*S, *B, *event) -> (*S, *B, K)."""
        if self._validate_args:
            self._validate_sample(value)
        if self._supports is None:
            each = [c.log_prob(value) for c in self.components]
        else:
            inside = self.inside(value).unbind(-1)
            each = [self._part(*part, value) for part in zip(self.components, inside, self._points, strict=True)]
        return torch.stack(torch.broadcast_tensors(*each), -1)

    def inside(self, value: Tensor) -> Tensor:
        """Which components' supports a value of the mixture's lies in: (*S, *B, *event) -> (*S, *B, K)."""
        if self._supports is None:
            lead = value.shape[: value.dim() - len(self.event_shape)]
            return torch.ones(*lead, len(self.components), dtype=torch.bool, device=value.device)
        each = [_within(s, value, len(self.event_shape)) for s in self._supports]
        return torch.stack(torch.broadcast_tensors(*each), -1)

    def _part(self, component: Distribution, inside: Tensor, point: Tensor, value: Tensor) -> Tensor:
        # by another point: what a component makes of values outside may be nan, and so would be its gradient
        mask = inside.reshape(*inside.shape, *[1] * len(self.event_shape))
        log_prob = component.log_prob(torch.where(mask, value, point.to(value.dtype)))
        return torch.where(inside, log_prob, -torch.inf)

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


def _unlike(components: Sequence[Distribution]) -> list[Any] | None:
    """The components' supports; None where they are alike, or where one does not say."""
    try:
        supports: list[Any] = [c.support for c in components]
    except NotImplementedError:
        return None
    # of equal event shapes, so which dimensions are the event's is no matter
    first, *others = map(base_constraint, supports)
    if all(_alike(first, other) for other in others):
        return None
    if len({s.is_discrete for s in supports}) > 1:
        raise ValueError(
            f"expected components that are all discrete or all continuous, got supports {supports}: a probability and "
            "a density have no sum; dequantize the data, or choose other components"
        )
    return supports


def _alike(a: Any, b: Any) -> bool:
    """Whether two supports are the same constraint, as far as one can tell without reading a tensor."""
    if a is b:
        return True
    if type(a) is not type(b) or vars(a).keys() != vars(b).keys():
        return False
    return all(_same(mine, vars(b)[name]) for name, mine in vars(a).items())


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, constraints.Constraint):
        return _alike(a, b)
    return a is b or not (isinstance(a, Tensor) or isinstance(b, Tensor) or a != b)


def _within(support: Any, value: Tensor, event_dim: int) -> Tensor:
    """Whether each event lies in a support: (*S, *B, *event) -> (*S, *B)."""
    inside = support.check(value)
    rest = event_dim - support.event_dim
    return inside.flatten(inside.dim() - rest).all(-1) if rest > 0 else inside


def _point(support: Any, event_shape: torch.Size, like: Tensor) -> Tensor:
    """A point of a support.

    Raises: ValueError if none is known.
    """
    base = base_constraint(support)
    if support.is_discrete and not base.event_dim:  # bits, counts, levels and codes begin at 0 or at their bound
        return like.new_zeros(event_shape) + getattr(base, "lower_bound", 0.0)
    try:
        transform = transform_to(support)
    except NotImplementedError:
        raise ValueError(
            f"expected components of one support, or of supports with a known point, got {support}; register it with "
            "torch.distributions.transform_to"
        ) from None
    return transform(like.new_zeros(transform.inverse_shape(event_shape)))


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
        return expand_to(log_sum(each, -1) - math.log(len(self.inputs)), self.batch_shape)

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
