"""VQ-VAE: a discrete latent by the nearest entry of a codebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrodgm.core import Tractable, data_plate, evaluating
from pyrodgm.distributions.discretized import Codes
from pyrodgm.latent.codebook import Codebook, CodePrior
from pyrodgm.latent.completion import resample_missing
from pyrodgm.latent.vae import VAE
from pyrodgm.nets.mlp import MLP
from pyrodgm.shapes import base_constraint, join_context
from pyrodgm.tractable.parametric import Parametric

__all__ = ["VQVAE", "NearestCode"]


class NearestCode(nn.Module):
    r"""The guide of a VQ-VAE: all mass on the embeddings nearest to the encoder's L vectors.

    Its draw has the value of the embeddings and the gradient of the encoder's vectors
    (straight-through), and its log-probability is 0: it is a point mass over a discrete z.

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
        vectors = self.encoder(join_context(x.flatten(1), context)).to(self.book.vectors.dtype)
        if vectors.shape[-1] % self.book.size:
            raise ValueError(
                f"expected an encoder of L * {self.book.size} numbers (whole embeddings), got {vectors.shape[-1]}"
            )
        return vectors.unflatten(-1, (-1, self.book.size))

    def condition(self, x: Tensor, context: Tensor | None = None) -> TorchDistribution:
        """q(z | x, context), batch shape (B,)."""
        vectors = self.encode(x, context)
        quantized = self.book.embed(self.book.nearest(vectors))
        # The difference is exactly 0, so the value is exactly the embedding, and the prior finds it.
        return dist.Delta((quantized + (vectors - vectors.detach())).flatten(-2), event_dim=1)

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        if x is None:
            raise ValueError(
                "expected x: the guide reads the codes off the data; call the model to draw from the prior"
            )
        with data_plate(x, context, n):
            return pyro.sample("z", self.condition(x, context))


def _last_code(prior: Tractable) -> int | None:
    """The highest code that a prior gives, None where its support does not say."""
    bound = getattr(base_constraint(prior.support), "upper_bound", None)
    return None if bound is None or torch.as_tensor(bound).numel() != 1 else int(bound)


class VQVAE(VAE):
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
        last = _last_code(code_prior)
        if code_prior.event_shape.numel() != positions or last not in (None, len(codebook) - 1):
            raise ValueError(
                f"expected a code prior over {positions} codes of 0, ..., {len(codebook) - 1}, got event shape "
                f"{tuple(code_prior.event_shape)}" + ("" if last is None else f" of 0, ..., {last}")
            )
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
        x, context = self.check(x, context)
        with evaluating(self):
            codes = self.codebook.nearest(self.guide.encode(x, context))  # type: ignore[operator]
        return codes.to(x.dtype).unflatten(-1, self.code_prior.event_shape)

    def complete(self, x: Tensor, mask: Tensor, context: Tensor | None = None, *, steps: int = 4) -> Tensor:
        """Fill in what is missing by :func:`resample_missing` of ``steps`` rounds, whose proposals the prior shares.

        The guide is one point for each row, so a chain that proposes from it would never move. A round weighs 200
        proposals, so a few do where other models take a hundred sweeps.
        """
        return resample_missing(self, x, mask, context, rounds=steps)

    def usage(self, x: Tensor, context: Tensor | None = None) -> tuple[float, float]:
        """Perplexity of the codes that rows choose (between 1 and K), and the share of the K that is chosen at all."""
        codes = self.codes(x, context).flatten().long()
        share = torch.bincount(codes, minlength=len(self.codebook)).double() / len(codes)
        return torch.special.entr(share).sum().exp().item(), (share > 0).double().mean().item()
