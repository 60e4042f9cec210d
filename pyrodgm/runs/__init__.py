"""Run folders: a model fitted to data, with all that is needed to use it again."""

from pyrodgm.runs.arguments import objective_arguments, plain_arguments
from pyrodgm.runs.config import fit_command
from pyrodgm.runs.folder import read_config
from pyrodgm.runs.job import Job, prepare, train
from pyrodgm.runs.run import Run, evaluate, load_run

__all__ = [
    "Job",
    "Run",
    "evaluate",
    "fit_command",
    "load_run",
    "objective_arguments",
    "plain_arguments",
    "prepare",
    "read_config",
    "train",
]
