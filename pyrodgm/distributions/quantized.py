"""Whole numbers from reals in [0, 1), and reals spread over the cell of a whole number."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Quantized", "Spread"]


class Quantized(TorchDistribution):
    r"""x = floor(L z), certain: :math:`P(x \mid z) = 1` where L z lies in the cell [x, x + 1), else 0.

    The first and the last cell reach to infinity, so every z has an x. A z within a few roundings of a cell counts
    for it, too.

    Args:
        z: reals, (*B, *event).
        levels: L; x is one of 0 .. L - 1.
        event_dim: how many of the last dimensions are one x.
    Shapes: x (*S, *B, *event) -> log_prob (*S, *B), 0 or -inf.
    Example:
        >>> d = Quantized(torch.tensor([[0.1, 0.6]]), levels=4, event_dim=1)
        >>> d.sample(), d.log_prob(torch.tensor([0.0, 2.0]))
        (tensor([[0., 2.]]), tensor([0.]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, z: Tensor, levels: int, event_dim: int, validate_args: bool | None = None) -> None:
        self.z, self.levels = z, levels
        split = z.dim() - event_dim
        super().__init__(z.shape[:split], z.shape[split:], validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.integer_interval(0, self.levels - 1), len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Quantized:
        z = self.z.expand(torch.Size(batch_shape) + self.event_shape)
        return Quantized(z, self.levels, len(self.event_shape), validate_args=self._validate_args)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            x = (self.z * self.levels).floor().clamp(0, self.levels - 1)
        return x.expand(self._extended_shape(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        place, slack = self.z * self.levels - value, 4 * self.levels * torch.finfo(self.z.dtype).eps
        above = (place >= -slack) | (value <= 0)
        below = (place <= 1 + slack) | (value >= self.levels - 1)
        inside = (above & below).flatten(above.dim() - len(self.event_shape)).all(-1)
        return torch.where(inside, 0.0, -math.inf).to(self.z.dtype)


class Spread(TorchDistribution):
    r"""z = (x + u) / L with noise u in (0, 1) of any density: :math:`\log q(z) = \log q(L z - x) + D \log L`.

    The object remembers its last draw's noise, so that scoring it loses no digits and costs what the noise's own
    draw costs to score; the memory ends with a change of the draw.

    Args:
        x: whole numbers 0 .. L - 1, (*B, *event).
        noise: distribution of u; its batch shape is x's, or empty.
        levels: L.
    Shapes: z (*S, *B, *event) -> log_prob (*S, *B) in nats.
    Example:
        >>> import pyro.distributions as dist
        >>> d = Spread(torch.tensor([0.0, 3.0]), dist.Uniform(0.0, 1.0).expand([2]).to_event(1), levels=4)
        >>> d.log_prob(d.rsample())
        tensor(2.7726)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, x: Tensor, noise: Any, levels: int, validate_args: bool | None = None) -> None:
        event = noise.event_shape
        batch = x.shape[: x.dim() - len(event)]
        self.x, self.levels = x, levels
        self.noise = noise if noise.batch_shape == batch else noise.expand(batch)
        self._own: tuple[Tensor, int, Tensor] | None = None  # z, its version, u
        super().__init__(batch, event, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.noise.has_rsample

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.interval(0.0, 1.0), len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Spread:
        shape = torch.Size(batch_shape)
        x = self.x.expand(shape + self.event_shape)
        return Spread(x, self.noise.expand(shape), self.levels, validate_args=self._validate_args)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self._place(self.noise.rsample(torch.Size(sample_shape)))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self._place(self.noise.sample(torch.Size(sample_shape)))

    def _place(self, u: Tensor) -> Tensor:
        z = (self.x + u) / self.levels
        self._own = None if z.is_inference() else (z, z._version, u)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        if self._own is not None and self._own[0] is value and self._own[1] == value._version:
            return self.noise.log_prob(self._own[2]) + self._log_levels
        u, slack = value * self.levels - self.x, 4 * self.levels * torch.finfo(value.dtype).eps
        inside = ((u >= -slack) & (u <= 1 + slack)).flatten(u.dim() - len(self.event_shape)).all(-1)
        # The noise's density need not be finite at the very ends, which only rounding reaches.
        log_prob = self.noise.log_prob(u.clamp(slack, 1 - slack)) + self._log_levels
        return torch.where(inside, log_prob, -math.inf)

    @property
    def _log_levels(self) -> float:
        return self.event_shape.numel() * math.log(self.levels)
