"""FFJORD on three rings: one continuous flow, beside a coupling flow and a kernel density estimate."""

import argparse

import torch
from sklearn.neighbors import KernelDensity

import pyrodgm
from pyrodgm.bijectors import ExactTrace, ODESolver
from pyrodgm.data import load
from pyrodgm.diagnostics import density_2d
from pyrodgm.evaluation import log_likelihood
from pyrodgm.tractable import FFJORD, RealNVP

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="ffjord_rings.png")
arguments = parser.parse_args()

# Data: points in the plane, which a smooth map of a Gaussian has to tear apart.
rings = load("rings")

# References: the kernel density estimate whose bandwidth is best on the validation part, and a RealNVP.
estimates = [KernelDensity(bandwidth=h).fit(rings.train.numpy()) for h in (0.05, 0.1, 0.2)]
best = max(estimates, key=lambda estimate: estimate.score(rings.valid.numpy()))
reference = best.score(rings.test.numpy()) / len(rings.test)

# Models. In two dimensions the exact trace costs two products, so no noise is worth it. Training takes a few fixed
# steps and backpropagates through them; the density is then had with an adaptive solver.
torch.manual_seed(0)
quick = ODESolver("rk4", steps=6, adjoint=False)
models = {
    "RealNVP": RealNVP(features=2, layers=8, hidden=[64, 64]),
    "FFJORD": FFJORD(features=2, layers=1, hidden=[64, 64], trace=ExactTrace(), solver=quick),
}
for name, model in models.items():
    pyrodgm.fit(
        model,
        rings.train,
        validate=rings.valid,
        steps=3 if arguments.smoke else 1000,
        batch_size=50 if arguments.smoke else 256,
        lr=1e-2 if name == "FFJORD" else 1e-3,
        lr_schedule=lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        progress=not arguments.smoke,
    )
    if name == "FFJORD":
        model.bijectors[0].solver = ODESolver("dopri5", rtol=1e-5, atol=1e-5)
    value, error, kind = log_likelihood(model, rings.test)
    print(f"{name}, test: {value:.3f} +- {error:.3f} nats ({kind}); kernel density estimate {reference:.3f}")

# A picture: the density, with test points on top.
density_2d(models["FFJORD"], rings.test[:300], bounds=(-3.5, 3.5)).savefig(arguments.picture, dpi=150)
