"""Models whose log p(x) is exact."""

from pyrodgm.distributions.conditionals import (
    BernoulliConditional,
    CategoricalConditional,
    Conditional,
    GaussianMixtureConditional,
)
from pyrodgm.tractable.embedded import Embedded
from pyrodgm.tractable.ffjord import FFJORD
from pyrodgm.tractable.flow import Flow
from pyrodgm.tractable.glow import Glow
from pyrodgm.tractable.image_flow import ImageFlow, ImageFlowPlusPlus, ImageRealNVP
from pyrodgm.tractable.kde import KDE
from pyrodgm.tractable.made import MADE
from pyrodgm.tractable.mixture import Mixture
from pyrodgm.tractable.parametric import Parametric, StandardNormal
from pyrodgm.tractable.recipes import IAF, MAF, NICE, NSF, FlowPlusPlus, PlanarFlow, RealNVP
from pyrodgm.tractable.recurrent import Recurrent
from pyrodgm.tractable.resampled import Resampled
from pyrodgm.tractable.vamp_prior import VampPrior

__all__ = [
    "FFJORD",
    "IAF",
    "KDE",
    "MADE",
    "MAF",
    "NICE",
    "NSF",
    "BernoulliConditional",
    "CategoricalConditional",
    "Conditional",
    "Embedded",
    "Flow",
    "FlowPlusPlus",
    "GaussianMixtureConditional",
    "Glow",
    "ImageFlow",
    "ImageFlowPlusPlus",
    "ImageRealNVP",
    "Mixture",
    "Parametric",
    "PlanarFlow",
    "RealNVP",
    "Recurrent",
    "Resampled",
    "StandardNormal",
    "VampPrior",
]
