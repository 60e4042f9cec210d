"""Codes of two levels: the guide that reads them off the data, and p(top codes) p(bottom codes | top codes)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyrodgm.core import Tractable
from pyrodgm.latent.codebook import Codebook, EmbeddedCodes, Level, check_code_prior, score_codes
from pyrodgm.latent.quantized import CodeGuide
from pyrodgm.shapes import join_context

__all__ = ["CodePairPrior", "EmbeddedPair", "NearestCodePair", "check_pair"]


def check_pair(values: Sequence[Any], what: str) -> tuple[Any, Any]:
    """Two things, of the top and of the bottom; ValueError for another number of them."""
    if len(values) != 2:
        raise ValueError(f"expected two {what}, of the top and of the bottom, got {len(values)}")
    return values[0], values[1]


class NearestCodePair(CodeGuide):
    r"""The guide of a VQ-VAE-2: all mass on the nearest embeddings of two levels.

    .. math:: h = f(x), \quad e_t = Q_t(g_t(h)), \quad e_b = Q_b(g_b(h, e_t))

    with Q the nearest embeddings of a codebook: what the bottom stands for depends on the top.

    Args:
        encoder: the modules f: (B, D + C) -> (B, F), :math:`g_t`: (B, F) -> (B, L_t * E_t) and
            :math:`g_b`: (B, F + L_t * E_t) -> (B, L_b * E_b).
        books: the codebooks of the top and of the bottom.
        positions: L_t and L_b.
    Shapes: x (B, *event), context (B, C) -> z (B, L_t * E_t + L_b * E_b).
    Raises: ValueError for other numbers of parts, or if a network gives another number of vectors.
    Source: Razavi et al. (2019), arXiv:1906.00446, section 3.1 and algorithm 1.
    Example:
        >>> from torch.nn import Linear
        >>> books = Codebook(codes=8, size=2), Codebook(codes=8, size=1)
        >>> guide = NearestCodePair((Linear(6, 5), Linear(5, 4), Linear(9, 3)), books, positions=(2, 3))
        >>> guide(torch.zeros(5, 6)).shape
        torch.Size([5, 7])
    """

    def __init__(self, encoder: Sequence[nn.Module], books: Sequence[Codebook], positions: Sequence[int]) -> None:
        super().__init__()
        if len(encoder) != 3:
            raise ValueError(
                f"expected an encoder of three modules (features, top, bottom), got {len(encoder)}; see NearestCodePair"
            )
        self.features, self.top, self.bottom = encoder
        self.books = nn.ModuleList(check_pair(books, "codebooks"))
        self.positions = check_pair(positions, "numbers of positions")

    def levels(self, x: Tensor, context: Tensor | None = None, learn: bool = False) -> list[Level]:
        features = self.features(join_context(x.flatten(1), context))
        top = self._quantize(0, self.top(features), learn)
        return [top, self._quantize(1, self.bottom(torch.cat((features, top.straight()), -1)), learn)]

    def _quantize(self, which: int, numbers: Tensor, learn: bool) -> Level:
        book: Any = self.books[which]
        positions = self.positions[which]
        if numbers.shape[-1] != positions * book.size:
            raise ValueError(
                f"expected a {('top', 'bottom')[which]} encoder of {positions} * {book.size} numbers (positions by "
                f"embedding), got {numbers.shape[-1]}"
            )
        return book.quantize(book.split(numbers), learn)


class EmbeddedPair(TorchDistribution):
    r"""A distribution over the embeddings of two levels, the top's and then the bottom's in a row.

    Args:
        top: p(top).
        bottom: gives p(bottom | top) for the top's embeddings, (*B, L_t * E_t).
        size: L_b * E_b.
    Shapes: z (*S, *B, L_t * E_t + L_b * E_b) -> log_prob (*S, *B) in nats.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(
        self,
        top: EmbeddedCodes,
        bottom: Callable[[Tensor], EmbeddedCodes],
        size: int,
        validate_args: bool | None = None,
    ) -> None:
        self.top, self.bottom, self.size = top, bottom, size
        super().__init__(top.batch_shape, torch.Size((top.event_shape[0] + size,)), validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> EmbeddedPair:
        top = self.top.expand(torch.Size(batch_shape))
        return EmbeddedPair(top, self.bottom, self.size, validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        top, bottom = value.split([self.event_shape[0] - self.size, self.size], -1)
        codes, _ = self.top.read(top)
        # What the book holds, and not a rounding of it; the bottom's probability is one of codes, without a gradient.
        given = self.top.book.embed(codes).flatten(-2).to(value.dtype)
        return self.top.log_prob(top) + self.bottom(given).log_prob(bottom)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            top = self.top.sample(torch.Size(sample_shape))
            return torch.cat((top, self.bottom(top).sample()), -1)


class CodePairPrior(Tractable):
    r"""Two tractable models of codes as the prior of their embeddings, those of the top and of the bottom in a row.

    .. math:: p(z \mid c) = p(k_t \mid c) \, p(k_b \mid e(k_t), c)

    Args:
        top: a Tractable over L_t floating-point codes 0 .. K_t - 1 or a grid of them, of context 0 or C.
        bottom: one over L_b codes 0 .. K_b - 1, whose context is the top's embeddings, L_t * E_t, and it may be C
            behind them.
        books: the codebooks of the top and of the bottom, which the guide shares.
        positions: L_t and L_b.
        context: size C of the conditioning vector, 0 for none.
    Shapes: z (*B, L_t * E_t + L_b * E_b), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError if a prior is of other codes or of another context.
    Source: Razavi et al. (2019), arXiv:1906.00446, section 3.2 and algorithm 2.
    Example:
        >>> from pyrodgm.tractable import MADE, CategoricalConditional
        >>> top = MADE(2, [16], conditional=CategoricalConditional(4))
        >>> bottom = MADE(3, [16], conditional=CategoricalConditional(8), context=2)
        >>> CodePairPrior(top, bottom, (Codebook(4, 1), Codebook(8, 2)), positions=(2, 3)).sample(5).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        top: Tractable,
        bottom: Tractable,
        books: Sequence[Codebook],
        positions: Sequence[int],
        context: int = 0,
    ) -> None:
        above, below = check_pair(books, "codebooks")
        check_code_prior(top, positions[0], above, "top prior")
        check_code_prior(bottom, positions[1], below, "bottom prior")
        given, size = positions[0] * above.size, positions[1] * below.size
        if top.context not in (0, context):
            raise ValueError(f"expected a top prior with context 0 or {context}, got {top.context}")
        if bottom.context not in (given, given + context):
            raise ValueError(
                f"expected a bottom prior with context={given} (the top's embeddings) or {given + context} (the "
                f"model's context behind them), got {bottom.context}"
            )
        super().__init__((given + size,), context if top.context or bottom.context > given else 0)
        self.top, self.bottom = top, bottom
        self.books = nn.ModuleList((above, below))
        self.given, self.size = given, size

    def bottom_context(self, embeddings: Tensor, context: Tensor | None = None) -> Tensor:
        """What the bottom prior has as its context: embeddings of the top (*B, L_t * E_t) and, if it takes it, c."""
        return join_context(embeddings, context if self.bottom.context > self.given else None)

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        _, context = self.check(None, context)
        above: Any = self.books[0]
        top = EmbeddedCodes(self.top.condition(context if self.top.context else None), above)
        if context is not None and not self.top.context:
            top = top.expand(context.shape[:-1])
        return EmbeddedPair(top, partial(self._below, context=context), self.size)

    def _below(self, embeddings: Tensor, context: Tensor | None) -> EmbeddedCodes:
        book: Any = self.books[1]
        return EmbeddedCodes(self.bottom.condition(self.bottom_context(embeddings, context)), book)

    def score(self, levels: Sequence[Level], context: Tensor | None = None) -> Tensor:
        """log p(codes | context) of what the guide has quantized, (B,), with gradients of the priors alone."""
        top, bottom = levels
        given = self.bottom_context(top.embeddings.flatten(-2), context)
        return score_codes(self.top, top.codes, context) + score_codes(self.bottom, bottom.codes, given)
