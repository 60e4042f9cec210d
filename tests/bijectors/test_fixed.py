"""Transforms of torch as bijectors: their tensors go along, their shapes stay."""

import pytest
import torch
from torch.distributions import transforms as T

from pyrodgm.bijectors import Fixed

SCALE = torch.tensor([0.5, 2.0, 3.0])
TRANSFORMS = {
    "affine": lambda: T.AffineTransform(torch.ones(3), SCALE),
    "inverse": lambda: T.AffineTransform(torch.ones(3), SCALE).inv,
    "composed": lambda: T.ComposeTransform([T.AffineTransform(0.0, SCALE), T.ExpTransform()]),
    "independent": lambda: T.IndependentTransform(T.AffineTransform(0.0, SCALE), 1),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_tensors_go_where_the_module_goes(name):
    layer, x = Fixed(TRANSFORMS[name]()), torch.randn(4, 3)
    y, ladj = layer(x)
    moved = layer.double()
    wide, wide_ladj = moved(x.double())
    assert wide.dtype is wide_ladj.dtype is torch.float64
    torch.testing.assert_close((wide.float(), wide_ladj.float()), (y, ladj))
    torch.testing.assert_close(moved.inv(wide)[0], x.double())
    assert Fixed(TRANSFORMS[name]()).to("meta")(x.to("meta"))[0].is_meta


def test_a_transform_of_the_users_stays_as_it_is():
    transform = T.AffineTransform(0.0, SCALE)
    Fixed(transform).double()
    assert transform.scale is SCALE


def test_transforms_that_change_the_shape_are_refused():
    with pytest.raises(ValueError, match="expected a transform that keeps the shape, got StickBreaking"):
        Fixed(T.StickBreakingTransform())(torch.zeros(2, 3))
