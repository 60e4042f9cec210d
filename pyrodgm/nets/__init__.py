"""Plain networks that know nothing of probability."""

from pyrodgm.nets.incremental import IncrementalSolve
from pyrodgm.nets.masked import IncrementalPass, MaskedMLP
from pyrodgm.nets.mlp import MLP, MLPCritic

__all__ = ["MLP", "IncrementalPass", "IncrementalSolve", "MLPCritic", "MaskedMLP"]
