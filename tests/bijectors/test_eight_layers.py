"""Eight layers in a row come back: 1e-9 of the largest number in float64, 1e-4 in float32.

At inputs of 1e3 the networks saturate, and eight layers may flatten some direction by factors that no arithmetic
gets back: there the bound grows with the slope of the inverse.
"""

import pytest
import torch
from cases import BIJECTORS, grow
from test_contracts_bijector import inputs
from torch.distributions import constraints

from pyrodgm.bijectors import Compose, MultiScale, Squeeze

LAYERS = 8
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4}


def stackable(case):
    """Whether layer can follow layer: from all numbers to all numbers; a multi-scale stack is a whole flow already."""
    bijector = case.build()
    transform = bijector.condition()
    domain, codomain = (getattr(c, "base_constraint", c) for c in (transform.domain, transform.codomain))
    return domain is codomain is constraints.real and not isinstance(bijector, (MultiScale, Squeeze))


@pytest.mark.parametrize("name", [name for name, case in BIJECTORS.items() if stackable(case)])
@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@torch.no_grad()
def test_round_trip(name, dtype, scale):
    case = BIJECTORS[name]
    torch.manual_seed(0)
    layers = Compose([grow(case.build(), 0.1, seed) for seed in range(LAYERS)]).to(dtype).eval()
    x = inputs(case, scale=scale).to(dtype)
    transform = layers.condition()
    y, _ = transform.call_and_ladj(x)
    back, back_ladj = transform.inverse_and_ladj(y)
    assert y.isfinite().all()
    largest = torch.stack([x.abs().max(), y.abs().max(), torch.ones((), dtype=dtype)]).max()
    steep = back_ladj.max().exp().clamp_min(1) if scale > 1 else 1.0
    assert (back - x).abs().max() <= BOUNDS[dtype] * largest * steep
