"""Every flow and distribution that nflows shows, through the bridge: its own numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import grow
from nflows import distributions as ND
from nflows import flows as NF
from nflows import transforms as T
from nflows.nn import nets
from torch import Tensor, nn

from pyrodgm.bridges.nflows import AsNflowsDistribution, NflowsModel
from pyrodgm.tractable import RealNVP

D, C, N = 4, 2, 6
IMAGE = (4, 2, 2)
EXACT = {"rtol": 0.0, "atol": 1e-9}


def autoregressive(context: int | None = None) -> Any:
    return T.MaskedAffineAutoregressiveTransform(D, 8, context_features=context, num_blocks=1)


def to_image() -> Any:
    """An affine coupling of images whose network takes an image as its context."""
    return T.AffineCouplingTransform(
        [1, 0, 1, 0], lambda i, o: nets.ConvResidualNet(i, o, hidden_channels=6, num_blocks=1, context_channels=2)
    )


def embedded() -> Any:
    """A context through a batch norm, which takes a second leading dimension for its channels."""
    net = nn.Sequential(nn.Linear(C, 3), nn.BatchNorm1d(3))
    return NF.Flow(autoregressive(3), ND.ConditionalDiagonalNormal([D], nn.Linear(3, 2 * D)), net)


def image_embedded() -> Any:
    net = nn.Sequential(nn.Linear(C, 8), nn.Unflatten(-1, (2, 2, 2)))
    return NF.Flow(to_image(), ND.StandardNormal(list(IMAGE)), net)


def in_vectors() -> Any:
    multi = T.MultiscaleCompositeTransform(1)
    multi.add_transform(T.CompositeTransform([T.SqueezeTransform(), T.ActNorm(4)]), IMAGE)
    return NF.Flow(multi, ND.StandardNormal([16]))


BOTH = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Density:
    """A distribution of nflows, and of which types it draws through the bridge, and by itself."""

    build: Callable[[], Any]
    context: int = 0
    event: tuple[int, ...] = (D,)
    draws: tuple[torch.dtype, ...] = BOTH
    it_draws: bool = True


DENSITIES: dict[str, Density] = {
    "MaskedAutoregressiveFlow": Density(lambda: NF.MaskedAutoregressiveFlow(D, 8, 2, 1)),
    "MaskedAutoregressiveFlow norms": Density(
        lambda: NF.MaskedAutoregressiveFlow(
            D, 8, 2, 1, batch_norm_within_layers=True, batch_norm_between_layers=True, use_random_permutations=True
        )
    ),
    "SimpleRealNVP": Density(lambda: NF.SimpleRealNVP(D, 8, 2, 1)),
    "SimpleRealNVP additive": Density(
        lambda: NF.SimpleRealNVP(D, 8, 2, 1, use_volume_preserving=True, batch_norm_between_layers=True)
    ),
    "Flow": Density(lambda: NF.Flow(autoregressive(C), ND.StandardNormal([D])), C),
    "Flow embedded": Density(embedded, C),
    "Flow image context": Density(image_embedded, C, IMAGE),
    "Flow of a flow": Density(lambda: NF.Flow(T.ActNorm(D), NF.SimpleRealNVP(D, 8, 2, 1))),
    "Flow of a flow of images": Density(
        lambda: NF.Flow(T.SqueezeTransform(), NF.Flow(T.ActNorm(4), ND.StandardNormal(list(IMAGE)))), event=(1, 4, 4)
    ),
    "Flow of a flow that ends in vectors": Density(lambda: NF.Flow(T.ActNorm(1), in_vectors()), event=(1, 4, 4)),
    "Flow of a flow under a context": Density(
        lambda: NF.Flow(autoregressive(C), NF.Flow(autoregressive(C), ND.StandardNormal([D]))), C
    ),
    "Flow of ours": Density(lambda: NF.Flow(autoregressive(), AsNflowsDistribution(RealNVP(D, 2, hidden=[8])))),
    "Flow of a diagonal": Density(lambda: NF.Flow(autoregressive(), ND.DiagonalNormal([D])), it_draws=False),
    "Flow of a mixture": Density(lambda: NF.Flow(autoregressive(C), ND.MADEMoG(D, 8, C)), C, draws=BOTH[:1]),
    "StandardNormal": Density(lambda: ND.StandardNormal([D])),
    "StandardNormal image": Density(lambda: ND.StandardNormal(list(IMAGE)), C, IMAGE),
    "ConditionalDiagonalNormal": Density(lambda: ND.ConditionalDiagonalNormal([D], nn.Linear(C, 2 * D)), C),
    "DiagonalNormal": Density(lambda: ND.DiagonalNormal([D]), it_draws=False),
    "MADEMoG": Density(lambda: ND.MADEMoG(D, 8, C, num_mixture_components=2), C, draws=BOTH[:1]),
    "MADEMoG alone": Density(lambda: ND.MADEMoG(D, 8, None, num_mixture_components=2), draws=()),
    "ConditionalIndependentBernoulli": Density(lambda: ND.ConditionalIndependentBernoulli([D], nn.Linear(C, D)), C),
}


def density(name: str, dtype: torch.dtype) -> tuple[Any, NflowsModel, Tensor, Tensor | None]:
    case = DENSITIES[name]
    torch.manual_seed(0)
    theirs = grow(case.build(), 0.2).to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, *case.event, generator=generator, dtype=torch.float64).to(dtype)
    c = torch.randn(N, case.context, generator=generator, dtype=torch.float64).to(dtype) if case.context else None
    return theirs, NflowsModel(theirs, case.event, case.context).eval(), x, c


def test_nothing_that_it_shows_is_left_out():
    shown = {n for m in (ND, NF) for n, v in vars(m).items() if isinstance(v, type) and issubclass(v, ND.Distribution)}
    assert shown - {"Distribution"} == {name.split()[0] for name in DENSITIES}


@pytest.mark.parametrize("name", DENSITIES)
def test_density(name):
    """log_prob and its gradients, under one leading dimension and under two, and one context for all."""
    theirs, model, x, c = density(name, torch.float64)
    wanted = [p.requires_grad_() for p in (x, c, *theirs.parameters()) if p is not None]
    found, expected = model.log_prob(x, c), theirs.log_prob(x, context=c)
    torch.testing.assert_close(found, expected, **EXACT)
    gradients = [torch.autograd.grad(v.sin().sum(), wanted, allow_unused=True) for v in (found, expected)]
    torch.testing.assert_close(*gradients, **EXACT)
    lead = x.unflatten(0, (2, 3)), None if c is None else c.unflatten(0, (2, 3))
    torch.testing.assert_close(model.log_prob(*lead), expected.unflatten(0, (2, 3)), **EXACT)
    if c is not None:
        found = model.log_prob(x, c[0])
        torch.testing.assert_close(found, theirs.log_prob(x, context=c[:1].expand(N, -1)), **EXACT)


@pytest.mark.parametrize("name", DENSITIES)
def test_density_in_float32(name):
    """log_prob, and the draws of one seed: theirs are ours."""
    theirs, model, x, c = density(name, torch.float32)
    case = DENSITIES[name]
    torch.testing.assert_close(model.log_prob(x, c), theirs.log_prob(x, context=c), rtol=0, atol=1e-5)
    if not case.draws:
        return
    torch.manual_seed(3)
    draws = model.sample(N) if c is None else model.sample(context=c)
    assert (draws.shape, draws.dtype) == (x.shape, torch.float32)
    if case.it_draws:
        torch.manual_seed(3)
        expected = theirs.sample(N) if c is None else theirs.sample(1, context=c).squeeze(1)
        torch.testing.assert_close(draws, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, case in DENSITIES.items() if torch.float64 in case.draws])
def test_a_draw_has_the_log_prob_of_the_flow(name):
    """Of float64, which nflows' own flows do not draw."""
    theirs, model, _, c = density(name, torch.float64)
    d = model.condition(c)
    draw = d.rsample((5,)) if d.has_rsample else d.sample((5,))
    assert draw.dtype is torch.float64
    every = None if c is None else c.expand(5, *c.shape).flatten(0, 1)
    rows = draw if c is None else draw.flatten(0, 1)
    torch.testing.assert_close(d.log_prob(draw).flatten(), theirs.log_prob(rows, context=every), rtol=0, atol=1e-8)
