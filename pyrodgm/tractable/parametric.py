"""Any univariate Pyro family over a vector, with its parameters learned, fixed, or from a network of the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import biject_to

from pyrodgm.core import Tractable
from pyrodgm.distributions.features import IndependentBernoulli, IndependentNormal
from pyrodgm.distributions.normal import StandardNormalDistribution
from pyrodgm.nets.mlp import MLP
from pyrodgm.shapes import is_real

__all__ = ["Parametric", "StandardNormal"]

_LEAN: dict[Any, Any] = {dist.Normal: IndependentNormal, dist.Bernoulli: IndependentBernoulli}


class StandardNormal(Tractable):
    """N(0, I), the usual prior and base; it has no parameters.

    Args:
        features: D, or the whole event shape.
    Example:
        >>> StandardNormal(2).sample(3).shape
        torch.Size([3, 2])
    """

    def __init__(self, features: int | tuple[int, ...]) -> None:
        super().__init__(features)
        self.like: Tensor
        self.register_buffer("like", torch.empty(0), persistent=False)  # carries dtype and device

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        self.check(None, context)
        return StandardNormalDistribution(self.like, self.event_shape)


class Parametric(Tractable):
    r"""Independent features of one Pyro family: :math:`p(x \mid c) = \prod_d f(x_d; \theta_d(c))`.

    Without context the parameters are free and maximum likelihood fits them; with context a
    network gives them, which makes a likelihood p(x | z) or an amortized posterior q(z | x).
    Unconstrained numbers become parameters through the family's own constraints
    (``biject_to``: a scale is an exponential).

    Args:
        family: a univariate distribution class of Pyro, such as ``dist.Normal`` or ``dist.Bernoulli``.
        features: D, or the whole event shape.
        context: size C of the conditioning vector, 0 for none.
        hidden: widths of the network's hidden layers.
        net: any module (*B, C) -> (*B, parameters * D) instead; each parameter's D numbers in a row.
        fixed: parameters that are not learned, by name, such as ``{"scale": 0.1}``.
        activation: makes one activation module of the network.
        sizes: of the parameters that are vectors for each feature, by name, such as ``{"logits": 256}`` for
            :class:`pyrodgm.distributions.Codes`; a feature's numbers stand in a row.
    Shapes: x (*B, *event), context (*B, C) -> log_prob (*B,) in nats.
    Raises: TypeError if the family is not univariate, a vector has no size, a parameter's constraint is one that no
        free number can keep, or no parameter is left to learn.
    Example:
        >>> import pyro.distributions as dist
        >>> Parametric(dist.Normal, 3).log_prob(torch.zeros(2, 3)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        family: type[TorchDistribution],
        features: int | tuple[int, ...],
        *,
        context: int = 0,
        hidden: Sequence[int] = (),
        net: nn.Module | None = None,
        fixed: dict[str, float] | None = None,
        activation: Any = nn.ReLU,
        sizes: dict[str, int] | None = None,
    ) -> None:
        super().__init__(features, context)
        declared = getattr(family, "arg_constraints", {})
        if not isinstance(declared, Mapping):
            raise TypeError(
                f"expected a family with constant arg_constraints, got {family.__name__}, where they follow from its "
                "parameters; write a Tractable with that condition()"
            )
        constraints = dict(declared)
        if "logits" in constraints:
            constraints.pop("probs", None)
        self.fixed = dict(fixed or {})
        self.constraints = {k: c for k, c in constraints.items() if k not in self.fixed}
        if not self.constraints or set(self.fixed) - set(constraints):
            raise TypeError(f"expected {family} to have parameters besides fixed={self.fixed}, got {list(constraints)}")
        self.maps: dict[str, Any] = {}  # from unconstrained numbers, None where they are left as they are
        for name, constraint in self.constraints.items():
            try:
                self.maps[name] = None if is_real(constraint) else biject_to(constraint)
            except NotImplementedError:
                raise TypeError(
                    f"expected a family whose parameters can be learned, got {family.__name__} with {name!r} of "
                    f"{constraint}; pass fixed={{{name!r}: ...}}"
                ) from None
        vectors = {k for k, c in constraints.items() if getattr(c, "event_dim", 0)}
        if vectors != set(sizes or {}):
            raise TypeError(
                f"expected a univariate family, or sizes of its parameters that are vectors, got {family.__name__} "
                f"with vectors {sorted(vectors)} and sizes={sizes}"
            )
        self.distribution = family
        self.lean = None if self.fixed else _LEAN.get(family)  # of the unconstrained numbers, in the same order
        self.sizes = {k: (sizes or {}).get(k, 1) for k in self.constraints}
        outputs = sum(self.sizes.values()) * self.event_shape.numel()
        if not context:
            self.free = nn.Parameter(torch.zeros(outputs))
        self.net: nn.Module | None = None
        if context:
            self.net = MLP(context, outputs, hidden, activation) if net is None else net
        self.like: Tensor
        self.register_buffer("like", torch.empty(0), persistent=False)

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        dtype = self.like.dtype
        if context is None or context.dtype != dtype or context.shape[-1:] != (self.context,):
            _, context = self.check(None, context)
        raw = self.free if self.net is None else self.net(context).to(dtype)
        parts = self._parts(raw)
        if self.lean is not None:
            return self.lean(*parts, event_dim=len(self.event_shape))
        arguments: dict[str, Any] = {
            k: v if to is None else to(v) for (k, to), v in zip(self.maps.items(), parts, strict=True)
        }
        for name, value in self.fixed.items():
            arguments[name] = self.like.new_full((), value)
        d = self.distribution(**arguments).to_event(len(self.event_shape))
        if d.event_shape != self.event_shape:
            raise TypeError(
                f"expected a univariate family, got {self.distribution.__name__}, whose event for features "
                f"{tuple(self.event_shape)} has shape {tuple(d.event_shape)}; write a Tractable with that condition()"
            )
        return d

    def _parts(self, raw: Tensor) -> Sequence[Tensor]:
        """The raw numbers of each parameter: (*B, outputs) -> (*B, *event), or (*B, *event, size) for vectors."""
        count, event = len(self.sizes), self.event_shape
        if max(self.sizes.values()) == 1:
            if len(event) == 1:
                return raw.chunk(count, -1) if count > 1 else [raw]
            raw = raw.unflatten(-1, (count, *event))
            return raw.unbind(-1 - len(event)) if count > 1 else [raw.squeeze(-1 - len(event))]
        features = event.numel()
        split = raw.split([size * features for size in self.sizes.values()], -1)
        vector = (self.constraints[k].event_dim for k in self.sizes)
        shapes = [(*event, *[size] * v) for size, v in zip(self.sizes.values(), vector, strict=True)]
        return [part.unflatten(-1, shape) for part, shape in zip(split, shapes, strict=True)]
