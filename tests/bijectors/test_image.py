"""Bijectors of images beside what they are made of."""

import itertools

import pytest
import torch
from cases import grow

from pyrodgm.bijectors import (
    ActNorm,
    Affine,
    Coupling,
    LULinear,
    MaskedCoupling,
    MultiScale,
    Permutation,
    Pixels,
    Split,
    Squeeze,
    checkerboard,
)
from pyrodgm.data import logit
from pyrodgm.nets import WeightNormConv2d
from pyrodgm.tractable import Flow, StandardNormal


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_squeeze_takes_each_block_to_the_channels_of_one_place():
    x = images(2, 3, 4, 6)
    y = Squeeze((3, 4, 6)).condition()(x)
    for c, dy, dx in itertools.product(range(3), range(2), range(2)):
        assert torch.equal(y[:, 4 * c + 2 * dy + dx], x[:, c, dy::2, dx::2])


def test_checkerboard():
    mask = checkerboard((2, 3, 5))
    for c, i, j in itertools.product(range(2), range(3), range(5)):
        assert bool(mask[c, i, j]) is ((i + j) % 2 == 0)
    assert torch.equal(checkerboard((2, 3, 5), flip=True), ~mask)


def test_a_masked_coupling_keeps_what_it_says_and_moves_by_that_alone():
    mask = checkerboard((2, 4, 4))
    layer = grow(MaskedCoupling(mask, hidden=[6])).double()
    x = images(1, 2, 4, 4)
    other = torch.where(mask, x, images(1, 2, 4, 4) + 1)
    (y, ladj), (y_other, ladj_other) = layer(x), layer(other)
    assert torch.equal(y[:, mask], x[:, mask])
    torch.testing.assert_close(ladj, ladj_other, rtol=0, atol=0)
    # an affine map: the same shift and scale whatever is moved
    slope = (y_other - y)[:, ~mask] / (other - x)[:, ~mask]
    torch.testing.assert_close(slope.log().sum(-1), ladj)
    assert bool((y[:, ~mask] != x[:, ~mask]).all())


def test_a_mask_of_halves_is_the_coupling_of_halves():
    class Kept(torch.nn.Module):
        """The network of the halves, for a masked coupling: it reads the kept half, and fills the rest with 0."""

        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            raw = self.net(x[..., :2]).unflatten(-1, (2, 3))
            return torch.cat((torch.zeros_like(raw[..., :2]), raw), -1).flatten(-2)

    halves = grow(Coupling(5, hidden=[8], split=2)).double()
    masked = MaskedCoupling(torch.arange(5) < 2, net=Kept(halves.net))
    assert masked.triangular
    torch.testing.assert_close(masked(images(3, 5)), halves(images(3, 5)))


def test_a_1x1_convolution_is_the_linear_map_at_every_place():
    conv = grow(LULinear((3, 2, 4), rotation=True)).double()
    linear = LULinear(3).double()
    linear.load_state_dict(conv.state_dict())
    x = images(5, 3, 2, 4)
    for one, other in ((conv, linear), (conv.inv, linear.inv)):
        y, ladj = one(x)
        each, each_ladj = other(x.permute(0, 2, 3, 1))
        torch.testing.assert_close(y, each.permute(0, 3, 1, 2))
        torch.testing.assert_close(ladj, each_ladj.sum((1, 2)))


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_rotation_start_is_orthogonal(size):
    torch.manual_seed(size)
    # built in double: float32 factors would carry their rounding
    torch.set_default_dtype(torch.float64)
    try:
        layer = LULinear(size, rotation=True)
    finally:
        torch.set_default_dtype(torch.float32)
    weight = layer(torch.eye(size, dtype=torch.float64))[0]
    torch.testing.assert_close(weight @ weight.T, torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(layer(torch.eye(size, dtype=torch.float64))[1], torch.zeros(size, dtype=torch.float64))


def test_a_split_lets_half_of_the_channels_go():
    x = images(2, 5, 2, 2)
    inner = grow(Affine((3, 2, 2))).double()
    y, ladj = Split((5, 2, 2), inner)(x)
    assert torch.equal(y[:, :2], x[:, :2])
    torch.testing.assert_close((y[:, 2:], ladj), inner(x[:, 2:]))


def test_levels_of_nothing_leave_the_image_as_it_is():
    x = images(2, 1, 8, 8)
    z, ladj = MultiScale((1, 8, 8), 3, lambda shape: [Affine(shape)])(x)
    assert torch.equal(z, x)
    assert torch.equal(ladj, torch.zeros(2, dtype=torch.float64))


def test_each_level_sees_half_of_the_channels_at_half_the_resolution():
    seen = []
    MultiScale(
        (3, 16, 8), 2, lambda shape: seen.append(shape) or [ActNorm(shape)], lambda shape: seen.append(shape) or [],
        lambda shape: seen.append(shape) or [],
    )  # fmt: skip
    assert seen == [(3, 16, 8), (12, 8, 4), (6, 8, 4), (24, 4, 2), (12, 4, 2)]


def test_what_leaves_first_is_not_moved_by_later_levels():
    """Latents of the first level are functions of the first level alone."""
    torch.manual_seed(0)
    flow = grow(MultiScale((1, 4, 4), 2, lambda shape: [Coupling(shape, hidden=[6]), LULinear(shape)])).double()
    x, squeeze = images(3, 1, 4, 4), Squeeze((1, 4, 4)).condition()
    before = squeeze(flow(x)[0])
    second = next(m for m in flow.modules() if isinstance(m, Split)).bijector
    grow(second, seed=1)
    after = squeeze(flow(x)[0])
    assert torch.equal(before[:, :2], after[:, :2])
    assert bool((before[:, 2:] != after[:, 2:]).all())


def test_a_flow_may_change_the_shape():
    flow = Flow(StandardNormal((4, 1, 1)), [Squeeze((1, 2, 2)).inv]).double()
    assert flow.event_shape == flow.condition().event_shape == (1, 2, 2)
    x = flow.sample(3)
    torch.testing.assert_close(flow.log_prob(x), StandardNormal(4).double().log_prob(x.flatten(1)))


@pytest.mark.parametrize("alpha", [0.05, 1e-6])
def test_pixels_are_the_logit_of_the_data_turned_round(alpha):
    x = torch.rand(3, 2, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(Pixels(alpha).inv(x), logit(x, alpha))


@pytest.mark.parametrize("pixel", [0.0, 1.0])
def test_the_ends_of_the_pixels_come_back(pixel):
    x = torch.full((1, 1, 1, 1), pixel)
    z, ladj = Pixels().inv(x)
    torch.testing.assert_close(Pixels()(z)[0], x, rtol=0, atol=1e-6)  # float32
    assert ladj.isfinite()


def test_a_weight_normalised_filter_has_its_length():
    layer = WeightNormConv2d(2, 3, 3, padding=1).double()
    with torch.no_grad():
        layer.length.copy_(torch.tensor([1.0, 2.0, 3.0]))
        x = images(1, 2, 5, 5)
        y = layer(x) - layer.bias[:, None, None]
        layer.weight.mul_(torch.tensor([5.0, 0.1, 1.0])[:, None, None, None].double())  # lengths of v do not matter
        torch.testing.assert_close(layer(x) - layer.bias[:, None, None], y)
        impulse = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
        impulse[torch.arange(2), torch.arange(2), 1, 1] = 1
        response = layer(impulse) - layer.bias[:, None, None]  # the filters themselves, flipped
    torch.testing.assert_close(response.square().sum((0, 2, 3)).sqrt(), torch.tensor([1.0, 2.0, 3.0]).double())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Squeeze((1, 3, 4)), "multiples of 2, got 3 x 4"),
        (lambda: Squeeze((3, 4)), "expected an image's"),
        (lambda: MultiScale((1, 6, 6), 2, lambda shape: [ActNorm(shape)]), "multiples of 2, got 3 x 3"),
        (lambda: MultiScale((1, 4, 4), 0, lambda shape: []), "scales >= 1"),
        (lambda: Split((1, 2, 2), Affine((1, 2, 2))), "two channels or more"),
        (lambda: MaskedCoupling(torch.ones(3).bool()), "keeps some of x"),
        (lambda: MaskedCoupling(torch.zeros(3).bool()), "keeps some of x"),
        (lambda: LULinear(3, order=torch.tensor([0, 1, 2]), rotation=True), "got both"),
        (lambda: LULinear((3, 2)), "expected features"),
        (lambda: Pixels(0.0), "0 < alpha"),
        (lambda: Permutation(torch.tensor([0, 2])), "expected a permutation"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(TypeError, match="boolean mask"):
        MaskedCoupling(torch.ones(3))
