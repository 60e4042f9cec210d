"""Planar flows in each library, which are timed by reverse KL: the direction that has a closed form everywhere."""

from __future__ import annotations

import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from contenders import Contender, ours
from couplings import pyro_transforms
from torch import Tensor, nn

from pyrodgm.bijectors import Planar
from pyrodgm.tractable import Flow, StandardNormal

__all__ = ["planars"]


def pyros(features: int, layers: int, device: str, batch: int, n: int) -> Contender:
    parts = [T.Planar(features).to(device) for _ in range(layers)]
    base = dist.Normal(torch.zeros(features, device=device), torch.ones(features, device=device)).to_event(1)
    return pyro_transforms(base, parts, batch, n)


def normflows(features: int, layers: int, device: str, batch: int, n: int) -> Contender:
    import normflows as nf

    parts: list[nn.Module] = [nf.flows.Planar((features,)) for _ in range(layers)]
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(features, trainable=False), parts).to(device)
    return Contender("normflows", list(flow.parameters()), flow.log_prob, None, lambda: flow.sample(batch))


def planars(features: int, layers: int, device: str, batch: int = 512, n: int = 1000) -> tuple[list[Contender], Tensor]:
    """Every contender, ours first: there is no matrix product to be a floor."""
    flow = Flow(StandardNormal(features), [Planar(features) for _ in range(layers)]).to(device)
    contenders = [ours(flow, batch, n), *(make(features, layers, device, batch, n) for make in (pyros, normflows))]
    return contenders, torch.randn(batch, features, device=device)
