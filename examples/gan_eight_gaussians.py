"""A GAN on a ring of eight Gaussians: its energy distance to the data beside that of two halves of the data."""

import argparse

import torch

import pyrodgm
from pyrodgm.data import load
from pyrodgm.diagnostics import scatter
from pyrodgm.evaluation import energy_distance
from pyrodgm.implicit import GAN
from pyrodgm.objectives import Adversarial

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="gan_eight_gaussians.png")
arguments = parser.parse_args()

# Data, generator, and the game with its critic.
ring = load("eight_gaussians")
torch.manual_seed(0)
gan = GAN.mlp(features=2, latent=8, hidden=[128, 128])
game = Adversarial.mlp(gan, hidden=[128, 128])
before = energy_distance(ring.test, gan.sample(len(ring.test)))
pyrodgm.fit(
    gan, ring.train, game, epochs=1 if arguments.smoke else 60, batch_size=256, lr=5e-4, progress=not arguments.smoke
)
gan.cpu()  # it stays where it was trained, the data do not

# Evaluate: an implicit model has no likelihood, so samples are compared with data.
after = energy_distance(ring.test, gan.sample(len(ring.test)))
floor = energy_distance(ring.test, ring.valid)
print(f"energy distance to the test part: {before:.4f} before, {after:.4f} after; two parts of the data {floor:.4f}")

# A picture: data beside samples.
scatter(ring.test, gan.sample(len(ring.test))).savefig(arguments.picture, dpi=150)
