"""The words of a document, as counts."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrodgm.shapes import expand_to

__all__ = ["WordCounts"]


class WordCounts(TorchDistribution):
    r"""Independent words of one document, given how many there are, seen as counts.

    .. math:: \log p(w_1, \dots, w_N \mid N) = \sum_v x_v \log p_v, \quad N = \sum_v x_v

    which is the probability of the words in their order: it sums to one over all sequences of N
    words, and topic models' perplexities are made of it. (The counts' own probability has the
    multinomial coefficient besides, which no parameter enters.)

    Args:
        log_probs: normalised, (*B, V), in nats.
        length: N of a draw; a scored document has its own.
    Shapes: x (*S, *B, V) -> log_prob (*S, *B) in nats.
    Example:
        >>> WordCounts(torch.full((4,), 0.25).log()).log_prob(torch.tensor([2.0, 0.0, 1.0, 0.0])).exp() * 4**3
        tensor(1.)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, log_probs: Tensor, length: int = 100, validate_args: bool | None = None) -> None:
        self.log_probs, self.length = log_probs, length
        super().__init__(log_probs.shape[:-1], log_probs.shape[-1:], validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.nonnegative_integer, 1)

    @property
    def mean(self) -> Tensor:
        return self.length * self.log_probs.exp()

    def expand(self, batch_shape: Any, _instance: Any = None) -> WordCounts:
        shape = torch.Size(batch_shape) + self.event_shape
        return WordCounts(self.log_probs.expand(shape), self.length, validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # a word of probability 0 that does not occur: 0 * -inf is nan
        log_probs = torch.where(value == 0, 0.0, self.log_probs)
        return expand_to((value * log_probs).sum(-1), self.batch_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        probs = self.log_probs.exp().expand(shape).reshape(-1, shape[-1])
        words = torch.multinomial(probs, self.length, replacement=True)
        return torch.zeros_like(probs).scatter_add_(-1, words, torch.ones_like(words, dtype=probs.dtype)).reshape(shape)
