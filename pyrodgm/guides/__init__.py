"""Guides: q(z | x) for the latent sites of a program."""

from pyrodgm.core import EmptyGuide
from pyrodgm.guides.amortized import Amortized

__all__ = ["Amortized", "EmptyGuide"]
