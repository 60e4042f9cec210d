"""Independent normal or Bernoulli features of one event, in fewer steps than ``to_event`` takes."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

__all__ = ["IndependentBernoulli", "IndependentNormal"]


class _Features(dist.Independent):
    """``family(**parameters).to_event(n)``, whose ``base_dist`` is made once something asks for it.

    Networks give such distributions at every step, and making both objects took longer than small networks do.
    """

    family: type[Any]
    _validates: bool | None = None

    def __init__(self, event_dim: int, parameters: dict[str, Tensor]) -> None:
        self._parameters, self.reinterpreted_batch_ndims = parameters, event_dim
        shape = next(iter(parameters.values())).shape
        split = len(shape) - event_dim
        Distribution.__init__(self, shape[:split], shape[split:])
        if self._validate_args:
            self._base = self.family(**parameters)  # which looks at the parameters

    @property
    def _validate_args(self) -> bool:  # Pyro's asks base_dist
        return Distribution._validate_args if self._validates is None else self._validates

    @_validate_args.setter
    def _validate_args(self, value: bool) -> None:
        self._validates = self.base_dist._validate_args = value

    @property
    def base_dist(self) -> Any:
        """The features as a batch, (*B, *event)."""
        if "_base" not in self.__dict__:
            self._base = self.family(**self._parameters)
        return self._base

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return self.base_dist.to_event(self.reinterpreted_batch_ndims).expand(batch_shape)


class IndependentNormal(_Features):
    r"""Normal features, :math:`\mathcal N(\mu, \mathrm{diag}\, e^{2 s})`.

    Args:
        loc, log_scale: mu and s, of one shape (*B, *event).
        event_dim: how many dimensions the event has.
    Raises: ValueError, under validation, for nan.
    Example:
        >>> IndependentNormal(torch.zeros(3, 2), torch.zeros(3, 2)).log_prob(torch.zeros(2)).shape
        torch.Size([3])
    """

    family = dist.Normal
    has_rsample = True

    def __init__(self, loc: Tensor, log_scale: Tensor, event_dim: int = 1) -> None:
        self.loc, self.log_scale, self.scale = loc, log_scale, log_scale.exp()
        super().__init__(event_dim, {"loc": loc, "scale": self.scale})

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return torch.addcmul(self.loc, noise, self.scale)


class IndependentBernoulli(_Features):
    """Bernoulli features.

    Args:
        logits: (*B, *event).
        event_dim: how many dimensions the event has.
    Example:
        >>> IndependentBernoulli(torch.zeros(3, 2)).log_prob(torch.ones(2))
        tensor([-1.3863, -1.3863, -1.3863])
    """

    family = dist.Bernoulli
    has_rsample = False

    def __init__(self, logits: Tensor, event_dim: int = 1) -> None:
        self.logits = logits
        super().__init__(event_dim, {"logits": logits})

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            log_prob: Tensor = super().log_prob(value)
            return log_prob
        logits = self.logits
        if value.shape != logits.shape:  # many draws of z for each x
            logits, value = torch.broadcast_tensors(logits, value)
        each = F.binary_cross_entropy_with_logits(logits, value, reduction="none")
        return -each.flatten(-self.reinterpreted_batch_ndims).sum(-1)  # the sign last, of few numbers
