"""Shift and scale of each feature or channel: learned, started from data (actnorm), or of the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrodgm.bijectors.base import BijectiveTransform, Bijector

__all__ = ["ActNorm", "Affine", "BatchNorm"]


class _DiagonalTransform(BijectiveTransform):
    def __init__(self, shift: Tensor, log_scale: Tensor, times: int) -> None:
        super().__init__()
        self.shift, self.log_scale, self.times = shift, log_scale, times
        self.domain = self.codomain = constraints.independent(constraints.real, shift.dim())

    def _ladj(self, x: Tensor) -> Tensor:
        return (self.log_scale.sum() * self.times).expand(x.shape[: x.dim() - self.shift.dim()])

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.addcmul(self.shift, x, self.log_scale.exp()), self._ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return (y - self.shift) * torch.exp(-self.log_scale), -self._ladj(y)


class _Diagonal(Bijector):
    """What these share: numbers for each feature of a vector or each channel of an image."""

    triangular = True

    def __init__(self, features: int | tuple[int, int, int]) -> None:
        super().__init__()
        event = (features,) if isinstance(features, int) else tuple(features)
        if len(event) not in (1, 3) or min(event) < 1:
            raise ValueError(f"expected features >= 1 or an image's (C, H, W), got {features}")
        self.event = torch.Size(event)
        self.shape = (event[0],) + (1,) * (len(event) - 1)  # broadcasts against x
        self.times = self.event[1:].numel()  # how often each number acts

    def _moments(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over rows and places."""
        flat = rows.reshape(-1, *self.event).transpose(0, 1).flatten(1)  # (B, C, ...) -> (C, B * places)
        return flat.mean(1).reshape(self.shape), flat.var(1, correction=0).reshape(self.shape)


class Affine(_Diagonal):
    r"""A shift and a scale for each feature, or for each channel of an image: :math:`y = x \odot e^{s} + t`.

    Args:
        features: event size D, or an image's (C, H, W).
    Shapes: x (*B, *event) -> y (*B, *event), ladj (*B,) in nats.
    Raises: ValueError if features is no such size.
    Example:
        >>> Affine(2).condition()(torch.ones(2))
        tensor([1., 1.], grad_fn=<AddcmulBackward0>)
    """

    def __init__(self, features: int | tuple[int, int, int]) -> None:
        super().__init__(features)
        self.shift = nn.Parameter(torch.zeros(self.shape))
        self.log_scale = nn.Parameter(torch.zeros(self.shape))

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _DiagonalTransform(self.shift, self.log_scale, self.times)


class ActNorm(Affine):
    r"""Actnorm: :class:`Affine` that starts so that the first rows leave it with mean 0 and variance 1.

    The start happens once, in :meth:`initialize` (``fit`` calls it with the first batch). That it has
    happened is part of the state, so a loaded or resumed model does not start again.

    Args, Shapes, Raises: as :class:`Affine`.
    Source: Kingma and Dhariwal (2018), arXiv:1807.03039, section 3.1.
    Example:
        >>> layer = ActNorm(2)
        >>> y = layer.initialize(torch.tensor([[1.0, 0.0], [5.0, 4.0]]))
        >>> y
        tensor([[-1., -1.], [ 1.,  1.]])
    """

    def __init__(self, features: int | tuple[int, int, int]) -> None:
        super().__init__(features)
        self.started: Tensor
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def initialize(self, rows: Tensor, context: Tensor | None = None, *, inverse: bool = False) -> Tensor:
        if not self.started:
            mean, variance = self._moments(rows)
            log_scale = 0.5 * variance.clamp_min(1e-12).log()  # of the rows; a feature that never varies stays finite
            self.log_scale.copy_(log_scale if inverse else -log_scale)
            self.shift.copy_(mean if inverse else -mean * torch.exp(-log_scale))
            self.started.fill_(True)
        return super().initialize(rows, context, inverse=inverse)


class _BatchNormTransform(BijectiveTransform):
    def __init__(self, norm: BatchNorm) -> None:
        super().__init__()
        self.norm = norm
        self.domain = self.codomain = constraints.independent(constraints.real, len(norm.shape))

    def _spread(self, variance: Tensor) -> Tensor:
        """log of the map's slope."""
        return 0.5 * torch.log(variance + self.norm.epsilon) - self.norm.log_scale

    def _ladj(self, spread: Tensor, x: Tensor) -> Tensor:
        return (spread.sum() * self.norm.times).expand(x.shape[: x.dim() - len(self.norm.shape)])

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.norm
        spread = self._spread(norm.running_variance)
        return (x - norm.shift) * spread.exp() + norm.running_mean, self._ladj(spread, x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.norm
        mean, variance = norm.statistics(y) if norm.training else (norm.running_mean, norm.running_variance)
        spread = self._spread(variance)
        return (y - mean) * torch.exp(-spread) + norm.shift, -self._ladj(spread, y)


class BatchNorm(_Diagonal):
    r"""Batch normalisation as a bijector of a density, from its base x to its data y.

    .. math:: x = \frac{y - m}{\sqrt{v + \epsilon}} \odot e^{\gamma} + \beta

    In training m and v are the batch's, so the density of a row depends on its batch, and the running
    averages follow; in eval mode, and when sampling, they are the running averages, and only then are
    the two directions inverse to each other.

    Args:
        features: event size D, or an image's (C, H, W): statistics are the channels'.
        momentum: share of a batch in the running averages.
        epsilon: added to variances.
    Shapes: x (*B, *event) -> y (*B, *event), ladj (*B,) in nats.
    Raises: ValueError if features is no such size.
    Source: Dinh et al. (2017), arXiv:1605.08803, section 3.7; Papamakarios et al. (2017), arXiv:1705.07057, appendix B.
    Example:
        >>> layer = BatchNorm(2)
        >>> x, _ = layer.condition().inverse_and_ladj(torch.tensor([[1.0, 0.0], [5.0, 4.0]]))
        >>> x.detach().round()
        tensor([[-1., -1.], [ 1.,  1.]])
    """

    def __init__(self, features: int | tuple[int, int, int], momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__(features)
        self.momentum, self.epsilon = momentum, epsilon
        self.shift = nn.Parameter(torch.zeros(self.shape))
        self.log_scale = nn.Parameter(torch.zeros(self.shape))
        self.running_mean: Tensor
        self.running_variance: Tensor
        self.register_buffer("running_mean", torch.zeros(self.shape))
        self.register_buffer("running_variance", torch.ones(self.shape))

    def statistics(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of a batch, which the running averages take in."""
        mean, variance = self._moments(y)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_variance.lerp_(variance, self.momentum)
        return mean, variance

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _BatchNormTransform(self)
