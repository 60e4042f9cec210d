"""Linear maps and normalisations under a context: where they start, what they are, what they learn."""

import pytest
import torch
from cases import C, contexts, grow

from pyrodgm.bijectors import ActNorm, Affine, BatchNorm, Householder, LULinear, Planar, Radial
from pyrodgm.tractable import Flow, StandardNormal

ORDER = torch.tensor([2, 0, 1])
IMAGE = (3, 2, 2)
MAKERS = {
    "Affine": lambda context: Affine(3, context=context),
    "ActNorm image": lambda context: ActNorm(IMAGE, context=context),
    "BatchNorm": lambda context: BatchNorm(3, context=context),
    "LULinear": lambda context: LULinear(3, rotation=True, context=context),
    "LULinear image": lambda context: LULinear(IMAGE, order=ORDER, context=context),
    "Householder": lambda context: Householder(3, reflections=2, context=context),
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", MAKERS)
def test_every_context_starts_from_the_map_without_one(name):
    """The free parameters are the unconditional map's, and the network adds nothing yet."""
    torch.manual_seed(0)
    plain, conditional = MAKERS[name](0), MAKERS[name](C)
    grow(plain)
    missing = conditional.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing
    assert all(key.startswith("net.") for key in missing)
    plain, conditional = plain.double().eval(), conditional.double().eval()
    x = normal(5, *(IMAGE if "image" in name else (3,)))
    for way in ("call_and_ladj", "inverse_and_ladj"):
        expected = getattr(plain.condition(), way)(x)
        torch.testing.assert_close(getattr(conditional.condition(contexts(5)), way)(x), expected)


@pytest.mark.parametrize("shape", [(3,), IMAGE])
def test_a_linear_map_of_each_context_is_one_matrix(shape):
    """P L U of every row's own factors, dense, at every place of an image: solves and determinants agree."""
    layer, c = grow(LULinear(shape, order=ORDER, context=C)).double(), contexts(4)
    t = layer.condition(c)
    weight = t.lower @ t.upper
    weight = torch.stack([w[ORDER] for w in weight])
    assert bool((weight.std(0) > 1e-6).any())
    x = normal(4, *shape)
    places = x.reshape(4, 3, -1)  # (B, D, places)
    expected = (weight @ places + t.shift.unsqueeze(-1)).reshape(x.shape)
    y, ladj = t.call_and_ladj(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(ladj, torch.linalg.slogdet(weight)[1] * places.shape[-1])
    back = torch.linalg.solve(weight, y.reshape(4, 3, -1) - t.shift.unsqueeze(-1)).reshape(x.shape)
    torch.testing.assert_close(t.inverse_and_ladj(y)[0], back)


def test_reflections_of_each_context_are_orthogonal():
    layer, c = grow(Householder(4, reflections=3, context=C)).double(), contexts(5)
    eye = torch.eye(4, dtype=torch.float64)
    q = layer.condition(c.unsqueeze(1)).call_and_ladj(eye.expand(5, 4, 4))[0]
    torch.testing.assert_close(q @ q.mT, eye.expand(5, 4, 4))
    torch.testing.assert_close(torch.linalg.det(q), -torch.ones(5).double())  # of three reflections
    assert bool((q.std(0) > 1e-6).any())


@pytest.mark.parametrize("name", MAKERS)
def test_one_x_under_many_contexts(name):
    layer = grow(MAKERS[name](C)).double().eval()
    x = normal(*(IMAGE if "image" in name else (3,)))
    t = layer.condition(contexts(6))
    for way in (t.call_and_ladj, t.inverse_and_ladj):
        y, ladj = way(x)
        each, each_ladj = way(x.expand(6, *x.shape))
        torch.testing.assert_close(y, each)
        torch.testing.assert_close(ladj.expand(6), each_ladj)


@pytest.mark.parametrize("inverse", [False, True])
def test_actnorm_under_a_context_starts_from_all_rows(inverse):
    x, layer = 3 * normal(64, 4) + torch.arange(4.0), ActNorm(4, context=C).double()
    out = layer.initialize(x, contexts(64), inverse=inverse)
    torch.testing.assert_close(out.mean(0), torch.zeros(4).double())
    torch.testing.assert_close(out.var(0, correction=0), torch.ones(4).double())
    assert layer.started


def test_an_affine_flow_learns_the_moments_of_each_context():
    """Under one-hot labels its maximum likelihood is every class's own mean and variance."""
    labels = torch.eye(2).double().repeat(100, 1)
    x = normal(200, 2) * (labels @ torch.tensor([[0.5, 1.0], [2.0, 0.7]]).double())
    x = x + labels @ torch.tensor([[3.0, 0.0], [-1.0, 1.0]]).double()
    flow = Flow(StandardNormal(2), [ActNorm(2, context=2, hidden=[])]).double()
    flow.initialize(x, labels)
    optimizer = torch.optim.LBFGS(
        flow.parameters(), max_iter=300, line_search_fn="strong_wolfe", tolerance_change=1e-14
    )

    def closure():
        optimizer.zero_grad()
        loss = -flow.log_prob(x, labels).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    for k in range(2):
        rows = x[k::2]
        t = flow.bijectors[0].condition(labels[k])
        torch.testing.assert_close(t.shift, rows.mean(0), rtol=0, atol=1e-4)
        torch.testing.assert_close(t.log_scale.exp(), rows.std(0, correction=0), rtol=0, atol=1e-4)


def test_batch_norm_takes_the_statistics_of_all_contexts():
    layer, y = grow(BatchNorm(3, momentum=1.0, epsilon=0.0, context=C)).double().train(), normal(50, 3)
    t = layer.condition(contexts(50))
    x, ladj = t.inverse_and_ladj(y)
    standard = (y - y.mean(0)) / y.std(0, correction=0)
    torch.testing.assert_close(x, standard * t.log_scale.exp() + t.shift)
    torch.testing.assert_close(ladj, (t.log_scale - y.std(0, correction=0).log()).sum(-1))
    torch.testing.assert_close(layer.running_mean, y.mean(0))


@pytest.mark.parametrize("name", MAKERS)
def test_no_context_can_make_a_scale_overflow(name):
    layer = grow(MAKERS[name](C)).eval()
    t = layer.condition(torch.full((2, C), 1e4))
    if hasattr(t, "log_scale"):
        free = layer.log_scale
        assert bool(((t.log_scale - free).abs() <= 2.0 + 1e-5).all())
    assert bool(t.call_and_ladj(torch.zeros(2, *(IMAGE if "image" in name else (3,))))[1].isfinite().all())


@pytest.mark.parametrize("name", MAKERS)
def test_a_missing_context_is_named(name):
    with pytest.raises(ValueError, match=r"expected context of shape \(\*, 2\), got none"):
        MAKERS[name](C).condition()


@pytest.mark.parametrize("kind", [Planar, Radial])
def test_a_network_in_bfloat16_sets_numbers_in_float32(kind):
    """What is made of them, w.u or beta - alpha, is to be had back in the other direction."""
    layer = grow(kind(3, context=C))
    with torch.autocast("cpu", torch.bfloat16):
        t = layer.condition(contexts(4).float())
    assert {v.dtype for v in vars(t).values() if isinstance(v, torch.Tensor)} == {torch.float32}
