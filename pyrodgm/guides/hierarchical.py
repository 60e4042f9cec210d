"""Hierarchical guides: a posterior made richer by an auxiliary variable that is integrated out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrodgm.guides.discrete import Discrete
from pyrodgm.guides.program import ProgramGuide, sample_factor
from pyrodgm.guides.reading import Call
from pyrodgm.guides.sites import Sites, check_sites, local_features, refuse_scaled
from pyrodgm.shapes import join_context
from pyrodgm.tractable.parametric import Parametric, StandardNormal

__all__ = ["Hierarchical"]


class Hierarchical(ProgramGuide):
    r"""A continuous mixture of Gaussians as the posterior, bounded with a reverse model r of the mixing variable.

    .. math:: \log p(x) \ge \mathbb E_{q(a)\, q(z \mid a, x)}
        [\log p(x, z) + \log r(a \mid z, x) - \log q(a) - \log q(z \mid a, x)]

    z are the unconstrained sites, a is standard normal: one for the global sites, one a row for the local ones. The
    marginal q(z | x) can be skewed and multimodal. The bound is the ELBO of q(z | x) less a KL that vanishes as r
    approaches q(a | z, x). In the traces -log r is the factor "_reverse_globals" or "_reverse_locals".

    Args:
        sites: what one trace of the program told.
        auxiliary: size A of a.
        hidden: widths of the networks of q(z | a, x) and r(a | z, x).
        conditional: let the local sites read the global ones; without, they are independent given x.
        scale: standard deviation with which the global sites start.
        discrete: how discrete sites are treated; default :class:`~pyrodgm.guides.Enumerate`.
    Raises: ValueError if auxiliary < 1 or scale is not positive, or if a site is under a ``poutine.scale``.
    Source: Ranganath et al. (2016), arXiv:1511.02386, eq. 6-8; Maaloe et al. (2016), arXiv:1602.05473, eq. 5.
    Example:
        >>> def program():
        ...     a = pyro.sample("a", dist.Normal(0.0, 1.0))
        ...     pyro.sample("b", dist.Normal(a**2, 0.1))
        >>> guide = Hierarchical(Sites(program), auxiliary=2)
        >>> sorted(guide())
        ['a', 'b']
    """

    def __init__(
        self,
        sites: Sites,
        auxiliary: int = 2,
        hidden: Sequence[int] = (64, 64),
        conditional: bool = True,
        scale: float = 0.1,
        discrete: Discrete | None = None,
    ) -> None:
        check_sites(sites)
        refuse_scaled(sites, type(self).__name__)
        if auxiliary < 1 or not scale > 0:
            raise ValueError(f"expected auxiliary >= 1 and scale > 0, got {auxiliary} and {scale}")
        super().__init__(sites, discrete, hidden)
        self.conditional = conditional and sites.global_size > 0
        self.of_globals = self.of_locals = None
        if sites.global_size:
            self.of_globals = _Mixture(sites.global_size, auxiliary, 0, hidden)
            self.of_globals.begin(sites.start(), scale)
        if sites.local_size:
            self.of_locals = _Mixture(sites.local_size, auxiliary, local_features(sites, conditional), hidden)
        self.to(sites.like)

    def sample_continuous(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        values, packed_globals = {}, None
        if self.of_globals is not None:
            packed_globals = self.of_globals("globals", None)
            values.update(self.sample_packed(self.sites.global_sites, packed_globals, call))
        if self.of_locals is not None:
            context = call.features
            if self.conditional and context is not None:
                context = join_context(context, packed_globals)
            with call.plates[str(self.sites.plate)]:
                packed = self.of_locals("locals", context)
            values.update(self.sample_packed(self.sites.local_sites, packed, call))
        return values


class _Mixture(nn.Module):
    """q(a) q(u | a, c) with r(a | u, c), as three Pyro sites."""

    def __init__(self, features: int, auxiliary: int, context: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.auxiliary = StandardNormal(auxiliary)
        self.forth = Parametric(dist.Normal, features, context=auxiliary + context, hidden=hidden)
        self.back = Parametric(dist.Normal, auxiliary, context=features + context, hidden=hidden)

    def begin(self, loc: Tensor, scale: float) -> None:
        """Start q(u | a) near N(loc, scale^2)."""
        last = [m for m in self.forth.modules() if isinstance(m, nn.Linear)][-1]
        with torch.no_grad():
            last.weight.mul_(scale)
            last.bias.copy_(torch.cat((loc, torch.full_like(loc, math.log(scale)))))

    def forward(self, name: str, context: Tensor | None) -> Tensor:
        a = pyro.sample(f"_auxiliary_{name}", self.auxiliary.condition(), infer={"is_auxiliary": True})
        u = pyro.sample(f"_{name}", self.forth.condition(join_context(a, context)), infer={"is_auxiliary": True})
        sample_factor(f"_reverse_{name}", -self.back.condition(join_context(u, context)).log_prob(a))
        return u
