"""Discrete sites of a guide: enumerated, scored, or relaxed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from pyrodgm.guides.reading import Call, Site
from pyrodgm.guides.sites import Sites, readable
from pyrodgm.nets.mlp import MLP

__all__ = ["Discrete", "DiscretePosterior", "Enumerate", "Score", "StraightThrough"]


class Discrete(ABC):
    """How a guide treats its discrete sites."""

    @abstractmethod
    def __call__(self, family: Any, logits: Tensor) -> tuple[TorchDistribution, dict[str, Any]]:
        """The distribution of one site and its ``infer`` flags; family is one of Pyro's three."""


class Enumerate(Discrete):
    r"""Sum over every value: exact expectations :math:`\sum_y q(y \mid x) \, (\cdot)` under Pyro's ``TraceEnum_ELBO``.

    Pyro's other ELBOs do not sum, and say so; for them there is :class:`Score`.

    Example:
        >>> Enumerate()(dist.Bernoulli, torch.zeros(3))[1]
        {'enumerate': 'parallel'}
    """

    def __call__(self, family: Any, logits: Tensor) -> tuple[TorchDistribution, dict[str, Any]]:
        return family(logits=logits), {"enumerate": "parallel"}


class Score(Discrete):
    """Draw the site; its gradient is the score function's, in any ELBO.

    Example:
        >>> Score()(dist.Bernoulli, torch.zeros(3))[1]
        {}
    """

    def __call__(self, family: Any, logits: Tensor) -> tuple[TorchDistribution, dict[str, Any]]:
        return family(logits=logits), {}


class StraightThrough(Discrete):
    r"""Draw a hard value whose gradient is that of a Gumbel-softmax draw: biased, of small variance.

    The guide's density is the relaxed one's, so the ELBO is a training signal and no bound. The slope of a one-hot
    site's log p(y), which torch scores by the index, is that of :math:`\sum_k y_k \log p_k`: the guide adds it to a
    gradient by the factor "_y_slope", whose value is 1, and runs the program once more for it.

    Args:
        temperature: of the relaxation, positive.
    Raises: TypeError for a Categorical site, whose values are indices; write it one-hot.
    Source: Jang et al. (2017), arXiv:1611.01144, eq. 2 and section 2.2; Maddison et al. (2017), arXiv:1611.00712.
    Example:
        >>> StraightThrough(0.5)(dist.OneHotCategorical, torch.zeros(3))[0].rsample().sum()
        tensor(1.)
    """

    def __init__(self, temperature: float = 0.5) -> None:
        if not temperature > 0:
            raise ValueError(f"expected temperature > 0, got {temperature}")
        self.temperature = temperature

    def __call__(self, family: Any, logits: Tensor) -> tuple[TorchDistribution, dict[str, Any]]:
        temperature = logits.new_full((), self.temperature)
        if family is dist.Bernoulli:
            return dist.RelaxedBernoulliStraightThrough(temperature, logits=logits), {}
        if family is dist.OneHotCategorical:
            return dist.RelaxedOneHotCategoricalStraightThrough(temperature, logits=logits), {}
        raise TypeError(
            "expected Bernoulli or OneHotCategorical sites, got Categorical; use Enumerate or one-hot values"
        )


class DiscretePosterior(nn.Module):
    r"""Independent discrete sites, :math:`\prod_i q(y_i \mid x)`: local ones by a network of x, global ones free.

    Args:
        sites: of the program.
        hidden: widths of the network.
        how: how the sites are treated.
    """

    def __init__(self, sites: Sites, hidden: tuple[int, ...], how: Discrete) -> None:
        super().__init__()
        self.how = how
        self.members = sites.discrete
        local, free = (sum(s.size for s in sites.discrete if (s.rows is None) == flag) for flag in (False, True))
        self.net = MLP(sites.features, local, hidden) if local else None
        self.free = nn.Parameter(torch.zeros(free)) if free else None
        #: the local sites that continuous ones may read, and how many numbers they are
        self.read = readable(sites)
        self.features = sum(s.size for s in self.read)

    def conditions(self, features: Tensor | None) -> dict[str, tuple[TorchDistribution, Any]]:
        """Each site's distribution and flags."""
        found: dict[str, tuple[TorchDistribution, Any]] = {}
        at = {True: 0, False: 0}
        numbers = {
            True: None if self.net is None or features is None else self.net(features).to(features.dtype),
            False: self.free,
        }
        for site in self.members:
            local = site.rows is not None
            packed = numbers[local]
            if packed is None:
                raise ValueError(f"expected features for the local site {site.name!r}, got none")
            logits = site.unpack(packed[..., at[local] : at[local] + site.size])
            at[local] += site.size
            fn, infer = self.how(site.family, logits)
            found[site.name] = fn.to_event(site.event_dim - fn.event_dim), infer
        return found

    def encode(self, values: dict[str, Tensor], call: Call, like: Tensor) -> list[Tensor]:
        """The local sites' values as numbers beside the features: categories one-hot."""
        parts = []
        for site in self.read:
            value = values[site.name] if site.name in values else call.observed[site.name]
            parts.append(_numbers(site, value).to(like))
        return parts


def _numbers(site: Site, value: Tensor) -> Tensor:
    if site.family is dist.Categorical:
        value = F.one_hot(value.long(), site.choices)
        return value.flatten(value.dim() - site.event_dim - 1)
    return value.flatten(value.dim() - site.event_dim) if site.event_dim else value.unsqueeze(-1)
