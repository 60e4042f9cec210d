"""Options of the named flows: any base, univariate maps and bounds; MAF and IAF are each other's inverses."""

import math

import pyro.distributions as dist
import pytest
import torch
from cases import HIDDEN, C, contexts, grow

import pyrodgm
from pyrodgm.bijectors import (
    ActNorm,
    AffineCoupling,
    Compose,
    ExactTrace,
    Hutchinson,
    LULinear,
    ODESolver,
    RationalQuadraticSpline,
)
from pyrodgm.tractable import (
    FFJORD,
    IAF,
    MAF,
    NICE,
    NSF,
    FlowPlusPlus,
    Glow,
    Parametric,
    PlanarFlow,
    RealNVP,
    StandardNormal,
)

BUILD = {
    "RealNVP": lambda **options: RealNVP(2, 2, hidden=HIDDEN, **options),
    "NICE": lambda **options: NICE(2, 2, hidden=HIDDEN, **options),
    "MAF": lambda **options: MAF(2, 2, hidden=HIDDEN, **options),
    "IAF": lambda **options: IAF(2, 2, hidden=HIDDEN, **options),
    "NSF": lambda **options: NSF(2, 2, hidden=HIDDEN, mix=True, **options),
    "FlowPlusPlus": lambda **options: FlowPlusPlus(2, 2, hidden=HIDDEN, components=2, **options),
    "PlanarFlow": lambda **options: PlanarFlow(2, 2, hidden=HIDDEN, **options),
    "Glow": lambda **options: Glow(2, 2, scales=1, hidden=HIDDEN, **options),
    "FFJORD": lambda **options: FFJORD(2, 1, hidden=[6], solver=ODESolver("rk4", steps=2, adjoint=False), **options),
}


def rows(n=5, features=2):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def grown(model):
    return grow(model).double().eval()


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", BUILD)
def test_every_flow_takes_any_base(name, conditional):
    """The density is the base's at z, with its own context, times the bijectors' determinants; and it learns."""
    torch.manual_seed(0)
    context = contexts(5) if conditional else None
    base = Parametric(dist.Laplace, 2, context=C if conditional else 0, hidden=HIDDEN)
    model, x = grown(BUILD[name](base=base, context=C if conditional else 0)), rows()
    z, ladj = Compose(model.bijectors).condition(context).inverse_and_ladj(x)
    found = model.log_prob(x, context)
    torch.testing.assert_close(found, base.log_prob(z, context) + ladj)
    assert model.base is base
    assert all(bool((g != 0).any()) for g in torch.autograd.grad(found.sum(), list(base.parameters())))


@pytest.mark.parametrize("name", BUILD)
def test_the_base_is_a_standard_normal_if_none_is_given(name):
    torch.manual_seed(0)
    model, x = grown(BUILD[name]()), rows()
    z, ladj = Compose(model.bijectors).condition().inverse_and_ladj(x)
    torch.testing.assert_close(model.log_prob(x), StandardNormal(2).double().log_prob(z) + ladj)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", BUILD)
def test_every_flow_trains_in_mixed_precision(name, conditional):
    """Its networks in bfloat16, its densities in float32."""
    torch.manual_seed(0)
    model, x = BUILD[name](context=C if conditional else 0), rows(64).float()
    context = contexts(64).float() if conditional else None
    data = (x, context) if conditional else x
    run = pyrodgm.fit(
        model, data, validate=data, epochs=2, batch_size=32, precision="bf16-mixed", device="cpu", progress=False
    )
    assert math.isfinite(run.best["held_out"])
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for train in (True, False):
        model.train(train)
        with torch.autocast("cpu", torch.bfloat16):
            y = model.condition(context).rsample(() if conditional else (5,))
            assert y.dtype is model.log_prob(y, context).dtype is model.log_prob(x, context).dtype is torch.float32


@pytest.mark.parametrize("conditional", [False, True])
def test_an_iaf_is_the_inverse_of_the_maf_of_its_layers(conditional):
    """In the other order: an odd number of layers, so that the orders of the features meet."""
    torch.manual_seed(0)
    size, context = (C, contexts(5)) if conditional else (0, None)
    maf, iaf, x = (
        grown(MAF(3, 3, hidden=HIDDEN, context=size)),
        grown(IAF(3, 3, hidden=HIDDEN, context=size)),
        rows(features=3),
    )
    for layer, other in zip(iaf.bijectors, reversed(maf.bijectors), strict=True):
        layer.load_state_dict(other.inv.state_dict())
    there, back = (Compose(model.bijectors).condition(context) for model in (iaf, maf))
    torch.testing.assert_close(there.call_and_ladj(x), back.inverse_and_ladj(x))
    torch.testing.assert_close(there.inverse_and_ladj(x), back.call_and_ladj(x))


def test_a_maf_of_splines_is_the_autoregressive_nsf():
    torch.manual_seed(0)
    nsf = grown(NSF(3, 2, hidden=HIDDEN, bins=5, bound=2.0, autoregressive=True))
    maf = MAF(3, 2, hidden=HIDDEN, univariate=lambda: RationalQuadraticSpline(5, 2.0)).double().eval()
    maf.load_state_dict(nsf.state_dict())
    torch.testing.assert_close(maf.log_prob(rows(features=3)), nsf.log_prob(rows(features=3)))


def test_an_iaf_takes_another_univariate_map():
    """Beyond the splines' bound it is the identity, and inside it is not."""
    torch.manual_seed(0)
    model = grown(IAF(2, 2, hidden=HIDDEN, univariate=lambda: RationalQuadraticSpline(5, 1.0)))
    x = torch.tensor([[1.5, -2.0], [0.5, -0.5]]).double()
    gap = model.log_prob(x) - model.base.log_prob(x)
    assert gap[0] == 0
    assert gap[1].abs() > 1e-3


@pytest.mark.parametrize("autoregressive", [False, True])
def test_the_splines_of_an_nsf_end_at_its_bound(autoregressive):
    torch.manual_seed(0)
    model = grown(NSF(2, 2, hidden=HIDDEN, bound=1.0, autoregressive=autoregressive))
    x = torch.tensor([[1.5, -2.0], [0.5, -0.5]]).double()
    gap = model.log_prob(x) - model.base.log_prob(x)
    assert gap[0] == 0
    assert gap[1].abs() > 1e-3


def test_the_log_scales_of_a_realnvp_end_at_its_bound():
    model = RealNVP(2, 3, hidden=HIDDEN, bound=0.4).double()
    with torch.no_grad():
        for layer in model.bijectors:
            layer.net[-1].bias[0].fill_(1e6)  # of the one feature that it moves, the log-scale
    ladj = Compose(model.bijectors).condition().call_and_ladj(rows())[1]
    torch.testing.assert_close(ladj, torch.full((5,), 3 * 0.4).double())


@torch.no_grad()
def test_a_glow_without_a_split_prior_is_one_whose_split_prior_says_nothing():
    """One coupling less a level; at zero that coupling leaves the half that leaves as it is, whatever the rest is."""
    torch.manual_seed(0)
    plain, whole = (
        grown(Glow((1, 4, 4), 1, scales=2, hidden=[4], alpha=None, split_prior=split)) for split in (False, True)
    )

    def layers(model):
        return [m for m in model.modules() if isinstance(m, ActNorm | LULinear | AffineCoupling)]

    extra = [m for m in layers(whole) if isinstance(m, AffineCoupling)][1::2]
    for ours, theirs in zip([m for m in layers(whole) if m not in extra], layers(plain), strict=True):
        ours.load_state_dict(theirs.state_dict())
    x = rows(features=16).reshape(5, 1, 4, 4)
    assert (whole.log_prob(x) - plain.log_prob(x)).abs().min() > 1e-3
    for p in (p for layer in extra for p in layer.parameters()):
        p.zero_()
    torch.testing.assert_close(whole.log_prob(x), plain.log_prob(x))


def test_an_ffjord_takes_another_trace_in_training():
    torch.manual_seed(0)
    solver = ODESolver("rk4", steps=4)
    noisy, exact = (
        grown(FFJORD(2, 1, hidden=[6], trace=trace, solver=solver)) for trace in (Hutchinson(), ExactTrace())
    )
    exact.load_state_dict(noisy.state_dict())
    torch.testing.assert_close(exact.train().log_prob(rows()), noisy.log_prob(rows()))
    assert not torch.allclose(noisy.train().log_prob(rows()), exact.log_prob(rows()))


def dropping():
    return torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Dropout(0.5))


@pytest.mark.parametrize("name", ["RealNVP", "NICE", "MAF", "IAF", "NSF", "FlowPlusPlus", "Glow"])
def test_networks_are_of_the_activation(name):
    torch.manual_seed(0)
    flow = grow(BUILD[name](activation=torch.nn.Tanh)).double()
    kinds = [type(module) for module in flow.modules()]
    assert torch.nn.Tanh in kinds
    assert torch.nn.ReLU not in kinds
    x, ladj = Compose(flow.bijectors).condition().call_and_ladj(rows())
    back, minus = Compose(flow.bijectors).condition().inverse_and_ladj(x)
    torch.testing.assert_close(back, rows())
    torch.testing.assert_close(minus, -ladj)


def test_image_couplings_are_of_the_activation():
    kinds = [type(module) for module in Glow((1, 4, 4), 1, scales=1, hidden=[4], activation=torch.nn.Tanh).modules()]
    assert torch.nn.Tanh in kinds
    assert torch.nn.ReLU not in kinds


@pytest.mark.parametrize("autoregressive", [False, True])
def test_dropout_acts_in_training_alone(autoregressive):
    torch.manual_seed(0)
    flow = grow(NSF(2, 2, hidden=[32], autoregressive=autoregressive, activation=dropping)).double()
    assert not torch.equal(flow.log_prob(rows()), flow.log_prob(rows()))
    flow.eval()
    assert torch.equal(flow.log_prob(rows()), flow.log_prob(rows()))


@pytest.mark.parametrize("activation", [dropping, torch.nn.RReLU])
@pytest.mark.parametrize("name", ["MAF", "IAF"])
def test_dropout_is_refused_where_its_gradient_would_be_wrong(name, activation):
    """Of the sequential way, whose backward pass runs the network again."""
    flow = BUILD[name](activation=activation)
    draw, score = lambda: flow.condition().rsample((3,)), lambda: flow.log_prob(torch.zeros(3, 2))
    sequential, one_pass = (draw, score) if name == "MAF" else (score, draw)
    one_pass().sum().backward()
    with pytest.raises(ValueError, match="expected no dropout in the sequential way"):
        sequential()
    with torch.no_grad():
        sequential()
    flow.eval()
    sequential().sum().backward()
