"""Options of guides: what the local sites read, and under which name a site goes."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import HIDDEN, grow
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

from pyrodgm.bijectors import AffineCoupling, Elementwise, Householder, Sigmoid
from pyrodgm.guides import (
    Amortized,
    FlowGuide,
    FullCovariance,
    Hierarchical,
    ImplicitGuide,
    MeanField,
    Sites,
    UniformDequantization,
    VariationalDequantization,
)
from pyrodgm.tractable import Flow, Parametric, StandardNormal

BUILDERS = {
    "FullCovariance": lambda sites, **options: FullCovariance(sites, HIDDEN, **options),
    "FlowGuide": lambda sites, **options: FlowGuide(sites, layers=2, hidden=HIDDEN, **options),
    "Hierarchical": lambda sites, **options: Hierarchical(sites, 2, HIDDEN, **options),
    "ImplicitGuide": lambda sites, **options: ImplicitGuide(sites, hidden=HIDDEN, **options),
}


def program(x):
    """x_b = g + l_b and noise."""
    g = pyro.sample("g", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        local = pyro.sample("l", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(g + local, 0.5).to_event(1), obs=x)


def rows(n=4):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0))


def local(guide, x, g=None):
    """The local sites by the same noise, with the global ones held where ``g`` says."""
    torch.manual_seed(1)
    held = {} if g is None else {"_globals": g}
    return poutine.condition(guide, data=held)(x)["l"]


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", BUILDERS)
def test_local_sites_read_the_global_ones_if_they_may(name, conditional):
    x = rows()
    guide = grow(BUILDERS[name](Sites(program, (x,)), conditional=conditional))
    one, other = (local(guide, x, g) for g in (torch.zeros(2), torch.ones(2)))
    assert torch.equal(one, other) is not conditional
    assert not torch.equal(one, local(guide, x + 1, torch.zeros(2)))


@pytest.mark.parametrize("amortized", [False, True])
def test_layers_of_a_flow_read_the_row_if_they_may(amortized):
    """What the last affine map makes of each row taken back, the same noise comes out, whatever the row; or not."""
    x = rows()
    flow = grow(FlowGuide(Sites(program, (x,)), layers=2, hidden=HIDDEN, amortized=amortized)).posterior_of_locals
    found = []
    for context in (torch.zeros(1, 4), torch.ones(1, 4)):
        torch.manual_seed(1)
        draw = flow.condition(context).rsample((5,))
        found.append(flow.bijectors[-1].condition(context).inverse_and_ladj(draw)[0])
    assert torch.allclose(*found, atol=1e-5) is not amortized


def test_layers_of_a_flow_have_the_widths_and_the_context_that_they_are_given():
    sites = Sites(program, (rows(),))
    made = FlowGuide(sites, layers=1, hidden=[7]).posterior_of_locals.bijectors[0]
    assert [layer.out_features for layer in made.net.layers] == [7]
    turned = FlowGuide(sites, Householder, layers=1).posterior_of_locals.bijectors[0]
    assert (turned.context, len(turned.vectors)) == (made.context, 2)


def test_a_guide_reads_what_it_is_told_to():
    x = rows()
    guide = grow(MeanField(Sites(program, (x,), observed=lambda x: x[:, :1]), HIDDEN))
    assert guide.features == 1
    seen, unseen = (x + torch.tensor(move) for move in ([1.0, 0.0], [0.0, 1.0]))
    assert torch.equal(local(guide, x), local(guide, unseen))
    assert not torch.equal(local(guide, x), local(guide, seen))


def test_an_encoder_is_a_part_of_the_guide_that_trains():
    x, encoder = rows(), nn.Linear(2, 3)
    guide = MeanField(Sites(program, (x,), observed=encoder), HIDDEN)
    assert guide.features == 3
    assert {id(p) for p in encoder.parameters()} <= {id(p) for p in guide.parameters()}
    loss = Trace_ELBO().differentiable_loss(program, guide, x)
    assert all(bool((g != 0).any()) for g in torch.autograd.grad(loss, list(encoder.parameters())))


@pytest.mark.parametrize(
    "guide",
    [
        Amortized(Parametric(dist.Normal, 2, context=2), site="w"),
        UniformDequantization(4, site="w"),
        VariationalDequantization(
            Flow(StandardNormal(2), [AffineCoupling(2, context=2, hidden=HIDDEN), Elementwise(2, Sigmoid())]),
            4,
            site="w",
        ),
    ],
    ids=lambda guide: type(guide).__name__,
)
def test_a_site_has_the_name_that_it_is_given(guide):
    trace = poutine.trace(guide).get_trace(torch.ones(3, 2))
    assert set(trace.stochastic_nodes) - {"data"} == {"w"}
