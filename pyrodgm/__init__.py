"""Deep generative models as Pyro programs: run, condition, compose and trust them."""

from pyrodgm.core import EmptyGuide, Energy, GenerativeModel, Implicit, Latent, Tractable
from pyrodgm.engine import CheckpointError, Evidence, Fit, Posterior, fit, fit_stack, mcmc, smc

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "EmptyGuide",
    "Energy",
    "Evidence",
    "Fit",
    "GenerativeModel",
    "Implicit",
    "Latent",
    "Posterior",
    "Tractable",
    "fit",
    "fit_stack",
    "mcmc",
    "smc",
]
