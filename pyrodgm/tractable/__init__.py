"""Models whose log p(x) is exact."""

from pyrodgm.distributions.conditionals import BernoulliConditional, Conditional, GaussianMixtureConditional
from pyrodgm.tractable.flow import IAF, MAF, Flow, RealNVP
from pyrodgm.tractable.made import MADE
from pyrodgm.tractable.parametric import Parametric, StandardNormal

__all__ = [
    "IAF",
    "MADE",
    "MAF",
    "BernoulliConditional",
    "Conditional",
    "Flow",
    "GaussianMixtureConditional",
    "Parametric",
    "RealNVP",
    "StandardNormal",
]
