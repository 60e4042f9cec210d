"""A network that reads the context once for the whole of a model."""

from __future__ import annotations

from typing import cast

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrodgm.core import Tractable

__all__ = ["Embedded"]


class Embedded(Tractable):
    r"""A tractable model that is given what a network makes of the context: :math:`p(x \mid c) = p(x \mid h(c))`.

    Every part of the model that reads the context shares the network, which runs once for each ``condition``: the
    base and all layers of a flow, as the encoder of an inverse autoregressive guide, or the summary of an observation.

    Args:
        model: with a context of size H.
        net: h, any module (*B, C) -> (*B, H).
        context: C.
    Shapes: x (*B, *event), context (*B, C) -> log_prob (*B,) in nats.
    Raises: TypeError if model is not a Tractable; ValueError if it has no context or context < 1. ``condition`` raises
        ValueError if net makes another shape than (*B, H).
    Source: Kingma et al. (2016), arXiv:1606.04934, algorithm 1, whose h this is.
    Example:
        >>> from pyrodgm.nets import MLP
        >>> from pyrodgm.tractable import MAF
        >>> model = Embedded(MAF(3, context=8), MLP(100, 8, [32]), context=100)
        >>> model.condition(torch.randn(5, 100)).batch_shape
        torch.Size([5])
    """

    def __init__(self, model: Tractable, net: nn.Module, context: int) -> None:
        if not isinstance(model, Tractable):
            raise TypeError(f"expected model as a Tractable, got {type(model).__name__}")
        if not model.context or context < 1:
            raise ValueError(
                f"expected a model with a context and context >= 1, got {type(model).__name__}(..., "
                f"context={model.context}) and {context}"
            )
        super().__init__(tuple(model.event_shape), context)
        self.model = model
        self.net = net

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        return self.model.condition(self._read(cast(Tensor, self.check(None, context)[1])))

    def _read(self, context: Tensor) -> Tensor:
        """h(c), as the context has its type, whatever autocast makes of it."""
        h = self.net(context).to(context.dtype)
        if h.shape != (*context.shape[:-1], self.model.context):
            raise ValueError(
                f"expected net to make (*, {self.model.context}) of (*, {self.context}), got {tuple(h.shape)} "
                f"of {tuple(context.shape)}"
            )
        return h

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        x, context = self.check(x, context)
        self.model.initialize(x, self._read(cast(Tensor, context)))
