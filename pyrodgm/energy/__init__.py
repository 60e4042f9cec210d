"""Models whose density is known up to a constant."""

from pyrodgm.energy.boltzmann import BoltzmannMachine
from pyrodgm.energy.dbm import DeepBoltzmannMachine
from pyrodgm.energy.dbn import DeepBeliefNetwork
from pyrodgm.energy.joint import JointEnergy
from pyrodgm.energy.neural import NeuralEnergy
from pyrodgm.energy.rbm import RBM
from pyrodgm.energy.recognition import Recognition
from pyrodgm.energy.visible_units import BernoulliUnits, GaussianUnits, SoftmaxUnits, VisibleUnits

__all__ = [
    "RBM",
    "BernoulliUnits",
    "BoltzmannMachine",
    "DeepBeliefNetwork",
    "DeepBoltzmannMachine",
    "GaussianUnits",
    "JointEnergy",
    "NeuralEnergy",
    "Recognition",
    "SoftmaxUnits",
    "VisibleUnits",
]
