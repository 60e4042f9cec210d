"""Markov kernels over vectorised chains, and what is estimated with them."""

from pyrodgm.kernels.ais import AISEstimate, AnnealingPath, annealed_importance_sampling
from pyrodgm.kernels.base import Info, Kernel, State
from pyrodgm.kernels.gibbs import BlockGibbs, Conditionals
from pyrodgm.kernels.langevin import MALA, RandomWalk, energy_and_gradient
from pyrodgm.kernels.pyro_adapter import PyroKernel

__all__ = [
    "MALA",
    "AISEstimate",
    "AnnealingPath",
    "BlockGibbs",
    "Conditionals",
    "Info",
    "Kernel",
    "PyroKernel",
    "RandomWalk",
    "State",
    "annealed_importance_sampling",
    "energy_and_gradient",
]
