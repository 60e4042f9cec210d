"""The first stage of a VQ-VAE, of one level or two: reconstruction, commitment, and the codebooks' averages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from pyrodgm.core import GenerativeModel
from pyrodgm.latent.codebook import in_a_row
from pyrodgm.objectives.base import Objective

__all__ = ["VectorQuantization"]


class VectorQuantization(Objective):
    r"""Reconstruction and commitment of a VQ-VAE; the codebook follows by exponential averages.

    .. math:: -\log p(x \mid z(x)) + \beta \, \| z_e(x) - \operatorname{sg}[e(x)] \|^2

    with :math:`z_e` the encoder's vectors and e their embeddings, summed over the positions (of both levels of a
    :class:`~pyrodgm.latent.VQVAE2`), a mean over the rows. The second term of the paper's eq. 3 moves the codebook;
    here the averages of its appendix A.1 do. They advance with each loss in train mode. The prior takes no part and is
    trained afterwards, or beside them, by the codes as they are at each step, which moves nothing else:

    .. math:: -\log p(k(x)), \quad k(x) \text{ the codes of } z_e

    What is held out is the reconstruction alone, or with the prior the negative bound, in nats per datum.

    Args:
        commitment: :math:`\beta` >= 0.
        prior: train the prior of the codes as well.
    Raises: ValueError for commitment < 0; TypeError from ``check`` for a model without a codebook.
    Source: van den Oord et al. (2017), arXiv:1711.00937, eq. 3 and appendix A.1; two levels: Razavi et al. (2019),
        arXiv:1906.00446, algorithm 1.
    Example:
        >>> from pyrodgm.latent import VQVAE
        >>> model = VQVAE.mlp(features=6, positions=2, codes=8, size=3, hidden=[16])
        >>> VectorQuantization().loss(model, torch.ones(4, 6)).shape
        torch.Size([])
    """

    held_out_name = "reconstruction"

    def __init__(self, commitment: float = 0.25, prior: bool = False) -> None:
        super().__init__()
        if not commitment >= 0:
            raise ValueError(f"expected commitment >= 0, got {commitment}")
        self.commitment, self.prior = commitment, prior
        if prior:
            self.held_out_name = "negative bound"

    def check(self, model: GenerativeModel) -> None:
        from pyrodgm.latent.quantized import CodebookVAE

        if not isinstance(model, CodebookVAE):
            raise TypeError(f"expected a VQVAE or VQVAE2, got {type(model).__name__}; use pyrodgm.objectives.ELBO")

    def players(self, model: GenerativeModel) -> dict[str, Iterable[Parameter]]:
        prior = set() if self.prior else {id(p) for p in cast(Any, model).prior.parameters()}
        return {"model": [p for p in model.parameters() if id(p) not in prior]}

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        x, context = model.check(x, context)
        vq = cast(Any, model)  # a CodebookVAE, by check
        levels = vq.guide.levels(x, context, learn=model.training)
        reconstruction = -vq.decode(in_a_row(levels), context).log_prob(x)  # (B,)
        distance = sum(level.distance() for level in levels)  # (B,)
        loss = (reconstruction + self.commitment * distance).mean()
        return loss - vq.prior.score(levels, context).mean() if self.prior else loss

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        with torch.no_grad():
            x, context = model.check(x, context)
            vq = cast(Any, model)
            z = vq.guide.condition(x, context).sample()
            seen = vq.decode(z, context).log_prob(x)
            if self.prior:
                seen = seen + vq.prior.log_prob(z, context if vq.prior.context else None)
            return -seen.mean()
