"""Rational-quadratic splines of the circle."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrodgm.bijectors.spline import BinnedSpline
from pyrodgm.bijectors.spline_rational import rational_quadratic

__all__ = ["CircularSpline"]


class CircularSpline(BinnedSpline):
    r"""Rational-quadratic spline of the circle, then a turn by :math:`\varphi`; P = 3 K + 1 (widths, heights,
    slopes, :math:`\varphi`).

    .. math:: F(x) = f(x - 2 \pi n) + 2 \pi n + \varphi, \quad n = \lfloor (x + \pi) / 2 \pi \rfloor

    where f is the spline of :class:`RationalQuadraticSpline` on :math:`[-\pi, \pi]` with one slope for both ends. So
    :math:`F(x + 2 \pi) = F(x) + 2 \pi` is a smooth map of the line, and of angles when taken modulo :math:`2 \pi`.

    A flow on the circle or the torus wants ``wrap=True``, a base on :math:`[-\pi, \pi)` such as a uniform one, and a
    network that sees the angles by their sine and cosine where it conditions on them.

    Args:
        bins: K.
        limit: largest absolute raw width, height and slope, by a tanh: the line has no tails here, and what a network
            makes of any angle has to be invertible.
        wrap: take the result into :math:`[-\pi, \pi)`, which then is the domain, too.
    Raises: ValueError for fewer than 2 bins or a limit that is not positive.
    Source: Rezende et al. (2020), arXiv:2002.02428, section 2.2 and eq. 10. Departure: their turn by
        :math:`\varphi` is a layer of its own.
    Example:
        >>> spline = CircularSpline(4)
        >>> spline.call_and_ladj(torch.zeros(13, 2), torch.tensor([-0.5, 7.0]))[0]
        tensor([-0.5000,  7.0000])
    """

    def __init__(self, bins: int = 8, limit: float = 2.0, wrap: bool = False) -> None:
        super().__init__(bins, math.pi)
        if not limit > 0:
            raise ValueError(f"expected limit > 0, got {limit}")
        self.size, self.limit, self.wrap = 3 * bins + 1, float(limit), wrap
        if wrap:
            angles: Any = constraints.half_open_interval(-math.pi, math.pi)
            self.domain = self.codomain = angles

    def call_and_ladj(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        y, ladj = self._around(raw[..., :-1, :], x, False)
        return self._wrapped(y + raw[..., -1, :]), ladj

    def inverse_and_ladj(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, ladj = self._around(raw[..., :-1, :], y - raw[..., -1, :], True)
        return self._wrapped(x), ladj

    def _around(self, raw: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raw, x = torch.broadcast_tensors(raw, x.unsqueeze(-2))
        x = x[..., 0, :]
        turns = (x / (2 * math.pi) + 0.5).floor().detach()
        u = (x / (2 * math.pi) + 0.5 - turns).clamp(0, 1)
        v, ladj = self._unit(raw, u, inverse)
        return (v - 0.5 + turns) * (2 * math.pi), ladj

    def _unit(self, raw: Tensor, u: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raw = self.limit * torch.tanh(raw / self.limit)
        return rational_quadratic(raw, u, self.bins, inverse)

    def _wrapped(self, angle: Tensor) -> Tensor:
        if not self.wrap:
            return angle
        angle = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        return torch.where(angle < math.pi, angle, -math.pi)  # rounding of the remainder may reach its end
