"""Guides of any Pyro program that can be sampled and not scored: noise through a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyrodgm.guides.discrete import Discrete
from pyrodgm.guides.gaussian import raw_of, scale_of
from pyrodgm.guides.program import PackedGuide
from pyrodgm.guides.sites import Sites, check_sites, local_features
from pyrodgm.nets.mlp import MLP
from pyrodgm.shapes import join_context

__all__ = ["ImplicitGuide", "NoiseThrough", "Sampler"]


class ImplicitGuide(PackedGuide):
    r"""Noise through a network, over the packed unconstrained sites: any distribution, and no density.

    .. math:: l_b = m(x_b, g) + s(x_b, g) \odot (\epsilon_b + h(\epsilon_b, x_b, g)), \qquad \epsilon_b \sim N(0, I)

    and likewise for the global sites g, with m and s free. The noise may be larger than the sites: its first numbers
    are those added to h, so at first the guide is nearly Gaussian. ``Predictive`` and whatever else only draws takes
    it as it stands; whatever asks for its density is refused. To train it, and to score it by an estimate, there is
    :class:`~pyrodgm.guides.Contrast`; :class:`~pyrodgm.objectives.AdversarialVariationalBayes` uses that in ``fit``.

    Args:
        sites: what one trace of the program told.
        noise: numbers of noise for the globals and for each row; default twice as many as the sites have.
        hidden: widths of the networks.
        conditional: let the local sites read the global ones; without, they are independent given x.
        scale: standard deviation with which the global sites start.
        discrete: how discrete sites are treated; default :class:`~pyrodgm.guides.Enumerate`.
    Raises: ValueError if the noise has fewer numbers than the sites, if scale is not positive, or if there is no
        continuous site; NotImplementedError when scored.
    Source: Mescheder et al. (2017), arXiv:1701.04722, section 3 (the posterior as a black box of noise).
    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z.abs(), 0.5), obs=x)
        >>> x = torch.tensor([1.0, 2.0])
        >>> ImplicitGuide(Sites(program, (x,)))(x)["z"].shape
        torch.Size([2])
    """

    def __init__(
        self,
        sites: Sites,
        noise: int | None = None,
        hidden: Sequence[int] = (64, 64),
        conditional: bool = True,
        scale: float = 0.1,
        discrete: Discrete | None = None,
    ) -> None:
        check_sites(sites)
        if not sites.continuous:
            raise ValueError("expected a program with continuous latent sites, got discrete ones alone; use MeanField")
        if not scale > 0:
            raise ValueError(f"expected scale > 0, got {scale}")
        of_globals = of_locals = None
        if sites.global_size:
            of_globals = Sampler(sites.global_size, 0, noise, hidden)
            of_globals.begin(sites.start(), scale)
        if sites.local_size:
            of_locals = Sampler(sites.local_size, local_features(sites, conditional), noise, hidden)
        super().__init__(sites, of_globals, of_locals, discrete, hidden)


class Sampler(nn.Module):
    """Vectors from noise, and from a context where there is one.

    Args:
        features: numbers of a vector.
        context: size C of the context, 0 for none.
        noise: numbers of noise N >= features; default twice the features.
        hidden: widths of the networks.
    Shapes: noise (*B, N), context (*B, C) -> (*B, features).
    Raises: ValueError if noise < features.
    Example:
        >>> Sampler(2, context=3)(torch.zeros(5, 4), torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, features: int, context: int, noise: int | None = None, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        noise = 2 * features if noise is None else noise
        if noise < features:
            raise ValueError(
                f"expected noise >= {features}, the numbers that are drawn, or they fill no volume; got {noise}"
            )
        self.event_shape, self.context, self.noise = torch.Size((features,)), context, noise
        self.net = MLP(context, 2 * features, hidden) if context else None
        self.free = nn.Parameter(torch.cat((torch.zeros(features), torch.full((features,), raw_of(1.0)))))
        self.warp = MLP(noise + context, features, hidden, last_scale=0.1)

    def begin(self, loc: Tensor, scale: float) -> None:
        """Start near N(loc, scale^2)."""
        with torch.no_grad():
            self.free.copy_(torch.cat((loc, torch.full_like(loc, raw_of(scale)))))

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        raw = self.free if self.net is None else self.free + self.net(context)
        loc, raw_scale = raw.chunk(2, -1)
        drawn = noise[..., : self.event_shape[0]] + self.warp(join_context(noise, context))
        return loc + scale_of(raw_scale) * drawn

    def condition(self, context: Tensor | None = None) -> NoiseThrough:
        """The law of the vectors; its batch shape is the context's."""
        return NoiseThrough(self, context, torch.Size() if context is None else context.shape[:-1])


class NoiseThrough(TorchDistribution):
    """The law of ``sampler(noise, context)`` with standard normal noise: it can be sampled and not scored.

    Args:
        sampler: from noise (*B, N) and context (*B, C) to vectors (*B, D).
        context: (*B, C) or None.
        batch_shape: such as the context's.
    Raises: NotImplementedError when scored.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, sampler: Sampler, context: Tensor | None, batch_shape: torch.Size) -> None:
        self.sampler, self.context = sampler, context
        super().__init__(batch_shape, sampler.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> NoiseThrough:
        return NoiseThrough(self.sampler, self.context, torch.Size(batch_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        like = self.sampler.free
        lead = torch.Size(sample_shape) + self.batch_shape
        return self.sampler(torch.randn(*lead, self.sampler.noise, dtype=like.dtype, device=like.device), self.context)

    def log_prob(self, value: Tensor) -> NoReturn:
        raise NotImplementedError(
            "an implicit guide has no density: train it with pyrodgm.objectives.AdversarialVariationalBayes, or take "
            "the estimate of its critic, pyrodgm.guides.Contrast(guide).scored(guide)"
        )
