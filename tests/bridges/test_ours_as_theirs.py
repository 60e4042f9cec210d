"""Every bijector and flow of ours inside nflows' and zuko's own compositions and flows: our numbers."""

from __future__ import annotations

import pytest
import torch
from cases import BIJECTORS, MODELS, context_of, ready, rows, variants
from nflows.distributions import StandardNormal as NflowsNormal
from nflows.flows import Flow as NflowsFlow
from nflows.transforms import CompositeTransform, IdentityTransform

from pyrodgm.bijectors import Compose
from pyrodgm.bridges.nflows import AsNflowsDistribution, AsNflowsTransform, NflowsBijector, NflowsModel
from pyrodgm.tractable import Flow, StandardNormal

from pyrodgm.bridges.zuko import AsZukoDistribution, AsZukoTransform, ZukoBijector, ZukoModel  # isort: skip
from zuko.distributions import DiagNormal  # isort: skip
from zuko.lazy import Flow as ZukoFlow  # isort: skip
from zuko.lazy import LazyComposedTransform, UnconditionalDistribution  # isort: skip

N = 6
EXACT = {"rtol": 0.0, "atol": 1e-9}

bijectors = variants(BIJECTORS)
flows = variants(MODELS, lambda case: isinstance(case.build(), Flow))


def given(name, conditional):
    """A bijector, x and y wherever they live, and a context."""
    case, c = BIJECTORS[name], context_of(conditional, N)
    bijector = ready(case, conditional)
    x = torch.randn(N, *case.event, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return bijector, x.requires_grad_(), bijector(x, c)[0].detach(), c


def assert_same(found, expected, wanted):
    """Of two log_probs, with their gradients."""
    torch.testing.assert_close(found, expected, **EXACT)
    slopes = [torch.autograd.grad(value.sin().sum(), wanted, allow_unused=True) for value in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-8)


@bijectors
def test_bijector_in_nflows(name, conditional):
    """Both ways of a composition, the log_prob of a flow with its gradients, and back to ours again."""
    bijector, x, y, c = given(name, conditional)
    there, back = bijector.condition(c).call_and_ladj(x), bijector.condition(c).inverse_and_ladj(y)
    theirs = CompositeTransform([AsNflowsTransform(bijector)])
    torch.testing.assert_close(theirs(x, c), there, **EXACT)
    torch.testing.assert_close(theirs.inverse(y, c), back, **EXACT)
    image = BIJECTORS[name].image
    flow = NflowsFlow(theirs, NflowsNormal(list(image))).double()
    expected = StandardNormal(image).double().log_prob(there[0]) + there[1]
    assert_same(flow.log_prob(x, context=c), expected, [x, *bijector.parameters()])
    shapes = (BIJECTORS[name].event, image)
    again = NflowsBijector(theirs, 0 if c is None else c.shape[-1], shapes=shapes)
    torch.testing.assert_close(again(x, c), there, **EXACT)
    torch.testing.assert_close(again.inv(y, c), back, **EXACT)


@bijectors
def test_bijector_in_zuko(name, conditional):
    bijector, x, y, c = given(name, conditional)
    there, back = bijector.condition(c).call_and_ladj(x), bijector.condition(c).inverse_and_ladj(y)
    theirs = LazyComposedTransform(AsZukoTransform(bijector))
    torch.testing.assert_close(theirs(c).call_and_ladj(x), there, **EXACT)
    torch.testing.assert_close(theirs(c).inv.call_and_ladj(y), back, **EXACT)
    torch.testing.assert_close(theirs.inv(c)(y), back[0], **EXACT)
    case = BIJECTORS[name]
    flow = ZukoFlow([AsZukoTransform(bijector)], AsZukoDistribution(StandardNormal(case.image).double()))
    assert flow(c).event_shape == case.event
    expected = StandardNormal(case.image).double().log_prob(there[0]) + there[1]
    assert_same(flow(c).log_prob(x), expected, [x, *bijector.parameters()])
    size = 0 if c is None else c.shape[-1]
    again = ZukoBijector(theirs, size)
    assert (again.forward_shape(x.shape), again.inverse_shape(y.shape)) == (y.shape, x.shape)
    torch.testing.assert_close(again(x, c), there, **EXACT)
    torch.testing.assert_close(again.inv(y, c), back, **EXACT)
    torch.testing.assert_close(ZukoModel(flow, case.event, size).log_prob(x, c), expected, **EXACT)


def recipe(name, conditional):
    """A flow of ours, rows, a context, and the flow's bijectors from data to noise."""
    case, c = MODELS[name], context_of(conditional, N)
    ours = ready(case, conditional)
    x = rows(case, ours, N)
    ours.initialize(x, c)
    return ours, x, c, Compose(list(ours.bijectors), len(ours.event_shape)).inv


@flows
def test_flow_in_nflows(name, conditional):
    """Taken apart into transform and base, and whole as the base of a flow; draws are those of the same noise."""
    ours, x, c, back = recipe(name, conditional)
    expected = ours.log_prob(x, c)
    apart = NflowsFlow(AsNflowsTransform(back), AsNflowsDistribution(ours.base))
    whole = NflowsFlow(IdentityTransform(), AsNflowsDistribution(ours))
    for flow in (apart, whole):
        torch.testing.assert_close(flow.log_prob(x, context=c), expected, **EXACT)
        model = NflowsModel(flow, tuple(ours.event_shape), ours.context)
        torch.testing.assert_close(model.log_prob(x, c), expected, **EXACT)
        torch.manual_seed(1)
        draws = flow.sample(4, context=c)
        assert draws.shape == ((N, 4, *ours.event_shape) if conditional else (4, *ours.event_shape))
        assert draws.isfinite().all()
    assert apart.sample_and_log_prob(4, context=c)[1].shape == ((N, 4) if conditional else (4,))


@flows
def test_flow_in_zuko(name, conditional):
    ours, x, c, back = recipe(name, conditional)
    expected = ours.log_prob(x, c)
    flow = ZukoFlow([AsZukoTransform(back)], AsZukoDistribution(ours.base))
    torch.testing.assert_close(flow(c).log_prob(x), expected, **EXACT)
    torch.testing.assert_close(AsZukoDistribution(ours)(c).log_prob(x), expected, **EXACT)
    torch.manual_seed(1)
    draws = flow(c).sample((4,))
    assert draws.shape == (4, *(() if c is None else (N,)), *ours.event_shape)
    torch.manual_seed(1)
    torch.testing.assert_close(draws, ours.condition(c).sample((4,)), **EXACT)


def batch(n=200):
    """Rows (n, 2) that hang on their contexts (n, 2)."""
    c = torch.randn(n, 2)
    return 2.0 * c + 0.3 * torch.randn(n, 2), c


@pytest.mark.parametrize("library", ["nflows", "zuko"])
def test_their_training_trains_ours(library):
    """By each library's own loss, under its own base."""
    x, c = batch()
    ours = MODELS["MAF"].conditional()
    back = Compose(list(ours.bijectors)).inv
    if library == "nflows":
        flow = NflowsFlow(AsNflowsTransform(back), NflowsNormal([2]))
        loss = lambda: -flow.log_prob(x, context=c).mean()  # noqa: E731
    else:
        base = UnconditionalDistribution(DiagNormal, torch.zeros(2), torch.ones(2), buffer=True)
        flow = ZukoFlow([AsZukoTransform(back)], base)
        loss = lambda: -flow(c).log_prob(x).mean()  # noqa: E731
    assert {id(p) for p in flow.parameters()} == {id(p) for p in back.parameters()}
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    before = loss().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < before - 1.0
