"""nflows: its transforms and flows as ours, and ours as its own.

>>> import torch
>>> from nflows.transforms import MaskedAffineAutoregressiveTransform
>>> layer = NflowsBijector(MaskedAffineAutoregressiveTransform(3, 16))
>>> layer(torch.zeros(5, 3))[0].shape
torch.Size([5, 3])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrodgm.bijectors.base import BijectiveTransform, Bijector
from pyrodgm.bridges.foreign import ForeignDistribution, flatten_rows
from pyrodgm.core import Tractable, evaluating
from pyrodgm.distributions.flow import FlowDistribution

try:
    from nflows.distributions import ConditionalDiagonalNormal as _ConditionalNormal
    from nflows.distributions import DiagonalNormal as _DiagonalNormal
    from nflows.distributions import MADEMoG as _MADEMoG
    from nflows.distributions import StandardNormal as _Normal
    from nflows.distributions.base import Distribution as _Distribution
    from nflows.flows.base import Flow as _Flow
    from nflows.transforms.base import InputOutsideDomain as _OutsideDomain
    from nflows.transforms.base import InverseNotAvailable as _NoInverse
    from nflows.transforms.base import Transform as _Transform
    from nflows.transforms.linear import Linear as _Linear
except ImportError as error:  # pragma: no cover
    raise ImportError("pyrodgm.bridges.nflows needs nflows: pip install 'pyrodgm[flows]'") from error

__all__ = ["AsNflowsDistribution", "AsNflowsTransform", "NflowsBijector", "NflowsModel"]

Shapes = tuple[Sequence[int], Sequence[int]]


class _FromNflows(BijectiveTransform):
    def __init__(
        self, transform: Any, context: Tensor | None, event_dim: int, shapes: Shapes | None, context_dim: int = 1
    ) -> None:
        super().__init__()
        self.transform, self.context, self.shapes, self.context_dim = transform, context, shapes, context_dim
        self.dims = (event_dim, event_dim) if shapes is None else (len(shapes[0]), len(shapes[1]))  # of x and of y
        self.domain, self.codomain = (constraints.independent(constraints.real, n) for n in self.dims)

    def _run(self, function: Any, x: Tensor, event_dim: int, shape_of: Any) -> tuple[Tensor, Tensor]:
        rows, context, lead = flatten_rows(x, self.context, event_dim, self.context_dim)
        with _explained(self.transform, rows):
            y, ladj = function(rows, context)
        _check_shapes(self.transform, y, ladj, shape_of(rows.shape))
        # Its leaky ReLU makes the ladj of float64 rows in float32; under autocast y may be the shorter one.
        ladj = ladj.to(torch.promote_types(ladj.dtype, x.dtype))
        return y.reshape(*lead, *y.shape[1:]), ladj.reshape(lead)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(self.transform, x, self.dims[0], self.forward_shape)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(self.transform.inverse, y, self.dims[1], self.inverse_shape)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return shape if self.shapes is None else torch.Size((*shape[: len(shape) - self.dims[0]], *self.shapes[1]))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return shape if self.shapes is None else torch.Size((*shape[: len(shape) - self.dims[1]], *self.shapes[0]))


@contextmanager
def _explained(transform: Any, rows: Tensor) -> Iterator[None]:
    """What nflows raises without a word, said in words."""
    name = type(transform).__name__
    try:
        yield
    except _OutsideDomain as error:
        raise ValueError(
            f"expected numbers in the domain of nflows' {name}, got some from {rows.min():.4g} to {rows.max():.4g}; "
            "squash them before it (nflows' Sigmoid, Tanh) or build splines with tails='linear'"
        ) from error
    except _NoInverse as error:
        raise NotImplementedError(
            f"expected an inverse from nflows' {name}, got {str(error) or 'none'}; call .eval() for its batch norms; "
            "a transform without inverse can score, not draw"
        ) from error
    except RuntimeError as error:
        if "now removed" not in str(error):
            raise
        raise NotImplementedError(
            f"expected nflows' {name} to run on torch {torch.__version__}, got a call of what torch has removed (the "
            "inverse of NaiveLinear); use LULinear, or only score"
        ) from error


def _check_shapes(transform: Any, y: Tensor, ladj: Tensor, expected: torch.Size) -> None:
    """Raise ValueError unless y has the shape that was announced and each row one ladj."""
    name = type(transform).__name__
    if y.shape != expected:
        raise ValueError(
            f"expected {tuple(expected[1:])} from nflows' {name}, got {tuple(y.shape[1:])}; "
            "give shapes=(event shape of x, event shape of y)"
        )
    if ladj.shape != y.shape[:1]:
        raise ValueError(
            f"expected one ladj a row from nflows' {name}, ({len(y)},), got {tuple(ladj.shape)}; "
            "its gated unit, for one, is right for a single feature only"
        )


def _without_caches(module: Any) -> Any:
    """The module with the caches of nflows' linear maps off: they outlive steps and draws that it does not see."""
    for part in module.modules():
        if isinstance(part, _Linear):
            part.use_cache(False)
            part.cache.invalidate()
    return module


class NflowsBijector(Bijector):
    """A transform of nflows as a bijector, in its own direction (in nflows, from data to noise).

    Args:
        transform: any ``nflows.transforms.Transform``; its parameters become this module's, and the caches of its
            linear maps (``using_cache``) are switched off: they would outlive an optimiser's steps.
        context: size C of its context, 0 for none.
        event_dim: 1 for vectors, 3 for images.
        shapes: the event shapes of x and of y, for a transform that changes them, such as ((1, 4, 4), (16,)).
    Shapes: x (*B, *event), context (*B, C) -> y (*B, *event), ladj (*B,) in nats.
    Raises: from its maps, ValueError for numbers outside the domain of theirs and for a y of another shape than
        ``shapes`` say; NotImplementedError where theirs has no inverse: ``BatchNorm`` in training, and ``NaiveLinear``,
        whose solve torch has removed.
    Example:
        >>> from nflows.transforms import SqueezeTransform
        >>> squeeze = NflowsBijector(SqueezeTransform(), shapes=((1, 4, 4), (4, 2, 2)))
        >>> squeeze(torch.zeros(5, 1, 4, 4))[0].shape
        torch.Size([5, 4, 2, 2])
    """

    def __init__(
        self, transform: _Transform, context: int = 0, event_dim: int = 1, shapes: Shapes | None = None
    ) -> None:
        super().__init__()
        self.transform = _without_caches(transform)
        self.context, self.event_dim, self.shapes = context, event_dim, shapes

    def _given(self, context: Tensor | None) -> _FromNflows:
        return _FromNflows(self.transform, context, self.event_dim, self.shapes)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return self._given(None).forward_shape(shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self._given(None).inverse_shape(shape)

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return self._given(self.check(context))


class NflowsModel(Tractable):
    """A flow, or any other distribution, of nflows as a tractable model.

    Args:
        distribution: an ``nflows.flows.Flow`` (its embedding of the context included) or an
            ``nflows.distributions.Distribution``.
        event_shape: of one x.
        context: size C of its context, 0 for none.
    Shapes: x (*B, *event), context (*B, C) -> log_prob (*B,) in nats.
    Raises: TypeError for what is neither; NotImplementedError from draws that theirs does not have: through
        ``BatchNorm`` in training, through ``NaiveLinear``, of ``MADEMoG`` without a context or in float64.
    Example:
        >>> from nflows.distributions import StandardNormal
        >>> from nflows.flows import Flow
        >>> from nflows.transforms import ReversePermutation
        >>> NflowsModel(Flow(ReversePermutation(3), StandardNormal([3])), (3,)).sample(2).shape
        torch.Size([2, 3])
    """

    def __init__(self, distribution: _Distribution, event_shape: tuple[int, ...], context: int = 0) -> None:
        super().__init__(tuple(event_shape), context)
        if not isinstance(distribution, _Distribution):
            raise TypeError(
                f"expected a Flow or a Distribution of nflows, got {type(distribution).__name__}; give a transform to "
                "NflowsBijector; its uniforms are plain distributions of torch"
            )
        self.distribution = _without_caches(distribution)

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        _, context = self.check(None, context)
        return self._density(self.distribution, self.event_shape, context, 1)

    def _density(self, theirs: Any, shape: torch.Size, context: Tensor | None, context_dim: int) -> TorchDistribution:
        if not isinstance(theirs, _Flow):
            return self._foreign(theirs, shape, context, context_dim)
        context, context_dim = _embed(theirs._embedding_net, context, context_dim)
        base = theirs._distribution
        if isinstance(base, _Flow):
            base_shape = self._image_shape(theirs._transform, shape, context, context_dim)
        else:
            base_shape = _event_shape(base, shape)
        back = _FromNflows(theirs._transform, context, len(base_shape), (shape, base_shape), context_dim).inv
        return FlowDistribution(self._density(base, base_shape, context, context_dim), [back], watch=self.parameters)

    def _image_shape(self, transform: Any, shape: torch.Size, context: Tensor | None, context_dim: int) -> torch.Size:
        """The event shape of y, found on one row: of two flows in a row either may change it, and neither says."""
        x = torch.zeros(1, *shape, dtype=self.dtype, device=self.device)
        row = None if context is None else context.reshape(-1, *context.shape[context.dim() - context_dim :])[:1]
        with evaluating(self):
            return transform(x, row)[0].shape[1:]

    def _foreign(self, theirs: Any, shape: torch.Size, context: Tensor | None, context_dim: int) -> ForeignDistribution:
        def draw(rows: int, context: Tensor | None) -> Tensor:
            if isinstance(theirs, _DiagonalNormal):  # theirs can only score
                return theirs.mean_ + theirs.log_std_.exp() * torch.randn(
                    rows, *shape, dtype=self.dtype, device=self.device
                )
            if isinstance(theirs, _MADEMoG) and (context is None or self.dtype is not torch.float32):
                got = "no context" if context is None else self.dtype
                raise NotImplementedError(
                    f"expected a context and float32, all that nflows' MADEMoG draws with, got {got}; it can score, "
                    "and pyrodgm.tractable.MADE does both"
                )
            # With a context theirs draws so many for each of its rows, (rows, 1, *event).
            x = theirs.sample(rows) if context is None else theirs.sample(1, context=context).squeeze(1)
            return x.to(self.dtype)  # its standard normal draws float32 whatever it was cast to

        gradients = _has_rsample(theirs, context)
        return ForeignDistribution(theirs.log_prob, draw, shape, context, gradients, context_dim=context_dim)


def _embed(net: Any, context: Tensor | None, context_dim: int) -> tuple[Tensor | None, int]:
    """What a flow's network makes of a context, (*B, *C) -> (*B, *E), and how many dimensions E has.

    The network sees rows, as in nflows: batch norms and convolutions take a second leading dimension for channels.
    """
    if context is None:
        return net(None), 1
    lead = context.shape[: context.dim() - context_dim]
    rows = net(context.reshape(lead.numel(), *context.shape[len(lead) :]))
    return rows.reshape(*lead, *rows.shape[1:]), rows.dim() - 1


def _event_shape(theirs: Any, default: torch.Size) -> torch.Size:
    """Of one draw, where it says; a transform of images may end in vectors."""
    if isinstance(theirs, AsNflowsDistribution):
        return theirs.model.event_shape
    return torch.Size(getattr(theirs, "_shape", default))


def _has_rsample(theirs: Any, context: Tensor | None) -> bool:
    """Whether its draws carry gradients: those of its mixtures and of its Bernoulli do not, and it does not say."""
    if isinstance(theirs, AsNflowsDistribution):
        return theirs.model.condition(context if theirs.model.context else None).has_rsample
    return isinstance(theirs, _Normal | _ConditionalNormal | _DiagonalNormal)


class AsNflowsTransform(_Transform):
    """A bijector of ours as a transform of nflows, in the bijector's own direction.

    Args:
        bijector: whose parameters become this module's; nflows wants the direction from data to noise, so give it
            ``bijector.inv`` where the bijector makes data. What starts from data, such as an actnorm, wants its
            ``initialize`` called: nflows has nothing that would.
    Example:
        >>> from pyrodgm.bijectors import AffineCoupling
        >>> AsNflowsTransform(AffineCoupling(4).inv)(torch.zeros(5, 4))[1].shape
        torch.Size([5])
    """

    def __init__(self, bijector: Bijector) -> None:
        super().__init__()
        self.bijector = bijector

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijector.condition(context).call_and_ladj(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijector.condition(context).inverse_and_ladj(inputs)


class AsNflowsDistribution(_Distribution):
    """A tractable model of ours as a distribution of nflows, such as the base of one of its flows.

    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> AsNflowsDistribution(RealNVP(2)).sample(3).shape
        torch.Size([3, 2])
    """

    def __init__(self, model: Tractable) -> None:
        super().__init__()
        self.model = model

    def _log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        return self.model.log_prob(inputs, context if self.model.context else None)

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        d = self.model.condition(context if self.model.context else None)
        if context is not None and not self.model.context:
            d = d.expand(context.shape[:-1])  # a base that ignores what its flow is given
        x = (d.rsample if d.has_rsample else d.sample)(torch.Size([num_samples]))
        return x if context is None else x.transpose(0, 1)  # (n, B, *event) -> (B, n, *event), theirs
