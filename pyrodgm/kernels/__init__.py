"""Markov kernels over vectorised chains, and what is estimated with them."""

from pyrodgm.kernels.ais import AISEstimate, AnnealingPath, annealed_importance_sampling
from pyrodgm.kernels.ais_reverse import ReversiblePath, reverse_annealed_importance_sampling
from pyrodgm.kernels.base import Info, Kernel, State, Tuner
from pyrodgm.kernels.chees import ChEES
from pyrodgm.kernels.discrete import CategoricalGibbsWithGradients, GibbsWithGradients
from pyrodgm.kernels.gibbs import BlockGibbs, Conditionals
from pyrodgm.kernels.hmc import HMC
from pyrodgm.kernels.langevin import MALA, RandomWalk, energy_and_gradient
from pyrodgm.kernels.low_rank import LowRank
from pyrodgm.kernels.meads import MEADS
from pyrodgm.kernels.metric import Dense, Diagonal, Metric
from pyrodgm.kernels.nuts import NUTS
from pyrodgm.kernels.pyro_adapter import PyroKernel
from pyrodgm.kernels.smc import SMCEstimate, sequential_monte_carlo, systematic_resample
from pyrodgm.kernels.stochastic_gradient import SGHMC, SGLD, Minibatch, NoisyGradient
from pyrodgm.kernels.sweep import GibbsSweep, Sweepable
from pyrodgm.kernels.tempered import Annealable, TemperedTransitions
from pyrodgm.kernels.tempering import ParallelTempering

__all__ = [
    "HMC",
    "MALA",
    "MEADS",
    "NUTS",
    "SGHMC",
    "SGLD",
    "AISEstimate",
    "Annealable",
    "AnnealingPath",
    "BlockGibbs",
    "CategoricalGibbsWithGradients",
    "ChEES",
    "Conditionals",
    "Dense",
    "Diagonal",
    "GibbsSweep",
    "GibbsWithGradients",
    "Info",
    "Kernel",
    "LowRank",
    "Metric",
    "Minibatch",
    "NoisyGradient",
    "ParallelTempering",
    "PyroKernel",
    "RandomWalk",
    "ReversiblePath",
    "SMCEstimate",
    "State",
    "Sweepable",
    "TemperedTransitions",
    "Tuner",
    "annealed_importance_sampling",
    "energy_and_gradient",
    "reverse_annealed_importance_sampling",
    "sequential_monte_carlo",
    "systematic_resample",
]
