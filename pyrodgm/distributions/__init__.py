"""Disposable Pyro distributions: made for one context, used, thrown away."""

from pyrodgm.distributions.autoregressive import AutoregressiveDistribution, MixtureOfOrders
from pyrodgm.distributions.flow import FlowDistribution
from pyrodgm.distributions.implicit import Generated
from pyrodgm.distributions.normal import StandardNormalDistribution
from pyrodgm.distributions.unnormalised import Unnormalised

__all__ = [
    "AutoregressiveDistribution",
    "FlowDistribution",
    "Generated",
    "MixtureOfOrders",
    "StandardNormalDistribution",
    "Unnormalised",
]
