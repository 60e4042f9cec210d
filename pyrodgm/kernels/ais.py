"""Annealed importance sampling: the normaliser of a density by a path from one whose normaliser is known."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["AISEstimate", "AnnealingPath", "annealed_importance_sampling", "inverse_temperatures"]


class AnnealingPath(Protocol):
    r"""Densities :math:`f_\beta(x)` from a base (:math:`\beta = 0`) to the target (:math:`\beta = 1`)."""

    @property
    def base_log_partition(self) -> Tensor:
        r""":math:`\log Z_0`, the normaliser of :math:`f_0`, ()."""

    def start(self, chains: int, generator: torch.Generator | None = None) -> Tensor:
        r"""Exact draws from :math:`f_0 / Z_0`, (chains, *event)."""

    def log_density(self, x: Tensor, beta: Tensor) -> Tensor:
        r""":math:`\log f_\beta(x)`, unnormalised, (chains, *event) -> (chains,)."""

    def move(self, x: Tensor, beta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""One step of a Markov kernel that leaves :math:`f_\beta` invariant; it makes a new tensor."""


class AISEstimate(NamedTuple):
    """An estimate of log Z.

    Attributes:
        log_z: (), nats.
        standard_error: of log_z, ().
        log_weights: (chains,); the mean of their exponentials is an unbiased estimate of Z.
    """

    log_z: Tensor
    standard_error: Tensor
    log_weights: Tensor


def inverse_temperatures(temperatures: int | Tensor) -> Tensor:
    """K equal steps from 0 to 1, or the steps that are given: (K + 1,).

    Raises: ValueError if they do not rise from 0 to 1.
    Example:
        >>> inverse_temperatures(2).tolist()
        [0.0, 0.5, 1.0]
    """
    betas = temperatures
    if not isinstance(betas, Tensor):
        betas = torch.linspace(0, 1, betas + 1, dtype=torch.float64)
    if betas.dim() != 1 or len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or bool((betas.diff() < 0).any()):
        raise ValueError(
            "expected inverse temperatures that rise from 0 to 1, or how many; e.g. torch.linspace(0, 1, 1001)"
        )
    return betas


@torch.no_grad()
def annealed_importance_sampling(
    path: AnnealingPath,
    chains: int = 1000,
    temperatures: int | Tensor = 4000,
    generator: torch.Generator | None = None,
) -> AISEstimate:
    r"""log Z of the end of a path, from independent chains that are annealed along it.

    .. math::
        \log w = \log Z_0 + \sum_{k=1}^K \log \frac{f_{\beta_k}(x_{k-1})}{f_{\beta_{k-1}}(x_{k-1})}, \quad
        x_k \sim T_{\beta_k}(\cdot \mid x_{k-1}), \quad \hat Z = \frac1M \sum_m w_m

    with the standard error of :math:`\log \hat Z` by the delta method,
    :math:`\mathrm{sd}(w) / (\bar w \sqrt M)`. It is honest only while many weights matter: chains
    that all miss a mode report a small error and too low a log Z.

    Args:
        path: base, target and what lies between.
        chains: M >= 2.
        temperatures: K equal steps of :math:`\beta`, or the inverse temperatures themselves, from 0 up to 1, (K + 1,).
        generator: source of the noise that the path draws; default torch's own.
    Shapes: returns scalars and log-weights (M,).
    Raises: ValueError for fewer than two chains or temperatures that do not rise from 0 to 1.
    Source: Neal (2001), Annealed importance sampling; Salakhutdinov and Murray (2008), ICML, section 4.1.
    Example:
        >>> from pyrodgm.energy import RBM
        >>> log_z, standard_error = RBM(visible=6, hidden=3).log_partition("ais", chains=10, temperatures=20, seed=0)
        >>> log_z.shape
        torch.Size([])
    """
    if chains < 2:
        raise ValueError(f"expected chains >= 2 (the standard error needs two), got {chains}")
    betas = inverse_temperatures(temperatures)
    x = path.start(chains, generator)
    betas = betas.to(x.device)
    base = path.base_log_partition
    log_weights = base.expand(chains)
    for k in range(1, len(betas)):
        log_weights = log_weights + (path.log_density(x, betas[k]) - path.log_density(x, betas[k - 1]))
        if k < len(betas) - 1:  # the last weight is taken before the move that would follow
            x = path.move(x, betas[k], generator)
    log_z = log_weights.logsumexp(0) - math.log(chains)
    relative = (log_weights - log_z).exp()  # w / mean(w)
    return AISEstimate(log_z, relative.std() / math.sqrt(chains), log_weights)
