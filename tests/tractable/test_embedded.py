"""A model behind a network of its context is that model, given what the network says."""

import pickle

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrodgm
from pyrodgm.bijectors import ActNorm
from pyrodgm.nets import MLP
from pyrodgm.tractable import MADE, Embedded, Flow, Parametric, RealNVP, StandardNormal


def model_and_net(seed=0):
    torch.manual_seed(seed)
    inner = RealNVP(3, 2, hidden=[8], context=4)
    with torch.no_grad():
        for p in inner.parameters():  # couplings start as the identity, which reads nothing
            p.add_(0.3 * torch.randn_like(p))
    return inner, MLP(6, 4, [8])


def test_its_density_and_draws_are_the_models_given_the_networks_output():
    inner, net = model_and_net()
    model, x, c = Embedded(inner, net, 6), torch.randn(2, 5, 3), torch.randn(2, 5, 6)
    torch.testing.assert_close(model.log_prob(x, c), inner.log_prob(x, net(c)), rtol=0, atol=0)
    assert model.condition(c).batch_shape == (2, 5)
    torch.manual_seed(1)
    drawn = model.sample(7, c)
    torch.manual_seed(1)
    torch.testing.assert_close(drawn, inner.sample(7, net(c)), rtol=1e-5, atol=1e-6)


def test_network_runs_once_for_all_layers_and_gets_their_gradient():
    inner, net = model_and_net()
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    model, x, c = Embedded(inner, net, 6), torch.randn(5, 3), torch.randn(5, 6, requires_grad=True)
    model.log_prob(x, c).sum().backward()
    assert len(calls) == 1
    assert c.grad.abs().min() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_it_learns_what_only_the_network_can_tell():
    """The model's own map of its context is linear; x is the parity of two signs, which no linear map tells."""
    torch.manual_seed(0)
    c = torch.randint(2, (2000, 2)) * 2.0 - 1
    x = (c[:, :1] * c[:, 1:]) + 0.1 * torch.randn(2000, 1)
    plain = Parametric(dist.Normal, 1, context=2)
    model = Embedded(Parametric(dist.Normal, 1, context=8), MLP(2, 8, [16]), 2)
    for m in (plain, model):
        pyrodgm.fit(m, (x, c), epochs=60, batch_size=200, lr=1e-2, seed=0, progress=False)
    best = dist.Normal(c[:, :1] * c[:, 1:], 0.1).log_prob(x).mean().item()
    assert model.log_prob(x, c).mean().item() > best - 0.1
    assert plain.log_prob(x, c).mean().item() < best - 1.0


def test_parts_that_start_from_data_read_the_context():
    class Remembers(StandardNormal):
        def initialize(self, x, context=None):
            self.seen = context

    base = Remembers(3)
    base.context = 4
    net = MLP(6, 4, [8])
    model, c = Embedded(Flow(base, [ActNorm(3)]), net, 6), torch.randn(50, 6)
    model.initialize(3 + 2 * torch.randn(50, 3), c)
    torch.testing.assert_close(base.seen, net(c))
    assert not torch.equal(model.model.bijectors[0].state_dict()["shift"], torch.zeros(3))


def test_pickle_and_precision():
    inner, net = model_and_net()
    model = pickle.loads(pickle.dumps(Embedded(inner, net, 6))).double()
    x, c = torch.randn(5, 3).double(), torch.randn(5, 6).double()
    assert model.log_prob(x, c).dtype == torch.float64
    model, x, c = model.float(), x.float(), c.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert net(c).dtype == torch.bfloat16
        assert model.condition(c).sample().dtype == model.log_prob(x, c).dtype == torch.float32


def test_mistakes_are_named():
    inner, net = model_and_net()
    with pytest.raises(TypeError, match="expected model as a Tractable, got Linear"):
        Embedded(nn.Linear(2, 2), net, 6)
    with pytest.raises(ValueError, match="expected a model with a context"):
        Embedded(MADE(3, [8]), net, 6)
    with pytest.raises(ValueError, match="context >= 1"):
        Embedded(inner, net, 0)
    with pytest.raises(ValueError, match=r"expected net to make \(\*, 4\) of \(\*, 6\), got \(5, 3\)"):
        Embedded(inner, nn.Linear(6, 3), 6).log_prob(torch.zeros(5, 3), torch.zeros(5, 6))
    with pytest.raises(ValueError, match="expected context of shape"):
        Embedded(inner, net, 6).log_prob(torch.zeros(5, 3))
