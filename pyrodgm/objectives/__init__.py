"""What training minimises."""

from pyrodgm.objectives.adversarial import Adversarial, Game, Minimax, NonSaturating
from pyrodgm.objectives.base import Objective
from pyrodgm.objectives.contrastive import ContrastiveDivergence
from pyrodgm.objectives.elbo import ELBO, PyroObjective
from pyrodgm.objectives.importance import ImportanceWeighted
from pyrodgm.objectives.likelihood import MaximumLikelihood

__all__ = [
    "ELBO",
    "Adversarial",
    "ContrastiveDivergence",
    "Game",
    "ImportanceWeighted",
    "MaximumLikelihood",
    "Minimax",
    "NonSaturating",
    "Objective",
    "PyroObjective",
]
