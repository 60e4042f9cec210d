"""Every flow, lazy transform and transform that zuko shows, through the bridge: its own numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import grow
from torch import Tensor

from pyrodgm.bridges.zuko import ZukoBijector, ZukoModel
from pyrodgm.tractable import Flow, StandardNormal

import zuko  # isort: skip
from zuko import lazy, transforms as T  # isort: skip

D, C, N = 3, 2, 6
SMALL = {"hidden_features": (8,)}
EXACT = {"rtol": 0.0, "atol": 1e-9}
F = zuko.flows


def sizes(context: int) -> dict[str, Any]:
    """Of networks that are there for a context only."""
    return SMALL if context else {}


def clipped(loc: Tensor) -> Any:
    normal = zuko.distributions.DiagNormal(loc, torch.ones_like(loc))
    return zuko.distributions.NormalizingFlow(T.SoftclipTransform(5.0), normal)


NETWORK = {"signal": 4, "network": SMALL}

FLOWS: dict[str, Callable[[int], Any]] = {
    "MAF": lambda c: F.MAF(D, c, transforms=2, **SMALL),
    "MAF shuffled": lambda c: F.MAF(D, c, transforms=2, randperm=True, passes=2, **SMALL),
    "NSF": lambda c: F.NSF(D, c, transforms=2, **SMALL),
    "NSF of one feature": lambda c: F.NSF(1, c, transforms=2, **sizes(c)),
    "NCSF": lambda c: F.NCSF(D, c, transforms=2, **SMALL),
    "NICE": lambda c: F.NICE(D, c, transforms=2, **SMALL),
    "RealNVP": lambda c: F.RealNVP(D, c, transforms=2, randmask=True, **SMALL),
    "NAF": lambda c: F.NAF(D, c, transforms=2, **NETWORK, **SMALL),
    "UNAF": lambda c: F.UNAF(D, c, transforms=2, **NETWORK, **SMALL),
    "SOSPF": lambda c: F.SOSPF(D, c, transforms=2, **SMALL),
    "BPF": lambda c: F.BPF(D, c, transforms=2, degree=6, **SMALL),
    "GF": lambda c: F.GF(D, c, transforms=2, components=3, **sizes(c)),
    "CNF": lambda c: F.CNF(D, c, **SMALL),
    "CNF estimated": lambda c: F.CNF(D, c, exact=False, **SMALL),
    "GMM": lambda c: F.GMM(D, c, **sizes(c)),
    "GMM tied": lambda c: F.GMM(D, c, covariance_type="diagonal", tied=True, **sizes(c)),
    "GMM spherical": lambda c: F.GMM(D, c, covariance_type="spherical", **sizes(c)),
    "Flow": lambda c: F.Flow([F.MaskedAutoregressiveTransform(D, c, **SMALL)], F.GMM(D, c, **sizes(c))),
    "UnconditionalDistribution": lambda c: F.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(D), torch.ones(D)
    ),
    "UnconditionalDistribution of a flow": lambda c: F.UnconditionalDistribution(clipped, torch.zeros(D)),
}


@dataclass(frozen=True)
class Case:
    """A lazy transform: how to build it for a context's size, where x lies, and what its own code comes back to."""

    build: Callable[[int], Any]
    conditional: bool = False
    squash: Callable[[Tensor], Tensor] = lambda x: x
    back: float = 1e-9
    slopes: float = 1e-9


def plain(transform: Any, *arguments: Any, buffer: bool = False, **others: Any) -> Case:
    return Case(lambda c: lazy.UnconditionalTransform(transform, *arguments, buffer=buffer), **others)


def free(shift: Tensor, size: Tensor) -> Any:
    """The building blocks that want functions."""
    return T.AutoregressiveTransform(
        lambda x: T.DependentTransform(T.MonotonicAffineTransform(shift, size), 1), passes=1
    )


def turned(matrix: Tensor) -> Any:
    return T.ComposedTransform(T.SoftclipTransform(2.0), T.RotationTransform(matrix))


def monotonic(size: Tensor) -> Any:
    return T.MonotonicTransform(lambda x: x + size.sigmoid() * torch.tanh(x), phi=(size,))


def integral(size: Tensor) -> Any:
    return T.UnconstrainedMonotonicTransform(lambda x: 1 + size.sigmoid() * torch.cos(x), phi=(size,))


def half(shift: Tensor) -> Any:
    mask = torch.tensor([True, False, True])
    return T.CouplingTransform(
        lambda x: T.DependentTransform(T.AdditiveTransform(shift * x.sum(-1, keepdim=True)), 1), mask
    )


def drift(matrix: Tensor) -> Any:
    return T.FreeFormJacobianTransform(lambda t, x: torch.tanh(x @ matrix), phi=(matrix,))


ROOT = 1e-5  # of its bisections, which stop at 1e-6
ODE = 5e-3  # of its adaptive steps, at its own tolerances

LAZY: dict[str, Case] = {
    "MaskedAutoregressiveTransform": Case(lambda c: F.MaskedAutoregressiveTransform(D, c, **SMALL), True),
    "MaskedAutoregressiveTransform adjacency": Case(
        lambda c: F.MaskedAutoregressiveTransform(
            D, c, adjacency=torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1]]), **SMALL
        ),
        True,
    ),
    "GeneralCouplingTransform": Case(lambda c: F.GeneralCouplingTransform(D, c, **SMALL), True),
    "ElementWiseTransform": Case(lambda c: F.ElementWiseTransform(D, c, **sizes(c)), True),
    "FFJTransform": Case(lambda c: F.FFJTransform(D, c, **SMALL), True, back=ODE, slopes=ODE),
    "LazyComposedTransform": Case(
        lambda c: lazy.LazyComposedTransform(
            F.MaskedAutoregressiveTransform(D, c, **SMALL), lazy.UnconditionalTransform(T.SoftclipTransform, 5.0)
        ),
        True,
    ),
    "LazyInverse": Case(lambda c: F.GeneralCouplingTransform(D, c, **SMALL).inv, True),
}
PLAIN: dict[str, Case] = {
    "AdditiveTransform": plain(T.AdditiveTransform, torch.ones(D)),
    "AutoregressiveTransform": plain(free, torch.ones(D), torch.ones(D)),
    "BernsteinTransform": plain(T.BernsteinTransform, torch.ones(D, 5), back=ROOT),
    "BoundedBernsteinTransform": plain(T.BoundedBernsteinTransform, torch.ones(D, 5), back=ROOT),
    "CircularShiftTransform": plain(T.CircularShiftTransform, 2.0, squash=torch.tanh),
    "ComposedTransform": plain(turned, torch.zeros(D, D)),
    "CosTransform": plain(T.CosTransform, squash=torch.sigmoid),
    "CouplingTransform": plain(half, torch.ones(1)),
    "DependentTransform": plain(T.DependentTransform, T.SoftclipTransform(2.0), 1),
    "FreeFormJacobianTransform": plain(drift, torch.zeros(D, D), back=ODE, slopes=ODE),
    "GaussianizationTransform": plain(
        T.GaussianizationTransform, torch.zeros(D, 2), torch.zeros(D, 2), squash=torch.tanh, back=ROOT
    ),
    "IdentityTransform": plain(T.IdentityTransform),
    "LULinearTransform": plain(T.LULinearTransform, torch.eye(D)),
    "MonotonicAffineTransform": plain(T.MonotonicAffineTransform, torch.zeros(D), torch.zeros(D)),
    "MonotonicRQSTransform": plain(T.MonotonicRQSTransform, torch.zeros(D, 4), torch.zeros(D, 4), torch.zeros(D, 3)),
    "MonotonicTransform": plain(monotonic, torch.zeros(D), back=ROOT),
    "PermutationTransform": plain(T.PermutationTransform, torch.tensor([2, 0, 1]), buffer=True),
    "RotationTransform": plain(T.RotationTransform, torch.zeros(D, D)),
    "SOSPolynomialTransform": plain(T.SOSPolynomialTransform, torch.zeros(D, 2, 3), back=ROOT),
    "SignedPowerTransform": plain(T.SignedPowerTransform, torch.zeros(D)),
    "SinTransform": plain(T.SinTransform, squash=torch.tanh),
    "SoftclipTransform": plain(T.SoftclipTransform, 5.0),
    "UnconstrainedMonotonicTransform": plain(integral, torch.zeros(D), back=ROOT),
    "ExpTransform": plain(torch.distributions.transforms.ExpTransform),  # torch's own, which zuko hands on
}
TRANSFORMS = LAZY | PLAIN
RUNS = [(name, c) for name, case in TRANSFORMS.items() for c in (0, C) if case.conditional or not c]


def numbers(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_nothing_that_it_shows_is_left_out():
    shown = {n for n, v in vars(F).items() if isinstance(v, type) and issubclass(v, lazy.LazyDistribution)}
    assert shown - {"LazyDistribution"} == {name.split()[0] for name in FLOWS}
    shown = {n for n, v in vars(F).items() if isinstance(v, type) and issubclass(v, lazy.LazyTransform)}
    assert shown | {"LazyComposedTransform"} == {name.split()[0] for name in LAZY} | {
        "LazyTransform",
        "UnconditionalTransform",  # all that is plain
    }
    assert set(T.__all__) == set(PLAIN) - {"ExpTransform"}


@pytest.mark.parametrize(("name", "context"), RUNS)
def test_transform(name, context):
    """Values, both ladjs, every gradient and the shapes; the ladj is that of autodiff; the way back is the inverse."""
    case = TRANSFORMS[name]
    torch.manual_seed(0)
    theirs = grow(case.build(context), 0.2).double()
    ours = ZukoBijector(theirs, context)
    x, c = case.squash(numbers(N, D)).requires_grad_(), numbers(N, C, seed=2).requires_grad_() if context else None
    wanted = [p for p in (x, c, *theirs.parameters()) if p is not None]

    def rows(pair):
        return pair[0], pair[1].sum(-1) if pair[1].dim() > 1 else pair[1]  # of scalars it gives number by number

    def gradients(pair):
        return torch.autograd.grad(sum(part.sin().sum() for part in pair), wanted, allow_unused=True)

    y, ladj = ours(x, c)
    torch.testing.assert_close((y, ladj), rows(theirs(c).call_and_ladj(x)), **EXACT)
    torch.testing.assert_close(gradients(ours(x, c)), gradients(rows(theirs(c).call_and_ladj(x))), **EXACT)
    slopes = torch.autograd.functional.jacobian(lambda x: ours.condition(c)(x).sum(0), x).transpose(0, 1)
    torch.testing.assert_close(slopes.slogdet()[1], ladj, rtol=0, atol=case.slopes)
    lead = x.unflatten(0, (2, 3)), None if c is None else c.unflatten(0, (2, 3))
    expected = theirs(lead[1]).call_and_ladj(lead[0])
    torch.testing.assert_close(ours(*lead), (expected[0], ladj.unflatten(0, (2, 3))), rtol=0, atol=case.slopes)

    back = ours.inv(y, c)
    torch.testing.assert_close(back, rows(theirs(c).inv.call_and_ladj(y)), **EXACT)
    torch.testing.assert_close(ours.condition(c).inv(y), theirs(c).inv(y), **EXACT)
    torch.testing.assert_close(back, (x, -ladj), rtol=0, atol=case.back)


def model(name: str, context: int, dtype: torch.dtype) -> tuple[Any, ZukoModel, Tensor, Tensor | None]:
    torch.manual_seed(0)
    theirs = grow(FLOWS[name](context), 0.1).to(dtype)
    features = 1 if "one feature" in name else D
    x = numbers(N, features, dtype=dtype)
    return theirs, ZukoModel(theirs, features, context), x, numbers(N, C, seed=2, dtype=dtype) if context else None


@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("name", FLOWS)
def test_flow(name, context):
    """log_prob and its gradients, under one leading dimension, under two, and one context for all; draws of a seed."""
    theirs, ours, x, c = model(name, context, torch.float64)
    x.requires_grad_()

    def log_prob(of, x, c):
        torch.manual_seed(3)  # an estimated trace draws its noise
        return of(x, c)

    def its(x, c):
        return theirs(c).log_prob(x)

    found, expected = log_prob(ours.log_prob, x, c), log_prob(its, x, c)
    torch.testing.assert_close(found, expected, **EXACT)
    wanted = [x, *theirs.parameters()]
    if expected.requires_grad:
        gradients = [torch.autograd.grad(v.sin().sum(), wanted, allow_unused=True) for v in (found, expected)]
        torch.testing.assert_close(*gradients, **EXACT)
    lead = x.unflatten(0, (2, 3)), None if c is None else c.unflatten(0, (2, 3))
    torch.testing.assert_close(log_prob(ours.log_prob, *lead), log_prob(its, *lead), **EXACT)
    if c is not None:
        torch.testing.assert_close(log_prob(ours.log_prob, x, c[0]), log_prob(its, x, c[0]), **EXACT)

    d = ours.condition(c)
    assert (d.batch_shape, d.event_shape) == (torch.Size([N] if context else []), x.shape[1:])
    torch.manual_seed(4)
    draws = ours.sample(N) if c is None else ours.sample(context=c)
    torch.manual_seed(4)
    with torch.no_grad():  # a density that ignores its context has no batch of its own
        torch.testing.assert_close(draws, theirs(c).sample(() if theirs(c).batch_shape else (N,)), **EXACT)


@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("name", FLOWS)
def test_flow_in_float32(name, context):
    theirs, ours, x, c = model(name, context, torch.float32)
    torch.manual_seed(3)
    found = ours.log_prob(x, c)
    torch.manual_seed(3)
    torch.testing.assert_close(found, theirs(c).log_prob(x), rtol=0, atol=1e-5)
    assert found.dtype is torch.float32


def test_a_transform_that_changes_the_shape():
    """Of the simplex, which torch has and zuko hands on: D + 1 numbers that add up to 1."""
    layer = ZukoBijector(lazy.UnconditionalTransform(torch.distributions.StickBreakingTransform))
    flow = Flow(StandardNormal(D), [layer]).double()
    assert flow.event_shape == (D + 1,)
    x = flow.sample(5)
    torch.testing.assert_close(x.sum(-1), torch.ones(5, dtype=torch.float64))
    z, ladj = layer.inv(x)
    torch.testing.assert_close(flow.log_prob(x), StandardNormal(D).double().log_prob(z) + ladj)
    theirs = lazy.Flow([layer.transform.inv], F.GMM(D))
    assert ZukoModel(theirs, D + 1).sample(2).shape == (2, D + 1)


def test_draws_of_a_continuous_flow_take_no_trace():
    """Its Jacobian costs as many backward passes as there are features, and a draw has no use for it."""
    calls = []
    theirs = F.CNF(D, **SMALL)
    inner = theirs.transform.f
    theirs.transform.f = lambda *a, **k: calls.append(torch.is_grad_enabled()) or inner(*a, **k)
    ZukoModel(theirs, D).sample(2)
    assert calls
    assert not any(calls)  # the trace switches gradients on for its velocity
