"""Known densities of the plane, recovered in part by each objective of energies in a few seconds.

Lengths that recover them to hundredths of a nat are in ``benchmarks/energy_2d.py``.
"""

import math

import pytest
import torch
from torch import nn

import pyrodgm
from pyrodgm.core import Energy
from pyrodgm.energy import NeuralEnergy
from pyrodgm.kernels import MALA
from pyrodgm.objectives import (
    DenoisingScoreMatching,
    NoiseContrastive,
    ReplayDivergence,
    ScoreMatching,
    SlicedScoreMatching,
)
from pyrodgm.tractable import StandardNormal


class Gaussian(Energy):
    """E = x' P x / 2 with P free, and the kernel MALA; others use it for closed forms."""

    def __init__(self, precision):
        super().__init__((len(precision),))
        self.precision = nn.Parameter(precision.clone())
        self.kernel = MALA(0.5)

    def energy(self, x, context=None):
        x, _ = self.check(x, context)
        return (x @ self.precision * x).sum(-1) / 2

    def start(self, n, context=None):
        return torch.randn(n, *self.event_shape, dtype=self.dtype)

    def exact_log_z(self):
        return (len(self.precision) * math.log(2 * math.pi) - self.precision.logdet()) / 2

    def log_partition(self, method="exact", **options):
        return self.exact_log_z(), torch.zeros(())


RADIUS, WIDTH = 1.5, 0.4
AXIS = torch.linspace(-5, 5, 201)
NODES = torch.cartesian_prod(AXIS, AXIS)


def ring(x):
    return -((x.norm(dim=-1) - RADIUS) ** 2) / (2 * WIDTH**2)


def draw(n):
    cells = ring(NODES).softmax(0).multinomial(n, replacement=True)
    return NODES[cells] + (torch.rand(n, 2) - 0.5) * (AXIS[1] - AXIS[0])


def divergence(log_q):
    """KL(ring || q) on the grid, both normalised there."""
    log_p, log_q = ring(NODES).double().log_softmax(0), log_q.double().log_softmax(0)
    return (log_p.exp() * (log_p - log_q)).sum().item()


@pytest.mark.parametrize(
    ("objective", "steps"),
    [
        (ReplayDivergence(5, 1000), 300),
        (DenoisingScoreMatching(0.15), 400),
        (SlicedScoreMatching(), 400),
        (ScoreMatching(), 400),
        (NoiseContrastive(StandardNormal(2), 2), 400),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_ring_is_recovered(objective, steps):
    """A third of the divergence at most of the best Gaussian, which sees both moments but not the hole."""
    torch.manual_seed(0)
    x = draw(10_000)
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov()).log_prob(NODES)
    model = NeuralEnergy.mlp(2, [32, 32])
    pyrodgm.fit(model, x, objective, steps=steps, batch_size=200, lr=5e-3, progress=False)
    with torch.no_grad():
        found = divergence(-model.energy(NODES))
    assert found < divergence(gaussian) / 3
