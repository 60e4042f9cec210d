"""The bound of a semi-supervised VAE and its classification term."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from pyrodgm.core import GenerativeModel
from pyrodgm.objectives.base import Objective

__all__ = ["SemiSupervised"]


class SemiSupervised(Objective):
    r"""Bounds of labelled and unlabelled rows of an M2, with the classifier trained on the labels too.

    .. math:: -\frac1B \Bigl[ \sum_{b \text{ labelled}} \bigl( \mathcal L(x_b, y_b)
        + \alpha \log q(y_b \mid x_b) \bigr) + \sum_{b \text{ unlabelled}} \mathcal U(x_b) \Bigr]

    where L bounds log p(x, y), and U, with y summed over exactly, log p(x). The style has to be reparameterised.
    What is held out is the bound alone.

    Args:
        alpha: weight of the classification of one labelled row, >= 0. The paper's
            :math:`\alpha = 0.1 N` of a mean over :math:`N_l` labels is :math:`0.1\, N / N_l` here.
        particles: draws of z for each class.
    Raises: ValueError for alpha < 0 or particles < 1; TypeError from ``check`` for another model than an M2.
    Source: Kingma et al. (2014), arXiv:1406.5298, eq. 6-9.
    Example:
        >>> from pyrodgm.latent import M2
        >>> model = M2.mlp(features=6, classes=2, latent=2, hidden=[8])
        >>> labels = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        >>> SemiSupervised(alpha=5.0).loss(model, torch.ones(2, 6), labels).shape
        torch.Size([])
    """

    held_out_name = "negative bound"

    def __init__(self, alpha: float, particles: int = 1) -> None:
        super().__init__()
        if not alpha >= 0:
            raise ValueError(f"expected alpha >= 0, got {alpha}")
        if particles < 1:
            raise ValueError(f"expected particles >= 1, got {particles}")
        self.alpha, self.particles = alpha, particles

    def check(self, model: GenerativeModel) -> None:
        from pyrodgm.latent.semi_supervised import M2

        if not isinstance(model, M2):
            raise TypeError(f"expected an M2, got {type(model).__name__}; use pyrodgm.objectives.ELBO")

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        x, context = model.check(x, context)
        m2 = cast(Any, model)  # an M2, by check
        bound = self._bound(m2, x, context)
        if context is not None and self.alpha:
            bound = bound + self.alpha * (context * m2.guide.labels(x).logits).sum(-1)
        return -bound.mean()

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        with torch.no_grad():
            x, context = model.check(x, context)
            return -self._bound(cast(Any, model), x, context).mean()

    def _bound(self, m2: Any, x: Tensor, context: Tensor | None) -> Tensor:
        """Of log p(x, y) where y is known, of log p(x) elsewhere, (B,)."""
        bound: Tensor = m2.bounds(x, context, particles=self.particles)
        if context is None:
            return bound
        return bound + (context * m2.class_logits.log_softmax(-1)).sum(-1)
