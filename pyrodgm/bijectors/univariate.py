"""Monotone maps of single features, with raw parameters from a network: what couplings and autoregressions apply."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["ScaleShift", "Shift", "Univariate"]


class Univariate(ABC):
    """A family of increasing maps of the real line, each given by P raw numbers.

    All zeros give the identity, so a network whose last layer starts at 0 starts a flow as the identity.

    Attributes:
        size: P.
        domain, codomain: constraints of one feature.
        volume_preserving: claim: every map has slope 1.
        columns: it is fastest where each raw number of all rows lies side by side in memory.
    """

    size: int
    domain: Any = constraints.real
    codomain: Any = constraints.real
    volume_preserving: bool = False
    columns: bool = False

    @abstractmethod
    def call_and_ladj(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx, elementwise: raw (*B, P, D), x (*B, D) -> (*B, D), (*B, D)."""

    @abstractmethod
    def inverse_and_ladj(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dx/dy, elementwise: raw (*B, P, D), y (*B, D) -> (*B, D), (*B, D)."""

    def inverse(self, raw: Tensor, y: Tensor) -> Tensor:
        """x alone, where that is cheaper: what a sequential map does for every feature."""
        return self.inverse_and_ladj(raw, y)[0]

    def ladj(self, raw: Tensor, x: Tensor) -> Tensor:
        """log dy/dx alone, where that is cheaper."""
        return self.call_and_ladj(raw, x)[1]

    def __repr__(self) -> str:
        """The class and the arguments that it keeps, such as ``ScaleShift(bound=2.0)``."""
        kept = [name for name in inspect.signature(type(self)).parameters if hasattr(self, name)]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)}' for name in kept)})"


class ScaleShift(Univariate):
    r""":math:`y = x e^{s} + t` with :math:`s = \beta \tanh(\cdot)`; P = 2.

    Args:
        bound: :math:`\beta`, the largest absolute log-scale; it keeps both directions finite at any input.
    Raises: ValueError for a bound that is not positive.
    Source: Dinh et al. (2017), arXiv:1605.08803, eq. 5, with a bounded s.
    Example:
        >>> ScaleShift().call_and_ladj(torch.tensor([[0.0], [0.5]]), torch.tensor([1.0]))
        (tensor([1.5000]), tensor([0.]))
    """

    size = 2

    def __init__(self, bound: float = 2.0) -> None:
        if not bound > 0:
            raise ValueError(f"expected bound > 0, got {bound}")
        self.bound = float(bound)
        # The inverse's scale is 2 to this multiple of tanh: for the few numbers of a step, a power of 2 and a
        # product with a tensor take half as long as exp and a product with a float.
        self._doublings = torch.tensor(-self.bound / math.log(2), dtype=torch.float64)

    def call_and_ladj(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = raw.unbind(-2)
        log_scale = self.bound * torch.tanh(log_scale)
        return torch.addcmul(shift, x, log_scale.exp()), log_scale

    def inverse_and_ladj(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = raw.unbind(-2)
        log_scale = -self.bound * torch.tanh(log_scale)
        return (y - shift) * log_scale.exp(), log_scale

    def inverse(self, raw: Tensor, y: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.inverse_and_ladj(raw, y)[0]
        log_scale, shift = raw.unbind(-2)
        return (y - shift).mul_(torch.tanh(log_scale).mul_(self._doublings).exp2_())

    def ladj(self, raw: Tensor, x: Tensor) -> Tensor:
        return self.bound * torch.tanh(raw.select(-2, 0))


class Shift(Univariate):
    """y = x + t; P = 1.

    Source: Dinh et al. (2015), arXiv:1410.8516, section 3.2.
    Example:
        >>> Shift().call_and_ladj(torch.tensor([[0.5]]), torch.tensor([1.0]))
        (tensor([1.5000]), tensor([0.]))
    """

    size = 1
    volume_preserving = True

    def call_and_ladj(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + raw.squeeze(-2), torch.zeros_like(x)

    def inverse_and_ladj(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return y - raw.squeeze(-2), torch.zeros_like(y)
