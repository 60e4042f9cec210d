"""Invertible maps with parameters: modules that make disposable transforms."""

from pyrodgm.bijectors.autoregressive import Autoregressive
from pyrodgm.bijectors.base import BijectiveTransform, Bijector, Compose, ComposedTransform, Inverse, InverseTransform
from pyrodgm.bijectors.coupling import AdditiveCoupling, AffineCoupling
from pyrodgm.bijectors.fixed import Fixed
from pyrodgm.bijectors.linear import Affine, Householder, LULinear, Permutation
from pyrodgm.bijectors.mixture_cdf import MixtureLogisticCDF
from pyrodgm.bijectors.planar import Planar, Radial
from pyrodgm.bijectors.spline import LinearSpline, QuadraticSpline, RationalQuadraticSpline
from pyrodgm.bijectors.univariate import ScaleShift, Shift, Univariate

__all__ = [
    "AdditiveCoupling",
    "Affine",
    "AffineCoupling",
    "Autoregressive",
    "BijectiveTransform",
    "Bijector",
    "Compose",
    "ComposedTransform",
    "Fixed",
    "Householder",
    "Inverse",
    "InverseTransform",
    "LULinear",
    "LinearSpline",
    "MixtureLogisticCDF",
    "Permutation",
    "Planar",
    "QuadraticSpline",
    "Radial",
    "RationalQuadraticSpline",
    "ScaleShift",
    "Shift",
    "Univariate",
]
