"""Models whose density is known up to a constant."""

from pyrodgm.energy.rbm import RBM

__all__ = ["RBM"]
