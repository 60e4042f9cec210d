"""Score matching: the gradient of log p is fitted, so the normaliser never appears."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyrodgm.core import Energy, GenerativeModel
from pyrodgm.objectives.base import Objective

__all__ = ["DenoisingScoreMatching", "ScoreMatching", "SlicedScoreMatching"]


class _OfScores(Objective):
    """What the three have in common: which models they take, and the score."""

    unit = "squared score/datum"
    held_out_name = "score matching loss"

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, Energy) or model.support.is_discrete:
            kind = "of discrete rows" if isinstance(model, Energy) else f"({model.family})"
            raise TypeError(
                f"expected an energy model of continuous rows for score matching, got {type(model).__name__} {kind}; "
                "discrete energies learn by ContrastiveDivergence, other families by their likelihood or bound"
            )

    def _score(self, model: GenerativeModel, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """x cut from any graph, and s(x) = -dE/dx as a function of it, which can be differentiated again."""
        self.check(model)
        if get_proxy_mode() is not None:
            # make_fx cuts what autograd saved of an output (tanh, sigmoid), so a gradient of a traced gradient lacks
            # terms, silently; the engine takes this error as its reason to train without compiling.
            raise NotImplementedError("score matching differentiates the energy twice, which a trace gets wrong")
        x, context = model.check(x, context)
        with torch.enable_grad():  # also where a held-out score is computed without gradients
            x = x.detach().requires_grad_()
            energy = cast(Energy, model).energy(x, context)
            (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
            return x, -gradient


def _derivative(value: Tensor, x: Tensor) -> Tensor:
    """d value / d x, with a graph; zeros where value does not depend on x."""
    (found,) = torch.autograd.grad(value, x, create_graph=True, materialize_grads=True)
    return found


class ScoreMatching(_OfScores):
    r"""Score matching with the exact trace of the Hessian.

    .. math::
        J = \frac1B \sum_i \Bigl[ \mathrm{tr} \nabla_x s(x_i) + \tfrac12 \lVert s(x_i) \rVert^2 \Bigr], \quad
        s(x) = \nabla_x \log p(x) = -\nabla_x E(x)

    which is, up to a constant, half the expected squared distance between the scores of the model and the data.
    One backward pass for each of the D numbers of x: for small D. The loss is no likelihood.

    Shapes: x (B, *event) -> ().
    Raises: TypeError from ``check`` for discrete rows or another family.
    Source: Hyvarinen (2005), Estimation of non-normalized statistical models by score matching, JMLR 6, eq. 4.
    Example:
        >>> from pyrodgm.energy import NeuralEnergy
        >>> ScoreMatching().loss(NeuralEnergy.mlp(features=2, hidden=[16]), torch.zeros(8, 2)).shape
        torch.Size([])
    """

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        x, s = self._score(model, x, context)
        with torch.enable_grad():
            flat = s.flatten(1)
            trace = torch.zeros_like(flat[:, 0])
            for d in range(flat.shape[1]):
                trace = trace + _derivative(flat[:, d].sum(), x).flatten(1)[:, d]
        return (trace + s.flatten(1).square().sum(-1) / 2).mean()


class SlicedScoreMatching(_OfScores):
    r"""Score matching along random directions: two backward passes whatever the dimension.

    .. math::
        J = \frac1B \sum_i \frac1M \sum_m \Bigl[ v_{im}^\top \nabla_x s(x_i)\, v_{im}
            + \tfrac12 (v_{im}^\top s(x_i))^2 \Bigr], \quad \mathbb E\, v v^\top = I

    Its expectation over v is the exact loss. With ``reduced`` (SSM-VR) the second term is its expectation,
    :math:`\tfrac12 \lVert s(x_i) \rVert^2`.

    Args:
        projections: M, directions for each row.
        reduced: the variance-reduced form.
        rademacher: directions of signs, else Gaussian ones.
    Shapes: x (B, *event) -> ().
    Raises: ValueError for projections < 1; TypeError from ``check`` for discrete rows or another family.
    Source: Song et al. (2019), arXiv:1905.07088, eq. 7-8 and section 3.1.
    Example:
        >>> from pyrodgm.energy import NeuralEnergy
        >>> SlicedScoreMatching().loss(NeuralEnergy.mlp(features=2, hidden=[16]), torch.zeros(8, 2)).shape
        torch.Size([])
    """

    def __init__(self, projections: int = 1, reduced: bool = True, rademacher: bool = True) -> None:
        super().__init__()
        if projections < 1:
            raise ValueError(f"expected projections >= 1 for each row, got {projections}")
        self.projections, self.reduced, self.rademacher = projections, reduced, rademacher

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        m = self.projections
        if context is not None:
            context = context.repeat_interleave(m, 0)
        x, s = self._score(model, x.repeat_interleave(m, 0), context)  # (B * M, *event)
        v = torch.randn_like(x)
        if self.rademacher:
            v = torch.where(v < 0, -1.0, 1.0).to(v)
        with torch.enable_grad():
            along = (v * s).flatten(1).sum(-1)  # (B * M,)
            curvature = (v * _derivative(along.sum(), x)).flatten(1).sum(-1)
        square = s.flatten(1).square().sum(-1) if self.reduced else along.square()
        return (curvature + square / 2).mean()


class DenoisingScoreMatching(_OfScores):
    r"""Denoising score matching: the score at a noisy row points back to the row.

    .. math::
        J = \frac1B \sum_i \tfrac12 \lVert \sigma\, s(x_i + \sigma \epsilon_i) + \epsilon_i \rVert^2, \quad
        \epsilon_i \sim N(0, I)

    :math:`\sigma^2` times the source's loss, which keeps its size for small noise. Only first derivatives of the
    score's network are needed. What it learns is the data's density smoothed by :math:`N(0, \sigma^2 I)`: a small
    sigma is a sharper density and a noisier gradient.

    Args:
        sigma: standard deviation of the noise, in the units of x.
    Shapes: x (B, *event) -> ().
    Raises: ValueError if sigma is not positive; TypeError from ``check`` for discrete rows or another family.
    Source: Vincent (2011), A connection between score matching and denoising autoencoders, Neural Computation 23(7),
        eq. 9-11.
    Example:
        >>> from pyrodgm.energy import NeuralEnergy
        >>> DenoisingScoreMatching(0.1).loss(NeuralEnergy.mlp(features=2, hidden=[16]), torch.zeros(8, 2)).shape
        torch.Size([])
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"expected sigma > 0 (the standard deviation of the noise), got {sigma}")
        self.sigma = float(sigma)

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        x, context = model.check(x, context)
        noise = torch.randn_like(x)
        _, s = self._score(model, x + self.sigma * noise, context)
        return (self.sigma * s + noise).flatten(1).square().sum(-1).mean() / 2
