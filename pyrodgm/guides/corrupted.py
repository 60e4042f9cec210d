"""A guide that reads corrupted data while it trains: the denoising autoencoder's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

__all__ = ["Corrupted", "GaussianNoise", "MaskingNoise"]


class Corrupted(nn.Module):
    r"""q(z | x~) with x~ a corruption of x, drawn anew at each call in train mode; in eval mode x~ = x.

    The model still has to give the clean x, so the ELBO is the denoising VAE's, a lower bound on
    log p(x) for every x~ and so in expectation:

    .. math:: \mathbb E_{p(\tilde x \mid x)} \mathbb E_{q(z \mid \tilde x)} [\log p(x, z) - \log q(z \mid \tilde x)]
        \le \log p(x)

    With a guide of fixed scale, ``Parametric(dist.Normal, Z, context=D, fixed={"scale": s})``, a VAE
    is an autoencoder with a Gaussian penalty on its code and noise s in it; s -> 0 is the textbook's
    autoencoder, whose code has no density, and no bound. With this guide about it, it is the denoising one.

    Args:
        guide: any guide with ``condition`` and ``forward``, such as :class:`Amortized`.
        corruption: x -> x~ of the same shape.
    Shapes: x (B, *event), context (B, C) -> z (B, Z).
    Raises: TypeError for a corruption that is no function.
    Source: Vincent et al. (2008); its bound: Im et al. (2017), arXiv:1511.06406, eq. 6.
    Example:
        >>> import pyro.distributions as dist
        >>> from pyrodgm.guides import Amortized
        >>> from pyrodgm.tractable import Parametric
        >>> inner = Amortized(Parametric(dist.Normal, 2, context=6, fixed={"scale": 0.1}))
        >>> Corrupted(inner, MaskingNoise(0.3))(torch.ones(5, 6)).shape
        torch.Size([5, 2])
    """

    def __init__(self, guide: nn.Module, corruption: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not callable(corruption):
            raise TypeError(f"expected a function x -> x~, got {corruption!r}; use MaskingNoise({corruption!r})")
        self.guide, self.corruption = guide, corruption

    def _read(self, x: Tensor) -> Tensor:
        return self.corruption(x) if self.training else x

    def condition(self, x: Tensor, context: Tensor | None = None) -> TorchDistribution:
        """q(z | x~, context), batch shape (B,)."""
        return self.guide.condition(self._read(x), context)  # type: ignore[operator]

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        return self.guide(None if x is None else self._read(x), context, n=n)


class MaskingNoise:
    """Set each element to 0 with probability p (masking noise).

    Args:
        p: in [0, 1).
    Raises: ValueError for another p.
    Source: Vincent et al. (2010), Stacked denoising autoencoders, JMLR 11, section 3.3.
    Example:
        >>> MaskingNoise(0.0)(torch.ones(2))
        tensor([1., 1.])
    """

    def __init__(self, p: float) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"expected 0 <= p < 1, got {p}")
        self.p = p

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(torch.rand_like(x) < self.p, 0.0, x)


class GaussianNoise:
    """Add N(0, scale^2) to each element.

    Args:
        scale: >= 0.
    Raises: ValueError for a negative scale.
    Source: Vincent et al. (2010), Stacked denoising autoencoders, JMLR 11, section 3.3.
    Example:
        >>> GaussianNoise(0.0)(torch.ones(2))
        tensor([1., 1.])
    """

    def __init__(self, scale: float) -> None:
        if not scale >= 0:
            raise ValueError(f"expected scale >= 0, got {scale}")
        self.scale = scale

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.randn_like(x)
