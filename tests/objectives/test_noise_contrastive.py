"""Noise-contrastive estimation: log Z of a Gaussian, gradients that vanish at the truth, labels as contexts."""

import math

import pytest
import torch
from cases import assert_means_agree, grow, mean_and_error
from test_densities import Gaussian

import pyrodgm
from pyrodgm.energy import NeuralEnergy
from pyrodgm.objectives import NoiseContrastive
from pyrodgm.tractable import RealNVP, StandardNormal

PRECISION = torch.tensor([[2.0, 0.6], [0.6, 1.5]]).double()


def rows(n):
    return torch.randn(n, 2, dtype=torch.float64) @ torch.linalg.cholesky(PRECISION.inverse()).T


def check_gradient_at_the_truth(ratio, offset=0.0):
    """At the true energy and log Z the expected gradient of everything is zero; at another log Z it is not."""
    torch.manual_seed(0)
    model = Gaussian(PRECISION)
    objective = NoiseContrastive(StandardNormal(2).double(), ratio)
    with torch.no_grad():
        objective.log_z.fill_(model.exact_log_z() + offset)
    parameters = [model.precision, objective.log_z]
    found = [torch.autograd.grad(objective.loss(model, rows(4000)), parameters) for _ in range(40)]
    mean, error = mean_and_error(torch.stack([torch.cat([g.flatten() for g in each]) for each in found]))
    if offset:
        assert mean[-1].abs() > 20 * error[-1]
    else:
        assert_means_agree(mean, error, torch.zeros(5).double())


@pytest.mark.parametrize("ratio", [1, 3])
def test_gradient_at_the_truth(ratio):
    check_gradient_at_the_truth(ratio)


def test_gradient_off_the_truth():
    check_gradient_at_the_truth(2, offset=0.2)


def test_log_z_of_a_gaussian():
    """The energy held, log Z by Newton's steps: twelve estimates, each unbiased to the order 1 / rows."""
    torch.manual_seed(1)
    model = Gaussian(PRECISION)
    found = []
    for _ in range(12):
        objective = NoiseContrastive(StandardNormal(2).double(), 2)
        x, state = rows(5000), torch.get_rng_state()
        for _ in range(8):
            torch.set_rng_state(state)  # the same noise, so one function is minimised
            loss = objective.loss(model, x)
            (slope,) = torch.autograd.grad(loss, objective.log_z, create_graph=True)
            (curvature,) = torch.autograd.grad(slope, objective.log_z)
            with torch.no_grad():
                objective.log_z -= slope / curvature
        assert slope.abs() < 1e-9
        found.append(objective.log_z.detach())
    mean, error = mean_and_error(torch.stack(found))
    assert error < 0.05
    assert_means_agree(mean, error, model.exact_log_z().detach())


def test_a_flow_as_noise_stays_as_it_is():
    """It is a frozen copy; energy and log Z learn together, and log Z comes to what quadrature finds."""
    torch.manual_seed(0)
    flow = grow(RealNVP(2, 2, hidden=[8]), 0.1)
    objective, model = NoiseContrastive(flow, 4), NeuralEnergy.mlp(2, [16])
    before = [p.clone() for p in objective.noise.parameters()]
    x = rows(4000).float()
    pyrodgm.fit(model, x, objective, steps=300, batch_size=500, lr=5e-3, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, objective.noise.parameters(), strict=True))
    assert not objective.noise.training
    assert objective.log_z.abs() > 1e-3
    # what it learns is normalised but for noise: 2000 logistic labels a step leave hundredths of a nat
    assert abs(objective.log_z.item() - model.log_partition("grid")[0].item()) < 0.15


def test_contexts():
    """Each label has a log Z of its own, and at the truth no gradient is left."""
    torch.manual_seed(0)

    class Scaled(Gaussian):
        """E(x, c) = (1 + 2 c_1) x' P x / 2 for labels (1, 0) and (0, 1): Z(c) by the scale."""

        def __init__(self):
            super().__init__(PRECISION)
            self.context = 2

        def energy(self, x, context=None):
            x, context = self.check(x, context)
            return (1 + 2 * context[..., 1]) * (x @ self.precision * x).sum(-1) / 2

    model = Scaled()
    labels = torch.eye(2, dtype=torch.float64).repeat(2000, 1)
    objective = NoiseContrastive(StandardNormal(2).double(), 2, context=2)
    with torch.no_grad():
        objective.log_z.fill_(model.exact_log_z())
        objective.log_z_context.copy_(torch.tensor([0.0, -math.log(3)]))
    parameters = objective.players(model)["model"]
    found = []
    for _ in range(40):
        x = rows(4000) / (1 + 2 * labels[:, 1:]).sqrt()
        found.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(objective.loss(model, x, labels), parameters)])
        )
    assert_means_agree(*mean_and_error(torch.stack(found)), torch.zeros(7).double())


def test_mistakes():
    with pytest.raises(ValueError, match="ratio >= 1"):
        NoiseContrastive(StandardNormal(2), 0)
    with pytest.raises(TypeError, match="Tractable noise"):
        NoiseContrastive(NeuralEnergy.mlp(2))
    with pytest.raises(ValueError, match="noise with context 0 or 0"):
        NoiseContrastive(RealNVP(2, context=3))
    with pytest.raises(ValueError, match="model of event shape"):
        NoiseContrastive(StandardNormal(3)).check(NeuralEnergy.mlp(2))
    with pytest.raises(ValueError, match="model of event shape"):
        NoiseContrastive(StandardNormal(2)).check(NeuralEnergy.mlp(2, context=1))
