"""Training and Markov chains: they know families, objectives and kernels; greedy training knows machines too."""

from pyrodgm.engine.checkpoint import CheckpointError
from pyrodgm.engine.fit import fit
from pyrodgm.engine.greedy import fit_stack
from pyrodgm.engine.mcmc import mcmc
from pyrodgm.engine.posterior import Posterior
from pyrodgm.engine.result import Fit
from pyrodgm.engine.smc import Evidence, smc

__all__ = ["CheckpointError", "Evidence", "Fit", "Posterior", "fit", "fit_stack", "mcmc", "smc"]
