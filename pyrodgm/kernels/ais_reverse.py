"""Reverse annealed importance sampling: a log Z that errs upwards, from exact draws of the target."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from pyrodgm.kernels.ais import AISEstimate, AnnealingPath, inverse_temperatures

__all__ = ["ReversiblePath", "reverse_annealed_importance_sampling"]


class ReversiblePath(AnnealingPath, Protocol):
    """A path whose moves can be run backwards in time."""

    def reverse_move(self, x: Tensor, beta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""One step of ``move``'s reversal, :math:`\tilde T(x \mid x') = T(x' \mid x) f_\beta(x) / f_\beta(x')`."""


@torch.no_grad()
def reverse_annealed_importance_sampling(
    path: ReversiblePath,
    samples: Tensor,
    temperatures: int | Tensor = 4000,
    generator: torch.Generator | None = None,
) -> AISEstimate:
    r"""log Z of the end of a path, from exact draws of the end that are annealed back to the base.

    .. math::
        x_{K-1} \sim f_1 / Z, \quad x_{k-1} \sim \tilde T_{\beta_k}(\cdot \mid x_k), \quad
        \log w = \log Z_0 + \sum_{k=1}^K \log \frac{f_{\beta_k}(x_{k-1})}{f_{\beta_{k-1}}(x_{k-1})}, \quad
        \hat Z^{-1} = \frac1M \sum_m w_m^{-1}

    :math:`\hat Z^{-1}` is unbiased for 1 / Z, so by Jensen :math:`\log \hat Z` lies above log Z in expectation, where
    forward AIS lies below: together they bracket it. Draws that only come from a long chain make that a claim about
    the chain. The standard error is of the delta method, as of the forward estimate.

    Args:
        path: base, target and what lies between, with moves that can be reversed.
        samples: M >= 2 independent exact draws of the target, (M, *event).
        temperatures: as of :func:`annealed_importance_sampling`.
        generator: source of the noise that the path draws; default torch's own.
    Shapes: returns scalars and log-weights (M,); the mean of exp(-log_weights) is unbiased for 1 / Z.
    Raises: ValueError for fewer than two draws or temperatures that do not rise from 0 to 1.
    Source: Burda, Grosse and Salakhutdinov (2015), arXiv:1412.8566, section 3; Grosse et al. (2015), arXiv:1511.02543,
        section 3.1 (bidirectional Monte Carlo).
    Example:
        >>> from pyrodgm.energy import RBM
        >>> rbm = RBM(visible=6, hidden=3)
        >>> high, error = rbm.log_partition("reverse", samples=rbm.sample(10), temperatures=20, seed=0)
        >>> high.shape
        torch.Size([])
    """
    if len(samples) < 2:
        raise ValueError(f"expected at least 2 samples (the standard error needs two), got {len(samples)}")
    betas = inverse_temperatures(temperatures).to(samples.device)
    x, log_weights = samples, path.base_log_partition.expand(len(samples))
    for k in range(len(betas) - 1, 0, -1):
        log_weights = log_weights + (path.log_density(x, betas[k]) - path.log_density(x, betas[k - 1]))
        if k > 1:  # what the last move would reach has no weight
            x = path.reverse_move(x, betas[k - 1], generator)
    log_z = math.log(len(samples)) - (-log_weights).logsumexp(0)
    relative = (log_z - log_weights).exp()  # w^-1 / mean(w^-1)
    return AISEstimate(log_z, relative.std() / math.sqrt(len(samples)), log_weights)
