"""The objective that ``fit`` takes where none is given."""

from __future__ import annotations

from pyrodgm.core import Energy, GenerativeModel, Implicit, Latent, Tractable
from pyrodgm.latent.quantized import CodebookVAE
from pyrodgm.objectives.adversarial import Adversarial
from pyrodgm.objectives.base import Objective
from pyrodgm.objectives.contrastive import ContrastiveDivergence
from pyrodgm.objectives.elbo import ELBO
from pyrodgm.objectives.likelihood import MaximumLikelihood
from pyrodgm.objectives.quantization import VectorQuantization

__all__ = ["default_objective"]


def default_objective(model: GenerativeModel) -> Objective:
    """The objective that follows from the family; models of codes have one of their own.

    Raises: TypeError for a model of no family.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> type(default_objective(RealNVP(features=2))).__name__
        'MaximumLikelihood'
    """
    if isinstance(model, Tractable):
        return MaximumLikelihood()
    if isinstance(model, CodebookVAE):
        return VectorQuantization(prior=True)
    if isinstance(model, Latent):
        return ELBO()
    if isinstance(model, Energy):
        return ContrastiveDivergence(k=5, persistent=not model.context)
    if isinstance(model, Implicit):
        return Adversarial.mlp(model)
    raise TypeError(f"expected a model of one of the four families, got {type(model).__name__}; pass objective=")
