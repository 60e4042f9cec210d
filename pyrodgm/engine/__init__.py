"""Training: it knows objectives and players, not models."""

from pyrodgm.engine.checkpoint import CheckpointError
from pyrodgm.engine.fit import default_objective, fit
from pyrodgm.engine.result import Fit

__all__ = ["CheckpointError", "Fit", "default_objective", "fit"]
