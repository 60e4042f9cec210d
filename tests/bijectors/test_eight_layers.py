"""Eight layers in a row come back: 1e-9 of the largest number in float64, 1e-4 in float32.

At inputs of 1e3 the networks saturate, and a few layers may flatten some direction by factors that no arithmetic gets
back: there the bound grows with the steepest inverse of the layers that a rounding has to pass.
"""

import pytest
import torch
from cases import BIJECTORS, contexts, grow, variants
from test_contracts_bijector import inputs, jacobians
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


def steepest(layers, x, context):
    """The largest factor by which the inverse of the first k layers stretches any direction, over k, for each row."""
    layers, x = layers.double(), x.double()
    context = None if context is None else context.double()
    product, found = torch.eye(x[0].numel()).double(), torch.ones(len(x)).double()
    for layer in layers.bijectors:
        product = jacobians(layer, x, context) @ product
        found = torch.maximum(found, 1 / torch.linalg.svdvals(product).amin(-1))
        x = layer(x, context)[0]
    return found


@variants(BIJECTORS, stackable)
@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@torch.no_grad()
def test_round_trip(name, conditional, dtype, scale):
    case = BIJECTORS[name]
    build = case.conditional if conditional else case.build
    torch.manual_seed(0)
    layers = Compose([grow(build(), 0.1, seed) for seed in range(LAYERS)]).to(dtype).eval()
    x = inputs(case, scale=scale).to(dtype)
    context = contexts(len(x)).to(dtype) if conditional else None
    transform = layers.condition(context)
    y, _ = transform.call_and_ladj(x)
    back, _ = transform.inverse_and_ladj(y)
    assert y.isfinite().all()
    largest = torch.stack([x.abs().max(), y.abs().max(), torch.ones((), dtype=dtype)]).max()
    steep = steepest(layers, x, context) if scale > 1 else torch.ones(len(x))
    assert bool(((back - x).flatten(1).abs().amax(1) <= BOUNDS[dtype] * largest * steep).all())
