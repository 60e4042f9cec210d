"""Every transform that nflows shows, through the bridge: its own numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import grow
from nflows import transforms as T
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn import nets
from torch import Tensor, nn

from pyrodgm.bridges.nflows import NflowsBijector, NflowsModel

D, C, N = 4, 2, 6
IMAGE = (4, 2, 2)
MASK = [1, 0, 1, 0]
EXACT = {"rtol": 0.0, "atol": 1e-9}

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.(triangular_solve|qr) is deprecated"),  # by nflows
    pytest.mark.filterwarnings("ignore:Use PointwiseAffineTransform:DeprecationWarning"),
]


@dataclass(frozen=True)
class Case:
    """A transform of nflows: how to build it for a context's size or None, and what it takes and gives."""

    build: Callable[[int | None], Any]
    conditional: bool = False
    squash: Callable[[Tensor], Tensor] = lambda x: x  # of normal numbers into its domain
    event: tuple[int, ...] = (D,)
    to: tuple[int, ...] | None = None
    back: float = 1e-9  # of a round trip, where its own code keeps float64 so far
    slopes: float = 1e-9  # of its ladj beside autodiff

    def bridge(self, theirs: Any, context: int | None) -> NflowsBijector:
        shapes = None if self.to is None else (self.event, self.to)
        return NflowsBijector(theirs, context or 0, event_dim=len(self.event), shapes=shapes)


def mlp(context: int | None) -> Callable[[int, int], nn.Module]:
    return lambda i, o: nets.ResidualNet(i, o, hidden_features=8, context_features=context, num_blocks=1)


def conv(i: int, o: int) -> nn.Module:
    return nets.ConvResidualNet(i, o, hidden_channels=6, num_blocks=1)


def spline(kind: str) -> dict[str, Case]:
    """The three forms of a spline. The linear one keeps its knots in float32, so it comes back to six digits."""
    coupling, cdf = getattr(T, f"Piecewise{kind}CouplingTransform"), getattr(T, f"Piecewise{kind}CDF")
    autoregressive = getattr(T, f"MaskedPiecewise{kind}AutoregressiveTransform")
    bins, tails = {"num_bins": 5}, {"num_bins": 5, "tails": "linear", "tail_bound": 2.0}
    back = 1e-4 if kind == "Linear" else 1e-9
    sizes = {"features": D, "hidden_features": 8, "num_blocks": 1}
    found = {
        coupling.__name__: Case(lambda c: coupling(MASK, mlp(c), **bins), True, torch.sigmoid, back=back),
        f"{coupling.__name__} tails": Case(
            lambda c: coupling(MASK, mlp(c), apply_unconditional_transform=True, **tails), True, back=back
        ),
        f"{coupling.__name__} image": Case(
            lambda c: coupling(MASK, conv, apply_unconditional_transform=True, img_shape=[2, 2], **tails),
            event=IMAGE,
            back=back,
        ),
        cdf.__name__: Case(lambda c: cdf([D], **bins), squash=torch.sigmoid, back=back),
        f"{cdf.__name__} tails": Case(lambda c: cdf([D], **tails), back=back),
        autoregressive.__name__: Case(
            lambda c: autoregressive(context_features=c, **sizes, **bins), True, torch.sigmoid, back=back
        ),
    }
    if kind in ("Quadratic", "RationalQuadratic"):  # the others have no tails here
        found[f"{autoregressive.__name__} tails"] = Case(
            lambda c: autoregressive(context_features=c, **sizes, **tails), True, back=back
        )
    return found


def multiscale(event: tuple[int, ...], layer: Callable[[tuple[int, ...]], tuple[Any, tuple[int, ...]]]) -> Any:
    multi = T.MultiscaleCompositeTransform(2)
    for _ in range(2):
        part, to = layer(event)
        event = multi.add_transform(part, to)
    return multi


def squeezed(event: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    channels = 4 * event[0]
    parts = [T.SqueezeTransform(), T.ActNorm(channels), T.OneByOneConvolution(channels)]
    return T.CompositeTransform(parts), (channels, event[1] // 2, event[2] // 2)


def normalised(event: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    return T.ActNorm(event[0]), event


def shifted() -> Any:
    return T.PointwiseAffineTransform(torch.arange(4.0), torch.arange(1.0, 5.0))


TRANSFORMS: dict[str, Case] = {
    "AdditiveCouplingTransform": Case(lambda c: T.AdditiveCouplingTransform(MASK, mlp(c)), True),
    "AdditiveCouplingTransform image": Case(lambda c: T.AdditiveCouplingTransform(MASK, conv), event=IMAGE),
    "AffineCouplingTransform": Case(lambda c: T.AffineCouplingTransform(MASK, mlp(c)), True),
    "AffineCouplingTransform image": Case(lambda c: T.AffineCouplingTransform(MASK, conv), event=IMAGE),
    **spline("Linear"),
    **spline("Quadratic"),
    **spline("Cubic"),
    **spline("RationalQuadratic"),
    "MaskedAffineAutoregressiveTransform": Case(
        lambda c: T.MaskedAffineAutoregressiveTransform(D, 8, context_features=c, num_blocks=1), True
    ),
    "NaiveLinear": Case(lambda c: T.NaiveLinear(D)),
    "LULinear": Case(lambda c: T.LULinear(D)),
    "LULinear caching": Case(lambda c: T.LULinear(D, using_cache=True)),
    "QRLinear": Case(lambda c: T.QRLinear(D, 3)),
    "SVDLinear": Case(lambda c: T.SVDLinear(D, 4)),
    "HouseholderSequence": Case(lambda c: T.HouseholderSequence(D, 3)),
    "OneByOneConvolution": Case(lambda c: T.OneByOneConvolution(4), event=IMAGE),
    "ActNorm": Case(lambda c: T.ActNorm(D)),
    "ActNorm image": Case(lambda c: T.ActNorm(4), event=IMAGE),
    "BatchNorm": Case(lambda c: T.BatchNorm(D)),
    "Permutation": Case(lambda c: T.Permutation(torch.tensor([2, 0, 3, 1]))),
    "Permutation image": Case(lambda c: T.Permutation(torch.tensor([1, 0]), dim=2), event=IMAGE),
    "RandomPermutation": Case(lambda c: T.RandomPermutation(D)),
    "ReversePermutation": Case(lambda c: T.ReversePermutation(D)),
    "SqueezeTransform": Case(lambda c: T.SqueezeTransform(), event=(1, 4, 4), to=IMAGE),
    "MultiscaleCompositeTransform": Case(lambda c: multiscale((D,), normalised)),
    "MultiscaleCompositeTransform image": Case(lambda c: multiscale((1, 4, 4), squeezed), event=(1, 4, 4), to=(16,)),
    "CompositeTransform": Case(
        lambda c: T.CompositeTransform([T.Tanh(), T.MaskedAffineAutoregressiveTransform(D, 8, c)]), True
    ),
    "InverseTransform": Case(lambda c: T.InverseTransform(T.AffineCouplingTransform(MASK, mlp(c))), True),
    "CompositeCDFTransform": Case(
        lambda c: T.CompositeCDFTransform(T.Sigmoid(), T.PiecewiseRationalQuadraticCDF([D], num_bins=5))
    ),
    "IdentityTransform": Case(lambda c: T.IdentityTransform()),
    "PointwiseAffineTransform": Case(lambda c: shifted()),
    "PointwiseAffineTransform scalar": Case(lambda c: T.PointwiseAffineTransform(1.0, 2.0)),
    "AffineTransform": Case(lambda c: T.AffineTransform(1.0, 2.0)),
    "AffineScalarTransform": Case(lambda c: T.AffineScalarTransform(1.0, 2.0)),
    "LeakyReLU": Case(lambda c: T.LeakyReLU(), slopes=1e-5),  # its slope is kept in float32
    "LogTanh": Case(lambda c: T.LogTanh()),
    "Tanh": Case(lambda c: T.Tanh()),
    "Sigmoid": Case(lambda c: T.Sigmoid()),
    "Sigmoid learned": Case(lambda c: T.Sigmoid(learn_temperature=True)),
    "Logit": Case(lambda c: T.Logit(), squash=torch.sigmoid),
    "GatedLinearUnit": Case(lambda c: T.GatedLinearUnit(), True, event=(1,)),
}
WITHOUT_INVERSE = {"NaiveLinear"}  # its solve is one that torch has removed
ALWAYS_CONDITIONAL = {"GatedLinearUnit"}
RUNS = [
    (name, context)
    for name, case in TRANSFORMS.items()
    for context in (None, C)
    if (case.conditional or context is None) and not (name in ALWAYS_CONDITIONAL and context is None)
]


def ready(name: str, context: int | None) -> tuple[Any, NflowsBijector, Tensor, Tensor | None]:
    """Theirs, ours, x and a context of float64."""
    case = TRANSFORMS[name]
    torch.manual_seed(0)
    size = 1 if name in ALWAYS_CONDITIONAL else context
    theirs = grow(case.build(size), 0.3).double().eval()
    generator = torch.Generator().manual_seed(1)
    x = case.squash(torch.randn(N, *case.event, generator=generator, dtype=torch.float64))
    given = None if size is None else torch.randn(N, size, generator=generator, dtype=torch.float64)
    return theirs, case.bridge(theirs, size), x, given


def test_nothing_that_it_shows_is_left_out():
    shown = {n for n, v in vars(T).items() if isinstance(v, type) and issubclass(v, T.Transform)} - {"Transform"}
    assert shown == {name.split()[0] for name in TRANSFORMS}


@pytest.mark.parametrize(("name", "context"), RUNS)
def test_transform(name, context):
    """Values, both ladjs, every gradient and the shapes; the ladj is that of autodiff; the way back is the inverse."""
    theirs, ours, x, c = ready(name, context)
    case = TRANSFORMS[name]
    wanted = [p.requires_grad_() for p in (x, c, *theirs.parameters()) if p is not None]

    def gradients(pair):
        return torch.autograd.grad(sum(part.sin().sum() for part in pair), wanted, allow_unused=True)

    y, ladj = ours(x, c)
    assert ladj.dtype is torch.float64
    torch.testing.assert_close((y, ladj), theirs(x, c), check_dtype=False, **EXACT)
    torch.testing.assert_close(gradients(ours(x, c)), gradients(theirs(x, c)), **EXACT)
    rows = torch.autograd.functional.jacobian(lambda x: ours(x, c)[0].sum(0), x)  # (*to, N, *event)
    rows = rows.reshape(y[0].numel(), N, -1).transpose(0, 1)
    torch.testing.assert_close(rows.slogdet()[1], ladj, rtol=0, atol=case.slopes)

    lead = x.unflatten(0, (2, 3)), None if c is None else c.unflatten(0, (2, 3))
    torch.testing.assert_close(ours(*lead), (y.unflatten(0, (2, 3)), ladj.unflatten(0, (2, 3))), **EXACT)
    if c is not None:  # each x under each of two contexts
        every, _ = ours(x.unsqueeze(1), c[:2])
        torch.testing.assert_close(every[:, 1], ours(x, c[1])[0], **EXACT)

    if name in WITHOUT_INVERSE:
        return
    y = y.detach()
    back = ours.inv(y, c)
    torch.testing.assert_close(back, theirs.inverse(y, c), check_dtype=False, **EXACT)
    torch.testing.assert_close(back[0], x, rtol=0, atol=case.back)
    torch.testing.assert_close(back[1], -ladj, rtol=0, atol=case.back)


@pytest.mark.parametrize(("name", "context"), RUNS)
def test_transform_in_float32(name, context):
    theirs, ours, x, c = ready(name, context)
    theirs.float()
    x, c = x.float(), None if c is None else c.float()
    y, ladj = ours(x, c)
    assert (y.dtype, ladj.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close((y, ladj), theirs(x, c), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "context"), RUNS)
def test_flow_of_a_transform(name, context):
    """log_prob of a whole flow, under its normal base."""
    theirs, _, x, c = ready(name, context)
    case = TRANSFORMS[name]
    flow = Flow(theirs, StandardNormal(list(case.to or case.event))).double()
    model = NflowsModel(flow, case.event, 0 if c is None else c.shape[-1])
    torch.testing.assert_close(model.log_prob(x, c), flow.log_prob(x, context=c), **EXACT)
