"""Gaussian guides of any Pyro program, on its unconstrained space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.nn import functional as F

from pyrodgm.core import Tractable
from pyrodgm.guides.discrete import Discrete
from pyrodgm.guides.program import PackedGuide, ProgramGuide
from pyrodgm.guides.reading import Call, Site
from pyrodgm.guides.sites import Sites, check_sites, local_features
from pyrodgm.nets.mlp import MLP

__all__ = ["FullCovariance", "MeanField", "raw_of", "sample_normals", "scale_of"]

_TINY = 1e-6  # keeps a scale from rounding to 0 in float32


def raw_of(scale: float) -> float:
    """The number that softplus takes to ``scale``."""
    return math.log(math.expm1(scale))


class MeanField(ProgramGuide):
    r"""Independent Gaussians on unconstrained space, for every continuous latent site of any program.

    .. math:: q(g, l \mid x) = \prod_i N(g_i; m_i, s_i^2) \prod_b \prod_j N(l_{bj}; m_j(x_b), s_j(x_b)^2)

    Local sites are amortized: one network of the row gives their means and scales. Global ones have parameters of
    their own, which start in the bulk of the prior. Real sites are plain normals, so ``TraceMeanField_ELBO`` finds
    their KL in closed form; the others are normals pushed through ``biject_to`` of their support.

    Args:
        sites: what one trace of the program told.
        hidden: widths of the network.
        scale: standard deviation with which the global sites start.
        discrete: how discrete sites are treated; default :class:`~pyrodgm.guides.Enumerate`.
    Raises: ValueError for a scale that is not positive.
    Source: Kucukelbir et al. (2017), arXiv:1603.00788, eq. 5; Kingma and Welling (2014), arXiv:1312.6114.
    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> def program(x):
        ...     with pyro.plate("data", len(x)):
        ...         rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...         pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> x = torch.tensor([1.0, 4.0, 2.0])
        >>> guide = MeanField(Sites(program, (x,)), hidden=[8])
        >>> guide(x)["rate"].shape
        torch.Size([3])
        >>> Trace_ELBO().differentiable_loss(program, guide, x).isfinite()
        tensor(True)
    """

    def __init__(
        self, sites: Sites, hidden: Sequence[int] = (64, 64), scale: float = 0.1, discrete: Discrete | None = None
    ) -> None:
        super().__init__(sites, discrete, hidden)
        if not scale > 0:
            raise ValueError(f"expected scale > 0, got {scale}")
        start = sites.start()
        self.loc = nn.Parameter(start) if sites.global_size else None
        self.raw_scale = nn.Parameter(torch.full_like(start, raw_of(scale))) if sites.global_size else None
        self.net = MLP(self.features, 2 * sites.local_size, hidden) if sites.local_size else None
        self.to(sites.like)

    def sample_continuous(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        local: Any = (None, None)
        if self.net is not None:  # (..., F) -> 2 x (..., L)
            local = self.net(call.features).to(self.like).chunk(2, -1)
        return sample_normals(self.sites, call, (self.loc, self.raw_scale), local)


def scale_of(raw: Tensor) -> Tensor:
    """A positive scale from any number."""
    return F.softplus(raw) + _TINY


def sample_normals(
    sites: Sites,
    call: Call,
    of_globals: tuple[Tensor | None, Tensor | None],
    of_locals: tuple[Tensor | None, Tensor | None],
) -> dict[str, Tensor]:
    """Sample every continuous site from its own normal, given packed means and raw scales of globals and locals."""
    parts = {}
    for members, (loc, raw) in ((sites.global_sites, of_globals), (sites.local_sites, of_locals)):
        if members and loc is not None and raw is not None:
            sizes = [site.size for site in members]
            shares = zip(members, loc.split(sizes, -1), scale_of(raw).split(sizes, -1), strict=True)
            parts.update({site.name: (site.unpack(m), site.unpack(s)) for site, m, s in shares})
    values = {}
    for site in sites.continuous:  # in the program's order, which TraceMeanField_ELBO asks for
        if site.name in call.absent:
            continue
        with call.around(site):
            values[site.name] = pyro.sample(site.name, _normal_on(site, call.support(site), *parts[site.name]))
    return values


def _normal_on(site: Site, support: Any, loc: Tensor, scale: Tensor) -> TorchDistribution:
    normal = dist.Normal(loc, scale).to_event(len(site.free))
    if site.real:
        return normal
    # The cache lives as long as this one distribution: its own draw is scored at the exact unconstrained point.
    return dist.TransformedDistribution(normal, [biject_to(support).with_cache()])


class _FullGaussian(Tractable):
    """N(m, L L^T) over vectors, m and L free or from a network of the context."""

    def __init__(self, features: int, context: int, hidden: Sequence[int], start: Tensor | None, scale: float) -> None:
        super().__init__((features,), context)
        numbers = features + features * (features + 1) // 2
        first = torch.zeros(numbers)
        first[features : 2 * features] = raw_of(scale)
        if start is not None:
            first = first.to(start.dtype)
            first[:features] = start.cpu()
        self.free = nn.Parameter(first)
        self.net = MLP(context, numbers, hidden, last_scale=0.1) if context else None
        self.below: Tensor
        rows, columns = torch.tril_indices(features, features, -1)
        self.register_buffer("below", rows * features + columns, persistent=False)  # places in a flattened matrix

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        _, context = self.check(None, context)
        raw = self.free if self.net is None else self.free + self.net(context)
        d = self.event_shape[0]
        loc, raw_scale, below = raw.split([d, d, len(self.below)], -1)
        strict = raw.new_zeros(*raw.shape[:-1], d * d).index_copy(-1, self.below, below)
        tril = strict.unflatten(-1, (d, d)) + torch.diag_embed(scale_of(raw_scale))
        return dist.MultivariateNormal(loc, scale_tril=tril)


class FullCovariance(PackedGuide):
    r"""Gaussians with full covariance on unconstrained space: one over the global sites, one a row over the local ones.

    .. math:: q(g, l \mid x) = N(g; m, L L^\top) \prod_b N(l_b; m(x_b, g), L(x_b, g) L(x_b, g)^\top)

    With ``hidden=()`` the local mean is linear in (x, g): the exact posterior of every linear-Gaussian program.

    Args:
        sites: what one trace of the program told.
        hidden: widths of the network of the local sites.
        conditional: let the local sites' network read the global ones; without, they are independent.
        scale: standard deviation with which the global sites start.
        discrete: how discrete sites are treated; default :class:`~pyrodgm.guides.Enumerate`.
    Raises: ValueError for a scale that is not positive.
    Source: Kucukelbir et al. (2017), arXiv:1603.00788, eq. 6.
    Example:
        >>> def program(x):
        ...     weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Categorical(weights), obs=x)
        >>> x = torch.tensor([0, 1, 1, 2])
        >>> guide = FullCovariance(Sites(program, (x,)))
        >>> guide(x)["weights"].shape
        torch.Size([3])
    """

    def __init__(
        self,
        sites: Sites,
        hidden: Sequence[int] = (64, 64),
        conditional: bool = True,
        scale: float = 0.1,
        discrete: Discrete | None = None,
    ) -> None:
        check_sites(sites)
        if not scale > 0:
            raise ValueError(f"expected scale > 0, got {scale}")
        features = local_features(sites, conditional)
        super().__init__(
            sites,
            _FullGaussian(sites.global_size, 0, (), sites.start(), scale) if sites.global_size else None,
            _FullGaussian(sites.local_size, features, hidden, None, 1.0) if sites.local_size else None,
            discrete,
            hidden,
        )
