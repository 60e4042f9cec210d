"""Guides of any Pyro program: what they share, and the one over a packed vector of its sites."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.distribution import Distribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn
from torch.distributions import biject_to, register_kl

from pyrodgm.guides.discrete import Discrete, DiscretePosterior, Enumerate, StraightThrough
from pyrodgm.guides.reading import Call, Site, at_rest
from pyrodgm.guides.sites import Sites, check_sites, refuse_scaled
from pyrodgm.shapes import join_context
from pyrodgm.traces import plain

__all__ = ["PackedGuide", "ProgramGuide", "Pushed", "sample_factor"]


class Pushed(dist.Delta):
    """A site's value that was drawn elsewhere and pushed through a transform: a point with the ladj as its density.

    It is a Delta of Pyro in all but KL(q || p): Pyro's leaves the density out, which makes ``TraceMeanField_ELBO``
    wrong for constrained sites.
    """


@register_kl(Pushed, Distribution)
def _kl_pushed(p: Pushed, q: Any) -> Tensor:
    return p.log_density - q.log_prob(p.v)


def sample_factor(name: str, log_factor: Tensor) -> None:
    """A factor of the guide's density that came of reparameterised draws; ``pyro.factor`` warns outside inference."""
    pyro.sample(name, dist.Unit(log_factor, has_rsample=True), infer={"is_auxiliary": True})


class ProgramGuide(nn.Module):
    """The guide of a user's Pyro program: called with the program's arguments, it samples exactly its latent sites.

    It is a plain module: its parameters exist once it is built, and Pyro's parameter store stays empty. The program
    itself is no part of it, so train the parameters of both.

    Args:
        sites: what one trace of the program told.
        discrete: how discrete sites are treated; default :class:`~pyrodgm.guides.Enumerate`.
        hidden: widths of the network for the discrete sites.
    """

    def __init__(self, sites: Sites, discrete: Discrete | None = None, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        check_sites(sites)
        if sites.row_dim is not None and not sites.features:
            raise ValueError("expected what the guide reads to have numbers in each row, got none; pass observed=")
        self.sites = sites
        self.encoder = sites.observed if isinstance(sites.observed, nn.Module) else None
        self.discrete = DiscretePosterior(sites, tuple(hidden), discrete or Enumerate()) if sites.discrete else None
        #: numbers that the posterior of the local sites reads in each row
        self.features = sites.features + (0 if self.discrete is None else self.discrete.features)
        self.like: Tensor
        self.register_buffer("like", sites.like, persistent=False)  # carries dtype and device

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample the latent sites; returns their values by name."""
        call = self.sites.call(args, kwargs)
        if call.features is not None:
            call.features = call.features.to(self.like)
        values = self._sample_discrete(call)
        values |= self.sample_continuous(call, args, kwargs)
        if self.discrete is not None and isinstance(self.discrete.how, StraightThrough) and torch.is_grad_enabled():
            self._sample_slopes(values, call, args, kwargs)
        return values

    @abstractmethod
    def sample_continuous(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Sample the continuous sites; ``call.features`` holds what the local ones read."""

    def _sample_discrete(self, call: Call) -> dict[str, Tensor]:
        if self.discrete is None:
            return {}
        values: dict[str, Tensor] = {}
        conditions = self.discrete.conditions(call.features)
        for site in self.sites.discrete:
            if site.name not in call.observed:
                fn, infer = conditions[site.name]
                with call.around(site):
                    values[site.name] = pyro.sample(site.name, fn, infer=infer)
        if call.features is not None:
            for numbers in self.discrete.encode(values, call, self.like):
                call.features = join_context(call.features, numbers)
        return values

    def _sample_slopes(self, values: dict[str, Tensor], call: Call, args: tuple[Any, ...], kwargs: Any) -> None:
        """Factors of value 1 with the slope of log p(y) in a one-hot y, which torch's own, by the index, has not."""
        found = [s for s in self.sites.discrete if s.family is dist.OneHotCategorical and s.name in values]
        if not found:
            return
        known = values | {name: plate.indices for name, plate in call.plates.items()}
        with at_rest(self.sites.program):
            trace = poutine.trace(poutine.condition(self.sites.program, data=known)).get_trace(*args, **kwargs)
        for site in found:
            slope = (values[site.name] * plain(trace.nodes[site.name]["fn"]).logits).sum(-1)
            slope = sum_rightmost(slope, site.event_dim - 1)
            with call.around(site):
                sample_factor(f"_{site.name}_slope", slope.detach() - slope)

    def sample_pushed(self, site: Site, packed: Tensor, call: Call) -> Tensor | None:
        """The site at unconstrained numbers that an auxiliary site drew, (..., site.size); None where it is absent."""
        free = site.unpack(packed)
        if site.name in call.absent:
            self._sample_missing(site, free, call, torch.ones((), dtype=torch.bool, device=free.device))
            return None
        transform = biject_to(call.support(site))
        value = transform(free)
        ladj = transform.inv.log_abs_det_jacobian(value, free)
        ladj = sum_rightmost(ladj, ladj.dim() - value.dim() + site.event_dim)
        with call.around(site):
            pushed = pyro.sample(site.name, Pushed(value, log_density=ladj, event_dim=site.event_dim))
        if site.name in call.masks:
            self._sample_missing(site, free, call, ~call.masks[site.name])
        return pushed

    @staticmethod
    def _sample_missing(site: Site, free: Tensor, call: Call, missing: Tensor) -> None:
        # Where the program has no such site, it is given a standard normal one, which is the bound's pseudo-prior.
        pseudo = sum_rightmost(dist.Normal(free.new_zeros(()), 1.0).log_prob(free), len(site.free))
        with call.around(site, masked=False):
            sample_factor(f"_{site.name}_masked", -pseudo * missing.to(pseudo.dtype))

    def sample_packed(self, sites: Sequence[Site], packed: Tensor, call: Call) -> dict[str, Tensor]:
        """Sample each site at its share of the packed numbers."""
        shares = packed.split([site.size for site in sites], -1)
        pushed = {s.name: self.sample_pushed(s, u, call) for s, u in zip(sites, shares, strict=True)}
        return {name: value for name, value in pushed.items() if value is not None}


class Posterior(Protocol):
    """What a packed guide asks of its posteriors; any Tractable answers it."""

    event_shape: torch.Size
    context: int

    def condition(self, context: Tensor | None = None) -> TorchDistribution: ...


class PackedGuide(ProgramGuide):
    r"""A guide by any two tractable models over the packed unconstrained sites.

    .. math:: q(g, l \mid x) = q(g) \prod_b q(l_b \mid x_b, g)

    g are the global sites and l_b the local ones of row b, each in unconstrained space (``biject_to``), and each site's
    density carries the Jacobian. The packed vectors are the auxiliary sites "_globals" and "_locals".

    Args:
        sites: what one trace of the program told.
        posterior_of_globals: event shape (G,), no context; None where there are none.
        posterior_of_locals: event shape (L,); its context is the features (F numbers a row), with g behind them
            where its size is F + G; None where there are none.
        discrete: how discrete sites are treated; default :class:`~pyrodgm.guides.Enumerate`.
        hidden: widths of the network for the discrete sites.
    Raises: ValueError if the sizes do not fit the program, or if a site is under a ``poutine.scale``.
    Source: Kucukelbir et al. (2017), arXiv:1603.00788; Kingma and Welling (2014), arXiv:1312.6114.
    Example:
        >>> import torch
        >>> from pyrodgm.tractable import RealNVP
        >>> def program(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> x = torch.zeros(5, 2)
        >>> guide = PackedGuide(Sites(program, (x,)), None, RealNVP(2, 2, context=2))
        >>> guide(x)["z"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        sites: Sites,
        posterior_of_globals: Posterior | None,
        posterior_of_locals: Posterior | None,
        discrete: Discrete | None = None,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(sites, discrete, hidden)
        refuse_scaled(sites, type(self).__name__)
        _check_size("posterior_of_globals", posterior_of_globals, sites.global_size, (0,))
        wanted = (self.features, self.features + sites.global_size)
        _check_size("posterior_of_locals", posterior_of_locals, sites.local_size, wanted)
        self.posterior_of_globals, self.posterior_of_locals = posterior_of_globals, posterior_of_locals
        self.to(sites.like)

    def sample_continuous(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        values, packed_globals = {}, None
        if self.posterior_of_globals is not None:
            packed_globals = pyro.sample(
                "_globals", self.posterior_of_globals.condition(), infer={"is_auxiliary": True}
            )
            values.update(self.sample_packed(self.sites.global_sites, packed_globals, call))
        if self.posterior_of_locals is not None:
            context = cast(Tensor, call.features)  # a program with local sites has them
            if packed_globals is not None and self.posterior_of_locals.context > self.features:
                context = join_context(context, packed_globals)
            with call.plates[str(self.sites.plate)]:
                packed = pyro.sample(
                    "_locals", self.posterior_of_locals.condition(context), infer={"is_auxiliary": True}
                )
            values.update(self.sample_packed(self.sites.local_sites, packed, call))
        return values


def _check_size(name: str, posterior: Posterior | None, size: int, contexts: tuple[int, ...]) -> None:
    if posterior is None:
        if size:
            raise ValueError(f"expected {name} over {size} numbers, got None")
    elif tuple(posterior.event_shape) != (size,) or posterior.context not in contexts:
        raise ValueError(
            f"expected {name} of event shape ({size},) and context {' or '.join(map(str, sorted(set(contexts))))}, "
            f"got {tuple(posterior.event_shape)} and {posterior.context}"
        )
