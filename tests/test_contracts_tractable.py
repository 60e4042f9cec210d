"""The tractable family: the density integrates to 1, the samples have it, and nothing is remembered wrongly."""

import pyro.distributions as dist
import pytest
import torch
from cases import (
    MODELS,
    all_binary,
    assert_means_agree,
    context_of,
    contexts,
    mean_and_error,
    of_family,
    ready,
    rows,
    variants,
)
from pyro.infer import Trace_ELBO
from torch.distributions.transforms import ReshapeTransform

from pyrodgm.distributions import FlowDistribution
from pyrodgm.nets.incremental import IncrementalPass
from pyrodgm.tractable import MADE

DRAWS = 20_000

tractable = of_family("tractable")
every = variants(MODELS, tractable)
binary = variants(MODELS, lambda case: tractable(case) and case.binary)
real = variants(MODELS, lambda case: tractable(case) and not case.binary)
reparameterised = variants(MODELS, lambda case: tractable(case) and case.reparameterised)
autoregressive = variants(MODELS, lambda case: isinstance(case.build(), MADE))
trainable = variants(MODELS, lambda case: tractable(case) and list(case.build().parameters()))


def density(name, conditional):
    """(model, its distribution under one context)."""
    model = ready(MODELS[name], conditional)
    with torch.no_grad():
        return model, model.condition(contexts(1)[0] if conditional else None)


def plane_total(log_prob, reach=2000.0, size=400, levels=7, enough=1e-8):
    """The integral over the plane: midpoints of cells, each cut in four while that changes its share.

    Cells are squares of t with x = sinh(t), so they are small at the centre and reach far.
    """

    def shares(t, width):
        parts = [(log_prob(p.sinh()) + p.cosh().log().sum(-1)).exp() for p in t.split(100_000)]
        return torch.cat(parts) * width**2

    edge = torch.asinh(torch.tensor(reach, dtype=torch.float64)).item()
    width = 2 * edge / size
    line = torch.arange(size, dtype=torch.float64) * width - edge + width / 2
    t, corners = torch.cartesian_prod(line, line), torch.cartesian_prod(*[torch.tensor([-0.25, 0.25]).double()] * 2)
    share, total = shares(t, width), 0.0
    for _ in range(levels):
        children = (t.unsqueeze(1) + corners * width).flatten(0, 1)
        width /= 2
        fine = shares(children, width).unflatten(0, (-1, 4))
        open_cells = (fine.sum(1) - share).abs() > enough
        total += fine[~open_cells].sum()
        t, share = children.unflatten(0, (-1, 4))[open_cells].flatten(0, 1), fine[open_cells].flatten()
        if not len(t):
            break
    return total + share.sum()


@torch.no_grad()
def proposal(d):
    """A heavy-tailed density about the draws of ``d``, for importance sampling."""
    x = d.sample((1000,)).flatten(1)
    q = dist.MultivariateStudentT(torch.tensor(3.0).double(), x.mean(0), torch.linalg.cholesky(x.T.cov()))
    return dist.TransformedDistribution(q, ReshapeTransform(q.event_shape, d.event_shape))


def features(d, x):
    """Bounded moments, products of pairs, and log p, (N, F)."""
    x, log_prob = x.flatten(1), d.log_prob(x)
    squashed = torch.tanh(x)
    pairs = (squashed.unsqueeze(-1) * squashed.unsqueeze(-2)).flatten(1)
    return torch.cat((squashed, torch.cos(2 * x), pairs, log_prob.unsqueeze(-1)), -1)


@torch.no_grad()
def check_total_is_one(name, conditional=False):
    case = MODELS[name]
    model, d = density(name, conditional)
    if case.binary:
        states = all_binary(model.event_shape)
        total = d.log_prob(states[d.support.check(states)]).logsumexp(0).exp()
        torch.testing.assert_close(total, torch.ones_like(total))
        return
    if model.event_shape == (2,):
        total = plane_total(d.log_prob)
        # what cells that no longer change can miss at the kinks of a ReLU net's density; smooth ones come within 1e-6
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-3)
        return
    q = proposal(d)
    x = q.sample((4 * DRAWS,))
    total, error = mean_and_error((d.log_prob(x) - q.log_prob(x)).exp())
    assert error < 0.02
    assert_means_agree(total, error, torch.ones_like(total))


@torch.no_grad()
def check_samples_have_the_density(name, conditional=False):
    """Moments, and E log p, of samples against sums over all x or importance-weighted means."""
    case = MODELS[name]
    model, d = density(name, conditional)
    torch.manual_seed(1)
    x = model.sample(DRAWS, contexts(1)[0]) if conditional else model.sample(DRAWS)
    found, error = mean_and_error(features(d, x))
    if case.binary:
        states = all_binary(model.event_shape)
        states = states[d.support.check(states)]
        exact = (d.log_prob(states).exp().unsqueeze(-1) * features(d, states)).sum(0)
        assert_means_agree(found, error, exact)
        return
    q = proposal(d)
    y = q.sample((4 * DRAWS,))
    weights = (d.log_prob(y) - q.log_prob(y)).softmax(0).unsqueeze(-1)
    values = features(d, y)
    expected = (weights * values).sum(0)
    expected_error = (weights * (values - expected)).square().sum(0).sqrt()  # of a self-normalised mean, delta method
    assert_means_agree(found, error, expected, expected_error)


def check_context_matters(name):
    case = MODELS[name]
    model = ready(case, True)
    x = rows(case, model, 1).expand(6, *model.event_shape)
    assert bool(model.log_prob(x, contexts(6)).std() > 1e-6)
    torch.manual_seed(0)
    first = model.sample(500, contexts(1)[0] + 3).mean(0)
    torch.manual_seed(0)
    assert not torch.equal(first, model.sample(500, contexts(1)[0] - 3).mean(0))


def check_own_draw_is_scored_like_any_other(name, conditional=False):
    """The remembered log_prob of a distribution's own rsample: the value and the gradients of scoring afresh."""
    model = ready(MODELS[name], conditional)
    context = context_of(conditional, 4)

    def scored(afresh):
        torch.manual_seed(1)
        d = model.condition(context)
        x = d.rsample(() if conditional else (4,))
        log_prob = (model.condition(context) if afresh else d).log_prob(x)
        wanted = [p for p in model.parameters() if p.requires_grad]
        return log_prob, torch.autograd.grad(log_prob.square().sum(), wanted, materialize_grads=True) if wanted else ()

    torch.testing.assert_close(scored(False), scored(True))


def in_place(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)


def adam(model, **options):
    """A step of Adam with gradients of one."""
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.Adam(model.parameters(), lr=0.1, **options).step()


def load(model):
    model.load_state_dict({k: v + 0.1 if v.is_floating_point() else v for k, v in model.state_dict().items()})


def check_memory_ends_with_a_change(name, conditional=False, change=in_place):
    """After the change a flow scores its own draw with the new parameters."""
    model = ready(MODELS[name], conditional)
    context = context_of(conditional, 4)
    d = model.condition(context)
    x = d.rsample(() if conditional else (4,))
    before = d.log_prob(x)
    change(model)
    after = d.log_prob(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model.condition(context).log_prob(x.clone()))


def check_incremental_pass(name, conditional=False):
    """Each step's parameters are those of a full pass, and samples those of D full passes with the same noise."""
    model = ready(MODELS[name], conditional)
    context = context_of(conditional, 6)
    net, x = model.net, rows(MODELS[name], model, 6)
    with torch.no_grad():
        for mask in range(net.masks):
            state, order = IncrementalPass(net, context, 6, mask), net.ranks[mask].argsort()
            for i, d in enumerate(order.tolist()):
                torch.testing.assert_close(state.parameters(i), net(x, context, mask)[..., d].T)
                state.set(i, x[:, d])
            torch.testing.assert_close(state.result(), x, rtol=0, atol=0)
            torch.manual_seed(2)
            state = IncrementalPass(net, context, 6, mask)
            for i in range(net.features):
                state.set(i, model.conditional.sample(state.parameters(i)))
            torch.manual_seed(2)
            slow = torch.zeros_like(x)
            for d in order.tolist():
                slow[:, d] = model.conditional.sample(net(slow, context, mask)[..., d].T.contiguous())
            torch.testing.assert_close(state.result(), slow)


def _acts_by_codes(net, x, categories):
    """Which outputs another code of each feature moves: (output feature, input feature)."""
    codes = torch.randint(categories, x.shape, generator=torch.Generator().manual_seed(0)).to(x.dtype)
    moved = []
    with torch.no_grad():
        for d in range(x.shape[-1]):
            other = codes.clone()
            other[:, d] = (other[:, d] + 1) % categories
            moved.append(((net(other) - net(codes)).abs() > 0).any(0).any(0))  # (B, P, D) -> (D,)
    return torch.stack(moved, 1)


def check_autoregressive(name, conditional=False):
    """d output / d input is 0 from ranks at or above, by autodiff; below, some of it acts."""
    model = ready(MODELS[name], conditional)
    context = context_of(conditional, 8)
    net, x = model.net, torch.randn(8, *model.event_shape, dtype=torch.float64)
    for mask in range(net.masks):
        if net.categories:
            acts = _acts_by_codes(lambda v, m=mask: net(v, context, m), x, net.categories)
        else:
            jacobian = torch.autograd.functional.jacobian(lambda v, m=mask: net(v, context, m).sum(0), x)
            acts = jacobian.abs().amax((0, 2)) > 0  # (P, D, B, D) -> (output feature, input feature)
        rank = net.ranks[mask]
        allowed = rank[:, None] > rank
        assert not bool((acts & ~allowed).any()), f"mask {mask} leaks"
        assert bool(acts.any())
        if net.masks == 1:
            assert torch.equal(acts, allowed)


def check_empty_guide_elbo(name, conditional=False):
    model = ready(MODELS[name], conditional)
    x, context = rows(MODELS[name], model, 4), context_of(conditional, 4)
    expected = -model.log_prob(x, context).sum()
    assert Trace_ELBO().loss(model, model.guide, x, context) == pytest.approx(expected.item())


@every
def test_total_is_one(name, conditional):
    check_total_is_one(name, conditional)


@every
def test_samples_have_the_density(name, conditional):
    check_samples_have_the_density(name, conditional)


@pytest.mark.parametrize("name", [name for name, case in MODELS.items() if tractable(case) and case.conditional])
def test_context_matters(name):
    check_context_matters(name)


@every
def test_empty_guide_elbo_is_the_likelihood(name, conditional):
    check_empty_guide_elbo(name, conditional)


@every
def test_shapes_of_the_distribution(name, conditional):
    model, case = ready(MODELS[name], conditional), MODELS[name]
    event = tuple(model.event_shape)
    d = model.condition(context_of(conditional, 4))
    batch = (4,) if conditional else ()
    assert tuple(d.batch_shape) == batch
    assert tuple(d.event_shape) == event
    assert d.has_rsample is case.reparameterised
    assert d.sample().shape == batch + event
    assert d.sample((5, 2)).shape == (5, 2, *batch, *event)
    x = rows(case, model, 4)
    assert d.log_prob(x).shape == (4,)
    assert d.log_prob(x.expand(3, *x.shape)).shape == (3, 4)
    assert bool(d.support.check(d.sample((3,))).all())
    assert bool(model.support.check(x).all())


@every
def test_contexts_of_more_dimensions(name, conditional):
    model, case = ready(MODELS[name], conditional), MODELS[name]
    x = rows(case, model, 6).unflatten(0, (2, 3))
    context = contexts(6).unflatten(0, (2, 3)) if conditional else None
    flat = None if context is None else context.flatten(0, 1)
    torch.testing.assert_close(model.log_prob(x, context).flatten(), model.log_prob(x.flatten(0, 1), flat))


@every
def test_expand(name, conditional):
    model, case = ready(MODELS[name], conditional), MODELS[name]
    d = model.condition(context_of(conditional, 4))
    wide = d.expand((3, 4))
    x = rows(case, model, 12).unflatten(0, (3, 4))
    assert tuple(wide.batch_shape) == (3, 4)
    assert tuple(wide.event_shape) == tuple(model.event_shape)
    torch.testing.assert_close(wide.log_prob(x), d.log_prob(x))
    assert wide.log_prob(x[0]).shape == wide.log_prob(x[0, 0]).shape == (3, 4)
    draws = wide.sample((50,))
    assert draws.shape == (50, 3, 4, *model.event_shape)
    assert bool((draws[:, 0] != draws[:, 1]).any()), "expanded rows are draws of their own"


@reparameterised
def test_own_draw_is_scored_like_any_other(name, conditional):
    check_own_draw_is_scored_like_any_other(name, conditional)


@variants(MODELS, lambda case: case.reparameterised and isinstance(case.build().condition(), FlowDistribution))
def test_an_expanded_flows_own_draw(name, conditional):
    model = ready(MODELS[name], conditional)
    d = model.condition(context_of(conditional, 4)).expand((3, 4))
    x = d.rsample()
    assert x.shape == (3, 4, *model.event_shape)
    torch.testing.assert_close(d.log_prob(x), model.log_prob(x, context_of(conditional, 4)))


FLOWS = ["RealNVP", "Flow"]  # their bases have no parameters, so the object's density follows the model's


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize(
    "change",
    [in_place, load, adam, pytest.param(lambda model: adam(model, fused=True), id="fused adam")],
)
def test_memory_ends_with_a_change_of_parameters(name, conditional, change):
    check_memory_ends_with_a_change(name, conditional, change)


def test_memory_ends_with_a_change_of_the_draw():
    model = ready(MODELS["RealNVP"])
    d = model.condition()
    x = d.rsample((4,))
    d.log_prob(x)
    x.mul_(0.5)
    torch.testing.assert_close(d.log_prob(x), model.log_prob(x.clone()))


@trainable
def test_gradients_reach_parameters_after_a_draw(name, conditional):
    model, case = ready(MODELS[name], conditional), MODELS[name]
    context = context_of(conditional, 4)
    model.sample(2, context)
    d = model.condition(context)
    d.sample()
    gradients = torch.autograd.grad(d.log_prob(rows(case, model, 4)).sum(), list(model.parameters()))
    assert all(bool((g != 0).any()) for g in gradients)


@autoregressive
def test_incremental_pass(name, conditional):
    check_incremental_pass(name, conditional)


@autoregressive
def test_autoregressive(name, conditional):
    check_autoregressive(name, conditional)


@pytest.mark.parametrize("conditional", [False, True])
def test_mixture_of_orders_is_the_mean_of_its_members(conditional):
    model, case = ready(MODELS["MADE masks"], conditional), MODELS["MADE masks"]
    x, d = rows(case, model, 4), model.condition(context_of(conditional, 4))
    mean = torch.stack([m.log_prob(x).exp() for m in d.members]).mean(0).log()
    torch.testing.assert_close(d.log_prob(x), mean)
    torch.manual_seed(0)
    model.train()
    seen = {tuple(model.log_prob(x, context_of(conditional, 4)).tolist()) for _ in range(30)}
    assert len(seen) == model.net.masks  # training meets every mask, one at a time
