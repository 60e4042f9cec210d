"""Sequences of tokens with an end, scored at once by a recurrent network and drawn a step at a time."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pyrodgm.nets.recurrent import RecurrentNet
from pyrodgm.shapes import expand_to

__all__ = ["Sentences", "TokenSequences"]

_LOGITS_AT_ONCE = 2**24  # numbers of (places, V) that are held at one time


class Sentences(constraints.Constraint):
    """Whole numbers 0 .. V - 1 in a row; after the first ``end`` every further one is ``end``, too.

    Example:
        >>> Sentences(4, end=0).check(torch.tensor([[2.0, 3.0, 0.0, 0.0], [2.0, 0.0, 3.0, 0.0]]))
        tensor([ True, False])
    """

    is_discrete = True
    event_dim = 1

    def __init__(self, vocabulary: int, end: int | None = None) -> None:
        self.vocabulary, self.end = vocabulary, end
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        inside = ((value >= 0) & (value < self.vocabulary) & (value == value.floor())).all(-1)
        if self.end is None:
            return inside
        ends = value == self.end
        return inside & (~ends[..., :-1] | ends[..., 1:]).all(-1)

    def __repr__(self) -> str:
        tail = "" if self.end is None else f", nothing but {self.end} after the first {self.end}"
        return f"Sentences(whole numbers 0 .. {self.vocabulary - 1}{tail})"


class TokenSequences(TorchDistribution):
    r"""T tokens, each given those before it: :math:`p(x) = \prod_t p(x_t \mid x_{<t}, c)`.

    After the first ``end`` every further token is ``end`` with probability 1. So the probabilities of all sentences
    of fewer than T words and of all first T words of longer ones sum to one.

    Args:
        net: :class:`pyrodgm.nets.RecurrentNet`, or another module with its ``forward``, ``out`` and ``vocabulary``.
        length: T.
        end: the token that ends a sentence; None where every sequence has T words.
        context: (*B, C) or None; the batch shape is its leading shape.
        withheld: probability with which ``log_prob`` withholds a previous word from the network. The draw of what is
            withheld is one for each row and call; for each such draw p sums to one. ``sample`` withholds none.
    Shapes: x (*S, *B, T) -> log_prob (*S, *B) in nats.
    Example:
        >>> d = TokenSequences(RecurrentNet(vocabulary=5, hidden=[8]), length=3, end=0)
        >>> d.log_prob(d.sample((4,))).shape
        torch.Size([4])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(
        self,
        net: RecurrentNet,
        length: int,
        end: int | None = None,
        context: Tensor | None = None,
        withheld: float = 0.0,
        batch_shape: tuple[int, ...] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.net, self.length, self.end, self.context, self.withheld = net, length, end, context, withheld
        if batch_shape is None:
            batch_shape = () if context is None else tuple(context.shape[:-1])
        super().__init__(torch.Size(batch_shape), torch.Size((length,)), validate_args=validate_args)

    @property
    def support(self) -> Any:
        return Sentences(self.net.vocabulary, self.end)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TokenSequences:
        same = self.net, self.length, self.end, self.context, self.withheld
        return TokenSequences(*same, batch_shape, validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        context = self.context
        lead = value.shape[:-1] if context is None else torch.broadcast_shapes(value.shape[:-1], context.shape[:-1])
        tokens = value.long().expand(*lead, self.length).reshape(-1, self.length)
        flat = None if context is None else context.expand(*lead, -1).reshape(len(tokens), -1)
        if torch.is_grad_enabled():
            found = self._score(tokens, flat)
        else:  # nothing is kept for a backward pass, so rows in parts bound the memory of the states, too
            step = self._rows_at_once(self.length)
            parts = [
                self._score(tokens[i : i + step], None if flat is None else flat[i : i + step])
                for i in range(0, max(1, len(tokens)), step)
            ]
            found = parts[0] if len(parts) == 1 else torch.cat(parts)
        return expand_to(found.reshape(lead).to(value.dtype), self.batch_shape)

    def _rows_at_once(self, steps: int) -> int:
        return max(1, _LOGITS_AT_ONCE // (steps * self.net.vocabulary))

    def _score(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        """(N, T), (N, C) -> (N,)."""
        nothing = self.net.vocabulary
        previous = seen = F.pad(tokens[:, :-1], (1, 0), value=nothing)
        if self.withheld:
            hide = torch.rand(previous.shape, device=previous.device) < self.withheld
            seen = torch.where(hide, nothing, previous)
        features, _ = self.net(seen, context)
        log_probs = self._pick(features.flatten(0, 1), tokens.flatten()).reshape(tokens.shape)
        if self.end is not None:
            certain = torch.where(tokens == self.end, 0.0, -math.inf).to(log_probs.dtype)
            log_probs = torch.where(previous == self.end, certain, log_probs)
        return log_probs.sum(-1)

    def _pick(self, features: Tensor, tokens: Tensor) -> Tensor:
        """log-probabilities of the tokens, (places, F), (places,) -> (places,), never with all logits at once."""
        step = max(1, _LOGITS_AT_ONCE // self.net.vocabulary)
        if len(tokens) <= step:
            return self._log_probs(features, tokens)
        parts = []
        for part in zip(features.split(step), tokens.split(step), strict=True):
            # the backward pass makes the logits of a part again instead of keeping those of all parts
            found: Any = checkpoint(self._log_probs, *part, use_reentrant=False, preserve_rng_state=False)
            parts.append(found)
        return torch.cat(parts)

    def _log_probs(self, features: Tensor, tokens: Tensor) -> Tensor:
        out = self.net.out
        return -F.cross_entropy(out(features).to(out.weight.dtype), tokens, reduction="none")

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        rows, step = shape[:-1].numel(), self._rows_at_once(1)
        context = None if self.context is None else self.context.expand(*shape[:-1], -1).reshape(rows, -1)
        parts = [
            self._draw(min(step, rows - i), None if context is None else context[i : i + step])
            for i in range(0, rows, step)
        ]
        like = self.net.out.weight
        return torch.cat(parts).to(like.dtype).reshape(shape) if parts else like.new_empty(shape)

    def _draw(self, rows: int, context: Tensor | None) -> Tensor:
        """(rows, T), each step from the states that the step before left."""
        weight = self.net.out.weight
        x = torch.full((rows, self.length), self.end or 0, device=weight.device)
        token, states = torch.full((rows,), self.net.vocabulary, device=weight.device), None
        done = torch.zeros(rows, dtype=torch.bool, device=weight.device)
        for t in range(self.length):
            features, states = self.net(token.unsqueeze(1), context, states)
            logits = self.net.out(features.squeeze(1)).to(weight.dtype)  # (rows, V)
            token = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)  # Gumbel-max
            if self.end is not None:
                token = torch.where(done, self.end, token)
                done |= token == self.end
            x[:, t] = token
            if self.end is not None and bool(done.all()):
                break
        return x
