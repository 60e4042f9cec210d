"""Measures of a model against held-out data."""

from pyrodgm.evaluation.likelihood import LogLikelihood, log_likelihood
from pyrodgm.evaluation.two_sample import energy_distance, mmd

__all__ = ["LogLikelihood", "energy_distance", "log_likelihood", "mmd"]
