"""Importance weights of a density's own draws: log Z, effective sample size and expectations known in closed form."""

import math

import pyro.distributions as dist
import pytest
import torch
from cases import grow

from pyrodgm.bijectors import autoregressive
from pyrodgm.energy import NeuralEnergy
from pyrodgm.evaluation import target
from pyrodgm.tractable import IAF, Parametric, StandardNormal

SCALE, DRAWS = 1.3, 40_000


def proposal():
    q = Parametric(dist.Normal, 1, fixed={"scale": SCALE}).double()
    with torch.no_grad():
        for p in q.parameters():
            p.zero_()
    return q


def log_target(x):
    """7 N(x; 0.5, 1)."""
    return -0.5 * (x - 0.5).square().sum(-1) - 0.5 * math.log(2 * math.pi) + math.log(7)


def check_a_normal_by_a_wider_one():
    torch.manual_seed(0)
    found = target.target_estimate(proposal(), log_target, DRAWS, batch_size=DRAWS // 3)
    # E_q[w^2] / Z^2 is the integral of N(x; 0.5, 1)^2 / N(x; 0, SCALE^2), by quadrature.
    x = torch.linspace(-15, 15, 300_001, dtype=torch.float64)
    p = torch.exp(log_target(x[:, None])) / 7
    q = torch.exp(torch.distributions.Normal(0.0, SCALE).log_prob(x))
    second = torch.trapezoid(p * p / q, x).item()
    assert abs(found.log_z - math.log(7)) < 5 * found.standard_error
    assert found.standard_error == pytest.approx(math.sqrt((second - 1) / DRAWS), rel=0.1)
    assert found.effective == pytest.approx(DRAWS / second, rel=0.05)
    assert found.khat < 0.5
    assert found.log_weights.exp().sum().item() == pytest.approx(1.0)
    spread = math.sqrt(second / DRAWS)  # an upper bound of the mean's error times two is enough here
    assert abs(found.mean(lambda x: x[:, 0]).item() - 0.5) < 10 * spread
    assert abs(found.resample(DRAWS).mean().item() - 0.5) < 10 * spread


def test_a_normal_by_a_wider_one():
    check_a_normal_by_a_wider_one()


def test_refusals():
    with pytest.raises(ValueError, match="at least 25 draws"):
        target.target_estimate(proposal(), log_target, 10)
    with pytest.raises(ValueError, match="one context"):
        target.target_estimate(proposal(), log_target, 100, torch.zeros(2, 1))


def test_an_energy_is_scored_in_eval_mode():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    energy = NeuralEnergy(1, net, base=StandardNormal(1)).double()
    found = []
    for training in (False, True):
        torch.manual_seed(1)
        found.append(target.target_estimate(proposal(), energy.train(training), 100).log_z)
        assert net[2].training is training
    assert found[0] == found[1]


def test_draws_of_an_iaf_are_scored_in_the_pass_that_makes_them(monkeypatch):
    torch.manual_seed(0)
    flow = grow(IAF(2, 2, hidden=[8])).double()
    monkeypatch.setattr(autoregressive, "_solve", None)  # the way feature by feature
    found = target.target_estimate(flow, lambda x: -0.5 * x.square().sum(-1), 100)
    monkeypatch.undo()
    expected = -0.5 * found.draws.square().sum(-1) - flow.log_prob(found.draws)
    torch.testing.assert_close(found.log_weights, expected.log_softmax(0))
