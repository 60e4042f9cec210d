"""Invertible maps with parameters: modules that make disposable transforms."""

from pyrodgm.bijectors.base import BijectiveTransform, Bijector, Compose, ComposedTransform, Inverse, InverseTransform
from pyrodgm.bijectors.coupling import AdditiveCoupling, AffineCoupling
from pyrodgm.bijectors.linear import Affine, Permutation

__all__ = [
    "AdditiveCoupling",
    "Affine",
    "AffineCoupling",
    "BijectiveTransform",
    "Bijector",
    "Compose",
    "ComposedTransform",
    "Inverse",
    "InverseTransform",
    "Permutation",
]
