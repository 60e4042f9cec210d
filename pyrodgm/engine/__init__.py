"""Training: it knows objectives and players, not models."""

from pyrodgm.engine.checkpoint import CheckpointError
from pyrodgm.engine.fit import Fit, default_objective, fit

__all__ = ["CheckpointError", "Fit", "default_objective", "fit"]
