"""What one feature is, given the features before it: the families of autoregressive conditionals."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from pyrodgm.distributions.log_sum import log_sum

__all__ = ["BernoulliConditional", "CategoricalConditional", "Conditional", "GaussianMixtureConditional"]


class Conditional(ABC):
    """A univariate family whose P raw parameters a network gives for each feature.

    Attributes:
        size: P.
        categories: K, where the features are codes that a network should read as one-hot blocks; 0: as numbers.
        support: constraint of one feature.
    """

    size: int
    categories: int = 0
    support: Any

    @abstractmethod
    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """The sum over the features, in nats: raw (*B, P * D), each parameter's D in a row, x (*B, D) -> (*B)."""

    @abstractmethod
    def sample(self, parameters: Tensor) -> Tensor:
        """(*B, P, D) -> (*B, D)."""


class BernoulliConditional(Conditional):
    r"""x in {0, 1} with :math:`p(x = 1) = \sigma(l)`; P = 1.

    Example:
        >>> BernoulliConditional().log_prob(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor(-1.3863)
    """

    size = 1
    support = constraints.boolean

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        if raw.shape != x.shape:
            raw, x = torch.broadcast_tensors(raw, x)
        return -F.binary_cross_entropy_with_logits(raw, x, reduction="none").sum(-1)

    def sample(self, parameters: Tensor) -> Tensor:
        return torch.bernoulli(parameters.squeeze(-2).sigmoid())


class CategoricalConditional(Conditional):
    r"""x in {0, 1, ..., K - 1}, as floating-point codes, with :math:`p(x = k) = \operatorname{softmax}(l)_k`; P = K.

    Args:
        categories: K >= 2.
    Raises: ValueError for fewer than two categories.
    Example:
        >>> CategoricalConditional(4).log_prob(torch.zeros(4), torch.tensor([3.0])).exp()
        tensor(0.2500)
    """

    def __init__(self, categories: int) -> None:
        if categories < 2:
            raise ValueError(f"expected categories >= 2, got {categories}")
        self.size = self.categories = categories
        self.support = constraints.integer_interval(0, categories - 1)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        logits = raw.unflatten(-1, (self.size, x.shape[-1]))
        lead = torch.broadcast_shapes(logits.shape[:-2], x.shape[:-1])
        index = x.long().unsqueeze(-2).expand(*lead, 1, x.shape[-1])
        picked = logits.expand(*lead, *logits.shape[-2:]).gather(-2, index).squeeze(-2)
        return (picked - logits.logsumexp(-2)).sum(-1)

    def sample(self, parameters: Tensor) -> Tensor:
        gumbel = -torch.empty_like(parameters).exponential_().log()
        return (parameters + gumbel).argmax(-2).to(parameters.dtype)


class GaussianMixtureConditional(Conditional):
    r"""A mixture of K normals: :math:`p(x) = \sum_k \pi_k N(x; \mu_k, \sigma_k^2)`; P = 3 K.

    The raw parameters are the K logits, the K means, then the K log-scales, which are bounded
    smoothly at :math:`\pm 7`, so a component that sits on a repeated value has a finite density.

    Args:
        components: K.
    Raises: ValueError for components < 1.
    Source: Uria et al. (2013), arXiv:1306.0186, eq. 6-10.
    Example:
        >>> GaussianMixtureConditional(2).log_prob(torch.zeros(6), torch.zeros(1))
        tensor(-0.9189)
    """

    support = constraints.real
    log_scale_bound = 7.0

    def __init__(self, components: int = 10) -> None:
        if components < 1:
            raise ValueError(f"expected components >= 1, got {components}")
        self.size = 3 * components

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, mean, raw = parameters.chunk(3, -2)
        return logits, mean, self.log_scale_bound * torch.tanh(raw / self.log_scale_bound)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        logits, mean, log_scale = self._split(raw.unflatten(-1, (self.size, x.shape[-1])))
        deviation = (x.unsqueeze(-2) - mean) * torch.exp(-log_scale)
        terms = logits - log_scale - 0.5 * deviation * deviation
        log_prob = log_sum(terms, -2) - torch.logsumexp(logits, -2)  # (*B, 3 K, D) -> (*B, D)
        return (log_prob - 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(self, parameters: Tensor) -> Tensor:
        logits, mean, log_scale = self._split(parameters)
        # Gumbel-max: one pass, any leading shape.
        gumbel = -torch.empty_like(logits).exponential_().log()
        which = (logits + gumbel).argmax(-2, keepdim=True)
        noise = torch.randn_like(mean[..., :1, :])
        return (mean.gather(-2, which) + log_scale.gather(-2, which).exp() * noise).squeeze(-2)
