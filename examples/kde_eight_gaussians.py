"""Kernel density estimates of eight Gaussians: a rule, cross-validation, adaptive widths; beside the known density."""

import argparse
import math

import torch
from matplotlib.figure import Figure
from sklearn.neighbors import KernelDensity
from torch import Tensor

from pyrodgm.data import load
from pyrodgm.evaluation import log_likelihood
from pyrodgm.tractable import KDE

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="fewer rows")
parser.add_argument("--picture", default="kde_eight_gaussians.png")
arguments = parser.parse_args()

# Data: eight normals on a circle, whose mixture is known.
data = load("eight_gaussians")
rows, test = (data.train[:300], data.test[:200]) if arguments.smoke else (data.train, data.test)
angle = math.pi / 4 * torch.arange(8)
centres = 3 * torch.stack((angle.cos(), angle.sin()), -1)


def known_log_prob(x: Tensor) -> Tensor:
    """One eighth each of N(centre, 0.3^2 I)."""
    squares = (x.unsqueeze(-2) - centres).square().sum(-1)  # (*B, 8)
    return (-squares / (2 * 0.09)).logsumexp(-1) - math.log(8 * 2 * math.pi * 0.09)


# Scott's rule is for one normal: in units of the covariance of all eight its kernels are far too wide.
models = {
    "Scott's rule": KDE(rows),
    "cross-validated": KDE(rows, bandwidth="cv", metric="euclidean"),
    "cross-validated, exponential": KDE(rows, "exponential", bandwidth="cv", metric="euclidean"),
    "cross-validated, adaptive": KDE(rows, bandwidth="cv", adaptive=True, metric="euclidean"),
}
reference = known_log_prob(test).mean()
for name, model in models.items():
    value, error, kind = log_likelihood(model, test)
    print(f"{name}, test: {value:.3f} +- {error:.3f} nats ({kind}); known density {reference:.3f}")

# The same estimate by scikit-learn, to the last digits.
chosen = models["cross-validated"]
width = chosen.bandwidths[0].item()
theirs = KernelDensity(bandwidth=width, rtol=0).fit(rows.double().numpy()).score(test.double().numpy()) / len(test)
print(f"bandwidth {width:.4f}, nats: {chosen.log_prob(test).mean():.4f} here, {theirs:.4f} in scikit-learn")

# A picture: the known density and the estimates, all in one scale.
side = torch.linspace(-4.5, 4.5, 60 if arguments.smoke else 150)
grid = torch.cartesian_prod(side, side)
panels = {"known": known_log_prob(grid), **{name: model.log_prob(grid) for name, model in models.items()}}
figure = Figure(figsize=(13, 3), layout="constrained")
top = panels["known"].exp().max().item()
for axes, (name, log_prob) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
    axes.imshow(log_prob.exp().reshape(len(side), -1).T, origin="lower", cmap="Blues", vmin=0, vmax=top)
    axes.set_title(name, fontsize=9)
    axes.set_axis_off()
figure.savefig(arguments.picture, dpi=150)
