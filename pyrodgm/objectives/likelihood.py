"""Maximum likelihood, for models whose density is exact."""

from __future__ import annotations

from torch import Tensor

from pyrodgm.core import GenerativeModel, Tractable
from pyrodgm.objectives.base import Objective

__all__ = ["MaximumLikelihood"]


class MaximumLikelihood(Objective):
    r"""The negative log-likelihood, :math:`-\frac1B \sum_b \log p(x_b \mid c_b)`, in nats per datum.

    Example:
        >>> import torch
        >>> from pyrodgm.tractable import StandardNormal
        >>> MaximumLikelihood().loss(StandardNormal(2), torch.zeros(4, 2))
        tensor(1.8379)
    """

    held_out_name = "negative log-likelihood"

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, Tractable):
            raise TypeError(
                f"expected a Tractable model (one with log_prob), got {type(model).__name__}; "
                "use ELBO for latent, ContrastiveDivergence for energy, Adversarial for implicit models"
            )

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        return -model.log_prob(x, context).mean()  # type: ignore[operator]
