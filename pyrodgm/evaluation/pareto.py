"""How heavy the tail of importance weights is: the shape of the generalised Pareto distribution that fits it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["fit_pareto", "khat_threshold", "pareto_k", "smooth_weights"]

_PRIOR_WEIGHT = 10.0  # of k = 1/2, as many draws as the paper takes


def fit_pareto(excess: Tensor) -> tuple[Tensor, Tensor]:
    r"""Shape k and scale sigma of generalised Pareto distributions, :math:`P(y > t) = (1 + k t / \sigma)^{-1/k}`.

    The posterior mean over a grid of :math:`\theta = -k / \sigma` under the profile likelihood.

    Args:
        excess: sorted from small to large, positive, at least five.
    Shapes: excess (M, *B) -> (*B), (*B).
    Raises: ValueError for fewer than five.
    Source: Zhang and Stephens (2009), A new and efficient estimation method for the generalized Pareto distribution.
    Example:
        >>> u = (torch.arange(1000) + 0.5) / 1000
        >>> k, sigma = fit_pareto(2 * (u ** -0.5 - 1).flip(0) / 0.5)
        >>> round(k.item(), 1), round(sigma.item(), 1)
        (0.5, 2.0)
    """
    m = len(excess)
    if m < 5:
        raise ValueError(f"expected at least five excesses to fit a tail, got {m}")
    y = excess.double()
    points = 30 + int(math.sqrt(m))
    quartile = y[int(m / 4 + 0.5) - 1]  # (*B)
    j = torch.arange(1, points + 1, dtype=y.dtype, device=y.device).reshape(-1, *[1] * quartile.dim())
    theta = 1 / y[-1] + (1 - (points / (j - 0.5)).sqrt()) / (3 * quartile)  # (P, *B)
    theta = torch.where(theta == 0, 1e-12 / y[-1], theta)  # the limit is the exponential distribution, 0 / 0 is not
    k = torch.stack([torch.log1p(-t * y).mean(0) for t in theta])  # (P, *B), with the sign of k here
    weight = (m * ((-theta / k).log() - k - 1)).softmax(0)
    best = (weight * theta).sum(0)
    shape = torch.log1p(-best * y).mean(0)
    return shape, -shape / best


def khat_threshold(draws: int) -> float:
    r"""The shape :math:`\min(1 - 1 / \log_{10} K, 0.7)` above which K weights are too few for what they are asked.

    Args:
        draws: K > 1; from 2155 on it is 0.7.
    Source: Vehtari et al. (2024), arXiv:1507.02646, eq. 13.
    Example:
        >>> khat_threshold(100), khat_threshold(5000)
        (0.5, 0.7)
    """
    return min(1 - 1 / math.log10(draws), 0.7)


def pareto_k(log_weights: Tensor) -> Tensor:
    r"""The shape :math:`\hat k` of the tail of importance weights, row by row.

    Below :func:`khat_threshold` the importance-sampled likelihood is reliable, above it the guide misses mass; above 1
    the weights have no finite mean to the eye of the sample. The tail is the largest :math:`\min(K / 5, 3 \sqrt K)`
    weights. It is -inf for weights that differ by the rounding of float32 alone: that tail is no guide's.

    Args:
        log_weights: (K, *B) in nats, K >= 25.
    Shapes: returns (*B).
    Raises: ValueError for K < 25, of which a fifth is no tail to fit.
    Source: Vehtari et al. (2024), Pareto smoothed importance sampling, arXiv:1507.02646, section 3 and appendix C.
    Example:
        >>> pareto_k(torch.randn(1000, 3)).shape
        torch.Size([3])
    """
    draws, tail = len(log_weights), _tail_of(log_weights)
    top = log_weights.double().topk(tail + 1, 0).values.flip(0)  # (M + 1, *B), sorted
    weights = (top - top[-1]).exp()
    excess = weights[1:] - weights[0]
    # equal weights have no tail at all; programs mostly sum in float32, whatever type the weights come in
    largest = log_weights.amax(0)
    spread = largest - log_weights.amin(0)
    flat = (excess[-1] <= torch.finfo(log_weights.dtype).eps * 100) | (spread <= 1e-5 * largest.abs().clamp(min=1))
    tied = (top[1] == top[0]) & ~flat  # of the logarithms: an excess that underflows is no tie
    tiny = torch.finfo(torch.float64).tiny
    k, _ = fit_pareto(torch.where(flat | tied, torch.ones_like(excess), excess).clamp(min=tiny))
    k = _towards_half(k, tail)
    columns, cutoff = excess.reshape(tail, -1), (draws * weights[0]).reshape(-1)
    for i in tied.reshape(-1).nonzero()[:, 0].tolist():
        k.reshape(-1)[i] = _tied(columns[:, i], cutoff[i])
    return torch.where(flat, torch.full_like(k, -math.inf), k).to(log_weights.dtype)


def smooth_weights(log_weights: Tensor) -> Tensor:
    r"""Normalised weights of which the largest are the expected order statistics of the Pareto tail that fits them.

    .. math:: \tilde w_{(j)} = \min\big(u + F^{-1}((j - \tfrac12) / M),\ \max_k w_k\big), \quad j = 1, \dots, M

    u is the largest weight below the tail of M, and F the generalised Pareto distribution of :func:`fit_pareto`, whose
    shape is that of :func:`pareto_k`. A few chance draws then do not settle the sum; while k-hat is below
    :func:`khat_threshold` the bias of it is small beside the variance that is saved.

    Args:
        log_weights: (K,) in nats, K >= 25, up to a constant.
    Shapes: returns (K,) in float64, which sum to 1.
    Raises: ValueError for K < 25, and for more than one row of weights.
    Source: Vehtari et al. (2024), arXiv:1507.02646, section 3 and algorithm 1.
    Example:
        >>> log_weights = 2 * torch.randn(1000)
        >>> weights = smooth_weights(log_weights)
        >>> round(weights.sum().item(), 6), torch.equal(weights.argsort(), log_weights.argsort())
        (1.0, True)
    """
    if log_weights.dim() != 1:
        raise ValueError(f"expected one row of weights (K,), got shape {tuple(log_weights.shape)}; smooth each alone")
    ordered, order = log_weights.double().sort()
    ordered = ordered - ordered[-1]
    cutoff = ordered[-_tail_of(log_weights) - 1]
    tail = int((ordered > cutoff).sum())  # fewer where weights are tied
    if tail >= 5:
        excess = (ordered[-tail:].exp() - cutoff.exp()).clamp(min=torch.finfo(torch.float64).tiny)
        k, sigma = fit_pareto(excess)
        k = _towards_half(k, tail)
        p = (torch.arange(tail, dtype=excess.dtype, device=excess.device) + 0.5) / tail
        quantiles = sigma * torch.where(k == 0, -torch.log1p(-p), torch.expm1(-k * torch.log1p(-p)) / k)
        ordered = torch.cat((ordered[:-tail], (cutoff.exp() + quantiles).log().clamp(max=0)))
    return torch.empty_like(ordered).scatter(0, order, ordered.softmax(0))


def _tail_of(log_weights: Tensor) -> int:
    draws = len(log_weights)
    if draws < 25:
        raise ValueError(f"expected at least 25 weights, got {draws}")
    return math.ceil(min(0.2 * draws, 3 * math.sqrt(draws)))


def _towards_half(k: Tensor, tail: int) -> Tensor:
    return (tail * k + _PRIOR_WEIGHT * 0.5) / (tail + _PRIOR_WEIGHT)


def _tied(excess: Tensor, rest: Tensor) -> Tensor:
    """The smoothed shape of what exceeds a cutoff that several weights share, (M,) -> ().

    Where next to nothing does it is the prior's, unless it outweighs all the rest, (); one value above has no tail.
    """
    above = excess[excess > 0]
    n = len(above)
    if n < 5:
        return above.new_tensor(0.5 if above.sum() < rest else math.inf)
    if above.max() - above.min() <= 100 * torch.finfo(above.dtype).eps * above.max():
        return above.new_tensor(-math.inf)
    tiny = torch.finfo(torch.float64).tiny
    return _towards_half(fit_pareto(above.clamp(min=tiny))[0], n)
