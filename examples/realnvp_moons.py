"""RealNVP on two moons: an exact density, beside a kernel density estimate with its best bandwidth."""

import argparse

import torch
from sklearn.neighbors import KernelDensity

import pyrodgm
from pyrodgm.data import load
from pyrodgm.diagnostics import density_2d
from pyrodgm.evaluation import log_likelihood
from pyrodgm.tractable import RealNVP

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="realnvp_moons.png")
arguments = parser.parse_args()

# Data: points in the plane.
moons = load("moons")

# Reference: the kernel density estimate whose bandwidth is best on the validation part.
estimates = [KernelDensity(bandwidth=h).fit(moons.train.numpy()) for h in (0.05, 0.1, 0.2)]
best = max(estimates, key=lambda estimate: estimate.score(moons.valid.numpy()))
reference = best.score(moons.test.numpy()) / len(moons.test)

# Model and training.
torch.manual_seed(0)
model = RealNVP(features=2, layers=8, hidden=[64, 64])
pyrodgm.fit(
    model,
    moons.train,
    validate=moons.valid,
    epochs=1 if arguments.smoke else 40,
    lr=1e-3,
    lr_schedule=lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    progress=not arguments.smoke,
)

# Evaluate.
value, error, kind = log_likelihood(model, moons.test)
print(f"RealNVP, test: {value:.3f} +- {error:.3f} nats ({kind}); kernel density estimate {reference:.3f}")

# A picture: the density, with test points on top.
density_2d(model, moons.test[:300], bounds=(-3.0, 3.0)).savefig(arguments.picture, dpi=150)
