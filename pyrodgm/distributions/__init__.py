"""Disposable Pyro distributions: made for one context, used, thrown away."""

from pyrodgm.distributions.autoregressive import AutoregressiveDistribution, MixtureOfOrders
from pyrodgm.distributions.discretized import Codes, DiscretizedLogistic
from pyrodgm.distributions.features import IndependentBernoulli, IndependentNormal
from pyrodgm.distributions.flow import FlowDistribution
from pyrodgm.distributions.implicit import Generated
from pyrodgm.distributions.kernel_mixture import KernelMixture
from pyrodgm.distributions.mixture import Aggregate, MixtureDistribution
from pyrodgm.distributions.normal import StandardNormalDistribution
from pyrodgm.distributions.quantized import Quantized, Spread
from pyrodgm.distributions.tokens import Sentences, TokenSequences
from pyrodgm.distributions.unnormalised import Unnormalised
from pyrodgm.distributions.words import WordCounts

__all__ = [
    "Aggregate",
    "AutoregressiveDistribution",
    "Codes",
    "DiscretizedLogistic",
    "FlowDistribution",
    "Generated",
    "IndependentBernoulli",
    "IndependentNormal",
    "KernelMixture",
    "MixtureDistribution",
    "MixtureOfOrders",
    "Quantized",
    "Sentences",
    "Spread",
    "StandardNormalDistribution",
    "TokenSequences",
    "Unnormalised",
    "WordCounts",
]
