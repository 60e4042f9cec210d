"""zuko both ways: the same numbers as its own, and validation left as it was."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from cases import grow

import pyrodgm
from pyrodgm.bijectors import AffineCoupling, Compose

from pyrodgm.bridges.zuko import AsZukoDistribution, AsZukoTransform, ZukoBijector, ZukoModel  # isort: skip
import zuko  # isort: skip
from pyrodgm.tractable import Flow, RealNVP, StandardNormal

D, C = 4, 2
FLOWS = {
    "NSF": lambda context: zuko.flows.NSF(D, context, transforms=2, hidden_features=(16,)),
    "NICE": lambda context: zuko.flows.NICE(D, context, transforms=2, hidden_features=(16,)),
    "SOSPF": lambda context: zuko.flows.SOSPF(D, context, transforms=2, hidden_features=(16,)),
}


def rows(n=6):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, size, generator=generator, dtype=torch.float64) for size in (D, C))


def built(name, context):
    torch.manual_seed(0)
    return grow(FLOWS[name](context), 0.1).double()


@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("name", ["NSF", "NICE"])
def test_a_transform_gives_its_own_numbers(name, context):
    x, c = rows()
    c = c if context else None
    lazy = built(name, context).transform
    ours = ZukoBijector(lazy, context)
    y, ladj = ours(x, c)
    torch.testing.assert_close((y, ladj), lazy(c).call_and_ladj(x))
    back, back_ladj = ours.inv(y, c)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(back_ladj, -ladj)


@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("name", list(FLOWS))
def test_a_flow_gives_its_own_numbers_and_trains(name, context):
    x, c = rows(32)
    c = c if context else None
    flow = built(name, context)
    model = ZukoModel(flow, D, context)
    torch.testing.assert_close(model.log_prob(x, c), flow(c).log_prob(x))
    assert model.sample(3, c).shape == ((3, 32, D) if context else (3, D))
    before = model.log_prob(x, c).mean().item()
    model.float()
    pyrodgm.fit(model, x.float() if c is None else (x.float(), c.float()), steps=20, progress=False)
    assert model.log_prob(x.float(), None if c is None else c.float()).mean() > before


def test_ours_as_theirs():
    x, c = rows()
    torch.manual_seed(0)
    ours = grow(Compose([AffineCoupling(D, context=C, hidden=[8], flip=bool(i % 2)) for i in range(3)])).double()
    base = grow(RealNVP(D, 2, hidden=[8])).double()
    flow = zuko.lazy.Flow([AsZukoTransform(ours.inv)], AsZukoDistribution(base))
    torch.testing.assert_close(flow(c).log_prob(x), Flow(base, list(ours.bijectors)).log_prob(x, c))
    assert flow(c).sample((5,)).shape == (5, 6, D)


def test_copies():
    x, _ = rows()
    model = ZukoModel(built("NSF", 0), D)
    y = model.log_prob(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other.log_prob(x), y, rtol=0, atol=0)


def test_importing_leaves_validation_as_it_was():
    code = (
        "import torch, pyro; d = torch.distributions.Distribution; before = d._validate_args; "
        "import pyrodgm.bridges.zuko; assert d._validate_args == before is True; "
        "assert pyro.distributions.is_validation_enabled()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_transforms_of_scalars_are_of_every_feature():
    """zuko gives their ladj number by number; of a bijector it is one a row."""
    x, _ = rows()
    layer = ZukoBijector(zuko.lazy.UnconditionalTransform(zuko.transforms.SoftclipTransform, bound=5.0))
    y, ladj = layer(x)
    assert ladj.shape == (6,)
    torch.testing.assert_close(ladj, torch.func.vmap(torch.func.jacrev(lambda row: layer(row)[0]))(x).slogdet()[1])
    back, back_ladj = layer.inv(y)
    torch.testing.assert_close((back, back_ladj), (x, -ladj))
    flow = Flow(StandardNormal(D), [layer]).double()
    assert flow.log_prob(flow.sample(4)).shape == (4,)


@pytest.mark.parametrize("context", [0, C])
def test_a_mixture_trains_and_copies(context):
    """It is no flow, and its draws carry no gradients."""
    torch.manual_seed(0)
    x, c = (v.float() for v in rows(64))
    c = c if context else None
    model = ZukoModel(zuko.flows.GMM(D, context, components=3), D, context)
    assert not model.condition(c).has_rsample
    before = model.log_prob(x, c).mean().item()
    pyrodgm.fit(model, x if c is None else (x, c), steps=20, progress=False)
    assert model.log_prob(x, c).mean() > before
    torch.testing.assert_close(pickle.loads(pickle.dumps(model)).log_prob(x, c), model.log_prob(x, c), rtol=0, atol=0)


def test_what_is_not_lazy_is_refused():
    with pytest.raises(TypeError, match=r"expected a zuko.lazy.LazyTransform, got SoftclipTransform; .*Unconditional"):
        ZukoBijector(zuko.transforms.SoftclipTransform())
    with pytest.raises(
        TypeError, match=r"expected a zuko.lazy.LazyDistribution, got MaskedAuto.*; a transform is a Zuko"
    ):
        ZukoModel(zuko.flows.MaskedAutoregressiveTransform(D), D)


def test_another_event_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected a density of events \(5,\), got NSF of \(4,\); say so"):
        ZukoModel(zuko.flows.NSF(D), 5).condition()
