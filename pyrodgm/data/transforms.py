r"""Changes of the data before a model sees them, with what turns the densities back.

Everything with a density returns ``(y, ladj)``: :math:`\log p_x(x) = \log p_y(y) + ladj`, in nats,
the event dimensions summed out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Standardise",
    "binarize",
    "bits_per_dim",
    "dequantize",
    "inverse_logit",
    "logit",
    "quantize",
    "standardise",
    "threshold",
]


def dequantize(x: Tensor, levels: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    r"""Whole numbers 0..L-1 spread over [0, 1): :math:`y = (x + u) / L`, :math:`u \sim U[0, 1)`.

    A density on whole numbers alone is unbounded; with the noise it bounds their probability from
    below: :math:`\log P(x) \ge E_u[\log p(y)] + ladj`, :math:`ladj = -D \log L`.

    Args:
        x: whole numbers 0 <= x < levels.
        levels: L.
        generator: draws u.
    Shapes: x (B, *event) -> y (B, *event), ladj (B,).
    Raises: ValueError if a value is not one of the levels.
    Source: Theis et al. (2016), arXiv:1511.01844, sec. 3.1.
    Example:
        >>> y, ladj = dequantize(torch.tensor([[0.0, 3.0]]), levels=4)
        >>> bool((quantize(y, 4) == torch.tensor([[0.0, 3.0]])).all()), ladj
        (True, tensor([-2.7726]))
    """
    x = _floating(x)
    if bool(((x < 0) | (x >= levels) | (x != x.floor())).any()):
        raise ValueError(
            f"expected whole numbers 0..{levels - 1}, got values in [{x.min():g}, {x.max():g}]; "
            "scale x to whole numbers or change levels"
        )
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype)
    noise = noise.clamp(min=torch.finfo(x.dtype).eps)  # y = 0 has no finite logit
    top = 1 - torch.finfo(x.dtype).eps / 2  # (x + u) may round up to the next level
    y = torch.minimum((x + noise.to(x.device)) / levels, ((x + 1) / levels) * top)
    return y, x.new_full((len(x),), -x[0].numel() * math.log(levels))


def quantize(y: Tensor, levels: int) -> Tensor:
    """The level 0..L-1 that each y in [0, 1) belongs to; what lies outside goes to the nearest."""
    return (y * levels).floor().clamp(0, levels - 1)


def logit(x: Tensor, alpha: float = 1e-6) -> tuple[Tensor, Tensor]:
    r"""[0, 1] opened to the whole line: :math:`y = \mathrm{logit}(\alpha + (1 - 2 \alpha) x)`.

    Args:
        x: values in [0, 1].
        alpha: keeps the ends finite, 0 <= alpha < 1/2.
    Shapes: x (B, *event) -> y (B, *event), ladj (B,).
    Raises: ValueError if x leaves [0, 1].
    Source: Papamakarios et al. (2017), arXiv:1705.07057, sec. 4.3.
    Example:
        >>> y, ladj = logit(torch.rand(3, 2))
        >>> x, back = inverse_logit(y)
        >>> bool(torch.allclose(ladj, -back, atol=1e-4))
        True
    """
    _check_alpha(alpha)
    if bool(((x < 0) | (x > 1)).any()):
        raise ValueError(f"expected x in [0, 1], got [{x.min():g}, {x.max():g}]; divide by its largest value")
    s = alpha + (1 - 2 * alpha) * x
    y = torch.log(s) - torch.log1p(-s)
    return y, (math.log1p(-2 * alpha) + F.softplus(y) + F.softplus(-y)).flatten(1).sum(-1)


def inverse_logit(y: Tensor, alpha: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`logit`, with its own ladj (the negative of the other's)."""
    _check_alpha(alpha)
    x = (torch.sigmoid(y) - alpha) / (1 - 2 * alpha)
    return x, -(math.log1p(-2 * alpha) + F.softplus(y) + F.softplus(-y)).flatten(1).sum(-1)


def binarize(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Grey levels in [0, 1] drawn as black or white, each with its level as the probability of 1.

    Raises: ValueError if x leaves [0, 1].
    Source: Salakhutdinov and Murray (2008).
    Example:
        >>> binarize(torch.tensor([[0.0, 1.0]]))
        tensor([[0., 1.]])
    """
    x = _floating(x)
    if bool(((x < 0) | (x > 1)).any()):
        raise ValueError(f"expected x in [0, 1], got [{x.min():g}, {x.max():g}]; divide by its largest value")
    return (torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device) < x).to(x.dtype)


def threshold(x: Tensor, at: float = 0.5) -> Tensor:
    """1 where x >= at, else 0: a fixed binarization."""
    x = _floating(x)
    return (x >= at).to(x.dtype)


@dataclass(frozen=True)
class Standardise:
    r"""Each feature to mean 0 and variance 1: :math:`y = (x - m) / s`. Build it by :func:`standardise`.

    Args:
        mean: m, (*event).
        scale: s > 0, (*event).
    Shapes: x (B, *event) -> y (B, *event), ladj (B,).
    Example:
        >>> Standardise(torch.tensor([1.0]), torch.tensor([2.0]))(torch.tensor([[5.0]]))
        (tensor([[2.]]), tensor([-0.6931]))
    """

    mean: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - self.mean) / self.scale, x.new_full((len(x),), -float(self.scale.log().sum()))

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x from y, with the negative ladj."""
        return y * self.scale + self.mean, y.new_full((len(y),), float(self.scale.log().sum()))


def standardise(x: Tensor) -> Standardise:
    """The :class:`Standardise` of these rows: fit it on the training part alone, use it on all parts.

    A constant feature keeps scale 1.

    Example:
        >>> y, ladj = standardise(torch.tensor([[0.0], [2.0]]))(torch.tensor([[4.0]]))
        >>> y, ladj
        (tensor([[3.]]), tensor([-0.]))
    """
    scale = x.std(0, correction=0)
    return Standardise(x.mean(0), torch.where(scale > 0, scale, torch.ones_like(scale)))


def bits_per_dim(log_prob: float, features: int, levels: int) -> float:
    r"""Nats of dequantized rows in [0, 1) as bits for each feature: :math:`\log_2 L - \log p / (D \log 2)`.

    Example:
        >>> bits_per_dim(0.0, features=64, levels=16)
        4.0
    """
    return (math.log(levels) - log_prob / features) / math.log(2)


def _floating(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha < 0.5:
        raise ValueError(f"expected 0 <= alpha < 0.5, got {alpha}")
