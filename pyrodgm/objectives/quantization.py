"""The first stage of a VQ-VAE: reconstruction through the codebook, commitment, and the codebook's averages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from pyrodgm.core import GenerativeModel
from pyrodgm.objectives.base import Objective

__all__ = ["VectorQuantization"]


class VectorQuantization(Objective):
    r"""Reconstruction and commitment of a VQ-VAE; the codebook follows by exponential averages.

    .. math:: -\log p(x \mid z(x)) + \beta \, \| z_e(x) - \operatorname{sg}[e(x)] \|^2

    with :math:`z_e` the encoder's vectors and e their embeddings, summed over the positions, a mean
    over the rows. The second term of the paper's eq. 3 moves the codebook; here the averages of its
    appendix A.1 do. They advance with each loss in train mode. The prior takes no part and is trained afterwards, or
    beside them, by the codes as they are at each step, which moves nothing else:

    .. math:: -\log p(k(x)), \quad k(x) \text{ the codes of } z_e

    What is held out is the reconstruction alone, or with the prior the negative bound, in nats per datum.

    Args:
        commitment: :math:`\beta` >= 0.
        prior: train the prior of the codes as well.
    Raises: ValueError for commitment < 0; TypeError from ``check`` for a model without a codebook.
    Source: van den Oord et al. (2017), arXiv:1711.00937, eq. 3 and appendix A.1.
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
        from pyrodgm.latent.quantized import VQVAE

        if not isinstance(model, VQVAE):
            raise TypeError(f"expected a VQVAE, got {type(model).__name__}; use pyrodgm.objectives.ELBO")

    def players(self, model: GenerativeModel) -> dict[str, Iterable[Parameter]]:
        prior = set() if self.prior else {id(p) for p in cast(Any, model).code_prior.parameters()}
        return {"model": [p for p in model.parameters() if id(p) not in prior]}

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        x, context = model.check(x, context)
        vq = cast(Any, model)  # a VQVAE, by check
        book = vq.codebook
        vectors = vq.guide.encode(x, context)  # (B, L, E)
        if model.training:
            book.update(vectors)
        codes = book.nearest(vectors)
        quantized = book.embed(codes)
        straight = (quantized + (vectors - vectors.detach())).flatten(-2)
        reconstruction = -vq.decode(straight, context).log_prob(x)  # (B,)
        distance = (vectors - quantized).square().flatten(1).sum(-1)
        loss = (reconstruction + self.commitment * distance).mean()
        if not self.prior:
            return loss
        shaped = codes.to(x.dtype).unflatten(-1, vq.code_prior.event_shape)
        return loss - vq.code_prior.log_prob(shaped, context if vq.code_prior.context else None).mean()

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
