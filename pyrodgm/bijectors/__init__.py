"""Invertible maps with parameters: modules that make disposable transforms."""

from pyrodgm.bijectors.autoregressive import Autoregressive
from pyrodgm.bijectors.base import BijectiveTransform, Bijector, Compose, ComposedTransform, Inverse, InverseTransform
from pyrodgm.bijectors.continuous import Continuous
from pyrodgm.bijectors.coupling import AdditiveCoupling, AffineCoupling, Coupling
from pyrodgm.bijectors.elementwise import Elementwise, LeakyReLU, Sigmoid, Softplus, Tanh
from pyrodgm.bijectors.fixed import Fixed
from pyrodgm.bijectors.linear import LULinear, Permutation
from pyrodgm.bijectors.masked_coupling import MaskedCoupling, checkerboard
from pyrodgm.bijectors.mixture_cdf import MixtureLogisticCDF
from pyrodgm.bijectors.multiscale import MultiScale, Split
from pyrodgm.bijectors.normalization import ActNorm, Affine, BatchNorm
from pyrodgm.bijectors.ode import ODESolver
from pyrodgm.bijectors.orthogonal import Householder, QRLinear
from pyrodgm.bijectors.pixels import Pixels
from pyrodgm.bijectors.planar import Planar, Radial
from pyrodgm.bijectors.spline import LinearSpline, QuadraticSpline
from pyrodgm.bijectors.spline_circular import CircularSpline
from pyrodgm.bijectors.spline_cubic import CubicSpline
from pyrodgm.bijectors.spline_rational import RationalQuadraticSpline
from pyrodgm.bijectors.squeeze import Squeeze
from pyrodgm.bijectors.trace import ExactTrace, Hutchinson, HutchPlusPlus, Trace
from pyrodgm.bijectors.univariate import ScaleShift, Shift, Univariate

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "Affine",
    "AffineCoupling",
    "Autoregressive",
    "BatchNorm",
    "BijectiveTransform",
    "Bijector",
    "CircularSpline",
    "Compose",
    "ComposedTransform",
    "Continuous",
    "Coupling",
    "CubicSpline",
    "Elementwise",
    "ExactTrace",
    "Fixed",
    "Householder",
    "HutchPlusPlus",
    "Hutchinson",
    "Inverse",
    "InverseTransform",
    "LULinear",
    "LeakyReLU",
    "LinearSpline",
    "MaskedCoupling",
    "MixtureLogisticCDF",
    "MultiScale",
    "ODESolver",
    "Permutation",
    "Pixels",
    "Planar",
    "QRLinear",
    "QuadraticSpline",
    "Radial",
    "RationalQuadraticSpline",
    "ScaleShift",
    "Shift",
    "Sigmoid",
    "Softplus",
    "Split",
    "Squeeze",
    "Tanh",
    "Trace",
    "Univariate",
    "checkerboard",
]
