"""Mixtures of one radial kernel at many points, summed block by block."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrodgm.distributions.radial_kernels import RadialKernel
from pyrodgm.shapes import expand_to

__all__ = ["KernelMixture", "pair_log_sums"]

_BLOCK = 2**16  # pairs of one block: it stays in the cache
_COLUMNS = 2048  # points of one block


def pair_log_sums(
    kernel: RadialKernel,
    at: Tensor,
    points: Tensor,
    log_bandwidths: Tensor,
    log_weights: Tensor,
    leave: Tensor | None = None,
) -> Tensor:
    r"""The mixture's log density at rows, block by block of pairs, with a running logsumexp; so is its gradient.

    Args:
        at: (B, D); gradients are those of these rows alone.
        points: (n, D).
        log_bandwidths: (n,).
        log_weights: (n,).
        leave: for each row the index of the point that it does not see, (B,); then without gradients.
    Shapes: returns (B,), -inf where no kernel reaches.
    """
    if leave is not None:
        with torch.no_grad():
            return _Pairs(kernel, at, points, log_bandwidths, log_weights, leave).log_sums()
    if len(at) * len(points) <= _BLOCK:
        return _Pairs(kernel, at, points, log_bandwidths, log_weights).log_sums()
    return _PairLogSums.apply(kernel, at, points, log_bandwidths, log_weights)


class _PairLogSums(torch.autograd.Function):
    """What a block computes is computed again for its gradient, instead of being kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(kernel: RadialKernel, at: Tensor, *of_points: Tensor) -> Tensor:
        return _Pairs(kernel, at, *of_points).log_sums()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernel = inputs[0]
        ctx.save_for_backward(*inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, log_sums = ctx.saved_tensors
        return None, grad.unsqueeze(-1) * _Pairs(ctx.kernel, *inputs).gradient(log_sums), None, None, None


class _Pairs:
    """Rows and points in blocks of pairs; the arguments are those of :func:`pair_log_sums`."""

    def __init__(
        self,
        kernel: RadialKernel,
        at: Tensor,
        points: Tensor,
        log_bandwidths: Tensor,
        log_weights: Tensor,
        leave: Tensor | None = None,
    ) -> None:
        self.kernel, self.at, self.leave, features = kernel, at, leave, points.shape[1]
        self.heights = (log_weights - features * log_bandwidths - kernel.log_normalizer(features)).to(at.dtype)
        # |x - p|^2 / h^2 = (|x|^2 - 2 x.p + |p|^2) / h^2 is one product, which needs twice the digits.
        self.fine = at.dtype if at.device.type == "mps" else torch.float64
        self.points = points.to(self.fine)
        self.scales = torch.exp(-2 * log_bandwidths.to(self.fine))  # 1 / h^2
        ones = torch.ones_like(self.points[:, :1])
        right = torch.cat((-2 * self.points, self.points.square().sum(-1, keepdim=True), ones), -1)
        self.right = (right * self.scales.unsqueeze(-1)).T  # (D + 2, n)
        rows = max(1, _BLOCK // min(_COLUMNS, len(points)))
        self.rows = [slice(i, min(i + rows, len(at))) for i in range(0, len(at), rows)]
        self.columns = [slice(i, min(i + _COLUMNS, len(points))) for i in range(0, len(points), _COLUMNS)]

    def squares(self, rows: slice, columns: slice) -> Tensor:
        """Squared distances over h^2, (b, m)."""
        x = self.at[rows].to(self.fine)
        left = torch.cat((x, torch.ones_like(x[:, :1]), x.square().sum(-1, keepdim=True)), -1)
        return (left @ self.right[:, columns]).to(self.at.dtype).clamp_min(0)

    def terms(self, squares: Tensor, rows: slice, columns: slice) -> Tensor:
        """The logs of what is summed, (b, m)."""
        terms = self.kernel.log_shape(squares) + self.heights[columns]
        if self.leave is None:
            return terms
        index = torch.arange(columns.start, columns.stop, device=terms.device)
        return terms.masked_fill(self.leave[rows].unsqueeze(-1) == index, -math.inf)

    def log_sums(self) -> Tensor:
        """(B,)."""
        parts = [self.at.new_empty(0)]
        for rows in self.rows:
            each = [_log_sum(self.terms(self.squares(rows, of), rows, of)) for of in self.columns]
            parts.append(each[0] if len(each) == 1 else _log_sum(torch.stack(each, -1)))
        return torch.cat(parts)

    def gradient(self, log_sums: Tensor) -> Tensor:
        """Of :meth:`log_sums` by each row, (B, D): a mean under the share that each point has in a row's density."""
        parts = [self.at[:0]]
        for rows in self.rows:
            x, total = self.at[rows].to(self.fine), log_sums[rows].unsqueeze(-1)
            total = torch.where(total == -math.inf, 0.0, total)
            pull, towards = torch.zeros_like(x[:, :1]), torch.zeros_like(x)
            for of in self.columns:
                squares = self.squares(rows, of)
                share = _exp(self.terms(squares, rows, of) - total) * self.kernel.slope(squares)
                weight = share.to(self.fine) * self.scales[of]
                pull, towards = pull + weight.sum(-1, keepdim=True), towards + weight @ self.points[of]
            parts.append((2 * (x * pull - towards)).to(self.at.dtype))
        return torch.cat(parts)


class KernelMixture(TorchDistribution):
    r"""A radial kernel at each of n points: :math:`p(x) = \sum_i w_i K(|L^{-1} (x - x_i)| / h_i) / (h_i^D |L|)`.

    Args:
        kernel: K.
        points: (n, D), the events flattened.
        log_bandwidths: log h, (n,).
        log_weights: log w, (n,).
        factor: L, lower triangular, (D, D).
        event_shape: shape of one x.
    Shapes: x (*S, *B, *event) -> log_prob (*S, *B) in nats.
    Source: Silverman (1986), Density Estimation for Statistics and Data Analysis, eq. 4.1.
    Example:
        >>> from pyrodgm.distributions.radial_kernels import KERNELS
        >>> one = torch.zeros(1)
        >>> KernelMixture(KERNELS["gaussian"], torch.zeros(1, 2), one, one, torch.eye(2), torch.Size([2])).log_prob(
        ...     torch.zeros(2)
        ... )
        tensor(-1.8379)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True  # a draw depends on no parameter

    def __init__(
        self,
        kernel: RadialKernel,
        points: Tensor,
        log_bandwidths: Tensor,
        log_weights: Tensor,
        factor: Tensor,
        event_shape: torch.Size,
        batch_shape: torch.Size = torch.Size(),
        validate_args: bool | None = None,
    ) -> None:
        self._kernel, self._points, self._factor = kernel, points, factor
        self._log_bandwidths, self._log_weights = log_bandwidths, log_weights
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> KernelMixture:
        return KernelMixture(
            self._kernel,
            self._points,
            self._log_bandwidths,
            self._log_weights,
            self._factor,
            self.event_shape,
            torch.Size(batch_shape),
            validate_args=self._validate_args,
        )

    @property
    def mean(self) -> Tensor:
        """The weighted mean of the points, (*B, *event)."""
        mean = (self._log_weights.exp() @ self._points).reshape(self.event_shape)
        return mean.expand(*self.batch_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        lead = value.shape[: value.dim() - len(self.event_shape)]
        rows = value.reshape(-1, self._points.shape[1])
        # In units of the kernel's metric, about the points' centre, where float32 rounds least.
        centre = self._points.mean(0)
        at, points = (
            torch.linalg.solve_triangular(self._factor, (v - centre).T, upper=False).T for v in (rows, self._points)
        )
        sums = pair_log_sums(self._kernel, at, points, self._log_bandwidths, self._log_weights)
        return expand_to((sums - self._factor.diagonal().log().sum()).reshape(lead), self.batch_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        lead = shape[: len(shape) - len(self.event_shape)]
        # By the distribution function, as torch.multinomial takes at most 2^24 points.
        steps = self._log_weights.double().exp().cumsum(0)
        uniform = torch.rand(lead, dtype=steps.dtype, device=steps.device) * steps[-1]
        index = torch.searchsorted(steps, uniform, right=True).clamp(max=len(steps) - 1)
        u = self._kernel.draw(torch.Size((*lead, self._points.shape[1])), self._points)
        u = u * self._log_bandwidths[index].exp().unsqueeze(-1)
        return (self._points[index] + u @ self._factor.T).reshape(shape)


def _exp(logs: Tensor) -> Tensor:
    """exp, held where it is a normal number: what cannot count would else be subnormal, many times as slow."""
    return logs.clamp_min(0.9 * math.log(torch.finfo(logs.dtype).tiny)).exp()


def _log_sum(terms: Tensor) -> Tensor:
    """logsumexp over the last dimension; with gradient 0, not nan, where all terms are -inf."""
    top = terms.amax(-1, keepdim=True).detach()
    empty = top == -math.inf
    total = _exp(terms - torch.where(empty, 0.0, top)).sum(-1, keepdim=True)
    return torch.where(empty, -math.inf, total.log() + top).squeeze(-1)
