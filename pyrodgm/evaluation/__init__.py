"""Measures of a model against held-out data."""

from pyrodgm.evaluation.calibration import (
    Calibration,
    guide_calibration,
    latent_calibration,
    mcmc_calibration,
)
from pyrodgm.evaluation.collapse import CollapseWarning, WatchCollapse
from pyrodgm.evaluation.guide_fit import GuideFit, guide_fit
from pyrodgm.evaluation.latent import (
    ActiveUnits,
    LatentUse,
    active_units,
    aggregate_distance,
    kl_per_dimension,
    latent_use,
    mutual_information,
)
from pyrodgm.evaluation.likelihood import ImportanceEstimate, LogLikelihood, importance_estimate, log_likelihood
from pyrodgm.evaluation.pareto import khat_threshold, pareto_k, smooth_weights
from pyrodgm.evaluation.target import TargetEstimate, target_estimate
from pyrodgm.evaluation.topics import npmi, perplexity, top_words, topic_diversity
from pyrodgm.evaluation.two_sample import energy_distance, mmd

__all__ = [
    "ActiveUnits",
    "Calibration",
    "CollapseWarning",
    "GuideFit",
    "ImportanceEstimate",
    "LatentUse",
    "LogLikelihood",
    "TargetEstimate",
    "WatchCollapse",
    "active_units",
    "aggregate_distance",
    "energy_distance",
    "guide_calibration",
    "guide_fit",
    "importance_estimate",
    "khat_threshold",
    "kl_per_dimension",
    "latent_calibration",
    "latent_use",
    "log_likelihood",
    "mcmc_calibration",
    "mmd",
    "mutual_information",
    "npmi",
    "pareto_k",
    "perplexity",
    "smooth_weights",
    "target_estimate",
    "top_words",
    "topic_diversity",
]
