"""Mixtures of any tractable members, with learned weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrodgm.core import Tractable
from pyrodgm.distributions.mixture import MixtureDistribution

__all__ = ["Mixture"]


class Mixture(Tractable):
    r"""A mixture of K tractable members of any kind.

    .. math:: p(x \mid c) = \sum_k \pi_k(c)\, p_k(x \mid c), \quad \pi = \operatorname{softmax}(\text{logits})

    It is trained by the gradient of log p, in which each member's gradient is weighed by its
    responsibility; members that start equal stay equal, so start them apart. Members may have supports of their own,
    outside of which they have density 0; the mixture's is then the union.

    Args:
        components: K members of one event shape; those with a context have the same size C.
        gate: makes the logits from the context, (*B, C) -> (*B, K); default free weights that start equal.
    Shapes: x (*B, *event), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError if there is no component, or if their shapes or contexts differ; TypeError for a component
        that is no Tractable. ``condition`` raises ValueError if some are discrete and others continuous.
    Source: Dempster, Laird and Rubin (1977); with a gate: Jacobs et al. (1991).
    Example:
        >>> from pyrodgm.tractable import RealNVP, StandardNormal
        >>> mixture = Mixture([StandardNormal(2), RealNVP(2)])
        >>> mixture.log_prob(mixture.sample(3)).shape
        torch.Size([3])
    """

    def __init__(self, components: Iterable[Tractable], gate: nn.Module | None = None) -> None:
        members = list(components)
        if not members:
            raise ValueError("expected at least one component, got none")
        for member in members:
            if not isinstance(member, Tractable):
                raise TypeError(f"expected components that are Tractable, got {type(member).__name__}")
        shapes, contexts = {tuple(m.event_shape) for m in members}, {m.context for m in members} - {0}
        if len(shapes) > 1 or len(contexts) > 1:
            raise ValueError(
                f"expected components of one event shape and one context size, got {sorted(shapes)} and "
                f"{sorted(contexts)}"
            )
        if gate is not None and not contexts:
            raise ValueError("expected a component with a context beside a gate, got none; leave the gate out")
        super().__init__(shapes.pop(), max(contexts, default=0))
        self.components = nn.ModuleList(members)
        self.gate = gate
        if gate is None:
            self.logits = nn.Parameter(torch.zeros(len(members)))

    @property
    def weights(self) -> Tensor:
        """The weights of the mixture, (K,).

        Raises: ValueError where a gate gives each context weights of its own.
        """
        if self.gate is not None:
            raise ValueError("expected free weights, got a gate; call mixture.gate(context).softmax(-1)")
        return self.logits.softmax(-1)

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        return self._mixture(self.check(None, context)[1])

    def _mixture(self, context: Tensor | None) -> MixtureDistribution:
        # as the context has them, whatever autocast makes of the gate's product
        logits = self.logits if self.gate is None or context is None else self.gate(context).to(context.dtype)
        parts = [m.condition(context if m.context else None) for m in self.components]  # type: ignore[operator]
        shape = () if context is None else tuple(context.shape[:-1])
        return MixtureDistribution(logits, parts, shape)

    def responsibilities(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """p(component k | x, context): x (*B, *event), context (*B, C) -> (*B, K)."""
        x, context = self.check(x, context)
        mixture = self._mixture(context)
        return (mixture.parts(x) + mixture.logits.log_softmax(-1)).softmax(-1)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        x, context = self.check(x, context)
        inside = self._mixture(context).inside(x)  # (*B, K)
        for member, own in zip(self.components, inside.unbind(-1), strict=True):
            if bool(own.any()):
                given = context[own] if member.context and context is not None else None
                member.initialize(x[own], given)  # type: ignore[operator]
