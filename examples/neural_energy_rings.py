"""A neural energy on three rings, by noise-contrastive estimation: its likelihood beside the known density's.

The noise is a Gaussian, fitted first, and the energy's base too: what the network learns is the ratio of the two.
"""

import argparse

import pyro.distributions as dist
import torch
from torch import Tensor

import pyrodgm
from pyrodgm.data import load
from pyrodgm.diagnostics import density_2d
from pyrodgm.energy import NeuralEnergy
from pyrodgm.evaluation import energy_distance
from pyrodgm.kernels import MALA
from pyrodgm.objectives import NoiseContrastive
from pyrodgm.tractable import Parametric

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="neural_energy_rings.png")
arguments = parser.parse_args()
steps, progress = 5 if arguments.smoke else 3000, not arguments.smoke


def known_log_prob(x: Tensor) -> Tensor:
    """The rings' density: radii 1, 2, 3 with weights 1 : 2 : 3, blurred by N(0, 0.1^2 I)."""
    radius, ring = x.norm(dim=-1, keepdim=True), torch.tensor([1.0, 2.0, 3.0])
    blur = 0.1**2
    terms = -((radius - ring) ** 2) / (2 * blur) + torch.special.i0e(radius * ring / blur).log()
    return (terms + (ring / 6).log()).logsumexp(-1) - torch.tensor(2 * torch.pi * blur).log()


def cosine(optimizer: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)


# Data, the Gaussian that is noise and base, the energy.
rings = load("rings")
torch.manual_seed(0)
gaussian = Parametric(dist.Normal, 2)
pyrodgm.fit(gaussian, rings.train, steps=300, batch_size=1000, lr=1e-2, progress=False)
gaussian.requires_grad_(False)
model = NeuralEnergy.mlp(features=2, hidden=[128, 128], base=gaussian, kernel=MALA(0.1))
objective = NoiseContrastive(gaussian, ratio=4)
pyrodgm.fit(model, rings.train, objective, steps=steps, batch_size=256, lr=5e-3, lr_schedule=cosine, progress=progress)
model.cpu()  # it stays where it was trained, the data do not
objective.cpu()

# Evaluate: log Z by quadrature, beside what the objective learned, and by annealing.
grid, _ = model.log_partition("grid", points=513)
ais, error = model.log_partition("ais", chains=100, temperatures=20 if arguments.smoke else 200, seed=0)
print(f"log Z {grid:.3f} by quadrature, {ais:.3f} +- {error:.3f} by AIS, {objective.log_z.item():.3f} learned")
nll = grid + model.energy(rings.test).mean()
print(f"test nll {nll:.3f} nats, Gaussian {-gaussian.log_prob(rings.test).mean():.3f}, ", end="")
print(f"known density {-known_log_prob(rings.test).mean():.3f}")
model.sample_steps = 10 if arguments.smoke else 500
found = energy_distance(rings.test, model.sample(len(rings.test)))
print(
    f"energy distance of samples {found:.4f}; of two parts of the data {energy_distance(rings.test, rings.valid):.4f}"
)

# A picture: the density with data on top.
density_2d(model, rings.test).savefig(arguments.picture, dpi=150)
