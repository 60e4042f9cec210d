"""Contract 3: both directions, ladj against autodiff, no cache, and the claims, at grown parameters in float64."""

import copy
import pickle

import pyro.distributions as dist
import pytest
import torch
from cases import BIJECTORS, C, assert_gradients_are_slopes, context_of, contexts, ready, variants
from torch.func import grad, jacrev, vmap

from pyrodgm.bijectors import AdditiveCoupling, Affine, CircularSpline, Compose, Coupling, Inverse

N = 6
WAYS = ("call_and_ladj", "inverse_and_ladj")

every = variants(BIJECTORS)


def noise(n, event):
    return torch.randn(n, *event, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def inputs(case, n=N, scale=1.0):
    return scale * noise(n, case.event)


def outputs(case, transform):
    """Rows of y, (N, *event), wherever the codomain is."""
    return torch.distributions.biject_to(transform.codomain)(noise(N, case.image))


def transform_of(name, conditional):
    case = BIJECTORS[name]
    return ready(case, conditional).condition(context_of(conditional, N)), inputs(case)


def jacobians(bijector, x, context):
    """dy/dx of every row, both flattened: (B, D, D)."""

    def image(row, c=None):
        return bijector.condition(c).call_and_ladj(row.reshape(x.shape[1:]))[0].flatten()

    rows = (x.flatten(1),) if context is None else (x.flatten(1), context)
    return vmap(jacrev(image))(*rows)


def check_round_trip(name, conditional=False):
    t, x = transform_of(name, conditional)
    y, ladj = t.call_and_ladj(x)
    back, back_ladj = t.inverse_and_ladj(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(back_ladj, -ladj)
    y = outputs(BIJECTORS[name], t)
    there, _ = t.call_and_ladj(t.inverse_and_ladj(y)[0])
    torch.testing.assert_close(there, y)


def check_ladj(name, conditional=False):
    case, context = BIJECTORS[name], context_of(conditional, N)
    bijector, x = ready(case, conditional), inputs(case)
    ladj = bijector.condition(context).call_and_ladj(x)[1]
    assert ladj.shape == (N,)
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobians(bijector, x, context))[1])


def check_claims(name, conditional=False):
    """What is claimed holds, and what is not claimed does not: a missing claim is as wrong as a false one."""
    case = BIJECTORS[name]
    bijector, x = ready(case, conditional), inputs(case)
    jacobian = jacobians(bijector, x, context_of(conditional, N))
    ladj = torch.linalg.slogdet(jacobian)[1].abs().max()
    assert bool((jacobian.triu(1) == 0).all()) is bijector.triangular is case.triangular
    assert bool(ladj < 1e-12) is bijector.volume_preserving is case.volume_preserving


def check_context_changes_the_map(name):
    case = BIJECTORS[name]
    bijector, x = ready(case, True), inputs(case, 1)
    y = bijector.condition(contexts(N)).call_and_ladj(x.expand(N, *case.event))[0]
    assert bool((y.std(0) > 1e-6).any())


def check_gradients_are_slopes(name, conditional=False, way="call_and_ladj"):
    """In x, in the parameters and in the context, of what the map gives and of its ladj."""
    case, context = BIJECTORS[name], context_of(conditional, N)
    bijector = ready(case, conditional)
    rows = inputs(case) if way == WAYS[0] else outputs(case, bijector.condition(context)).clone()

    def total():
        y, ladj = getattr(bijector.condition(context), way)(rows)
        return y.asinh().sum() + ladj.square().sum()

    leaves = {"x": [rows], "the parameters": list(bijector.parameters()), "the context": [context] * conditional}
    assert_gradients_are_slopes(total, {kind: group for kind, group in leaves.items() if group})


def check_nothing_goes_stale(name, conditional=False):
    """A transform made after a change is of the new parameters: the same tensors never give yesterday's numbers."""
    case, context = BIJECTORS[name], context_of(conditional, N)
    bijector, x = ready(case, conditional), inputs(case)
    t = bijector.condition(context)
    y = t(x)
    t.inv(y), t.log_abs_det_jacobian(x, y)
    with torch.no_grad():
        for p in bijector.parameters():
            p.add_(0.1)
    fresh = bijector.condition(context)
    torch.testing.assert_close(fresh(x), copy.deepcopy(bijector).condition(context)(x.clone()))
    torch.testing.assert_close(fresh.inv(fresh(x)), x)
    torch.testing.assert_close(fresh.log_abs_det_jacobian(x, y), fresh.call_and_ladj(x.clone())[1])
    if list(bijector.parameters()):
        assert not torch.equal(fresh(x), y)


@every
def test_round_trip(name, conditional):
    check_round_trip(name, conditional)


@every
def test_ladj_is_autodiffs(name, conditional):
    check_ladj(name, conditional)


@every
def test_claims(name, conditional):
    check_claims(name, conditional)


@pytest.mark.parametrize("lead", [(), (1,), (3, 1)])
@pytest.mark.parametrize("name", [name for name, case in BIJECTORS.items() if case.conditional])
def test_one_x_under_many_contexts(name, lead):
    """x broadcasts against the contexts: the numbers are those of x written out for each of them."""
    case = BIJECTORS[name]
    t = ready(case, True).condition(contexts(N))
    rows = 3 if len(lead) > 1 else 1
    x = inputs(case, rows).reshape(*lead, *case.event)
    for way, event in ((t.call_and_ladj, case.event), (t.inverse_and_ladj, case.image)):
        y, ladj = way(x)
        each, each_ladj = way(x.expand(*torch.broadcast_shapes(lead, (N,)), *event).contiguous())
        assert ladj.shape == each_ladj.shape
        torch.testing.assert_close(y, each)
        torch.testing.assert_close(ladj, each_ladj)
        x = each.flatten(0, each.dim() - len(case.image) - 1)[:rows].reshape(*lead, *case.image)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name", [n for n in BIJECTORS if n.startswith(("Autoregressive", "Coupling mixture", "Planar"))]
)
def test_transforms_of_torch_func_see_the_plain_gradients(name, way):
    """vmap of grad, which chains of MCMC go by: of every row, both ways, under a context of its own."""
    case = BIJECTORS[name]
    bijector, x, context = ready(case, True), inputs(case), contexts(N)

    def total(row, c):
        y, ladj = getattr(bijector.condition(c), way)(row)
        return (y * (1 + ladj)).sum()

    found = vmap(grad(total))(x, context)
    leaf = x.clone().requires_grad_()
    y, ladj = getattr(bijector.condition(context), way)(leaf)
    (expected,) = torch.autograd.grad((y * (1 + ladj.unsqueeze(-1))).sum(), leaf)
    torch.testing.assert_close(found, expected)


@every
def test_no_rows_are_an_answer(name, conditional):
    t = ready(BIJECTORS[name], conditional).condition(contexts(N)[:0] if conditional else None)
    for way, event in ((t.call_and_ladj, BIJECTORS[name].event), (t.inverse_and_ladj, BIJECTORS[name].image)):
        y, ladj = way(torch.zeros(0, *event, dtype=torch.float64))
        assert y.shape[0] == 0
        assert ladj.shape == (0,)


# Pixels and fixed transforms act on numbers of any event; a continuous flow is refused by its network.
SIZED = [name for name in BIJECTORS if not name.startswith(("Pixels", "Fixed", "Continuous"))]


@pytest.mark.parametrize("name", SIZED)
def test_another_size_is_refused(name):
    """Too many features, or one that broadcasts, are mistakes: no answer is made up, in any direction or start."""
    case = BIJECTORS[name]
    bijector = ready(case)
    t = bijector.condition()
    for event, ways in [(case.event, (t.call_and_ladj, bijector.initialize)), (case.image, (t.inverse_and_ladj,))]:
        for size in {1, event[0] + 1} - {event[0]}:
            for way in ways:
                with pytest.raises(ValueError, match=r"expected x of shape \(\*, "):
                    way(torch.rand(N, size, *event[1:], dtype=torch.float64))


@every
def test_nothing_goes_stale(name, conditional):
    check_nothing_goes_stale(name, conditional)


@pytest.mark.parametrize("name", [name for name, case in BIJECTORS.items() if case.conditional])
def test_context_changes_the_map(name):
    check_context_changes_the_map(name)


def check_autocast_leaves_x_its_digits(name, conditional=False):
    """Networks may compute in bfloat16, the same numbers in both directions; what they set is applied in float32."""
    case, context = BIJECTORS[name], context_of(conditional, N)
    bijector, x = ready(case, conditional).float(), inputs(case).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        t = bijector.condition(None if context is None else context.float())
        y, ladj = t.call_and_ladj(x)
        back, back_ladj = t.inverse_and_ladj(y)
    assert y.dtype is back.dtype is torch.float32
    # One product in bfloat16 would be off by 2^-9 of its terms, four times this; float32 leaves room for steep maps.
    torch.testing.assert_close(back, x, rtol=5e-4, atol=5e-4)
    torch.testing.assert_close(back_ladj, -ladj, rtol=5e-4, atol=5e-4)


# What multiplies x itself by matrices, and what stands for the others.
AUTOCAST = (
    "LULinear",
    "LULinear rotation",
    "LULinear image",
    "Householder",
    "QRLinear",
    "Planar",
    "Radial",
    "ActNorm",
    "AffineCoupling",
    "Continuous",
)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast_leaves_x_its_digits(name, conditional):
    check_autocast_leaves_x_its_digits(name, conditional)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", ["Autoregressive", "Autoregressive rational-quadratic"])
def test_autocast_leaves_the_sequential_way_its_digits(name, conditional):
    case, context = BIJECTORS[name], context_of(conditional, N)
    t = ready(case, conditional).float().condition(None if context is None else context.float())
    y = inputs(case).float()
    expected = t.inverse_and_ladj(y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(t.inverse_and_ladj(y), expected)


@pytest.mark.parametrize("name", ["Planar", "Coupling quadratic flipped", "Coupling rational-quadratic"])
@pytest.mark.parametrize("way", WAYS)
def test_second_derivatives(name, way):
    """Against finite differences of the first."""
    bijector, x = ready(BIJECTORS[name]), inputs(BIJECTORS[name], 2).requires_grad_()
    assert torch.autograd.gradgradcheck(getattr(bijector.condition(), way), (x,))


def test_couplings_of_a_map_of_angles_have_angles_as_support():
    t = Coupling(4, CircularSpline(4, wrap=True)).condition()
    for constraint in (t.domain, t.codomain):
        assert bool(constraint.check(torch.zeros(4)))
        assert not bool(constraint.check(torch.full((4,), 10.0)))


@every
def test_torchs_api_says_what_the_fused_passes_say(name, conditional):
    t, x = transform_of(name, conditional)
    y, ladj = t.call_and_ladj(x)
    for a, b in [
        (t(x), y),
        (t._call(x), y),
        (t._inverse(y), t.inverse_and_ladj(y)[0]),
        (t.log_abs_det_jacobian(x, y), ladj),
        (t.inv(y), t.inverse_and_ladj(y)[0]),
        (t.inv.log_abs_det_jacobian(y, x), t.inverse_and_ladj(y)[1]),
        (t.inv.inv(x), y),
    ]:
        # The ladj of the other way round, and a path that is solved without its trace, differ by roundings.
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@every
def test_bijector_shorthands(name, conditional):
    case, context = BIJECTORS[name], context_of(conditional, N)
    bijector, x = ready(case, conditional), inputs(case)
    y, ladj = bijector(x, context)
    back, back_ladj = bijector.inv(y, context)
    torch.testing.assert_close((back, back_ladj), (x, -ladj))
    torch.testing.assert_close(bijector.inv.inv(x, context)[0], y, rtol=0, atol=0)
    assert {id(p) for p in bijector.inv.parameters()} == {id(p) for p in bijector.parameters()}
    assert bijector.context == bijector.inv.context == (C if conditional else 0)


@every
def test_leading_dimensions(name, conditional):
    """(2, 3, *event) under contexts (3, C) or none gives what the rows give."""
    case, context = BIJECTORS[name], context_of(conditional, 3)
    t, x = ready(case, conditional).condition(context), inputs(case, 6).unflatten(0, (2, 3))
    y, ladj = t.call_and_ladj(x)
    assert y.shape == (2, 3, *case.image)
    assert ladj.shape == (2, 3)
    torch.testing.assert_close((y[1], ladj[1]), t.call_and_ladj(x[1]))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_scales_of_input(name, conditional, scale, dtype):
    case, context = BIJECTORS[name], context_of(conditional, N)
    context = None if context is None else context.to(dtype)
    t, x = ready(case, conditional).to(dtype).condition(context), inputs(case, scale=scale).to(dtype)
    y, ladj = t.call_and_ladj(x)
    back, back_ladj = t.inverse_and_ladj(y)
    assert y.dtype == ladj.dtype == back.dtype == dtype
    assert all(v.isfinite().all() for v in (y, ladj, back, back_ladj))
    # The largest numbers on the way set the rounding, and where the map is flat its inverse enlarges it by the
    # slope of the inverse, which exp(back_ladj) bounds where one direction is flat; 1000 roundings of each.
    largest = torch.stack([x.abs().max(), y.abs().max(), torch.ones((), dtype=dtype)]).max()
    steep = back_ladj.exp().clamp_min(1).reshape(-1, *[1] * len(case.event))
    assert bool(((back - x).abs() <= 1000 * torch.finfo(dtype).eps * largest * steep).all())


@every
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_finite_in_single_precision(name, conditional, way, scale):
    case, context = BIJECTORS[name], context_of(conditional, N)
    context = None if context is None else context.float()
    bijector, rows = ready(case, conditional).float(), inputs(case, scale=scale).float()
    if way == WAYS[1]:
        rows = bijector.condition(context).call_and_ladj(rows)[0].detach()
    rows.requires_grad_()
    y, ladj = getattr(bijector.condition(context), way)(rows)
    gradients = torch.autograd.grad(y.sum() + ladj.sum(), [rows, *bijector.parameters()], allow_unused=True)
    assert all(g.isfinite().all() for g in gradients if g is not None)


@every
def test_in_pyros_transformed_distributions(name, conditional):
    case, context = BIJECTORS[name], context_of(conditional, N)
    bijector = ready(case, conditional)
    base = dist.Normal(torch.zeros(case.event, dtype=torch.float64), 1.0).to_event(len(case.event))
    if conditional:
        d = dist.ConditionalTransformedDistribution(base.expand([N]), [bijector]).condition(context)
        x = d.sample()
    else:
        d = dist.TransformedDistribution(base, [bijector.condition()])
        x = d.sample((N,))
    assert x.shape == (N, *case.image)
    assert d.event_shape == case.image
    z, ladj = bijector.condition(context).inverse_and_ladj(x)
    torch.testing.assert_close(d.log_prob(x), base.log_prob(z) + ladj)


@every
def test_deepcopy_and_pickle_after_use(name, conditional):
    case, context = BIJECTORS[name], context_of(conditional, N)
    bijector, x = ready(case, conditional), inputs(case)
    t = bijector.condition(context)
    y = t.inv.inv(x)
    for other in (copy.deepcopy(bijector), pickle.loads(pickle.dumps(bijector))):
        torch.testing.assert_close(other.condition(context)(x), y, rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(t)(x), y, rtol=0, atol=0)


@every
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_slopes(name, conditional, way):
    check_gradients_are_slopes(name, conditional, way)


@every
def test_gradients_reach_parameters_and_inputs_both_ways(name, conditional):
    case, context = BIJECTORS[name], context_of(conditional, N)
    bijector = ready(case, conditional)
    for way, x in (("call_and_ladj", inputs(case)), ("inverse_and_ladj", outputs(case, bijector.condition(context)))):
        x.requires_grad_()
        y, ladj = getattr(bijector.condition(context), way)(x)
        wanted = [x, *bijector.parameters()]
        for gradient in torch.autograd.grad(y.square().sum() + ladj.sum(), wanted):
            assert bool((gradient != 0).any())


def test_compose_of_nothing_is_the_identity():
    y, ladj = Compose([])(torch.ones(3, 2))
    assert torch.equal(y, torch.ones(3, 2))
    assert torch.equal(ladj, torch.zeros(3))
    assert Compose([], event_dim=3).inv(torch.ones(5, 1, 2, 2))[1].shape == (5,)


@pytest.mark.parametrize(("flip", "expected"), [(False, True), (True, False)])
def test_wrappers_keep_the_claims_of_their_parts(flip, expected):
    parts = [AdditiveCoupling(3, flip=flip), AdditiveCoupling(3)]
    for wrapper in (Inverse(parts[0]), Compose(parts)):
        assert wrapper.volume_preserving is True
        assert wrapper.triangular is expected
    assert Compose([*parts, Affine(3)]).volume_preserving is False
