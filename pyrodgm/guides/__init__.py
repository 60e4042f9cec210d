"""Guides: q(z | x) for the latent sites of a program, ours or any other."""

from pyrodgm.core import EmptyGuide
from pyrodgm.guides.amortized import Amortized
from pyrodgm.guides.contrast import Contrast
from pyrodgm.guides.corrupted import Corrupted, GaussianNoise, MaskingNoise
from pyrodgm.guides.dequantization import UniformDequantization, VariationalDequantization
from pyrodgm.guides.discrete import Discrete, Enumerate, Score, StraightThrough
from pyrodgm.guides.flow import FlowGuide
from pyrodgm.guides.gaussian import FullCovariance, MeanField
from pyrodgm.guides.hierarchical import Hierarchical
from pyrodgm.guides.implicit import ImplicitGuide
from pyrodgm.guides.local import Local, refine
from pyrodgm.guides.program import PackedGuide, ProgramGuide
from pyrodgm.guides.semi_amortized import SemiAmortized
from pyrodgm.guides.sites import Sites

__all__ = [
    "Amortized",
    "Contrast",
    "Corrupted",
    "Discrete",
    "EmptyGuide",
    "Enumerate",
    "FlowGuide",
    "FullCovariance",
    "GaussianNoise",
    "Hierarchical",
    "ImplicitGuide",
    "Local",
    "MaskingNoise",
    "MeanField",
    "PackedGuide",
    "ProgramGuide",
    "Score",
    "SemiAmortized",
    "Sites",
    "StraightThrough",
    "UniformDequantization",
    "VariationalDequantization",
    "refine",
]
