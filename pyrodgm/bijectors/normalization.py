"""Shift and scale of each feature or channel: learned, started from data (actnorm), or of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrodgm.bijectors.base import BijectiveTransform, Bijector
from pyrodgm.bijectors.events import ImageShape, check_size, event_of
from pyrodgm.nets.mlp import MLP
from pyrodgm.shapes import expand_to

__all__ = ["ActNorm", "Affine", "BatchNorm"]

_BOUND = 2.0  # of what a context adds to a log-scale, as in ScaleShift


class _DiagonalTransform(BijectiveTransform):
    """The numbers broadcast against the event, whose dimensions number ``dims``; a context gives each row its own."""

    def __init__(self, shift: Tensor, log_scale: Tensor, times: int, dims: int) -> None:
        super().__init__()
        self.shift, self.log_scale, self.times, self.dims = shift, log_scale, times, dims
        self.domain = self.codomain = constraints.independent(constraints.real, dims)

    def _ladj(self, x: Tensor) -> Tensor:
        return expand_to(self.log_scale.flatten(-self.dims).sum(-1) * self.times, x.shape[: x.dim() - self.dims])

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = check_size(x, self.shift.shape[-self.dims], self.dims)
        return torch.addcmul(self.shift, x, self.log_scale.exp()), self._ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        y = check_size(y, self.shift.shape[-self.dims], self.dims)
        return (y - self.shift) * torch.exp(-self.log_scale), -self._ladj(y)


class _Diagonal(Bijector):
    """What these share: a shift and a log-scale for each feature of a vector or each channel of an image."""

    triangular = True

    def __init__(self, features: int | ImageShape, context: int, hidden: Sequence[int]) -> None:
        super().__init__()
        event = event_of(features)
        self.event = torch.Size(event)
        self.shape = (event[0],) + (1,) * (len(event) - 1)  # broadcasts against x
        self.times = self.event[1:].numel()  # how often each number acts
        self.shift = nn.Parameter(torch.zeros(self.shape))
        self.log_scale = nn.Parameter(torch.zeros(self.shape))
        self.context = context
        self.net = MLP(context, 2 * event[0], hidden, last_scale=0.0) if context else None

    def _numbers(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Shift and log-scale, with what a network makes of the context added to each: both (*B, *shape)."""
        context = self.check(context)
        if self.net is None:
            return self.shift, self.log_scale
        shift, log_scale = (
            self.net(context).to(self.shift.dtype).unflatten(-1, (2, *self.shape)).unbind(-1 - len(self.shape))
        )
        return self.shift + shift, self.log_scale + _BOUND * torch.tanh(log_scale)

    def _moments(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over rows and places."""
        flat = (
            check_size(rows, self.shape[0], len(self.shape)).reshape(-1, *self.event).transpose(0, 1).flatten(1)
        )  # (B, C, ...) -> (C, B * places)
        return flat.mean(1).reshape(self.shape), flat.var(1, correction=0).reshape(self.shape)


class Affine(_Diagonal):
    r"""A shift and a scale for each feature, or for each channel of an image: :math:`y = x \odot e^{s} + t`.

    Under a context, what a network makes of it is added to s (bounded) and t; it starts at 0.

    Args:
        features: event size D, or an image's (C, H, W).
        context: size of the conditioning vector, 0 for none.
        hidden: widths of that network's hidden layers.
    Shapes: x (*B, *event), context (*B, C) -> y (*B, *event), ladj (*B,) in nats.
    Raises: ValueError if features is no such size.
    Example:
        >>> Affine(2).condition()(torch.ones(2))
        tensor([1., 1.], grad_fn=<AddcmulBackward0>)
    """

    def __init__(self, features: int | ImageShape, *, context: int = 0, hidden: Sequence[int] = (32,)) -> None:
        super().__init__(features, context, hidden)

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _DiagonalTransform(*self._numbers(context), self.times, len(self.shape))


class ActNorm(Affine):
    r"""Actnorm: :class:`Affine` that starts so that the first rows leave it with mean 0 and variance 1.

    The start happens once, in :meth:`initialize` (``fit`` calls it with the first rows). That it has
    happened is part of the state, so a loaded or resumed model does not start again. The network of a context
    starts at 0 and so leaves the start as it is: it learns how the contexts' means and scales differ.

    Args, Shapes, Raises: as :class:`Affine`.
    Source: Kingma and Dhariwal (2018), arXiv:1807.03039, section 3.1.
    Example:
        >>> layer = ActNorm(2)
        >>> y = layer.initialize(torch.tensor([[1.0, 0.0], [5.0, 4.0]]))
        >>> y
        tensor([[-1., -1.], [ 1.,  1.]])
    """

    def __init__(self, features: int | ImageShape, *, context: int = 0, hidden: Sequence[int] = (32,)) -> None:
        super().__init__(features, context=context, hidden=hidden)
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
    def __init__(self, norm: BatchNorm, shift: Tensor, log_scale: Tensor) -> None:
        super().__init__()
        self.norm, self.shift, self.log_scale, self.dims = norm, shift, log_scale, len(norm.shape)
        self.domain = self.codomain = constraints.independent(constraints.real, self.dims)

    def _spread(self, variance: Tensor) -> Tensor:
        """log of the map's slope."""
        return 0.5 * torch.log(variance + self.norm.epsilon) - self.log_scale

    def _ladj(self, spread: Tensor, x: Tensor) -> Tensor:
        return expand_to(spread.flatten(-self.dims).sum(-1) * self.norm.times, x.shape[: x.dim() - self.dims])

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        norm, x = self.norm, check_size(x, self.norm.shape[0], self.dims)
        spread = self._spread(norm.running_variance)
        return (x - self.shift) * spread.exp() + norm.running_mean, self._ladj(spread, x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        norm, y = self.norm, check_size(y, self.norm.shape[0], self.dims)
        mean, variance = norm.statistics(y) if norm.training else (norm.running_mean, norm.running_variance)
        spread = self._spread(variance)
        return (y - mean) * torch.exp(-spread) + self.shift, -self._ladj(spread, y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        # torch asks for it after the inverse of y, which in training took the batch's moments into the averages.
        norm = self.norm
        return self._ladj(self._spread(norm._moments(y)[1] if norm.training else norm.running_variance), y)


class BatchNorm(_Diagonal):
    r"""Batch normalisation as a bijector of a density, from its base x to its data y.

    .. math:: x = \frac{y - m}{\sqrt{v + \epsilon}} \odot e^{\gamma} + \beta

    In training m and v are the batch's, so the density of a row depends on its batch, and the running
    averages follow; in eval mode, and when sampling, they are the running averages, and only then are
    the two directions inverse to each other. The statistics are those of all rows whatever their contexts;
    under a context, what a network makes of it is added to gamma (bounded) and beta, and starts at 0. In Pyro's own
    ``TransformedDistribution`` it takes a place of its own in the list: from a :class:`Compose` that takes the
    determinant on the way from x, where the averages stand.

    Args:
        features: event size D, or an image's (C, H, W): statistics are the channels'.
        momentum: share of a batch in the running averages.
        epsilon: added to variances.
        context: size of the conditioning vector, 0 for none.
        hidden: widths of that network's hidden layers.
    Shapes: x (*B, *event), context (*B, C) -> y (*B, *event), ladj (*B,) in nats.
    Raises: ValueError if features is no such size.
    Source: Dinh et al. (2017), arXiv:1605.08803, section 3.7; Papamakarios et al. (2017), arXiv:1705.07057, appendix B.
    Example:
        >>> layer = BatchNorm(2)
        >>> x, _ = layer.condition().inverse_and_ladj(torch.tensor([[1.0, 0.0], [5.0, 4.0]]))
        >>> x.detach().round()
        tensor([[-1., -1.], [ 1.,  1.]])
    """

    def __init__(
        self,
        features: int | ImageShape,
        *,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        context: int = 0,
        hidden: Sequence[int] = (32,),
    ) -> None:
        super().__init__(features, context, hidden)
        self.momentum, self.epsilon = momentum, epsilon
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
        return _BatchNormTransform(self, *self._numbers(context))
