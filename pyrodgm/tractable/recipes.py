"""The named flows of vectors: which base, which bijectors, in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from pyrodgm.bijectors.autoregressive import Autoregressive
from pyrodgm.bijectors.base import Bijector
from pyrodgm.bijectors.coupling import Coupling
from pyrodgm.bijectors.linear import LULinear
from pyrodgm.bijectors.mixture_cdf import MixtureLogisticCDF
from pyrodgm.bijectors.normalization import ActNorm, Affine
from pyrodgm.bijectors.planar import Planar
from pyrodgm.bijectors.spline_rational import RationalQuadraticSpline
from pyrodgm.bijectors.univariate import ScaleShift, Shift, Univariate
from pyrodgm.core import Tractable
from pyrodgm.tractable.flow import Flow, check_layers, normal_unless

__all__ = ["IAF", "MAF", "NICE", "NSF", "FlowPlusPlus", "PlanarFlow", "RealNVP"]


class RealNVP(Flow):
    """Affine couplings that move the halves of x in turn.

    Args:
        features: D >= 2.
        layers: number of couplings.
        hidden: widths of each coupling network's hidden layers.
        activation: makes one activation module of those networks.
        context: size C of the conditioning vector, 0 for none.
        base: density of z; default N(0, I).
        bound: largest absolute log-scale of one coupling.
    Shapes: x (*B, D), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError if features < 2 or layers < 1.
    Source: Dinh et al. (2017), arXiv:1605.08803.
    Example:
        >>> RealNVP(features=2).sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        layers: int = 8,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        context: int = 0,
        base: Tractable | None = None,
        bound: float = 2.0,
    ) -> None:
        super().__init__(
            normal_unless(base, features),
            _couplings(features, layers, lambda: ScaleShift(bound), hidden, activation, context),
        )


class NICE(Flow):
    """Additive couplings that move the halves of x in turn, then a learned scale of each feature.

    Args:
        features: D >= 2.
        layers: number of couplings.
        hidden: widths of each coupling network's hidden layers.
        activation: makes one activation module of those networks.
        context: size C of the conditioning vector, 0 for none.
        base: density of z; default N(0, I).
    Shapes: x (*B, D), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError if features < 2 or layers < 1.
    Source: Dinh et al. (2014), arXiv:1410.8516, section 3. Departure: their base is a standard logistic.
    Example:
        >>> NICE(features=2).sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        layers: int = 4,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        context: int = 0,
        base: Tractable | None = None,
    ) -> None:
        couplings = _couplings(features, layers, Shift, hidden, activation, context)
        # The scale stands next to the base, as in the source: of the way from x to z it is the last.
        super().__init__(normal_unless(base, features), [Affine(features), *couplings])


class _AutoregressiveFlow(Flow):
    """What MAF and IAF share; they differ in which way is one pass of each layer's network."""

    one_pass_scoring: ClassVar[bool]

    def __init__(
        self,
        features: int,
        layers: int = 5,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        context: int = 0,
        base: Tractable | None = None,
        univariate: Callable[[], Univariate] = ScaleShift,
    ) -> None:
        bijectors = _autoregressive(features, layers, univariate, hidden, activation, context)
        if self.one_pass_scoring:
            bijectors = [bijector.inv for bijector in bijectors]
        super().__init__(normal_unless(base, features), bijectors)


class MAF(_AutoregressiveFlow):
    """Masked autoregressive flow: scored in one pass a layer, sampled feature by feature with each weight used once.

    The order of the features is reversed from layer to layer.

    Args:
        features: D.
        layers: number of autoregressive layers.
        hidden: widths of each masked network's hidden layers.
        activation: makes one activation module of those networks, which works unit by unit.
        context: size C of the conditioning vector, 0 for none.
        base: density of z; default N(0, I).
        univariate: makes the map of one feature for each layer; default an affine one.
    Shapes: x (*B, D), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError if layers < 1.
    Source: Papamakarios et al. (2017), arXiv:1705.07057.
    Example:
        >>> MAF(features=3).sample(5).shape
        torch.Size([5, 3])
    """

    one_pass_scoring = True


class IAF(_AutoregressiveFlow):
    """Inverse autoregressive flow: sampled in one pass a layer, its own samples scored for nothing more.

    The latter where gradients are on, or by ``condition().rsample_and_log_prob()``. Other data are scored feature by
    feature, with each weight used once.

    Args:
        features: D.
        layers: number of autoregressive layers.
        hidden: widths of each masked network's hidden layers.
        activation: makes one activation module of those networks, which works unit by unit.
        context: size C of the conditioning vector, 0 for none.
        base: density of z; default N(0, I).
        univariate: makes the map of one feature for each layer; default an affine one.
    Shapes: x (*B, D), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError if layers < 1.
    Source: Kingma et al. (2016), arXiv:1606.04934.
    Example:
        >>> IAF(features=3).sample(5).shape
        torch.Size([5, 3])
    """

    one_pass_scoring = False


class NSF(Flow):
    """Neural spline flow: rational-quadratic splines in couplings, or autoregressive.

    Where splines act, on [-bound, bound], data should lie: standardise them.

    Args:
        features: D, >= 2 for couplings.
        layers: number of layers.
        hidden: widths of each network's hidden layers.
        activation: makes one activation module of those networks; autoregressive, one that works unit by unit.
        context: size C of the conditioning vector, 0 for none.
        base: density of z; default N(0, I).
        bins: of every spline.
        bound: of every spline.
        autoregressive: layers as in :class:`MAF` instead of couplings.
        mix: a linear map (PLU) of all features between the layers, as in the source.
    Shapes: x (*B, D), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError if features < 2 (couplings) or layers < 1.
    Source: Durkan et al. (2019), arXiv:1906.04032.
    Example:
        >>> NSF(features=2).sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        layers: int = 6,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        context: int = 0,
        base: Tractable | None = None,
        bins: int = 8,
        bound: float = 3.0,
        autoregressive: bool = False,
        mix: bool = False,
    ) -> None:
        make = _autoregressive if autoregressive else _couplings
        # The splines are cheapest from x to y, so that is the way that scores data.
        splines = make(features, layers, lambda: RationalQuadraticSpline(bins, bound), hidden, activation, context)
        parts: list[Bijector] = [part.inv for part in splines]
        if mix:
            parts = [b for part in parts for b in (LULinear(features), part)]
        super().__init__(normal_unless(base, features), parts)


class FlowPlusPlus(Flow):
    """Flow++ over vectors: actnorm, a linear map, and a coupling by mixtures of logistics, layer by layer.

    Integers (pixels) go through :class:`~pyrodgm.latent.Dequantized`, variational dequantization included.

    Args:
        features: D >= 2.
        layers: number of couplings.
        hidden: widths of each coupling network's hidden layers.
        activation: makes one activation module of those networks.
        context: size C of the conditioning vector, 0 for none.
        base: density of z; default N(0, I).
        components: of each mixture.
    Shapes: x (*B, D), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError if features < 2 or layers < 1.
    Source: Ho et al. (2019), arXiv:1902.00275, section 3. Departure: their networks are attention over images.
    Example:
        >>> FlowPlusPlus(features=2).sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        layers: int = 4,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        context: int = 0,
        base: Tractable | None = None,
        components: int = 8,
    ) -> None:
        # The mixture's map is closed from x to z, so that is the way that scores data.
        couplings = _couplings(features, layers, lambda: MixtureLogisticCDF(components), hidden, activation, context)
        parts = [b for part in couplings for b in (part.inv, LULinear(features), ActNorm(features))]
        super().__init__(normal_unless(base, features), parts)


class PlanarFlow(Flow):
    """Planar flow: layers that bend the space along one direction each. Data are scored by a numerical inverse.

    Args:
        features: D.
        layers: number of planar maps.
        hidden: widths of the networks that read the context, where there is one.
        context: size C of the conditioning vector, 0 for none.
        base: density of z; default N(0, I).
    Shapes: x (*B, D), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError if layers < 1.
    Source: Rezende and Mohamed (2015), arXiv:1505.05770, section 4.1.
    Example:
        >>> flow = PlanarFlow(features=2)
        >>> flow.log_prob(flow.sample(5)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        layers: int = 16,
        *,
        hidden: Sequence[int] = (32,),
        context: int = 0,
        base: Tractable | None = None,
    ) -> None:
        check_layers(layers)
        parts = [Planar(features, context=context, hidden=hidden) for _ in range(layers)]
        super().__init__(normal_unless(base, features), parts)


def _couplings(
    features: int,
    layers: int,
    univariate: Callable[[], Univariate],
    hidden: Sequence[int],
    activation: Callable[[], nn.Module],
    context: int,
) -> list[Bijector]:
    """The halves are moved in turn."""
    check_layers(layers)
    net: dict[str, Any] = {"hidden": hidden, "activation": activation, "context": context}
    return [Coupling(features, univariate(), flip=bool(i % 2), **net) for i in range(layers)]


def _autoregressive(
    features: int,
    layers: int,
    univariate: Callable[[], Univariate],
    hidden: Sequence[int],
    activation: Callable[[], nn.Module],
    context: int,
) -> list[Bijector]:
    """The order is reversed from layer to layer."""
    check_layers(layers)
    natural = torch.arange(features)
    orders = [natural if i % 2 == 0 else natural.flip(0) for i in range(layers)]
    net: dict[str, Any] = {"hidden": hidden, "activation": activation, "context": context}
    return [Autoregressive(features, univariate(), order=order, **net) for order in orders]
