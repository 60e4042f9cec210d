"""VQ-VAE: a discrete latent by the nearest entry of a codebook."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrodgm.core import Tractable, data_plate, evaluating
from pyrodgm.distributions.discretized import Codes
from pyrodgm.latent.codebook import Codebook, CodePrior, Level, check_code_prior, in_a_row
from pyrodgm.latent.completion import resample_missing
from pyrodgm.latent.vae import VAE
from pyrodgm.nets.mlp import MLP
from pyrodgm.shapes import join_context
from pyrodgm.tractable.parametric import Parametric

__all__ = ["VQVAE", "CodeGuide", "CodebookVAE", "NearestCode"]

_NUMBERS_AT_ONCE = 2**22  # of the rows that are encoded together


class CodeGuide(nn.Module):
    """A guide with all mass on one z(x): the embeddings nearest to an encoder's vectors.

    Its draw has the value of the embeddings and the gradient of the vectors (straight-through), and its log-probability
    is 0: it is a point mass over a discrete z. Subclasses write :meth:`levels`.
    """

    @abstractmethod
    def levels(self, x: Tensor, context: Tensor | None = None, learn: bool = False) -> list[Level]:
        """What is quantized, a level each in the order of z; to ``learn`` is to move the codebooks by it as well."""
        raise NotImplementedError(f"expected {type(self).__name__} to define levels(x, context, learn)")

    def condition(self, x: Tensor, context: Tensor | None = None) -> TorchDistribution:
        """q(z | x, context), batch shape (B,)."""
        return dist.Delta(in_a_row(self.levels(x, context)), event_dim=1)

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        if x is None:
            raise ValueError(
                "expected x: the guide reads the codes off the data; call the model to draw from the prior"
            )
        with data_plate(x, context, n):
            return pyro.sample("z", self.condition(x, context))


class NearestCode(CodeGuide):
    r"""The guide of a VQ-VAE: all mass on the embeddings nearest to the encoder's L vectors.

    Args:
        encoder: (B, D + C) -> (B, L * E).
        book: the codebook.
    Shapes: x (B, *event), context (B, C) -> z (B, L * E).
    Source: van den Oord et al. (2017), arXiv:1711.00937, eq. 1-2.
    Example:
        >>> from pyrodgm.latent import Codebook
        >>> NearestCode(torch.nn.Linear(6, 4), Codebook(codes=8, size=2))(torch.zeros(5, 6)).shape
        torch.Size([5, 4])
    """

    def __init__(self, encoder: nn.Module, book: Codebook) -> None:
        super().__init__()
        self.encoder, self.book = encoder, book

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The encoder's vectors, (B, L, E)."""
        return self.book.split(self.encoder(join_context(x.flatten(1), context)))

    def levels(self, x: Tensor, context: Tensor | None = None, learn: bool = False) -> list[Level]:
        return [self.book.quantize(self.encode(x, context), learn)]


class CodebookVAE(VAE):
    """What VAEs of codes have in common: a :class:`CodeGuide`, and a prior that scores its levels.

    :class:`~pyrodgm.objectives.VectorQuantization` trains them.
    """

    guide: CodeGuide

    def level_codes(self, x: Tensor, context: Tensor | None = None) -> list[Tensor]:
        """The codes of rows as floating-point numbers, (B, L) of each level, in batches that fit memory."""
        x, context = self.check(x, context)
        step = max(1, _NUMBERS_AT_ONCE // self.event_shape.numel())
        parts: list[list[Tensor]] = []
        with evaluating(self):
            for i in range(0, max(1, len(x)), step):
                given = None if context is None else context[i : i + step]
                parts.append([level.codes for level in self.guide.levels(x[i : i + step], given)])
        return [torch.cat(of_level).to(x.dtype) for of_level in zip(*parts, strict=True)]

    def complete(self, x: Tensor, mask: Tensor, context: Tensor | None = None, *, steps: int = 4) -> Tensor:
        """Fill in what is missing by :func:`resample_missing` of ``steps`` rounds, whose proposals the prior shares.

        The guide is one point for each row, so a chain that proposes from it would never move. A round weighs 200
        proposals, so a few do where other models take a hundred sweeps.
        """
        return resample_missing(self, x, mask, context, rounds=steps)


class VQVAE(CodebookVAE):
    r"""Vector-quantized VAE: L discrete codes, a prior p(codes), and a decoder of their embeddings.

    The latent z is the L embeddings in a row. The guide is a point mass on one z(x), so every
    importance weight of a row is the same number, a true lower bound (one term of a sum over codes):

    .. math:: \log p(x) \ge \log p(x \mid z(x)) + \log p(z(x))

    Train in two stages, as the paper does: first ``fit(model, x, VectorQuantization())``, in which
    the prior has no part, then the prior alone by ``fit(model.code_prior, model.codes(x))``; or both at once by
    ``VectorQuantization(prior=True)``, which is what ``fit(model, x)`` does. The ELBO of the model trains decoder,
    encoder and prior together, but leaves the codebook where it is.

    Args:
        encoder: any module (B, D + C) -> (B, L * E), of x flattened (and c).
        likelihood: density of x, its context L * E (and C behind it).
        codebook: K codes of size E.
        code_prior: Tractable over codes 0 .. K - 1 of event shape (L,) or a grid of L; default
            independent categoricals.
        context: size C of the conditioning vector, 0 for none.
    Shapes: x (B, *event), context (B, C), z (B, L * E), codes (B, L).
    Raises: ValueError if the likelihood's context does not hold a whole number of embeddings, or if the prior is of
        other codes.
    Source: van den Oord et al. (2017), arXiv:1711.00937.
    Example:
        >>> model = VQVAE.mlp(features=6, positions=2, codes=8, size=3, hidden=[16])
        >>> model.codes(torch.zeros(5, 6)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        encoder: nn.Module,
        likelihood: Tractable,
        codebook: Codebook,
        code_prior: Tractable | None = None,
        context: int = 0,
    ) -> None:
        positions, rest = divmod(likelihood.context - context, codebook.size)
        if positions < 1 or rest:
            raise ValueError(
                f"expected a likelihood with a context of positions * {codebook.size} (the embeddings) + {context}, "
                f"got {likelihood.context}"
            )
        if code_prior is None:
            code_prior = Parametric(Codes, positions, sizes={"logits": len(codebook)})
        check_code_prior(code_prior, positions, codebook)
        super().__init__(CodePrior(code_prior, codebook), likelihood, NearestCode(encoder, codebook), context)
        self.codebook = codebook

    @classmethod
    def mlp(  # type: ignore[override]
        cls,
        features: int,
        positions: int = 8,
        codes: int = 64,
        size: int = 8,
        hidden: Sequence[int] = (400,),
        context: int = 0,
        family: type[TorchDistribution] = dist.Bernoulli,
        code_prior: Tractable | None = None,
    ) -> VQVAE:
        """A VQ-VAE of perceptrons with a likelihood of independent features.

        Args:
            features: D.
            positions: L.
            codes: K.
            size: E.
            hidden: widths of the encoder's hidden layers; the decoder has them reversed.
            context: size C of the conditioning vector.
            family: univariate Pyro family of one feature.
            code_prior: default independent categoricals.
        """
        return cls(
            encoder=MLP(features + context, positions * size, hidden),
            likelihood=Parametric(family, features, context=positions * size + context, hidden=tuple(reversed(hidden))),
            codebook=Codebook(codes, size),
            code_prior=code_prior,
            context=context,
        )

    @property
    def code_prior(self) -> Any:
        """The model of the codes."""
        return self.prior.codes

    def codes(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The codes of rows, as floating-point numbers for ``code_prior``: (B, *event) -> (B, *codes)."""
        (codes,) = self.level_codes(x, context)
        return codes.unflatten(-1, self.code_prior.event_shape)

    def usage(self, x: Tensor, context: Tensor | None = None) -> tuple[float, float]:
        """Perplexity of the codes that rows choose (between 1 and K), and the share of the K that is chosen at all."""
        return self.codebook.usage(self.codes(x, context))
