"""Planar and radial flows, with the inverses that they have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrodgm.bijectors.base import BijectiveTransform, Bijector, in_its_precision
from pyrodgm.bijectors.events import check_size
from pyrodgm.nets.mlp import MLP

__all__ = ["Planar", "Radial"]

_BISECTIONS = 80  # halve an interval to float64 precision; float32 is done long before
_LEAST = 1e-4  # slope along w: softplus alone is lost beside -1 from w.u = -17 on in float32, and the slope is 0


class _FromContext(Bijector):
    """A bijector with a few numbers as parameters: free ones, or a network's of the context."""

    def __init__(self, features: int, sizes: Sequence[int], context: int, hidden: Sequence[int]) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"expected features >= 1, got {features}")
        self.features, self.context, self.sizes = features, context, list(sizes)
        self.net: nn.Module | None = None
        if context:
            self.net = MLP(context, sum(sizes), hidden)
        else:
            self.free = nn.Parameter(torch.randn(sum(sizes)) / math.sqrt(features))

    def _numbers(self, context: Tensor | None) -> tuple[Tensor, ...]:
        if self.net is None or context is None:
            return self.free.split(self.sizes, -1)
        return self.net(context).to(context.dtype).split(self.sizes, -1)


class _PlanarTransform(BijectiveTransform):
    def __init__(self, u: Tensor, w: Tensor, b: Tensor) -> None:
        super().__init__()
        wu = (w * u).sum(-1, keepdim=True)
        # u is moved along w until w.u > -1, which makes the map increasing along w (appendix A.1).
        u = u + (F.softplus(wu) - (1 - _LEAST) - wu) * w / (w * w).sum(-1, keepdim=True).clamp_min(1e-12)
        self.u, self.w, self.b = u, w, b.squeeze(-1)
        self.wu = (w * u).sum(-1)

    def _along(self, x: Tensor) -> Tensor:
        """w.x; without a context one product of a matrix and a vector."""
        check_size(x, self.w.shape[-1])
        if self.w.dim() > 1:
            return (x * self.w).sum(-1)
        with in_its_precision(x):
            return x @ self.w

    def _moved(self, x: Tensor, t: Tensor) -> Tensor:
        """x + u t; without a context an update of rank one, which writes nothing but its result."""
        if self.u.dim() > 1 or x.dim() != 2:
            return x + self.u * t.unsqueeze(-1)
        with in_its_precision(x):
            return torch.addr(x, t, self.u)

    def _ladj(self, t: Tensor) -> Tensor:
        return torch.log1p(self.wu * (1 - t * t))

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.tanh(self._along(x) + self.b)
        return self._moved(x, t), self._ladj(t)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""Along w the map is the increasing scalar a + (w.u) tanh(a + b): bisect that, then Newton with gradients."""
        target = self._along(y)
        with torch.no_grad():
            low, high = target - self.wu.abs(), target + self.wu.abs()
            for _ in range(_BISECTIONS):
                middle = 0.5 * (low + high)
                above = middle + self.wu * torch.tanh(middle + self.b) > target
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            a = 0.5 * (low + high)
        # The value moves by rounding only; the gradient is the implicit one, and with the second step its gradient too.
        for _ in range(2):
            t = torch.tanh(a + self.b)
            a = a - (a + self.wu * t - target) / (1 + self.wu * (1 - t * t))
        t = torch.tanh(a + self.b)
        return self._moved(y, -t), -self._ladj(t)


class Planar(_FromContext):
    r"""Planar flow: :math:`y = x + \hat u \tanh(w^\top x + b)`.

    .. math:: \mathrm{ladj} = \log |1 + \hat u^\top w \,(1 - \tanh^2)|, \qquad
        \hat u = u + [\log(1 + e^{w^\top u}) - 1 + 10^{-4} - w^\top u] \frac{w}{|w|^2}

    The inverse is found by bisection of one scalar equation, to the dtype's precision, with an implicit gradient.
    Departure from the source: its :math:`\hat u` has no :math:`10^{-4}`, without which the map can be flat in floating
    point.

    Args:
        features: D.
        context: size C of the conditioning vector, 0 for none; then a network gives u, w and b.
        hidden: widths of that network's hidden layers.
    Shapes: x (*B, D), context (*B, C) -> y (*B, D), ladj (*B,) in nats.
    Source: Rezende and Mohamed (2015), arXiv:1505.05770, eq. 10-12 and appendix A.1.
    Example:
        >>> layer = Planar(3)
        >>> y, _ = layer(torch.ones(2, 3))
        >>> torch.allclose(layer.inv(y)[0], torch.ones(2, 3), atol=1e-5)
        True
    """

    def __init__(self, features: int, *, context: int = 0, hidden: Sequence[int] = (32,)) -> None:
        super().__init__(features, (features, features, 1), context, hidden)

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _PlanarTransform(*self._numbers(self.check(context)))


class _RadialTransform(BijectiveTransform):
    def __init__(self, center: Tensor, alpha: Tensor, beta: Tensor) -> None:
        super().__init__()
        self.center = center
        self.alpha = F.softplus(alpha)
        # beta > -alpha makes the map increasing along rays, and the floor no less at the centre
        self.beta = F.softplus(beta) - (1 - _LEAST) * self.alpha

    def _ladj(self, r: Tensor, features: int) -> Tensor:
        h = 1 / (self.alpha + r)
        along = torch.log1p(self.beta * self.alpha * h * h)
        return ((features - 1) * torch.log1p(self.beta * h) + along).squeeze(-1)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        offset = check_size(x, self.center.shape[-1]) - self.center
        r = offset.norm(dim=-1, keepdim=True)
        return x + self.beta / (self.alpha + r) * offset, self._ladj(r, x.shape[-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        offset = check_size(y, self.center.shape[-1]) - self.center
        far = offset.norm(dim=-1, keepdim=True)
        # |y - c| = r (1 + beta / (alpha + r)) is a quadratic in r; take the form of its root that does not cancel.
        half = 0.5 * (self.alpha + self.beta - far)
        root = (half * half + self.alpha * far).sqrt()
        r = torch.where(half > 0, self.alpha * far / (half + root).clamp_min(1e-30), root - half)
        return self.center + offset / (1 + self.beta / (self.alpha + r)), -self._ladj(r, y.shape[-1])


class Radial(_FromContext):
    r"""Radial flow about a centre c: :math:`y = x + \frac{\beta}{\alpha + r} (x - c)`, :math:`r = |x - c|`.

    .. math:: \mathrm{ladj} = (D - 1) \log\Big(1 + \frac{\beta}{\alpha + r}\Big)
        + \log\Big(1 + \frac{\beta \alpha}{(\alpha + r)^2}\Big)

    with :math:`\alpha > 0` and :math:`\beta > -(1 - 10^{-4}) \alpha`. The inverse is closed: r solves a quadratic.
    Departure from the source: its bound is :math:`-\alpha`, where the map is flat at the centre.

    Args, Shapes: as :class:`Planar`.
    Source: Rezende and Mohamed (2015), arXiv:1505.05770, eq. 14 and appendix A.2.
    Example:
        >>> layer = Radial(3)
        >>> y, _ = layer(torch.ones(2, 3))
        >>> torch.allclose(layer.inv(y)[0], torch.ones(2, 3), atol=1e-5)
        True
    """

    def __init__(self, features: int, *, context: int = 0, hidden: Sequence[int] = (32,)) -> None:
        super().__init__(features, (features, 1, 1), context, hidden)

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _RadialTransform(*self._numbers(self.check(context)))
