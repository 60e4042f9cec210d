"""A base distribution pushed through bijective transforms, scored in one inverse pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pyro.distributions import TransformedDistribution
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_post_hook

from pyrodgm.bijectors.base import BijectiveTransform
from pyrodgm.draws import draw_from

__all__ = ["FlowDistribution"]


class _StepCounter:
    """Counts the steps of all torch optimisers: the fused ones move parameters without a new tensor version."""

    steps = 0
    watching = False

    @classmethod
    def count(cls, *_: Any) -> None:
        cls.steps += 1


def _steps() -> int:
    if not _StepCounter.watching:
        register_optimizer_step_post_hook(_StepCounter.count)
        _StepCounter.watching = True
    return _StepCounter.steps


class FlowDistribution(TransformedDistribution):
    r"""y = f(z), z ~ base, with f the composition of ``transforms``.

    .. math:: \log p(y) = \log p_0(f^{-1}(y)) + \log |\det J_{f^{-1}}(y)|

    Scoring takes one fused pass (inverse and ladj together). The object remembers one pair, the
    last ``rsample`` and its log-probability, so scoring its own draw costs nothing; the memory
    ends with the object, with a step of any torch optimiser, and with a change of the draw or of a
    watched parameter. (Only a change that torch does not see, ``parameter.data.add_``, goes unnoticed.)

    Args:
        base: its batch shape is the flow's, and so is its event shape where the transforms keep it.
        transforms: disposable transforms, the first applied first.
        watch: gives the parameters whose change makes the memory stale.
    Shapes: value (*S, *B, *event) -> log_prob (*S, *B) in nats.
    Source: Rezende and Mohamed (2015), arXiv:1505.05770, eq. 5-7.
    """

    def __init__(
        self,
        base: Distribution,
        transforms: Sequence[BijectiveTransform],
        watch: Callable[[], Iterable[Parameter]] = tuple,
        validate_args: bool | None = None,
    ) -> None:
        # torch's constructor re-derives shapes through every transform; ours keep the batch shape, so it is skipped.
        self.base_dist = base
        self.transforms = list(transforms)
        self._watch = watch
        self._own: tuple[Tensor, Tensor, int] | None = None  # y, log p(y), stamp
        event_shape = base.event_shape
        for transform in self.transforms:
            event_shape = transform.forward_shape(event_shape)
        Distribution.__init__(self, base.batch_shape, event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        return self.base_dist.has_rsample

    @property
    def support(self) -> Any:
        return self.transforms[-1].codomain if self.transforms else self.base_dist.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        base = self.base_dist.expand(torch.Size(batch_shape))
        return FlowDistribution(base, self.transforms, self._watch, validate_args=self._validate_args)

    def rsample_and_log_prob(self, sample_shape: Any = torch.Size()) -> tuple[Tensor, Tensor]:
        """A reparameterised draw and its log-probability from the same forward pass."""
        z = self.base_dist.rsample(torch.Size(sample_shape))
        return self._push(z)

    def _push(self, z: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, y = self.base_dist.log_prob(z), z
        for transform in self.transforms:
            y, ladj = transform.call_and_ladj(y)
            log_prob = log_prob - ladj
        return y, log_prob

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        if not torch.is_grad_enabled():
            return self.sample(sample_shape)
        y, log_prob = self.rsample_and_log_prob(sample_shape)
        self._own = (y, log_prob, self._stamp(y))
        return y

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            y = draw_from(self.base_dist, sample_shape)
            for transform in self.transforms:
                y = transform._call(y)
            return y

    def log_prob(self, value: Tensor) -> Tensor:
        if self._own is not None and self._own[0] is value and self._own[2] == self._stamp(value):
            return self._own[1]
        if self._validate_args:
            self._validate_sample(value)
        x: Tensor = value
        total: Any = 0.0
        for transform in reversed(self.transforms):
            x, ladj = transform.inverse_and_ladj(x)
            total = total + ladj
        return self.base_dist.log_prob(x) + total

    def _stamp(self, y: Tensor) -> int:
        """A number that changes with the parameters and the draw."""
        return _steps() + y._version + sum(p._version + p.data_ptr() for p in self._watch())

    def cdf(self, value: Tensor) -> Tensor:
        raise NotImplementedError("a flow over vectors has no distribution function; integrate samples instead")

    def icdf(self, value: Tensor) -> Tensor:
        raise NotImplementedError("a flow over vectors has no quantile function; sort samples instead")
