"""What the bridges share: another library's distribution as a distribution of Pyro."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["ForeignDistribution", "flatten_rows"]


def flatten_rows(
    x: Tensor, context: Tensor | None, event_dim: int, context_dim: int = 1
) -> tuple[Tensor, Tensor | None, torch.Size]:
    """x and context as plain rows, for libraries that know one batch dimension, and the lead to give back.

    Shapes: x (*B, *event), context (*B, *C), C of ``context_dim`` dimensions -> (N, *event), (N, *C), *B with the two
        leads broadcast.
    """
    lead, event = _split(x, event_dim)
    if context is not None:
        given, _ = _split(context, context_dim)
        lead = torch.broadcast_shapes(lead, given)
        context = _rows(context, lead, context_dim)
    return x.expand(*lead, *event).reshape(lead.numel(), *event), context, lead


def _split(x: Tensor, event_dim: int) -> tuple[torch.Size, torch.Size]:
    """The lead and the event of a shape."""
    return x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :]


def _rows(context: Tensor, lead: torch.Size, context_dim: int) -> Tensor:
    event = _split(context, context_dim)[1]
    return context.expand(*lead, *event).reshape(lead.numel(), *event)


class ForeignDistribution(TorchDistribution):
    """A distribution given by two functions of plain rows.

    Args:
        log_prob: (N, *event), (N, *C) or None -> (N,) in nats.
        draw: how many rows N, (N, *C) or None -> (N, *event).
        event_shape: of one draw.
        context: (*B, *C) or None; its leading shape is the batch shape.
        has_rsample: claim: draws carry gradients.
        context_dim: how many dimensions one context has.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        log_prob: Callable[[Tensor, Tensor | None], Tensor],
        draw: Callable[[int, Tensor | None], Tensor],
        event_shape: torch.Size,
        context: Tensor | None = None,
        has_rsample: bool = False,
        batch_shape: torch.Size | None = None,
        context_dim: int = 1,
        validate_args: bool | None = None,
    ) -> None:
        self._log_prob, self._draw, self.context, self.context_dim = log_prob, draw, context, context_dim
        self._reparameterised = has_rsample
        if batch_shape is None:
            batch_shape = torch.Size() if context is None else _split(context, context_dim)[0]
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self._reparameterised

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> ForeignDistribution:
        return ForeignDistribution(
            self._log_prob,
            self._draw,
            self.event_shape,
            self.context,
            self._reparameterised,
            torch.Size(batch_shape),
            self.context_dim,
            validate_args=self._validate_args,
        )

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        lead = shape[: len(shape) - len(self.event_shape)]
        context = None if self.context is None else _rows(self.context, lead, self.context_dim)
        return self._draw(lead.numel(), context).reshape(shape)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        rows, context, lead = flatten_rows(value, self.context, len(self.event_shape), self.context_dim)
        log_prob = self._log_prob(rows, context).reshape(lead)
        return log_prob.expand(torch.broadcast_shapes(lead, self.batch_shape))
