"""Continuous flows: closed forms of linear fields, unbiased traces, and two ways to the same gradients."""

import sys

import pytest
import torch
from cases import TRACES, C, assert_means_agree, contexts, grow, mean_and_error
from torch import nn
from torch.func import functional_call, grad, vmap

from pyrodgm.bijectors import Compose, Continuous, ExactTrace, Hutchinson, HutchPlusPlus, ODESolver, Trace
from pyrodgm.tractable import FFJORD, Flow, StandardNormal

TIGHT = {"method": "dopri8", "rtol": 1e-11, "atol": 1e-11}
ADJOINT, DIRECT = ODESolver(**TIGHT), ODESolver(**TIGHT, adjoint=False)


class Linear(nn.Module):
    """v = A x."""

    def __init__(self, features=3):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(features, features, dtype=torch.float64))

    def forward(self, t, x, context=None):
        return x @ self.matrix.T


class Growth(nn.Module):
    """v = a t x."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([0.7], dtype=torch.float64))

    def forward(self, t, x, context=None):
        return self.rate * t * x


def flow(context=0, **options):
    torch.manual_seed(0)
    return grow(Continuous(3, context=context, hidden=[6], **{"solver": ADJOINT, **options})).double()


def points(n=5, features=3):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)  # a hundred times the solver's tolerance


@pytest.mark.parametrize("solver", [ADJOINT, DIRECT])
@pytest.mark.parametrize("time", [1.0, 0.5])
def test_a_linear_field_gives_the_matrix_exponential_and_the_trace(solver, time):
    layer, x = Continuous(3, Linear(), solver=solver, time=time), points()
    a = layer.net.matrix.detach()
    y, ladj = layer(x)
    near(y, x @ torch.linalg.matrix_exp(time * a).T)
    near(ladj, time * a.trace().expand(5))
    back, back_ladj = layer.inv(x)
    near(back, x @ torch.linalg.matrix_exp(-time * a).T)
    near(back_ladj, -time * a.trace().expand(5))


@pytest.mark.parametrize("solver", [ADJOINT, DIRECT])
def test_gradients_of_a_linear_field(solver):
    """Those of expm(A), by autodiff of torch's own."""
    layer, x = Continuous(3, Linear(), solver=solver), points().requires_grad_()
    a = layer.net.matrix
    weights = torch.randn(5, 3).double()
    y, ladj = layer(x)
    found = torch.autograd.grad((weights * y).sum() + ladj.square().sum(), [x, a])
    expected = (weights * (x @ torch.linalg.matrix_exp(a).T)).sum() + 5 * a.trace().square()
    near(found, torch.autograd.grad(expected, [x, a]))


@pytest.mark.parametrize("time", [1.0, 2.0])
def test_a_field_that_depends_on_time(time):
    layer, x = Continuous(2, Growth(), solver=ADJOINT, time=time), points(features=2)
    log_scale = (0.7 * time**2 / 2) * torch.ones(5).double()
    for way, sign in ((layer, 1), (layer.inv, -1)):
        y, ladj = way(x)
        near(y, x * (sign * log_scale).exp().unsqueeze(-1))
        near(ladj, sign * 2 * log_scale)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_fixed_steps_converge_at_their_order(method, order):
    x, errors = points(), []
    exact = flow().eval()(x)[0]
    for steps in (10, 20):
        layer = flow(solver=ODESolver(method, steps=steps)).eval()
        errors.append((layer(x)[0] - exact).norm())
    # the next term of the error moves the ratio by a part of about one step's length
    assert 2 ** (order - 0.5) < errors[0] / errors[1] < 2 ** (order + 0.8)


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
def test_estimators_are_unbiased(trace):
    a = torch.randn(6, 6, dtype=torch.float64)
    rows = torch.zeros(20_000, 6).double()
    found = trace.estimate(lambda u: u.expand(-1, 20_000, 6) @ a, trace.probes(rows))
    for values, exact in zip(found, (a.trace(), a.square().sum()), strict=True):
        assert values.std() > 0
        assert_means_agree(*mean_and_error(values), exact)


def test_exact_trace():
    a = torch.randn(4, 6, 6, dtype=torch.float64)
    rows = torch.zeros(4, 6).double()

    def products(u):
        return (u.expand(-1, 4, 6).unsqueeze(-2) @ a).squeeze(-2)

    trace, frobenius = ExactTrace().estimate(products, ExactTrace().probes(rows))
    torch.testing.assert_close(trace, a.diagonal(dim1=-1, dim2=-2).sum(-1))
    torch.testing.assert_close(frobenius, a.square().sum((-1, -2)))
    # A sketch that spans everything leaves nothing to estimate.
    wide = HutchPlusPlus(18)
    torch.testing.assert_close(wide.estimate(products, wide.probes(rows)), (trace, frobenius))


@pytest.mark.parametrize("rademacher", [False, True])
def test_hutch_plus_plus_varies_less_at_equal_products(rademacher):
    """On a spectrum that decays like 1/i^2, as in the source's section 5."""
    q, _ = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))
    a = (q * torch.arange(1, 41).double() ** -2) @ q.T
    rows = torch.zeros(4000, 40).double()
    spread = []
    for trace in (Hutchinson(12, rademacher), HutchPlusPlus(12, rademacher)):
        spread.append(trace.estimate(lambda u: u.expand(-1, 4000, 40) @ a, trace.probes(rows))[0].std())
    # a standard deviation from 4000 draws is known to 2 %
    assert spread[1] < 0.5 * spread[0]


@pytest.mark.parametrize("trace", [Hutchinson(4), HutchPlusPlus(3), ExactTrace()], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("conditional", [False, True])
def test_adjoint_gradients_are_the_direct_ones(trace, conditional):
    """Of y, ladj and the costs, in x, the context and every parameter, with the same noise."""
    found = []
    for solver in (ADJOINT, DIRECT):
        layer = flow(C if conditional else 0, trace=trace, solver=solver).train()
        x, context = points().requires_grad_(), contexts(5).requires_grad_() if conditional else None
        torch.manual_seed(4)
        y, ladj, costs = layer.condition(context).inverse_and_costs(x)
        loss = y.square().sum() + ladj.sin().sum() + costs.kinetic.sum() + costs.jacobian.square().sum()
        wanted = [x, *layer.parameters(), *([context] if conditional else [])]
        found.append((loss.detach(), *torch.autograd.grad(loss, wanted)))
    near(*found)


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
def test_training_estimates_the_exact_density(trace):
    """The same row many times, each with noise of its own; the path itself has none."""
    layer, x = flow(trace=trace, solver=ODESolver("rk4", steps=8)), points(1).expand(4000, 3)
    with torch.no_grad():
        y, ladj = layer.eval()(x)
        noisy_y, noisy = layer.train()(x)
    torch.testing.assert_close(noisy_y, y)
    assert noisy.std() > 0
    assert_means_agree(*mean_and_error(noisy), ladj[0])


@torch.no_grad()
def test_the_trace_of_evaluation_is_a_choice_of_its_own():
    """Noisy there and exact in training, the other way round than usual."""
    solver = ODESolver("rk4", steps=8)
    layer, x = flow(trace=ExactTrace(), eval_trace=Hutchinson(2), solver=solver), points(1).expand(4000, 3)
    exact, noisy = layer.train()(x)[1], layer.eval()(x)[1]
    torch.testing.assert_close(exact, flow(solver=solver).eval()(x)[1])
    assert noisy.std() > 0
    assert_means_agree(*mean_and_error(noisy), exact[0])


def test_gradients_do_not_lose_digits_with_the_size_of_the_loss():
    layer, x = flow(solver=ODESolver(rtol=1e-6, atol=1e-6)), points()
    full, tiny = (
        torch.autograd.grad(size * layer(x)[0].square().sum(), list(layer.parameters()), materialize_grads=True)
        for size in (1.0, 2.0**-40)
    )
    torch.testing.assert_close([2.0**40 * g for g in tiny], list(full), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("conditional", [False, True])
def test_gradients_of_single_rows_by_vmap(conditional):
    """vmap over rows of the gradient in the parameters, against a loop."""
    layer = flow(C if conditional else 0, solver=ODESolver("dopri8", rtol=1e-11, atol=1e-11)).eval()
    parameters = {k: p.detach() for k, p in layer.named_parameters()}
    x, context = points(3), contexts(3)

    def loss(parameters, row, c):
        y, ladj = functional_call(layer, parameters, (row, c if conditional else None))
        return y.square().sum() + ladj

    found = vmap(grad(loss), (None, 0, 0))(parameters, x, context)
    for i in range(3):
        near({k: v[i] for k, v in found.items()}, grad(loss)(parameters, x[i], context[i]))


def test_vmap_over_the_context_alone_and_with_noise():
    layer, x, context = flow(C, trace=Hutchinson(2)).train(), points(1)[0], contexts(5)
    y, ladj = vmap(lambda c: layer.condition(c).call_and_ladj(x), randomness="different")(context)
    near(y, layer.eval()(x.expand(5, 3), context)[0])
    assert ladj.shape == (5,)


def test_direct_gradients_are_of_any_order_and_adjoint_ones_say_so():
    x = points(1)[0].requires_grad_()
    hessian = torch.autograd.functional.hessian(lambda x: flow(solver=DIRECT)(x)[1], x)
    step = 1e-4 * torch.eye(3).double()
    slopes = [
        torch.autograd.grad(flow(solver=DIRECT)(row)[1].sum(), row)[0]
        for row in (x.detach() + step, x.detach() - step)
        if row.requires_grad_() is not None
    ]
    # central differences: an error of the step squared
    torch.testing.assert_close(hessian, (slopes[0] - slopes[1]) / 2e-4, rtol=1e-5, atol=1e-6)
    (first,) = torch.autograd.grad(flow()(x)[1], x, create_graph=True)
    with pytest.raises(RuntimeError, match="adjoint=False"):
        torch.autograd.grad(first.sum(), x)


@pytest.mark.parametrize("solver", [ADJOINT, DIRECT])
def test_costs_of_a_linear_field(solver):
    layer, y = Continuous(3, Linear(), solver=solver), points()
    a = layer.net.matrix.detach()
    x, ladj, costs = layer.condition().inverse_and_costs(y)
    near((x, ladj), layer.condition().inverse_and_ladj(y))
    near(costs.jacobian, a.square().sum().expand(5))
    # Simpson's rule along x(t) = exp(tA) x(0): an error of the step, 1/200, to the fourth
    t = torch.linspace(0, 1, 201).double()
    speed = (torch.linalg.matrix_exp(t[:, None, None] * a) @ x.T).mT @ a.T  # (201, 5, 3)
    weights = torch.ones(201).double()
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    kinetic = (weights[:, None] * speed.square().sum(-1)).sum(0) / 600
    torch.testing.assert_close(costs.kinetic, kinetic, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("dtype", "tolerance", "bound"), [(torch.float32, 1e-6, 1e-4), (torch.float64, 1e-12, 1e-9)])
def test_round_trip_of_eight_layers(dtype, tolerance, bound):
    solver = ODESolver("dopri8", rtol=tolerance, atol=tolerance)
    layers = Compose([grow(Continuous(3, hidden=[6], solver=solver), 0.3, seed) for seed in range(8)]).to(dtype)
    with torch.no_grad():
        x = points().to(dtype)
        y, ladj = layers(x)
        back, back_ladj = layers.inv(y)
    assert (y - x).abs().max() > 0.5
    assert bool(((back - x).norm(dim=-1) <= bound * x.norm(dim=-1)).all())
    assert bool(((back_ladj + ladj).abs() <= bound * (1 + ladj.abs())).all())


class Unasked(Trace):
    """A trace that nobody may ask for."""

    def probes(self, x):
        raise AssertionError("the trace was asked for")

    estimate = probes


@pytest.mark.parametrize("solver", [ADJOINT, DIRECT])
def test_samples_and_points_are_had_without_a_trace(solver):
    quiet = flow(C, trace=Unasked(), eval_trace=Unasked(), solver=solver)
    full, x = flow(C, solver=solver).eval(), points()
    assert Flow(StandardNormal(3).double(), [quiet]).sample(2, contexts(5)).shape == (2, 5, 3)
    for layer, whole in ((quiet, full), (quiet.inv, full.inv), (Compose([quiet]).inv, full.inv)):
        found = []
        for bijector, take in ((layer, lambda t, rows: t(rows)), (whole, lambda t, rows: t.call_and_ladj(rows)[0])):
            rows = x.clone().requires_grad_()
            y = take(bijector.condition(contexts(5)), rows)
            wanted = [rows, *bijector.parameters()]
            found.append((y, *torch.autograd.grad(y.sin().sum(), wanted, materialize_grads=True)))
        near(*found)


@pytest.mark.parametrize("solver", [ADJOINT, DIRECT])
@pytest.mark.parametrize("conditional", [False, True])
def test_inference_mode_changes_nothing(solver, conditional):
    layer, context = flow(C if conditional else 0, solver=solver).eval(), contexts(5) if conditional else None
    with torch.no_grad():
        expected = layer(points(), context)
    with torch.inference_mode():
        found = layer(points(), context)
        point = layer.condition(context)(points())
    near(found, expected)
    near(point, expected[0])


def test_autocast_leaves_the_velocity_its_digits():
    """In both directions and in the gradient: a solver that asks for 1e-5 cannot have it from bfloat16."""
    layer, found = flow(solver=ODESolver()).float().eval(), []
    for on in (False, True):
        x = points().float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            y, ladj = layer(x)
            back, _ = layer.inv(y)
            loss = back.sin().sum() + y.cos().sum() + ladj.sum()
            found.append((y, ladj, back, *torch.autograd.grad(loss, [x, *layer.parameters()])))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_at_the_default_tolerances(dtype):
    """About five steps there and five back, each wrong by at most 1e-5 (1 + |x|)."""
    layer, x = grow(Continuous(3, hidden=[64, 64])).to(dtype).eval(), 3 * points(50).to(dtype)
    with torch.no_grad():
        y, ladj = layer(x)
        back, back_ladj = layer.inv(y)
    assert (y - x).abs().max() > 0.5
    assert bool(((back - x).abs() <= 1e-4 * (1 + x.abs())).all())
    assert bool(((back_ladj + ladj).abs() <= 1e-4 * (1 + ladj.abs())).all())


def test_missing_torchdiffeq_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r"pyrodgm\[flows\]"):
        Continuous(2)


def test_mistakes_are_named():
    for build, words in [
        (lambda: Continuous(0), "features >= 1"),
        (lambda: Continuous(2, time=0.0), "time > 0"),
        (lambda: ODESolver(rtol=0.0), "rtol > 0"),
        (lambda: ODESolver(steps=0), "steps >= 1"),
        (lambda: Hutchinson(0), "probes >= 1"),
        (lambda: HutchPlusPlus(4), "multiple of 3"),
        (lambda: FFJORD(2, layers=0), "layers >= 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            build()


def test_a_flow_of_networks_of_ones_own():
    """Two linear fields: x = expm(B) expm(A) z, so x is normal, with the covariance of that product."""
    torch.manual_seed(0)
    model = FFJORD(3, layers=2, solver=ADJOINT, net=Linear).double().eval()
    first, second = (torch.linalg.matrix_exp(layer.net.matrix) for layer in model.bijectors)
    assert not torch.equal(first, second)
    both = (second @ first).detach()
    law = torch.distributions.MultivariateNormal(torch.zeros(3).double(), both @ both.T)
    near(model.log_prob(points()), law.log_prob(points()))
    with pytest.raises(TypeError, match="makes a network, got a Linear"):
        FFJORD(3, net=Linear())


def test_it_learns():
    """A few steps with the noisy trace lower the exact loss."""
    torch.manual_seed(0)
    x = torch.randn(200, 2) * torch.tensor([3.0, 0.3])
    model = FFJORD(2, 1, hidden=[16], solver=ODESolver("rk4", steps=3))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    before = -model.eval().log_prob(x).mean()
    model.train()
    for _ in range(25):
        optimizer.zero_grad()
        (-model.log_prob(x).mean()).backward()
        optimizer.step()
    assert -model.eval().log_prob(x).mean() < before - 1
