"""A codebook that follows its encoder, and a density over codes seen as one over their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyrodgm.bijectors.base import in_its_precision
from pyrodgm.core import Tractable
from pyrodgm.shapes import base_constraint

__all__ = ["CodePrior", "Codebook", "EmbeddedCodes", "Level", "check_code_prior", "in_a_row", "score_codes"]

_DISTANCES_AT_ONCE = 2**22  # so a data set whole takes no more memory than a batch


class Level(NamedTuple):
    """An encoder's vectors beside what a codebook makes of them.

    Attributes:
        vectors: (B, L, E).
        codes: of the closest embeddings, (B, L).
        embeddings: these, (B, L, E).
    """

    vectors: Tensor
    codes: Tensor
    embeddings: Tensor

    def straight(self) -> Tensor:
        """The embeddings in a row, with the gradient of the vectors (straight-through), (B, L * E)."""
        # The difference is exactly 0, so the value is exactly the embedding, and the prior finds it.
        return (self.embeddings + (self.vectors - self.vectors.detach())).flatten(-2)

    def distance(self) -> Tensor:
        """The squared distance from vectors to embeddings, summed over the positions, (B,)."""
        return (self.vectors - self.embeddings).square().flatten(1).sum(-1)


def in_a_row(levels: Sequence[Level]) -> Tensor:
    """z, the embeddings of all levels with the gradients of their vectors: (B, the sum of L * E)."""
    rows = [level.straight() for level in levels]
    return rows[0] if len(rows) == 1 else torch.cat(rows, -1)


class Codebook(nn.Module):
    r"""K embeddings of size E, moved by exponential averages of the vectors that choose them.

    .. math:: N_k \leftarrow \gamma N_k + (1 - \gamma) n_k, \quad
        m_k \leftarrow \gamma m_k + (1 - \gamma) \sum_{i: c_i = k} v_i, \quad e_k = m_k / N_k

    with :math:`n_k` how many vectors of a batch chose k. A code whose :math:`N_k` is below
    ``revive_below`` is dead: it takes the place of a random vector of the batch. All codes start
    dead, so the first batch lays them out. All state is in buffers, so checkpoints have it all.
    Where several processes train (torch.distributed), the batch is that of all of them, and so is the codebook;
    each process has to call :meth:`update` as often as the others.

    Args:
        codes: K >= 2.
        size: E >= 1.
        decay: :math:`\gamma` in [0, 1).
        revive_below: uses a batch, in exponential average, below which a code is dead; 0 lets them die.
    Shapes: vectors (*B, E) -> codes (*B,).
    Raises: ValueError for sizes or a decay out of range.
    Source: van den Oord et al. (2017), arXiv:1711.00937, appendix A.1; revival: Dhariwal et al. (2020),
        arXiv:2005.00341, section 3.1.
    Example:
        >>> book = Codebook(codes=8, size=2)
        >>> book.update(torch.randn(100, 2))
        >>> book.nearest(book.vectors)
        tensor([0, 1, 2, 3, 4, 5, 6, 7])
    """

    vectors: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int = 512, size: int = 64, decay: float = 0.99, revive_below: float = 0.1) -> None:
        super().__init__()
        if codes < 2 or size < 1:
            raise ValueError(f"expected codes >= 2 and size >= 1, got {codes} and {size}")
        if not 0 <= decay < 1 or revive_below < 0:
            raise ValueError(f"expected 0 <= decay < 1 and revive_below >= 0, got {decay} and {revive_below}")
        self.decay, self.revive_below = decay, revive_below
        start = torch.randn(codes, size)
        self.register_buffer("vectors", start)
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros_like(start))

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def size(self) -> int:
        """E."""
        return self.vectors.shape[-1]

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """The code of the closest embedding, by Euclidean distance (eq. 1): (*B, E) -> (*B,)."""
        with in_its_precision(vectors):
            half = 0.5 * self.vectors.square().sum(-1)  # |v|^2 is the same for all codes
            return self._closest(vectors, lambda part: torch.addmm(half, part, self.vectors.T, alpha=-1))

    def split(self, numbers: Tensor) -> Tensor:
        """What an encoder gives as vectors in the book's precision, (*B, L * E) -> (*B, L, E).

        Raises: ValueError if that is no whole number of embeddings.
        """
        if numbers.shape[-1] % self.size:
            raise ValueError(
                f"expected an encoder of L * {self.size} numbers (whole embeddings), got {numbers.shape[-1]}"
            )
        return numbers.to(self.vectors.dtype).unflatten(-1, (-1, self.size))

    def quantize(self, vectors: Tensor, learn: bool = False) -> Level:
        """Vectors (B, L, E) beside their codes and embeddings; to ``learn`` is to be moved by them first."""
        if learn:
            self.update(vectors)
        codes = self.nearest(vectors)
        return Level(vectors, codes, self.embed(codes))

    def usage(self, codes: Tensor) -> tuple[float, float]:
        """Perplexity of codes (between 1 and K), and the share of the K that is among them at all."""
        share = torch.bincount(codes.flatten().long(), minlength=len(self)).double() / codes.numel()
        return torch.special.entr(share).sum().exp().item(), (share > 0).double().mean().item()

    @torch.no_grad()
    def find(self, vectors: Tensor) -> Tensor:
        """The code of an embedding, (*B, E) -> (*B,): by differences, which are 0 there and nowhere else.

        The products of :meth:`nearest` are rounded, so it may take another embedding that is close by.
        """
        kind = torch.promote_types(self.vectors.dtype, torch.float32)  # cdist knows no shorter types
        book = self.vectors.to(kind)
        return self._closest(vectors, lambda part: torch.cdist(part.to(kind), book, p=1.0))

    def _closest(self, vectors: Tensor, distances: Callable[[Tensor], Tensor]) -> Tensor:
        flat = vectors.reshape(-1, self.size)
        parts = flat.split(max(1, _DISTANCES_AT_ONCE // len(self)))
        chosen = [distances(part).argmin(-1) for part in parts]
        return (chosen[0] if len(chosen) == 1 else torch.cat(chosen)).reshape(vectors.shape[:-1])

    def embed(self, codes: Tensor) -> Tensor:
        """(*B,) -> (*B, E); codes may be floating-point numbers."""
        return self.vectors[codes.long()]

    @torch.no_grad()
    def update(self, vectors: Tensor) -> None:
        """One step of the averages by a batch of vectors (*B, E), then revival."""
        flat = vectors.detach().reshape(-1, self.size)  # detached in a compiled loss as well, which keeps no no_grad
        chosen = self.nearest(flat)
        rate = 1 - self.decay
        used = torch.zeros_like(self.counts).index_add_(0, chosen, torch.ones_like(flat[:, 0]))
        total = torch.zeros_like(self.sums).index_add_(0, chosen, flat)
        _sum_over_processes(used, total)
        self.counts.lerp_(used, rate)
        self.sums.lerp_(total, rate)
        if self.revive_below > 0:
            dead = self.counts < self.revive_below
            self.counts.copy_(torch.where(dead, torch.ones_like(self.counts), self.counts))
            self.sums.copy_(torch.where(dead.unsqueeze(-1), self._fresh(flat), self.sums))
        kind = torch.finfo(self.counts.dtype)
        least = kind.tiny / kind.eps  # below it the sums of a code that nothing chooses lose their digits
        mean = self.sums / self.counts.clamp(min=least).unsqueeze(-1)
        self.vectors.copy_(torch.where((self.counts > least).unsqueeze(-1), mean, self.vectors))

    def _fresh(self, flat: Tensor) -> Tensor:
        """K random vectors of the batch, (N, E) -> (K, E), to which each of several processes gives its share."""
        rank, processes = _processes()
        # Without replacement: of two equal embeddings the second would never be chosen.
        order = torch.randperm(len(flat), device=flat.device)
        place = torch.arange(len(self), device=flat.device)
        fresh = flat[order[place // processes % len(flat)]]
        if processes > 1:
            fresh = torch.where((place % processes == rank).unsqueeze(-1), fresh, 0.0)
            _sum_over_processes(fresh)
        return fresh


def _processes() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _sum_over_processes(*tensors: Tensor) -> None:
    if _processes()[1] > 1:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


class EmbeddedCodes(TorchDistribution):
    r"""A distribution over L codes as one over their embeddings, (L * E,) in a row.

    It has the codes' probability at the embeddings and none elsewhere, with respect to counting.

    Args:
        codes: distribution over vectors of L codes.
        book: the codebook.
    Shapes: z (*S, *B, L * E) -> log_prob (*S, *B) in nats.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, codes: Distribution, book: Codebook, validate_args: bool | None = None) -> None:
        self.codes, self.book = codes, book
        event = torch.Size((codes.event_shape.numel() * book.size,))
        super().__init__(codes.batch_shape, event, validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> EmbeddedCodes:
        return EmbeddedCodes(self.codes.expand(torch.Size(batch_shape)), self.book, validate_args=self._validate_args)

    def read(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The codes of embeddings in a row, (*B, L * E) -> (*B, L), and whether all of them are in the book, (*B,)."""
        vectors = value.unflatten(-1, (-1, self.book.size))  # (*B, L * E) -> (*B, L, E)
        codes = self.book.find(vectors)
        # casts to a lower precision and back move an embedding by its rounding
        eps = 10 * torch.finfo(value.dtype).eps
        return codes, torch.isclose(self.book.embed(codes), vectors, rtol=eps, atol=eps).all(-1).all(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        codes, there = self.read(value)
        log_prob = self.codes.log_prob(codes.to(value.dtype).unflatten(-1, self.codes.event_shape))
        return torch.where(there, log_prob, -torch.inf)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            codes = self.codes.sample(torch.Size(sample_shape))
            lead = codes.shape[: codes.dim() - len(self.codes.event_shape)]
            return self.book.embed(codes).reshape(*lead, *self.event_shape)


class CodePrior(Tractable):
    r"""A tractable model of codes as the prior of their embeddings, (L * E,) in a row.

    Args:
        codes: a Tractable over floating-point codes 0 .. K - 1 of event shape (L,) or of a grid:
            MADE with a :class:`CategoricalConditional`, or any other.
        book: the codebook, which the guide shares.
    Shapes: z (*B, L * E), context (*B, C) -> log_prob (*B,) in nats.
    Example:
        >>> from pyrodgm.tractable import MADE, CategoricalConditional
        >>> prior = CodePrior(MADE(3, [16], conditional=CategoricalConditional(8)), Codebook(8, 2))
        >>> prior.sample(5).shape
        torch.Size([5, 6])
    """

    def __init__(self, codes: Tractable, book: Codebook) -> None:
        super().__init__((codes.event_shape.numel() * book.size,), codes.context)
        self.codes, self.book = codes, book

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        _, context = self.check(None, context)
        return EmbeddedCodes(self.codes.condition(context), self.book)

    def score(self, levels: Sequence[Level], context: Tensor | None = None) -> Tensor:
        """log p(codes | context) of what the guide has quantized, (B,), with gradients of the prior alone."""
        (level,) = levels
        return score_codes(self.codes, level.codes, context)


def score_codes(prior: Tractable, codes: Tensor, context: Tensor | None) -> Tensor:
    """log p(codes) under a model of codes that may have the context, (B, L) -> (B,)."""
    shaped = codes.to(prior.dtype).unflatten(-1, prior.event_shape)
    return prior.log_prob(shaped, context if prior.context else None)


def check_code_prior(prior: Tractable, positions: int, book: Codebook, name: str = "code prior") -> None:
    """Raise ValueError for a prior of more, fewer or other codes than ``positions`` of the book's."""
    bound = getattr(base_constraint(prior.support), "upper_bound", None)
    last = None if bound is None or torch.as_tensor(bound).numel() != 1 else int(bound)  # None: it does not say
    if prior.event_shape.numel() != positions or last not in (None, len(book) - 1):
        raise ValueError(
            f"expected a {name} over {positions} codes of 0, ..., {len(book) - 1}, got event shape "
            f"{tuple(prior.event_shape)}" + ("" if last is None else f" of 0, ..., {last}")
        )
