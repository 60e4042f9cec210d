"""Flows of couplings in each library, with the same perceptrons: affine (RealNVP) and rational-quadratic (NSF)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from contenders import BOUND, Contender, Net, floor, linears, nflows_contender, ours, zuko_contender, zuko_splines
from pyro.nn import DenseNN
from torch import Tensor, nn

from pyrodgm.tractable import NSF, RealNVP

__all__ = ["couplings"]


def _recipe(features: int, layers: int, hidden: Sequence[int], bins: int) -> NSF | RealNVP:
    return NSF(features, layers, hidden=hidden, bins=bins) if bins else RealNVP(features, layers, hidden=hidden)


def pyrodgms(
    features: int, layers: int, hidden: Sequence[int], bins: int, device: str, batch: int, n: int
) -> Contender:
    return ours(_recipe(features, layers, hidden, bins).to(device), batch, n)


def pyro_transforms(base: Any, parts: list[Any], batch: int, n: int) -> Contender:
    """Pyro's transforms as a contender; rows are copied, or their caches would answer for the last step."""
    flow = dist.TransformedDistribution(base, parts)

    def log_prob(x: Tensor) -> Tensor:
        return flow.log_prob(x.clone())

    def draw() -> tuple[Tensor, Tensor]:
        x = flow.rsample((batch,))
        return x, flow.log_prob(x)

    owners = [part if isinstance(part, nn.Module) else getattr(part, "_inv", None) for part in parts]
    parameters = [p for owner in owners if isinstance(owner, nn.Module) for p in owner.parameters()]
    return Contender("pyro", parameters, log_prob, lambda: flow.sample((n,)), draw)


def pyros(features: int, layers: int, hidden: Sequence[int], bins: int, device: str, batch: int, n: int) -> Contender:
    half = features // 2
    parts: list[Any] = []
    for i in range(layers):
        kept = half if i % 2 == 0 else features - half  # the permutation between them swaps the halves
        moved = features - kept
        if bins:
            net = DenseNN(kept, list(hidden), [moved * bins, moved * bins, moved * (bins - 1)])
            parts.append(T.SplineCoupling(features, kept, net, bins, BOUND, order="quadratic", identity=True))
        else:
            parts.append(T.AffineCoupling(kept, DenseNN(kept, list(hidden), [moved] * 2)))
        parts[-1].to(device)
        parts.append(T.Permute(torch.roll(torch.arange(features, device=device), -kept)))
    base = dist.Normal(torch.zeros(features, device=device), torch.ones(features, device=device)).to_event(1)
    return pyro_transforms(base, parts, batch, n)


def nflows(features: int, layers: int, hidden: Sequence[int], bins: int, device: str, batch: int, n: int) -> Contender:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import (
        AffineCouplingTransform,
        CompositeTransform,
        PiecewiseRationalQuadraticCouplingTransform,
    )

    def coupling(flip: int) -> nn.Module:
        mask = torch.ones(features)
        mask[: features // 2] = -1  # positive entries are moved
        mask = -mask if flip else mask
        net = partial(_net, hidden=hidden)
        if not bins:
            return AffineCouplingTransform(mask, net)
        return PiecewiseRationalQuadraticCouplingTransform(mask, net, bins, "linear", BOUND)

    flow = Flow(CompositeTransform([coupling(i % 2) for i in range(layers)]), StandardNormal([features])).to(device)
    return nflows_contender(flow, batch, n)


def _net(inputs: int, outputs: int, hidden: Sequence[int]) -> Net:
    return Net(inputs, outputs, hidden)


def zukos(features: int, layers: int, hidden: Sequence[int], bins: int, device: str, batch: int, n: int) -> Contender:
    import zuko

    flow = zuko.flows.NICE(features, transforms=layers, hidden_features=tuple(hidden), **zuko_splines(bins)).to(device)
    return zuko_contender(flow, batch, n)


def normflows(
    features: int, layers: int, hidden: Sequence[int], bins: int, device: str, batch: int, n: int
) -> Contender:
    import normflows as nf

    flows: list[nn.Module] = []
    for i in range(layers):
        if bins:
            mask = torch.ones(features)
            mask[: features // 2] = -1
            make = nf.flows.neural_spline.coupling.PiecewiseRationalQuadraticCoupling
            net = partial(_net, hidden=hidden)
            flows.append(make(-mask if i % 2 else mask, net, bins, "linear", BOUND))
        else:
            first = features - features // 2  # its Split gives the larger half to the network
            flows.append(nf.flows.AffineCouplingBlock(Net(first, 2 * (features - first), hidden)))
            flows.append(nf.flows.Permute(features, mode="swap"))
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(features, trainable=False), flows).to(device)
    return Contender(
        "normflows",
        list(flow.parameters()),
        flow.log_prob,
        lambda: flow.sample(n),
        lambda: flow.sample(batch),
    )


def couplings(
    features: int, layers: int, hidden: Sequence[int], bins: int, device: str, batch: int = 512, n: int = 1000
) -> tuple[list[Contender], Tensor]:
    """Every contender, the floor first, and rows to train on; without bins the couplings are affine."""
    makers: list[Callable[..., Contender]] = [pyrodgms, pyros, nflows, zukos, normflows]
    contenders = [make(features, layers, hidden, bins, device, batch, n) for make in makers]
    nets = [linears(layer) for layer in _recipe(features, layers, hidden, bins).bijectors]
    return [floor(nets, batch, n, device), *contenders], torch.randn(batch, features, device=device)
