r"""Estimators of the trace of a Jacobian from products :math:`u^\top J`, for continuous flows.

An estimator draws its noise once for a whole solve, so that the integrand is a smooth function of time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ExactTrace", "HutchPlusPlus", "Hutchinson", "Trace"]

Products = Callable[[Tensor], Tensor]


class Trace(ABC):
    """An unbiased estimator of tr J and of the squared Frobenius norm of J."""

    @abstractmethod
    def probes(self, x: Tensor) -> Tensor:
        """What one solve starting at x (*B, D) holds fixed: (K, *B, D), or with ones for B."""

    @abstractmethod
    def estimate(self, products: Products, probes: Tensor) -> tuple[Tensor, Tensor]:
        r"""(tr J, :math:`\|J\|_F^2`), each (*B).

        Args:
            products: :math:`u \mapsto u^\top J` for a stack of u, (K, *B, D) -> (K, *B, D).
            probes: (K, *B, D).
        """


class ExactTrace(Trace):
    """The trace itself, from D products in one batch.

    Example:
        >>> j, trace = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), ExactTrace()
        >>> trace.estimate(lambda u: u @ j, trace.probes(torch.zeros(2)))
        (tensor(5.), tensor(30.))
    """

    def probes(self, x: Tensor) -> Tensor:
        features = x.shape[-1]
        basis = torch.eye(features, dtype=x.dtype, device=x.device)
        return basis.reshape(features, *[1] * (x.dim() - 1), features)

    def estimate(self, products: Products, probes: Tensor) -> tuple[Tensor, Tensor]:
        rows = products(probes)  # (D, *B, D), J row by row
        return rows.diagonal(dim1=0, dim2=-1).sum(-1), rows.square().sum((0, -1))


class Hutchinson(Trace):
    r""":math:`\frac1K \sum_k \epsilon_k^\top J \epsilon_k` with independent noise of mean 0 and covariance I.

    Args:
        probes: K, the products for each evaluation.
        rademacher: signs instead of Gaussian noise; the variance is smaller.
    Raises: ValueError if probes < 1.
    Source: Hutchinson (1990); Grathwohl et al. (2019), arXiv:1810.01367, eq. 7.
    Example:
        >>> trace = Hutchinson(probes=3)
        >>> trace.estimate(lambda u: 2 * u, trace.probes(torch.zeros(4)))  # without error where J is diagonal
        (tensor(8.), tensor(16.))
    """

    def __init__(self, probes: int = 1, rademacher: bool = True) -> None:
        if probes < 1:
            raise ValueError(f"expected probes >= 1, got {probes}")
        self.count, self.rademacher = probes, rademacher

    def probes(self, x: Tensor) -> Tensor:
        return _noise(self.count, x, self.rademacher)

    def estimate(self, products: Products, probes: Tensor) -> tuple[Tensor, Tensor]:
        found = products(probes)
        return (found * probes).sum(-1).mean(0), found.square().sum(-1).mean(0)


class HutchPlusPlus(Trace):
    r"""The trace on the range of a sketch exactly, the rest by Hutchinson's estimator.

    .. math:: \mathrm{tr}\, Q^\top J Q + \tfrac{1}{k} \sum_{i \le k} g_i^\top (I - Q Q^\top) J (I - Q Q^\top) g_i,
        \quad Q = \mathrm{orth}(J^\top S)

    with k = K / 3 columns in S and in G. Q carries no gradient: the estimate is unbiased for any Q, and so is its
    gradient.

    Args:
        products: K, a multiple of 3, the products for each evaluation.
        rademacher: signs instead of Gaussian noise in G; S is Gaussian, since few signs are often parallel.
    Raises: ValueError if products is no positive multiple of 3.
    Source: Meyer et al. (2021), arXiv:2010.09649, algorithm 1, with the transpose of their A.
    Example:
        >>> a, trace = torch.tensor([1.0, 2.0, 3.0]), HutchPlusPlus(products=3)
        >>> found, _ = trace.estimate(lambda u: (u @ a).unsqueeze(-1) * a, trace.probes(torch.zeros(3)))
        >>> round(found.item(), 3)  # without error where J has rank one
        14.0
    """

    def __init__(self, products: int = 6, rademacher: bool = True) -> None:
        if products < 3 or products % 3:
            raise ValueError(f"expected a positive multiple of 3 products, got {products}")
        self.count, self.rademacher = products // 3, rademacher

    def probes(self, x: Tensor) -> Tensor:
        return torch.cat((_noise(self.count, x, False), _noise(self.count, x, self.rademacher)))

    def estimate(self, products: Products, probes: Tensor) -> tuple[Tensor, Tensor]:
        sketch, noise = probes.split(self.count)
        with torch.no_grad():
            q, _ = torch.linalg.qr(products(sketch).detach().movedim(0, -1))  # (*B, D, min(k, D))
            noise = noise.movedim(0, -1)
            rest = noise - q @ (q.mT @ noise)
            ranks = q.shape[-1]
            both = torch.cat((q, rest), -1).movedim(-1, 0)  # (min(k, D) + k, *B, D)
        found = products(both)
        traces, squares = (found * both).sum(-1), found.square().sum(-1)
        return tuple(v[:ranks].sum(0) + v[ranks:].mean(0) for v in (traces, squares))  # type: ignore[return-value]


def _noise(count: int, x: Tensor, rademacher: bool) -> Tensor:
    noise = torch.randn(count, *x.shape, dtype=x.dtype, device=x.device)
    return noise.sign() if rademacher else noise
