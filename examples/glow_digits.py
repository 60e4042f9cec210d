"""Glow on 8x8 digits: bits/dim beside a Gaussian's, then walks through its latents: between digits, along a label."""

import argparse
import math

import torch

import pyrodgm
from pyrodgm.data import bits_per_dim, dequantize, load, logit
from pyrodgm.diagnostics import attribute, interpolate, latent_grid, manipulate
from pyrodgm.evaluation import log_likelihood
from pyrodgm.latent import Dequantized
from pyrodgm.tractable import Glow

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="glow_digits.png")
arguments = parser.parse_args()
torch.manual_seed(0)

# Data: grey levels 0..16 as images.
LEVELS = 17
digits = load("digits")
train, valid, test = ((16 * digits.part(name)).round().unflatten(1, (1, 8, 8)) for name in ("train", "valid", "test"))

# Reference: a Gaussian with full covariance, fitted in closed form to the logits of dequantized pixels.
rows = torch.cat([logit(dequantize(train.flatten(1), LEVELS)[0], 0.05)[0] for _ in range(20)])
gaussian = torch.distributions.MultivariateNormal(rows.mean(0), rows.T.cov())
y, noise_ladj = dequantize(test.flatten(1), LEVELS)
z, logit_ladj = logit(y, 0.05)
reference = bits_per_dim((gaussian.log_prob(z) + logit_ladj + noise_ladj).mean().item(), 64, levels=1)

# Glow is a density of real pixels; Dequantized makes it one of whole numbers, with fresh noise at every step.
flow = Glow((1, 8, 8), layers=4, scales=2, hidden=[64, 64])
model = Dequantized(flow, LEVELS)
pyrodgm.fit(
    model,
    train,
    validate=valid,
    epochs=1 if arguments.smoke else 60,
    early_stopping=20,
    batch_size=64,
    lr=2e-3,
    clip=50.0,
    progress=not arguments.smoke,
)
value, error, kind = log_likelihood(model, test, particles=5 if arguments.smoke else 100)
model.cpu()  # it stays where it was trained, the data do not
bits = bits_per_dim(value, 64, levels=1)
spread = error / 64 / math.log(2)
print(f"Glow, test: {bits:.3f} +- {spread:.3f} bits/dim ({kind}); Gaussian, closed form: {reference:.3f}")

# From one digit to another on a great circle of the latents, and from threes towards eights and back.
pixels = (test + 0.5) / LEVELS
ways = interpolate(flow, pixels[:4], pixels[4:8], steps=10)
labels = digits.labels["train"]
pair = (labels == 3) | (labels == 8)
direction = attribute(flow, (train[pair] + 0.5) / LEVELS, labels[pair] == 8)
threes = pixels[digits.labels["test"] == 3][:4]
changed = manipulate(flow, threes, direction, torch.linspace(-0.5, 1.5, 10).tolist())
picture = latent_grid(torch.cat((ways, changed)), (1, 8, 8), "between digits; from 3 towards 8")
picture.savefig(arguments.picture, dpi=150)
