"""Replay: chains go out of the buffer and back, some begin anew, and the gradient goes to the likelihood's."""

import copy
import pickle

import pytest
import torch
from cases import assert_means_agree, grow, mean_and_error
from test_densities import Gaussian
from torch import nn

from pyrodgm.energy import NeuralEnergy
from pyrodgm.kernels import MALA
from pyrodgm.objectives import ReplayDivergence

PRECISION = torch.tensor([[2.0, 0.6], [0.6, 1.5]]).double()


def neural():
    torch.manual_seed(0)
    return grow(NeuralEnergy.mlp(2, [8], kernel=MALA(0.8), activation=nn.Tanh), 0.5).double()


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("restart", [0.0, 0.3])
def test_gradient_goes_to_the_likelihoods(restart):
    model = neural().train()
    x = torch.randn(20, 2, dtype=torch.float64)
    exact = gradient(-(-model.energy(x) - model.log_partition("grid")[0]).mean(), model)
    objective = ReplayDivergence(25, 1000, restart)
    found = torch.stack([gradient(objective.loss(model, x.repeat(50, 1)), model) for _ in range(40)])
    mean, error = mean_and_error(found)
    assert error.max() < exact.abs().max() / 10
    assert_means_agree(mean, error, exact)


def check_restarts():
    """A share of the moved chains begin where the model starts its own, the rest where they were left."""
    model = Gaussian(PRECISION)
    model.kernel = MALA(1e-6)  # chains stay within 1e-5 of where a step finds them
    objective = ReplayDivergence(1, 4000, restart=0.25)
    objective.check(model)
    chains = objective.buffer.negatives
    chains.fill_(50.0)
    objective.loss(model, torch.zeros(3000, 2).double())
    away = (chains - 50).abs().amax(-1) > 1e-3
    assert objective.buffer.negatives is chains
    # 3000 of 4000 were moved, each anew with probability 1 / 4
    count, expected = away.sum().item(), 750
    assert abs(count - expected) < 5 * (3000 * 0.25 * 0.75) ** 0.5
    assert (chains[away].abs() < 6).all()
    moved = (chains != 50).any(-1).sum()
    assert moved == 3000


def test_restarts():
    check_restarts()


def test_magnitude():
    """alpha times the mean squares of both energies, and no more."""
    model, x = neural(), torch.randn(8, 2, dtype=torch.float64)
    losses = []
    for alpha in (0.0, 0.7):
        torch.manual_seed(1)
        objective = ReplayDivergence(2, 8, 0.5, alpha)
        losses.append(objective.loss(model, x))
        negatives = objective.buffer.negatives
    expected = 0.7 * (model.energy(x).square().mean() + model.energy(negatives).square().mean())
    torch.testing.assert_close(losses[1] - losses[0], expected)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
def test_the_buffer_survives_copies(how):
    model, x = neural(), torch.randn(6, 2, dtype=torch.float64)
    objective = ReplayDivergence(2, 30)
    objective.loss(model, x)
    if how == "state_dict":
        other = ReplayDivergence(2, 30)
        other.load_state_dict(objective.state_dict())
    else:
        other = copy.deepcopy(objective) if how == "deepcopy" else pickle.loads(pickle.dumps(objective))
    assert other.buffer.negatives is not objective.buffer.negatives
    found = []
    for one in (objective, other):
        torch.manual_seed(1)
        found.append(one.loss(model, x))
    assert torch.equal(*found)
    assert torch.equal(objective.buffer.negatives, other.buffer.negatives)


def test_mistakes():
    with pytest.raises(ValueError, match="restart inside"):
        ReplayDivergence(restart=1.5)
    with pytest.raises(ValueError, match="magnitude >= 0"):
        ReplayDivergence(magnitude=-1.0)
    with pytest.raises(ValueError, match="chains >= 1"):
        ReplayDivergence(capacity=0)
    with pytest.raises(ValueError, match="without context"):
        ReplayDivergence().check(NeuralEnergy.mlp(2, context=2))
