"""Noise-contrastive estimation: telling data from draws of a known density fits an energy and its normaliser."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrodgm.core import Energy, GenerativeModel, Tractable
from pyrodgm.draws import draw_from
from pyrodgm.objectives.base import Objective

__all__ = ["NoiseContrastive"]


class NoiseContrastive(Objective):
    r"""Logistic regression between rows and draws of a noise density q, with the model's log-ratio as the logit.

    .. math::
        L = -\frac1B \sum_i \Bigl[ \log \sigma(G(x_i)) + \sum_{j=1}^\nu \log(1 - \sigma(G(x'_{ij}))) \Bigr], \quad
        G(x) = -E(x) - \log Z - \log q(x) - \log \nu, \quad x' \sim q

    log Z is learned like any parameter: at the optimum it is the model's own where the rows' law is in the model's
    family, so there ``log_z`` estimates it. For a conditional model it is linear in the context, which is right for
    one-hot labels; what else depends on the context has to be in the energy. Noise close to the data makes the estimate
    sharp: fit a flow first.

    Args:
        noise: a tractable model whose support covers the rows, with context 0 or C; a frozen copy is kept.
        ratio: :math:`\nu`, noise draws for each row.
        context: size C of the model's context, 0 for none.
    Attributes:
        log_z: (1,).
        log_z_context: its slope, (C,), or None.
    Shapes: x (B, *event) -> (), nats of the classification.
    Raises: ValueError for ratio < 1, or noise of another event shape or context; TypeError for another family, or
        noise of another kind of rows (discrete for continuous).
    Source: Gutmann and Hyvarinen (2012), Noise-contrastive estimation of unnormalized statistical models, JMLR 13,
        eq. 8-11; a flow as noise: Gao et al. (2020), arXiv:1912.00589.
    Example:
        >>> from pyrodgm.energy import NeuralEnergy
        >>> from pyrodgm.tractable import RealNVP
        >>> objective = NoiseContrastive(RealNVP(features=2), ratio=4)
        >>> objective.loss(NeuralEnergy.mlp(features=2, hidden=[16]), torch.zeros(8, 2)).shape
        torch.Size([])
    """

    held_out_name = "noise-contrastive loss"

    def __init__(self, noise: Tractable, ratio: int = 1, context: int = 0) -> None:
        super().__init__()
        if ratio < 1:
            raise ValueError(f"expected ratio >= 1 noise draws for each row, got {ratio}")
        if not isinstance(noise, Tractable):
            raise TypeError(f"expected a Tractable noise (one that draws and scores), got {type(noise).__name__}")
        if noise.context not in (0, context):
            raise ValueError(f"expected noise with context 0 or {context}, the model's, got {noise.context}")
        self.noise = copy.deepcopy(noise).requires_grad_(False).eval()
        self.ratio, self.context = ratio, context
        self.log_z = nn.Parameter(torch.zeros(1, dtype=noise.dtype, device=noise.device))
        if context:
            self.log_z_context = nn.Parameter(torch.zeros(context, dtype=noise.dtype, device=noise.device))
        else:
            self.register_parameter("log_z_context", None)

    def players(self, model: GenerativeModel) -> dict[str, Iterable[nn.Parameter]]:
        own = [p for p in (self.log_z, self.log_z_context) if p is not None]
        return {"model": [*model.parameters(), *own]}

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, Energy):
            raise TypeError(
                f"expected an energy model for noise-contrastive estimation, got {type(model).__name__}; "
                "its family has a likelihood or a bound to fit by"
            )
        if model.support.is_discrete != self.noise.support.is_discrete:
            kinds = ["discrete" if one.support.is_discrete else "continuous" for one in (model, self.noise)]
            raise TypeError(f"expected a noise of {kinds[0]} rows as the model's, got one of {kinds[1]} rows")
        if (model.event_shape, model.context) != (self.noise.event_shape, self.context):
            raise ValueError(
                f"expected a model of event shape {tuple(self.noise.event_shape)} (the noise's) and context "
                f"{self.context}, got {tuple(model.event_shape)} and {model.context}"
            )

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        self.check(model)
        x, context = model.check(x, context)
        q = self.noise.condition(context if self.noise.context else None)
        with torch.no_grad():
            noise = draw_from(q, (self.ratio,) if q.batch_shape else (self.ratio, len(x)))  # (ratio, B, *event)

        def logit(x: Tensor) -> Tensor:
            log_z = self.log_z if context is None else self.log_z + context @ self.log_z_context
            return -cast(Energy, model).energy(x, context) - log_z - q.log_prob(x) - math.log(self.ratio)

        return softplus(-logit(x)).mean() + self.ratio * softplus(logit(noise)).mean()

    def train(self, mode: bool = True) -> NoiseContrastive:
        super().train(mode)
        self.noise.eval()
        return self
