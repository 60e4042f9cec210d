"""Ways through the latents: they begin and end at the data, and are what the formulas say."""

import pyro.distributions as dist
import pytest
import torch
from cases import contexts, grow

from pyrodgm.bijectors import Affine
from pyrodgm.diagnostics import attribute, decode, encode, interpolate, latent_grid, manifold, manipulate, png
from pyrodgm.latent import VAE
from pyrodgm.tractable import MADE, Flow, Glow, Parametric, RealNVP, StandardNormal


def glow():
    torch.manual_seed(0)
    return grow(Glow((1, 4, 4), 2, scales=2, hidden=[4]), 0.05).double().eval()


def pixels(n, seed=0):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain():
    """A flow whose latents are known: z = (x - 1) / 2."""
    flow = Flow(StandardNormal(3), [Affine(3)]).double()
    with torch.no_grad():
        flow.bijectors[0].shift.fill_(1.0)
        flow.bijectors[0].log_scale.fill_(2.0).log_()
    return flow


def test_latents_of_a_flow_are_those_it_samples_from():
    model, x = glow(), pixels(3)
    z = encode(model, x)
    torch.testing.assert_close(decode(model, z), x)
    z = encode(plain(), torch.tensor([[1.0, 3.0, 5.0]], dtype=torch.float64))
    torch.testing.assert_close(z, torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64))


@pytest.mark.parametrize("spherical", [True, False])
def test_interpolation_begins_and_ends_at_the_data(spherical):
    model, a, b = glow(), pixels(3), pixels(3, 1)
    way = interpolate(model, a, b, 5, spherical=spherical)
    assert way.shape == (3, 5, 1, 4, 4)
    torch.testing.assert_close(way[:, 0], a)
    torch.testing.assert_close(way[:, -1], b)


def test_a_straight_way_and_a_great_circle():
    model, (a, b) = plain(), torch.eye(3, dtype=torch.float64)[:2].unsqueeze(1)
    start, end = decode(model, 2 * a), decode(model, 2 * b)
    straight = encode(model, interpolate(model, start, end, 3, spherical=False)[0])
    torch.testing.assert_close(straight, torch.stack((2 * a, a + b, 2 * b))[:, 0])
    round_way = encode(model, interpolate(model, start, end, 7)[0])
    torch.testing.assert_close(round_way.norm(dim=1), torch.full((7,), 2.0, dtype=torch.float64))
    angles = torch.atan2(round_way[:, 1], round_way[:, 0])
    torch.testing.assert_close(angles, torch.linspace(0, torch.pi / 2, 7, dtype=torch.float64))


def test_a_great_circle_between_equal_rows_stays_there():
    x = decode(plain(), torch.ones(1, 3, dtype=torch.float64))
    torch.testing.assert_close(interpolate(plain(), x, x, 4), x.expand(1, 4, 3))


def test_a_manifold_goes_through_its_corners():
    model, corners = glow(), pixels(4)
    surface = manifold(model, corners, 8)
    for (i, j), x in zip([(0, 0), (0, 2), (2, 0), (2, 2)], corners, strict=True):  # angles of 0 and pi / 2
        torch.testing.assert_close(surface[i, j], x)


def test_an_attribute_is_a_difference_of_means_and_moves_one_mean_to_the_other():
    model, x = plain(), torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    has = torch.arange(20) < 5
    direction = attribute(model, x, has)
    torch.testing.assert_close(direction, (x[has].mean(0) - x[~has].mean(0)) / 2)
    moved = manipulate(model, x[~has].mean(0, keepdim=True), direction, [0.0, 1.0])
    torch.testing.assert_close(moved[0], torch.stack((x[~has].mean(0), x[has].mean(0))))


def test_a_vae_and_a_context():
    torch.manual_seed(0)
    vae = grow(VAE.mlp(6, 2, [8], 2, dist.Bernoulli)).double().eval()
    x, context = (torch.rand(4, 6, dtype=torch.float64) > 0.5).double(), contexts(4)
    way = interpolate(vae, x, x.flip(0), 3, context, spherical=False)
    mean = vae.posterior(x, context).mean
    torch.testing.assert_close(way[:, 0], vae.decode(mean, context).mean)
    flow = grow(RealNVP(3, 2, hidden=[8], context=2)).double()
    z = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(encode(flow, decode(flow, z, context), context), z)
    middle = interpolate(flow, z, z.flip(0), 3, context, spherical=False)[:, 1]
    ends = encode(flow, z, context), encode(flow, z.flip(0), context)
    torch.testing.assert_close(encode(flow, middle, context), (ends[0] + ends[1]) / 2)
    assert manifold(flow, z, 2, context[0]).shape == (2, 2, 3)
    direction = attribute(flow, z, torch.arange(4) < 2, context)
    torch.testing.assert_close(manipulate(flow, z, direction, [0.0], context)[:, 0], z)


def test_what_has_no_mean_in_closed_form_is_named():
    normal, x = Parametric(dist.Normal, 2, context=6), (torch.rand(4, 6) > 0.5).float()
    by_pixels = VAE(StandardNormal(2), MADE(6, [8], context=2), normal)
    with pytest.raises(TypeError, match=r"likelihood with a mean in closed form, got Auto\w+, .* model\.reconstruct"):
        interpolate(by_pixels, x, x)
    by_flow = VAE(StandardNormal(2), Parametric(dist.Bernoulli, 6, context=2), RealNVP(2, 2, context=6))
    with pytest.raises(TypeError, match=r"guide with a mean in closed form, got FlowDistribution"):
        encode(by_flow, x)
    assert by_pixels.reconstruct(x).shape == by_flow.reconstruct(x).shape == (4, 6)


def test_rows_go_where_the_model_is():
    flow, x = RealNVP(2, context=3).to("meta"), torch.zeros(4, 2)
    z = encode(flow, x, torch.zeros(4, 3))
    assert z.device.type == decode(flow, torch.zeros(4, 2), torch.zeros(4, 3)).device.type == "meta"


def test_mistakes_are_named():
    x = torch.zeros(4, 2)
    with pytest.raises(TypeError, match="no latents"):
        encode(MADE(2, [4]), x)
    with pytest.raises(ValueError, match="steps >= 2"):
        interpolate(RealNVP(2), x, x, 1)
    with pytest.raises(ValueError, match="4 rows"):
        manifold(RealNVP(2), x[:3])
    with pytest.raises(ValueError, match="one boolean a row"):
        attribute(RealNVP(2), x, torch.ones(4).bool())


def test_a_picture_of_a_way():
    figure = latent_grid(torch.rand(2, 5, 16), (4, 4))
    shown = torch.as_tensor(figure.axes[0].get_images()[0].get_array())
    assert shown.shape == (2 * 5 + 1, 5 * 5 + 1)
    assert png(figure).startswith(b"\x89PNG")
