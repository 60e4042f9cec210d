"""VQ-VAE-2: codes of two levels, the bottom's given the top's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrodgm.core import Tractable
from pyrodgm.distributions.discretized import Codes
from pyrodgm.latent.code_pair import CodePairPrior, NearestCodePair, check_pair
from pyrodgm.latent.codebook import Codebook
from pyrodgm.latent.quantized import CodebookVAE
from pyrodgm.nets.grids import Grid, GridNet
from pyrodgm.nets.mlp import MLP
from pyrodgm.tractable.parametric import Parametric

__all__ = ["VQVAE2"]

Priors = tuple[Tractable | None, Tractable | None]


class VQVAE2(CodebookVAE):
    r"""VQ-VAE-2: a top level of codes for the whole, a bottom level for details, and a prior of each.

    .. math:: p(x, k_t, k_b) = p(k_t) \, p(k_b \mid e_t) \, p(x \mid e_t, e_b)

    with e the embeddings of the codes k. The encoder reads the top first, and the bottom given the top's embeddings
    (algorithm 1); z is those of the top and then those of the bottom in a row. As in a :class:`VQVAE`, the guide is a
    point mass, and the importance weights of a row are one number, a lower bound of log p(x).

    Stage 1 of the paper trains all but the priors, stage 2 (algorithm 2) each prior by itself::

        fit(model, x, VectorQuantization())
        top, bottom = model.codes(x)
        fit(model.top_prior, top)
        fit(model.bottom_prior, (bottom, model.bottom_context(top)))

    ``VectorQuantization(prior=True)``, which is what ``fit(model, x)`` does, trains all at once.

    Args:
        encoder: three modules on rows: x flattened (and c) -> features (B, F), features -> the top's vectors
            (B, L_t * E_t), features and the top's embeddings (B, F + L_t * E_t) -> the bottom's vectors (B, L_b * E_b).
        likelihood: density of x, its context L_t * E_t + L_b * E_b (and C behind it).
        codebooks: of the top and of the bottom.
        positions: L_t and L_b, the numbers of codes.
        priors: of the top, a Tractable over L_t codes or a grid of them; and of the bottom, one over L_b codes with
            context L_t * E_t (and it may be C behind it). Default independent categoricals: the top's of c, the
            bottom's of a network of the top's embeddings and c.
        context: size C of the conditioning vector, 0 for none.
    Shapes: x (B, *event), context (B, C), z (B, L_t * E_t + L_b * E_b), codes (B, L_t) and (B, L_b).
    Raises: ValueError for other numbers of parts, or where the sizes of two do not fit.
    Source: Razavi et al. (2019), arXiv:1906.00446, section 3. Departure: any likelihood, where theirs is the squared
        error; any prior, where theirs are PixelCNNs with self-attention.
    Example:
        >>> import torch
        >>> model = VQVAE2.mlp(features=6, positions=(1, 3), codes=8, size=2, hidden=[16])
        >>> [codes.shape for codes in model.codes(torch.zeros(5, 6))]
        [torch.Size([5, 1]), torch.Size([5, 3])]
    """

    guide: NearestCodePair
    prior: CodePairPrior

    def __init__(
        self,
        encoder: Sequence[nn.Module],
        likelihood: Tractable,
        codebooks: Sequence[Codebook],
        positions: Sequence[int],
        priors: Priors = (None, None),
        context: int = 0,
    ) -> None:
        books = check_pair(codebooks, "codebooks")
        top, bottom = sizes = check_pair(positions, "numbers of positions")
        of_top, of_bottom = check_pair(priors, "priors")
        given = top * books[0].size
        if min(sizes) < 1 or likelihood.context != given + bottom * books[1].size + context:
            raise ValueError(
                f"expected a likelihood with a context of {top} * {books[0].size} + {bottom} * {books[1].size} (the "
                f"embeddings of both levels) + {context}, and positions >= 1, got {likelihood.context}"
            )
        if of_top is None:
            of_top = Parametric(Codes, top, context=context, sizes={"logits": len(books[0])})
        if of_bottom is None:
            of_bottom = Parametric(
                Codes, bottom, context=given + context, hidden=[256], sizes={"logits": len(books[1])}
            )
        prior = CodePairPrior(of_top, of_bottom, books, sizes, context)
        super().__init__(prior, likelihood, NearestCodePair(encoder, books, sizes), context)

    @classmethod
    def mlp(  # type: ignore[override]
        cls,
        features: int,
        positions: Sequence[int] = (4, 8),
        codes: int = 64,
        size: int = 8,
        hidden: Sequence[int] = (400,),
        context: int = 0,
        family: type[TorchDistribution] = dist.Bernoulli,
        priors: Priors = (None, None),
    ) -> VQVAE2:
        """A VQ-VAE-2 of perceptrons with a likelihood of independent features.

        Args:
            features: D.
            positions: L_t and L_b, the numbers of codes of the top and of the bottom.
            codes: K, of each level.
            size: E, of each level.
            hidden: widths of the hidden layers of the features of x, one at least; the decoder has them reversed, and
                each level's vectors come by a hidden layer of the last one's width.
            context: size C of the conditioning vector.
            family: univariate Pyro family of one feature.
            priors: default independent categoricals, the bottom's of a network of the top's embeddings.
        """
        if not hidden:
            raise ValueError("expected one hidden layer or more, got none; pass hidden=[400]")
        top, bottom = (positions * size for positions in check_pair(positions, "numbers of positions"))
        width = hidden[-1]
        return cls(
            encoder=(
                nn.Sequential(MLP(features + context, width, hidden[:-1]), nn.ReLU()),
                MLP(width, top, [width]),
                MLP(width + top, bottom, [width]),
            ),
            likelihood=Parametric(family, features, context=top + bottom + context, hidden=tuple(reversed(hidden))),
            codebooks=(Codebook(codes, size), Codebook(codes, size)),
            positions=positions,
            priors=priors,
            context=context,
        )

    @classmethod
    def conv(
        cls,
        shape: tuple[int, int, int],
        *,
        codes: int = 512,
        size: int = 16,
        channels: int = 64,
        blocks: int = 2,
        halvings: int = 2,
        context: int = 0,
        family: type[TorchDistribution] = dist.Bernoulli,
        fixed: dict[str, float] | None = None,
        priors: Priors = (None, None),
    ) -> VQVAE2:
        r"""A VQ-VAE-2 of convolutions over images, whose grids have a code at every place, row by row.

        The bottom grid is :math:`\lceil H / 2^h \rceil \times \lceil W / 2^h \rceil` with h the halvings, the top grid
        half of that each way, rounded up: 28 x 28 pixels have 7 x 7 and 4 x 4 codes. Each network is a
        :class:`~pyrodgm.nets.GridNet`; the paper's, for 256 x 256 pixels, have 128 channels, two blocks and two
        halvings, and 512 codes of 64 numbers.

        Args:
            shape: (C, H, W).
            codes: K, of each level.
            size: E, of each level.
            channels: of the networks.
            blocks: residual blocks of each network.
            halvings: of the image to the bottom grid, 1 or more; 1 suits images of some 16 pixels.
            context: size C of the conditioning vector, which is joined at every place.
            family: univariate Pyro family of one pixel.
            fixed: its parameters that are not learned, such as ``{"scale": 0.1}`` of a normal or ``{"levels": 256}`` of
                a :class:`~pyrodgm.distributions.DiscretizedLogistic`.
            priors: default independent categoricals, the bottom's of a network of the top's embeddings.
        """
        if len(shape) != 3 or min(shape) < 1 or halvings < 1:
            raise ValueError(f"expected shape as positive (C, H, W) and halvings >= 1, got {shape} and {halvings}")
        image = Grid(*shape, by_channel=True)
        bottom = Grid(size, *image.halved(halvings)[1:3])
        top, inner = bottom.halved(), bottom._replace(channels=channels)
        nets: dict[str, Any] = {"channels": channels, "blocks": blocks}
        embedded = top.numbers + bottom.numbers
        likelihood = Parametric(family, shape, context=embedded + context, net=nn.Identity(), fixed=fixed)
        pixels = image._replace(channels=image.channels * sum(likelihood.sizes.values()))  # a plane each parameter
        here = (bottom.height, bottom.width)
        likelihood.net = GridNet([top, bottom], pixels, at=here, context=context, **nets)
        of_top, of_bottom = check_pair(priors, "priors")
        if of_bottom is None:
            logits = GridNet([top], bottom._replace(channels=codes), context=context, **nets)
            sizes = {"logits": codes}
            of_bottom = Parametric(Codes, bottom.places, context=top.numbers + context, net=logits, sizes=sizes)
        return cls(
            encoder=(
                GridNet([image], inner, context=context, **nets),
                GridNet([inner], top, **nets),
                GridNet([inner, top], bottom, **nets),
            ),
            likelihood=likelihood,
            codebooks=(Codebook(codes, size), Codebook(codes, size)),
            positions=(top.places, bottom.places),
            priors=(of_top, of_bottom),
            context=context,
        )

    @property
    def top_prior(self) -> Tractable:
        """The model of the top's codes."""
        return self.prior.top

    @property
    def bottom_prior(self) -> Tractable:
        """The model of the bottom's codes, whose context :meth:`bottom_context` makes."""
        return self.prior.bottom

    @property
    def codebooks(self) -> tuple[Codebook, Codebook]:
        """Of the top and of the bottom."""
        top, bottom = self.guide.books
        return top, bottom  # type: ignore[return-value]

    def codes(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The codes of rows, as floating-point numbers for the priors: (B, *event) -> (B, *top), (B, *bottom)."""
        top, bottom = (
            codes.unflatten(-1, prior.event_shape)
            for codes, prior in zip(self.level_codes(x, context), (self.top_prior, self.bottom_prior), strict=True)
        )
        return top, bottom

    def bottom_context(self, top: Tensor, context: Tensor | None = None) -> Tensor:
        """The context of ``bottom_prior``, from codes of the top (*B, *top) and the model's context (*B, C)."""
        codes = top.flatten(-len(self.top_prior.event_shape))
        return self.prior.bottom_context(self.codebooks[0].embed(codes).flatten(-2), context)

    def usage(self, x: Tensor, context: Tensor | None = None) -> tuple[tuple[float, float], tuple[float, float]]:
        """Of the top and of the bottom: perplexity of the codes that rows choose, and the share of the K chosen."""
        top, bottom = (book.usage(codes) for book, codes in zip(self.codebooks, self.codes(x, context), strict=True))
        return top, bottom
