"""Autoregressive flows in each library, with the same masked networks: affine (MAF, IAF) and splines (NSF)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from contenders import BOUND, Contender, floor, linears, nflows_contender, ours, zuko_contender, zuko_splines
from couplings import pyro_transforms
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn

from pyrodgm.bijectors import RationalQuadraticSpline, ScaleShift
from pyrodgm.tractable import IAF, MAF

__all__ = ["autoregressive"]


def _recipe(features: int, layers: int, hidden: Sequence[int], bins: int, inverse: bool) -> MAF | IAF:
    univariate: Callable[[], Any] = partial(RationalQuadraticSpline, bins, BOUND) if bins else ScaleShift
    return (IAF if inverse else MAF)(features, layers, hidden=hidden, univariate=univariate)


def pyrodgms(
    features: int, layers: int, hidden: Sequence[int], bins: int, inverse: bool, device: str, batch: int, n: int
) -> Contender:
    return ours(_recipe(features, layers, hidden, bins, inverse).to(device), batch, n)


def pyros(
    features: int, layers: int, hidden: Sequence[int], bins: int, inverse: bool, device: str, batch: int, n: int
) -> Contender:
    parts: list[Any] = []
    natural = torch.arange(features)
    sizes = [bins, bins, bins - 1] if bins else [1, 1]
    for i in range(layers):
        net = AutoRegressiveNN(
            features, list(hidden), param_dims=sizes, permutation=natural if i % 2 == 0 else natural.flip(0)
        )
        layer = (
            T.SplineAutoregressive(features, net, bins, BOUND, order="quadratic")
            if bins
            else T.AffineAutoregressive(net)
        ).to(device)
        parts.append(layer if inverse else layer.inv)
    base = dist.Normal(torch.zeros(features, device=device), torch.ones(features, device=device)).to_event(1)
    return pyro_transforms(base, parts, batch, n)


def nflows(
    features: int, layers: int, hidden: Sequence[int], bins: int, inverse: bool, device: str, batch: int, n: int
) -> Contender:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import (
        CompositeTransform,
        InverseTransform,
        MaskedAffineAutoregressiveTransform,
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        ReversePermutation,
    )

    shape: dict[str, Any] = {"num_blocks": len(hidden) - 1, "use_residual_blocks": False}
    parts: list[nn.Module] = []
    for _ in range(layers):
        layer = (
            MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                features, hidden[0], num_bins=bins, tails="linear", tail_bound=BOUND, **shape
            )
            if bins
            else MaskedAffineAutoregressiveTransform(features, hidden[0], **shape)
        )
        parts += [InverseTransform(layer) if inverse else layer, ReversePermutation(features)]
    flow = Flow(CompositeTransform(parts), StandardNormal([features])).to(device)
    return nflows_contender(flow, batch, n)


def zukos(
    features: int, layers: int, hidden: Sequence[int], bins: int, inverse: bool, device: str, batch: int, n: int
) -> Contender:
    import zuko

    flow = zuko.flows.MAF(features, transforms=layers, hidden_features=tuple(hidden), **zuko_splines(bins))
    if inverse:
        flow = zuko.flows.Flow(flow.transform.inv, flow.base)
    flow = flow.to(device)
    return zuko_contender(flow, batch, n)


def normflows(
    features: int, layers: int, hidden: Sequence[int], bins: int, inverse: bool, device: str, batch: int, n: int
) -> Contender:
    """Its layers go fast from their input; for a density they are run that way by hand, as its spline wrapper does."""
    import normflows as nf

    shape: dict[str, Any] = {"num_blocks": len(hidden) - 1, "use_residual_blocks": False}
    make = (
        partial(
            nf.flows.neural_spline.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive,
            num_bins=bins,
            tails="linear",
            tail_bound=BOUND,
        )
        if bins
        else nf.flows.MaskedAffineAutoregressive
    )
    parts = nn.ModuleList(make(features, hidden[0], **shape) for _ in range(layers)).to(device)
    base = nf.distributions.DiagGaussian(features, trainable=False).to(device)

    def run(x: Tensor, fast: bool) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for part in parts:
            x, ladj = (part if fast else part.inverse)(x)
            x, total = x.flip(-1), total + ladj
        return x, total

    def log_prob(x: Tensor) -> Tensor:
        z, ladj = run(x, not inverse)
        return base.log_prob(z) + ladj

    def draw(rows: int) -> tuple[Tensor, Tensor]:
        z, log_p = base(rows)
        x, ladj = run(z, inverse)
        return x, log_p - ladj

    return Contender("normflows", list(parts.parameters()), log_prob, lambda: draw(n), lambda: draw(batch))


def autoregressive(
    features: int,
    layers: int,
    hidden: Sequence[int],
    bins: int,
    device: str,
    inverse: bool = False,
    batch: int = 512,
    n: int = 1000,
) -> tuple[list[Contender], Tensor]:
    """Every contender, the floor first, and rows to train on; ``inverse`` makes drawing the fast direction."""
    makers: list[Callable[..., Contender]] = [pyrodgms, pyros, nflows, zukos, normflows]
    if hidden[0] < features:
        makers.remove(pyros)  # its network refuses
    contenders = [make(features, layers, hidden, bins, inverse, device, batch, n) for make in makers]
    nets = [linears(layer) for layer in _recipe(features, layers, hidden, bins, inverse).bijectors]
    return [floor(nets, batch, n, device), *contenders], torch.randn(batch, features, device=device)
