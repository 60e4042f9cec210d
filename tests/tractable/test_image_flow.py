"""Flows over images: the start from data, round trips, Jacobians and totals of whole flows."""

import copy

import pyro.distributions as dist
import pytest
import torch
from cases import assert_means_agree, grow, mean_and_error
from torch.func import jacrev

import pyrodgm
from pyrodgm.bijectors import ActNorm, normalization
from pyrodgm.data import bits_per_dim, dequantize, logit
from pyrodgm.latent import Dequantized
from pyrodgm.objectives import ELBO
from pyrodgm.tractable import Glow, ImageFlow, ImageFlowPlusPlus, ImageRealNVP

SHAPE = (2, 4, 4)


def images(n, shape=SHAPE):
    """Pixels in [0, 1), float64, with channels of unlike means and spreads."""
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x ** torch.linspace(1, 3, shape[0], dtype=torch.float64)[:, None, None]


FLOWS = {
    "Glow": lambda: Glow(SHAPE, 4, scales=2, hidden=[8], alpha=0.05),  # 8 steps of three layers
    "RealNVP": lambda: ImageRealNVP(SHAPE, scales=2, channels=6, blocks=1),
    "Flow++": lambda: ImageFlowPlusPlus(SHAPE, 2, scales=2, channels=6, blocks=1),
}
GROWN = 0.05  # noise on every parameter; from 0.1 on, the Jacobian of 8 steps of Glow has condition numbers of 1e10
each = pytest.mark.parametrize("name", FLOWS)


def flow(name):
    torch.manual_seed(0)
    return grow(FLOWS[name](), GROWN).double().eval()


@each
def test_the_first_batch_leaves_every_actnorm_with_mean_0_and_variance_1(name, monkeypatch):
    """... also where the networks do not start at 0, so that later layers see what earlier ones made."""
    model, x = flow(name), images(64)
    with torch.no_grad():
        model.initialize(x)
    left = []
    act = normalization._DiagonalTransform.call_and_ladj

    def spied(self, rows):
        y, ladj = act(self, rows)
        left.append(y)
        return y, ladj

    monkeypatch.setattr(normalization._DiagonalTransform, "call_and_ladj", spied)
    with torch.no_grad():
        model.log_prob(x)
    assert len(left) == sum(isinstance(m, ActNorm) for m in model.modules()) >= 8
    for y in left:
        torch.testing.assert_close(y.mean((0, 2, 3)), y.new_zeros(y.shape[1]))
        torch.testing.assert_close(y.var((0, 2, 3), correction=0), y.new_ones(y.shape[1]))


def test_the_first_rows_leave_every_actnorm_of_vectors_with_mean_0_and_variance_1(monkeypatch):
    torch.manual_seed(0)
    model, x = grow(Glow(5, 8, scales=1, hidden=[8]), GROWN).double(), images(64).flatten(1)[:, :5]
    model.initialize(x)
    steps = model.bijectors[0].inv.bijectors
    norms = [x := part.condition().call_and_ladj(x)[0] for part in steps][::3]
    for y in norms:
        torch.testing.assert_close(y.mean(0), y.new_zeros(5))
        torch.testing.assert_close(y.var(0, correction=0), y.new_ones(5))


@each
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_round_trip_of_a_grown_flow(name, dtype, tolerance):
    model = flow(name)
    with torch.no_grad():
        model.initialize(images(64))
        model = model.to(dtype)
        transform = model.condition().transforms[0]
        z = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        x, ladj = transform.call_and_ladj(z)
        back, back_ladj = transform.inverse_and_ladj(x)
    assert (back - z).abs().max() <= tolerance * z.abs().max()
    assert (back_ladj + ladj).abs().max() <= tolerance * ladj.abs().max().clamp_min(1)


@each
def test_ladj_is_that_of_the_full_jacobian(name):
    model, x = flow(name), images(3)

    def latents(row):
        for transform in reversed(model.condition().transforms):
            row = transform.inverse_and_ladj(row)[0]
        return row

    z = torch.stack([latents(row) for row in x])
    jacobian = torch.stack([jacrev(latents)(row) for row in x]).reshape(3, 32, 32)
    found = model.log_prob(x) - model.base.log_prob(z)
    torch.testing.assert_close(found, torch.linalg.slogdet(jacobian)[1])


@each
def test_the_density_integrates_to_one(name):
    """Importance sampling in 16 dimensions, from a Gaussian with the moments of the flow's samples."""
    torch.manual_seed(0)
    shape = (1, 4, 4)
    build = {
        "Glow": lambda: Glow(shape, 1, scales=2, hidden=[4], alpha=None),
        "RealNVP": lambda: ImageRealNVP(shape, scales=1, channels=4, blocks=1, alpha=None, bound=0.5),
        "Flow++": lambda: ImageFlowPlusPlus(shape, 1, scales=1, channels=4, blocks=1, alpha=None),
    }[name]
    model = grow(build(), GROWN).double().eval()
    with torch.no_grad():
        x = model.sample(4000).flatten(1)
        q = dist.MultivariateNormal(x.mean(0), 1.2 * x.T.cov())
        y = q.sample((20_000,))
        total, error = mean_and_error((model.log_prob(y.unflatten(-1, shape)) - q.log_prob(y)).exp())
    assert error < 0.02
    assert_means_agree(total, error, torch.ones_like(total))


def test_an_image_flow_of_nothing_is_its_base_after_the_logit():
    x = images(5)
    model = ImageFlow(SHAPE, ActNorm(SHAPE)).double()
    y, ladj = logit(x, 0.05)
    torch.testing.assert_close(model.log_prob(x), model.base.log_prob(y) + ladj)


def test_bits_of_pixels_are_the_same_inside_and_outside_of_the_model():
    """Dequantized(flow) on whole numbers, and the flow on rows of pyrodgm.data.dequantize."""
    torch.manual_seed(0)
    levels, x = 16, (images(20) * 16).floor()
    density = Glow(SHAPE, 1, scales=1, hidden=[4]).double()
    model = Dequantized(density, levels)
    with torch.no_grad():
        inside = model.log_weights(x, particles=200)
        rows = [dequantize(x, levels) for _ in range(200)]
        outside = torch.stack([density.log_prob(y) for y, _ in rows])
    bits = [
        torch.tensor([bits_per_dim(v.item(), 32, count) for v in values.mean(1)], dtype=torch.float64)
        for values, count in ((inside, 1), (outside, levels))
    ]
    means = [mean_and_error(b) for b in bits]
    assert_means_agree(*means[0], *means[1])


def test_pixels_through_dequantized_start_the_actnorms_once():
    x = (images(64) * 16).floor().float()
    torch.manual_seed(0)
    model = Dequantized(Glow(SHAPE, 1, scales=1, hidden=[4]), 16)
    pyrodgm.fit(model, x, ELBO(), steps=1, batch_size=64, lr=1e-30, progress=False)
    norm = next(m for m in model.modules() if isinstance(m, ActNorm))
    assert bool(norm.started)
    assert bool((norm.shift != 0).all())
    before = copy.deepcopy(model.state_dict())
    pyrodgm.fit(model, 15 - x, ELBO(), steps=1, batch_size=64, lr=1e-30, progress=False)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=1e-20)  # the step was of 1e-30


def test_a_resumed_fit_does_not_start_again(tmp_path):
    def run(steps, checkpoint=None):
        torch.manual_seed(0)
        model = Glow(SHAPE, 1, scales=1, hidden=[4])
        pyrodgm.fit(model, images(48).float(), steps=steps, batch_size=16, checkpoint=checkpoint, progress=False)
        return model.state_dict()

    run(2, tmp_path)
    torch.testing.assert_close(run(4, tmp_path), run(4), rtol=0, atol=0)


def test_images_that_cannot_be_halved_are_refused():
    for build in (lambda: Glow((1, 6, 6), 1, scales=2), lambda: ImageRealNVP((1, 6, 6), scales=2)):
        with pytest.raises(ValueError, match="multiples of 2, got 3 x 3"):
            build()


def test_sizes_have_names():
    """Two whole numbers in a row would change places unseen."""
    for build in (
        lambda: Glow((1, 4, 4), 1, 2),
        lambda: ImageRealNVP((1, 4, 4), 2),
        lambda: ImageFlowPlusPlus(SHAPE, 1, 2),
    ):
        with pytest.raises(TypeError, match="positional argument"):
            build()
    with pytest.raises(ValueError, match="layers >= 1"):
        ImageFlowPlusPlus(SHAPE, 0)
