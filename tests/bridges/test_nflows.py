"""nflows both ways: the same numbers as its own, in both directions."""

import copy
import pickle

import pyro.distributions as dist
import pytest
import torch
from cases import grow
from nflows import transforms as theirs
from nflows.distributions import ConditionalDiagonalNormal, DiagonalNormal, MG1Uniform, StandardNormal
from nflows.distributions.mixture import MADEMoG
from nflows.flows import Flow as NflowsFlow

import pyrodgm
from pyrodgm.bijectors import AffineCoupling, Compose
from pyrodgm.bridges.nflows import AsNflowsDistribution, AsNflowsTransform, NflowsBijector, NflowsModel
from pyrodgm.tractable import MADE, Flow, GaussianMixtureConditional, Parametric, RealNVP
from pyrodgm.tractable import StandardNormal as Ours

D, C = 4, 2

pytestmark = pytest.mark.filterwarnings("ignore:torch.(triangular_solve|qr) is deprecated")  # by nflows


def transform(context=None):
    return grow(
        theirs.CompositeTransform(
            [
                theirs.MaskedAffineAutoregressiveTransform(D, 16, context_features=context),
                theirs.RandomPermutation(D),
                theirs.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                    D, 16, context_features=context, tails="linear", tail_bound=3.0
                ),
                theirs.HouseholderSequence(D, 2),
            ]
        ),
        0.1,
    ).double()


def rows(n=6):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, size, generator=generator, dtype=torch.float64) for size in (D, C))


@pytest.mark.parametrize("context", [None, C])
def test_a_transform_gives_its_own_numbers(context):
    x, c = rows()
    c = None if context is None else c
    t = transform(context)
    ours = NflowsBijector(t, context or 0)
    y, ladj = ours(x, c)
    torch.testing.assert_close((y, ladj), t(x, c))
    back, back_ladj = ours.inv(y, c)
    torch.testing.assert_close((back, back_ladj), t.inverse(y, c))
    torch.testing.assert_close(
        ours(x.unflatten(0, (2, 3)), None if c is None else c.unflatten(0, (2, 3)))[1].flatten(), ladj
    )


@pytest.mark.parametrize("context", [None, C])
def test_a_flow_gives_its_own_numbers_and_trains(context):
    x, c = rows(32)
    c = None if context is None else c
    base = StandardNormal([D]) if context is None else ConditionalDiagonalNormal([D], torch.nn.Linear(C, 2 * D))
    flow = NflowsFlow(transform(context), base).double()
    model = NflowsModel(flow, (D,), context or 0)
    torch.testing.assert_close(model.log_prob(x, c), flow.log_prob(x, context=c))
    d = model.condition(c)
    draw = d.rsample(() if c is not None else (5,))
    torch.testing.assert_close(d.log_prob(draw), model.log_prob(draw.clone(), c))
    before = model.log_prob(x, c).mean().item()
    model.float()
    data = x.float() if c is None else (x.float(), c.float())
    pyrodgm.fit(model, data, steps=20, progress=False)
    assert model.log_prob(x.float(), None if c is None else c.float()).mean() > before


def test_a_distribution_that_is_no_flow():
    torch.manual_seed(0)
    mixture = MADEMoG(D, 16, context_features=None, num_blocks=1, use_residual_blocks=False, random_mask=False).double()
    x, _ = rows()
    model = NflowsModel(mixture, (D,))
    torch.testing.assert_close(model.log_prob(x), mixture.log_prob(x))


def test_ours_as_theirs():
    x, c = rows()
    torch.manual_seed(0)
    ours = grow(Compose([AffineCoupling(D, context=C, hidden=[8], flip=bool(i % 2)) for i in range(3)])).double()
    base = grow(MADE(D, [8], conditional=GaussianMixtureConditional(2))).double()
    flow = NflowsFlow(AsNflowsTransform(ours.inv), AsNflowsDistribution(base)).double()
    expected = Flow(base, list(ours.bijectors)).log_prob(x, c)
    torch.testing.assert_close(flow.log_prob(x, context=c), expected)
    draws, log_prob = flow.sample_and_log_prob(5, context=c)  # by the transform's other direction
    each = c.repeat_interleave(5, 0)
    torch.testing.assert_close(log_prob.flatten(), flow.log_prob(draws.flatten(0, 1), context=each))
    flow = NflowsFlow(AsNflowsTransform(ours.inv), AsNflowsDistribution(RealNVP(D, 2, context=C))).double()
    assert flow.sample(5, context=c).shape == (6, 5, D)
    assert AsNflowsDistribution(Ours(D)).sample(5).shape == (5, D)


def test_draws_of_ours_stand_with_their_context():
    """Six contexts far apart, five draws of each."""
    far = Parametric(dist.Normal, D, context=1, net=torch.nn.Linear(1, D, bias=False), fixed={"scale": 0.1})
    torch.nn.init.constant_(far.net.weight, 100.0)
    c = torch.arange(6.0).unsqueeze(-1)
    found = AsNflowsDistribution(far).sample(5, context=c)
    assert found.shape == (6, 5, D)
    assert ((found - 100 * c.unsqueeze(1)).abs() < 1).all()


def test_copies():
    x, _ = rows()
    model = NflowsModel(NflowsFlow(transform(), StandardNormal([D])), (D,)).double()
    y = model.log_prob(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other.log_prob(x), y, rtol=0, atol=0)


SHAPE = (1, 4, 4)


def image_flow():
    """Two scales of a squeeze and an actnorm, whose latents leave as one vector."""
    multi = theirs.MultiscaleCompositeTransform(2)
    shape = SHAPE
    for _ in range(2):
        channels = 4 * shape[0]
        parts = [theirs.SqueezeTransform(), theirs.ActNorm(channels)]
        shape = multi.add_transform(theirs.CompositeTransform(parts), (channels, shape[1] // 2, shape[2] // 2))
    torch.manual_seed(0)
    return NflowsFlow(grow(multi, 0.1), StandardNormal([16])).double().eval()


def test_a_flow_over_images_whose_latents_are_vectors():
    flow, x = image_flow(), torch.rand(6, *SHAPE, dtype=torch.float64)
    model = NflowsModel(flow, SHAPE)
    torch.testing.assert_close(model.log_prob(x), flow.log_prob(x))
    assert model.sample(3).shape == (3, *SHAPE)
    d = model.condition()
    draw = d.rsample((5,))
    torch.testing.assert_close(d.log_prob(draw), flow.log_prob(draw))


def test_a_transform_that_changes_the_shape():
    transform, x = image_flow()._transform, torch.rand(2, 3, *SHAPE, dtype=torch.float64)
    bijector = NflowsBijector(transform, shapes=(SHAPE, (16,)))
    y, ladj = bijector(x)
    assert (y.shape, ladj.shape) == ((2, 3, 16), (2, 3))
    torch.testing.assert_close(bijector.inv(y), (x, -ladj))
    flow = Flow(Ours(16).double(), [bijector.inv])
    assert flow.event_shape == SHAPE
    torch.testing.assert_close(flow.log_prob(x), Ours(16).double().log_prob(y) + ladj)


def test_the_type_of_a_model_is_that_of_its_parameters():
    """Normals of nflows keep a constant in float64, which comes before their networks."""
    model = NflowsModel(ConditionalDiagonalNormal([D], torch.nn.Linear(C, 2 * D)), (D,), C)
    assert model.dtype is torch.float32
    assert model.log_prob(torch.zeros(2, D), torch.zeros(2, C)).dtype is torch.float32
    assert model.sample(context=torch.zeros(2, C)).dtype is torch.float32
    assert model.double().dtype is torch.float64


def test_caches_of_linear_maps_do_not_outlive_a_step():
    """nflows keeps matrices until its train() is called, and a draw of ours gives each part its mode back without."""
    model = NflowsModel(NflowsFlow(theirs.LULinear(D, using_cache=True), StandardNormal([D])), (D,))
    torch.manual_seed(1)
    before = model.sample(3)
    with torch.no_grad():
        model.distribution._transform.unconstrained_upper_diag.add_(3.0)
    torch.manual_seed(1)
    after = model.sample(3)
    torch.manual_seed(1)
    torch.testing.assert_close(
        after, theirs.LULinear.inverse_no_cache(model.distribution._transform, torch.randn(3, D))[0]
    )
    assert (before - after).abs().max() > 0.1


def test_a_cache_filled_before_is_dropped():
    layer = theirs.LULinear(D, using_cache=True).eval()
    layer(torch.zeros(1, D))
    bijector, x = NflowsBijector(layer).double(), next(rows())
    copy.deepcopy(bijector)  # a cached matrix hangs on its graph
    torch.testing.assert_close(bijector.inv(bijector(x)[0])[0], x)


def test_a_map_without_inverse_says_what_to_do():
    norm = theirs.BatchNorm(D)
    model, x = NflowsModel(NflowsFlow(norm, StandardNormal([D])), (D,)), torch.randn(8, D)
    with pytest.raises(NotImplementedError, match=r"expected an inverse from nflows' BatchNorm, .* call \.eval\(\)"):
        model.condition().rsample((3,))
    model.log_prob(x)
    model.eval()
    torch.testing.assert_close(NflowsBijector(norm).inv(norm(x)[0])[0], x)
    naive = NflowsModel(NflowsFlow(theirs.NaiveLinear(D), StandardNormal([D])), (D,))
    assert naive.log_prob(x).isfinite().all()
    with pytest.raises(NotImplementedError, match=r"NaiveLinear.*torch has removed.*LULinear"):
        naive.sample(3)


def test_numbers_outside_its_domain_are_refused():
    layer = NflowsBijector(theirs.PiecewiseLinearCDF([D]))
    with pytest.raises(ValueError, match=r"domain of nflows' PiecewiseLinearCDF, got some from -1 to 0\.5; squash"):
        layer(torch.tensor([[0.5, 0.2, -1.0, 0.1]]))
    with pytest.raises(ValueError, match="domain of nflows' Tanh"):
        NflowsBijector(theirs.Tanh()).inv(torch.full((2, D), 1.5))


def test_other_errors_of_theirs_stay_as_they_are():
    with pytest.raises(RuntimeError, match="must match the size"):
        NflowsBijector(theirs.PointwiseAffineTransform(torch.zeros(3), torch.ones(3)))(torch.zeros(2, D))


def test_shapes_that_were_not_announced_are_refused():
    with pytest.raises(
        ValueError, match=r"expected \(1, 4, 4\) from nflows' SqueezeTransform, got \(4, 2, 2\); give shapes"
    ):
        NflowsBijector(theirs.SqueezeTransform(), event_dim=3)(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"one ladj a row from nflows' GatedLinearUnit, \(2,\), got \(8,\)"):
        NflowsBijector(theirs.GatedLinearUnit(), D)(torch.zeros(2, D), torch.zeros(2, D))


def test_what_is_no_distribution_of_its_own_is_refused():
    with pytest.raises(
        TypeError, match=r"expected a Flow or a Distribution of nflows, got ReversePermutation; .*NflowsB"
    ):
        NflowsModel(theirs.ReversePermutation(D), (D,))
    with pytest.raises(TypeError, match="got MG1Uniform"):
        NflowsModel(MG1Uniform(torch.zeros(3), torch.ones(3)), (3,))


@pytest.mark.parametrize(("context", "got"), [(None, "no context"), (C, "torch.float64")])
def test_a_mixture_that_cannot_draw_says_so(context, got):
    mixture = NflowsModel(MADEMoG(D, 8, context), (D,), context or 0).double()
    x, c = rows()
    c = None if context is None else c
    assert mixture.log_prob(x, c).isfinite().all()
    with pytest.raises(NotImplementedError, match=f"MADEMoG draws with, got {got}; it can score"):
        mixture.sample(2, c)


def test_a_learned_diagonal_normal_draws():
    """nflows lets it score only."""
    normal = DiagonalNormal([2])
    with torch.no_grad():
        normal.mean_.copy_(torch.tensor([[1.0, -2.0]]))
        normal.log_std_.copy_(torch.tensor([[0.5, 2.0]]).log())
    model = NflowsModel(normal, (2,))
    draws = model.sample(20_000)
    torch.testing.assert_close(draws.mean(0), torch.tensor([1.0, -2.0]), rtol=0, atol=5 * 2 / 20_000**0.5)
    torch.testing.assert_close(draws.std(0), torch.tensor([0.5, 2.0]), rtol=0, atol=5 * 2 / 40_000**0.5)
    model.condition().rsample((4,)).sum().backward()
    torch.testing.assert_close(normal.mean_.grad, torch.full((1, 2), 4.0))
