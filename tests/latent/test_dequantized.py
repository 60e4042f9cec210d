"""Dequantization: exact where the guide is the density within a cell, a bound elsewhere, tighter when learned."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from cases import all_binary, assert_means_agree, mean_and_error
from torch.distributions.transforms import AffineTransform

from pyrodgm.bijectors import ActNorm, Affine, AffineCoupling, Elementwise, Fixed, Inverse, LinearSpline, Sigmoid
from pyrodgm.core import Tractable
from pyrodgm.data import bits_per_dim, dequantize
from pyrodgm.distributions import Quantized, Spread
from pyrodgm.evaluation import log_likelihood
from pyrodgm.latent import Dequantized
from pyrodgm.objectives import ELBO
from pyrodgm.tractable import Flow, StandardNormal

HALF = 0.5
LEAST = 1e-3  # what a spline keeps for each of its bins


class Cube(Tractable):
    """Uniform on (-1/2, 1/2)^D."""

    def __init__(self, features):
        super().__init__((features,))
        self.register_buffer("like", torch.zeros(1, dtype=torch.float64), persistent=False)

    def condition(self, context=None):
        return dist.Uniform(self.like.expand(self.event_shape) - HALF, HALF).to_event(1)


def logits(p):
    """Raw numbers whose spline has bins of mass p, (*B, K)."""
    return ((p - LEAST) / (1 - p.shape[-1] * LEAST)).log()


def histogram(p):
    """A density on (0, 1)^D that is constant on K equal bins, with masses p (D, K)."""
    spline = Elementwise(len(p), LinearSpline(p.shape[-1], bound=HALF)).double()
    with torch.no_grad():
        spline.free.copy_(logits(p).T)
    return Flow(Cube(len(p)), [Inverse(spline), Fixed(AffineTransform(HALF, 1.0))])


def masses(features, bins, seed=0):
    return torch.rand(features, bins, generator=torch.Generator().manual_seed(seed)).double().add(0.2).softmax(-1)


def smooth(features=2, context=0, seed=0):
    """A flow on (0, 1)^D with a density that varies within cells."""
    torch.manual_seed(seed)
    flow = Flow(
        StandardNormal(features),
        [AffineCoupling(features, context=context, hidden=[8]), Elementwise(features, Sigmoid())],
    )
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return flow.double()


def exact(model, x, nodes=200):
    """log P(x) of a model of two features by Gauss-Legendre over the cell, in logits, where the flow is smooth."""
    t, w = (torch.as_tensor(v) for v in np.polynomial.legendre.leggauss(nodes))
    grid, weights = torch.cartesian_prod(t, t), torch.cartesian_prod(w, w).prod(-1)
    low, high = (((x + i) / model.levels).logit().clamp(-30, 30).unsqueeze(-2) for i in (0, 1))
    s = (low + high) / 2 + (high - low) / 2 * grid
    z = s.sigmoid()
    log_jacobian = (z.log() + (-z).log1p() + ((high - low) / 2).log()).sum(-1)
    return (model.density.log_prob(z) + log_jacobian + weights.log()).logsumexp(-1)


@torch.no_grad()
def test_a_histogram_is_exact_with_uniform_noise():
    """One bin a level: every weight is the probability itself."""
    p = masses(3, 5)
    model, x = Dequantized(histogram(p), 5), torch.tensor([[0, 4, 2], [3, 3, 3], [1, 0, 4]]).double()
    expected = p[torch.arange(3), x.long()].log().sum(-1)
    weights = model.log_weights(x, particles=50)
    torch.testing.assert_close(weights, expected.expand(50, 3))
    found = log_likelihood(model, x, particles=3)
    assert found.value == pytest.approx(expected.mean().item())
    assert bits_per_dim(found.value, 3, levels=1) == pytest.approx(-expected.mean().item() / (3 * math.log(2)))


@torch.no_grad()
def test_it_is_the_bound_of_dequantized_data():
    """E log p(y) + ladj of the data's own helper."""
    model, x = Dequantized(smooth(), 4), torch.tensor([[0.0, 3.0]]).double().expand(20_000, 2)
    y, ladj = dequantize(x, 4)
    expected = mean_and_error(model.density.log_prob(y) + ladj)
    assert_means_agree(*mean_and_error(model.log_weights(x)[0]), *expected)


@torch.no_grad()
def test_the_guide_that_is_the_density_within_the_cell_is_exact():
    """Two bins a level with unequal masses; the guide's masses are their shares."""
    p = torch.tensor([[0.1, 0.3, 0.4, 0.2]]).double()
    spline = Elementwise(1, LinearSpline(2, bound=HALF), context=1, hidden=[]).double()
    guide = Flow(Cube(1), [Inverse(spline), Fixed(AffineTransform(HALF, 1.0))])
    model, x = Dequantized(histogram(p), 2, guide), torch.tensor([[0.0], [1.0]]).double()
    uniform = Dequantized(histogram(p), 2)
    assert uniform.log_weights(x, particles=20).std(0).min() > 0.1
    shares = logits(p.reshape(2, 2) / p.reshape(2, 2).sum(-1, keepdim=True))  # (level, half)
    layer = spline.net[-1]
    layer.weight.copy_(((shares[1] - shares[0]) / 2).unsqueeze(-1))  # x comes as -1 and 1
    layer.bias.copy_((shares[1] + shares[0]) / 2)
    expected = torch.tensor([0.4, 0.6]).double().log()
    torch.testing.assert_close(model.log_weights(x, particles=20), expected.expand(20, 2))


@torch.no_grad()
def test_weights_are_unbiased_and_bounds_rise():
    for guide in (None, smooth(context=2, seed=1)):
        model = Dequantized(smooth(), 2, guide)
        x = all_binary((2,))
        truth = exact(model, x)
        assert abs(truth.exp().sum() - 1) < 1e-3  # the quadrature's error at the kinks of the ReLU net
        weights = model.log_weights(x, particles=20_000)
        mean, error = mean_and_error(weights.exp())
        assert_means_agree(mean, error, truth.exp())
        bounds, last = [], None
        for k in (1, 5, 50):
            each = weights.reshape(-1, k, 4).logsumexp(1) - math.log(k)
            bound, error = mean_and_error(each.mean(-1))
            assert bound < truth.mean() + 5 * error
            assert last is None or bound > last
            bounds.append(bound)
            last = bound
        assert bounds[2] - bounds[0] > 10 * error


def test_a_learned_guide_is_tighter_than_uniform_noise():
    density = smooth()
    model = Dequantized(density, 2, smooth(context=2, seed=1))
    x = all_binary((2,)).repeat(16, 1)
    optimizer = torch.optim.Adam(model.guide.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        ELBO(2).loss(model, x).backward()
        optimizer.step()
    with torch.no_grad():
        many = all_binary((2,)).repeat(2000, 1)
        learned, uniform = (mean_and_error(m.log_weights(many)[0]) for m in (model, Dequantized(density, 2)))
        truth = exact(model, all_binary((2,))).mean()
    assert learned[0] - uniform[0] > 5 * math.hypot(learned[1], uniform[1])
    assert learned[0] < truth + 5 * learned[1]
    assert truth - learned[0] < 0.5 * (truth - uniform[0])


@torch.no_grad()
def test_a_start_from_data_spreads_the_rows_over_their_cells():
    """Rows that are all 3 fill the cell [3/8, 4/8): of mean 7/16 and standard deviation 1 / (8 sqrt 12)."""
    torch.manual_seed(2)
    model = Dequantized(Flow(StandardNormal(1), [ActNorm(1)]), levels=8).double()
    model.initialize(torch.full((20_000, 1), 3.0, dtype=torch.float64))
    start = model.density.bijectors[0]
    scale = 1 / (8 * math.sqrt(12))
    assert abs(start.shift.item() - 7 / 16) < 5 * scale / math.sqrt(20_000)
    # a uniform variable's square varies by 4/5 of its variance squared
    assert abs(start.log_scale.item() - math.log(scale)) < 5 * math.sqrt(0.8 / 20_000) / 2


def test_samples_have_the_probabilities():
    model = Dequantized(smooth(), 2)
    x = model.sample(20_000)
    found = (x.unsqueeze(1) == all_binary((2,))).all(-1).double()
    assert_means_agree(*mean_and_error(found), exact(model, all_binary((2,))).exp())


@torch.no_grad()
def test_complete_is_the_conditional():
    """Though x is certain given z: frequencies of the missing level given the observed one."""
    torch.manual_seed(4)
    parts = [AffineCoupling(2, hidden=[8]), Affine(2), Elementwise(2, Sigmoid())]
    with torch.no_grad():
        for p in parts[0].parameters():
            p.add_(0.2 * torch.randn(p.shape))  # small, so that uniform proposals do
        parts[1].shift.fill_(0.8)
    model, mask = Dequantized(Flow(StandardNormal(2), parts), 2).double(), torch.tensor([True, False])
    states = all_binary((2,))
    joint = exact(model, states).exp()
    for first in (0, 1):
        filled = model.complete(torch.full((4000, 2), float(first)).double(), mask, steps=40)
        assert bool((filled[:, 0] == first).all())
        given = states[:, 0] == first
        expected = (joint * states[:, 1])[given].sum() / joint[given].sum()
        assert abs(expected - 0.5) > 0.1  # where the proposals alone would lead
        assert_means_agree(*mean_and_error(filled[:, 1]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_moves_nothing_out_of_its_cell(dtype):
    """Of many draws at 256 levels none has a weight of 0, and each is scored alike by value."""
    torch.manual_seed(0)
    model = Dequantized(smooth(), 256, smooth(context=2, seed=1)).to(dtype)
    x = torch.randint(0, 256, (50_000, 2)).to(dtype)
    with torch.no_grad():
        weights = model.log_weights(x)
        assert bool(weights.isfinite().all())
        uniform = Spread(x, dist.Uniform(torch.zeros(2, dtype=dtype), 1.0).to_event(1), 256)
        z = uniform.sample()
        torch.testing.assert_close(uniform.log_prob(z), torch.full((50_000,), 2 * math.log(256.0), dtype=dtype))
        assert torch.equal(uniform.log_prob(z), uniform.log_prob(z.clone()))
        assert bool((uniform.log_prob(z + 1 / 256) == -math.inf).all())


def test_noise_is_never_0(monkeypatch):
    """A generator of [0, 1) gives 0 once in 2^24 draws, and a flow on (0, 1) a density of e^-3800 at that place."""
    monkeypatch.setattr(torch, "rand", lambda *shape, generator=None, **options: torch.zeros(*shape, **options))
    model, x = Dequantized(Flow(StandardNormal(2), [Elementwise(2, Sigmoid())]), 256), torch.zeros(3, 2)
    for z in (model.guide(x), model.guide.condition(x).sample(), dequantize(x, 256)[0]):
        assert bool((z > 0).all())
        assert bool((model.density.log_prob(z) > -500).all())  # two logits of -21


def test_the_memory_of_a_draw_ends_with_its_change():
    guide = smooth(context=2)
    x = torch.tensor([[1.0, 2.0]]).double()
    d = Spread(x, guide.condition(x), 4)
    z = d.rsample()
    torch.testing.assert_close(d.log_prob(z), Spread(x, guide.condition(x), 4).log_prob(z.clone()))
    with torch.no_grad():
        z.add_(0.01 * (0.5 - (4 * z - x)))
    torch.testing.assert_close(d.log_prob(z), Spread(x, guide.condition(x), 4).log_prob(z.clone()))


def test_every_real_has_exactly_one_whole_number():
    z = torch.tensor([[-7.0], [0.1], [0.3], [0.99], [12.0]]).double()
    d = Quantized(z, 4, 1)
    levels = torch.arange(4).double().reshape(4, 1, 1).expand(4, 5, 1)
    assert torch.equal(d.log_prob(levels).exp().sum(0), torch.ones(5).double())
    assert torch.equal(d.log_prob(d.sample()), torch.zeros(5).double())
    assert d.sample().flatten().tolist() == [0, 0, 1, 3, 3]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="context=2"):
        Dequantized(smooth(), 4, smooth())
    with pytest.raises(ValueError, match="levels >= 2"):
        Dequantized(smooth(), 1)
    with pytest.raises(ValueError, match="expected x"):
        Dequantized(smooth(), 4).guide()
    with pytest.raises(ValueError, match="support"):
        Dequantized(smooth(), 4).log_weights(torch.tensor([[4.0, 0.0]]).double())


def test_draws_of_inference_mode_are_scored():
    model = Dequantized(Flow(StandardNormal(2), [Affine(2), Elementwise(2, Sigmoid())]), 4)
    with torch.inference_mode():
        assert model.log_weights(torch.ones(3, 2), particles=2).isfinite().all()
