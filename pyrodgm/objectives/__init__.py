"""What training minimises."""

from pyrodgm.objectives.adversarial import Adversarial, Game, Minimax, NonSaturating
from pyrodgm.objectives.annealing import CyclicalAnnealing, LinearAnnealing, Schedule
from pyrodgm.objectives.base import Objective
from pyrodgm.objectives.centring import weight_groups
from pyrodgm.objectives.contrastive import ContrastiveDivergence
from pyrodgm.objectives.default import default_objective
from pyrodgm.objectives.elbo import ELBO, PyroObjective
from pyrodgm.objectives.free_bits import FreeBits
from pyrodgm.objectives.importance import ImportanceWeighted
from pyrodgm.objectives.infovae import InfoVAE
from pyrodgm.objectives.joint import JointLikelihood
from pyrodgm.objectives.lagging import LaggingInference, StopLagging
from pyrodgm.objectives.latent_game import AdversarialAutoencoder, AdversarialVariationalBayes
from pyrodgm.objectives.likelihood import MaximumLikelihood
from pyrodgm.objectives.mean_field import MeanFieldContrastive
from pyrodgm.objectives.noise_contrastive import NoiseContrastive
from pyrodgm.objectives.quantization import VectorQuantization
from pyrodgm.objectives.replay import ReplayDivergence
from pyrodgm.objectives.reverse_kl import Distillation, ReverseKL
from pyrodgm.objectives.score import DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching
from pyrodgm.objectives.semi_supervised import SemiSupervised
from pyrodgm.objectives.total_correlation import BetaTCVAE, KLTerms, log_aggregate
from pyrodgm.objectives.up_down import UpDown
from pyrodgm.objectives.variational_em import VariationalEM
from pyrodgm.objectives.wake_sleep import ReweightedWakeSleep, WakeSleep, generative_parameters

__all__ = [
    "ELBO",
    "Adversarial",
    "AdversarialAutoencoder",
    "AdversarialVariationalBayes",
    "BetaTCVAE",
    "ContrastiveDivergence",
    "CyclicalAnnealing",
    "DenoisingScoreMatching",
    "Distillation",
    "FreeBits",
    "Game",
    "ImportanceWeighted",
    "InfoVAE",
    "JointLikelihood",
    "KLTerms",
    "LaggingInference",
    "LinearAnnealing",
    "MaximumLikelihood",
    "MeanFieldContrastive",
    "Minimax",
    "NoiseContrastive",
    "NonSaturating",
    "Objective",
    "PyroObjective",
    "ReplayDivergence",
    "ReverseKL",
    "ReweightedWakeSleep",
    "Schedule",
    "ScoreMatching",
    "SemiSupervised",
    "SlicedScoreMatching",
    "StopLagging",
    "UpDown",
    "VariationalEM",
    "VectorQuantization",
    "WakeSleep",
    "default_objective",
    "generative_parameters",
    "log_aggregate",
    "weight_groups",
]
