"""MADE on binarized 8x8 digits: an exact likelihood, beside independent pixels and a mixture of Bernoullis."""

import argparse
import math

import pyro.distributions as dist
import torch

import pyrodgm
from pyrodgm.data import load
from pyrodgm.diagnostics import image_grid
from pyrodgm.evaluation import log_likelihood
from pyrodgm.tractable import MADE, Parametric

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="made_digits.png")
arguments = parser.parse_args()

# Data: 1797 digits, each pixel 0 or 1.
digits = load("digits_binary")

# Reference: independent pixels have a closed-form fit, and the engine must find it.
rate = digits.train.mean(0).clamp(1e-3, 1 - 1e-3)
entropy = -(rate * rate.log() + (1 - rate) * (1 - rate).log()).sum()
torch.manual_seed(0)
independent = Parametric(dist.Bernoulli, 64)
pyrodgm.fit(independent, digits.train, epochs=2 if arguments.smoke else 60, lr=0.05, progress=False)
found = -log_likelihood(independent, digits.train).value
print(f"independent pixels, train: {found:.3f} nats (closed form {entropy:.3f})")

# Model, objective and training: maximum likelihood is the default of a tractable model.
model = MADE(features=64, hidden=[200])
run = pyrodgm.fit(
    model,
    digits.train,
    validate=digits.valid,
    epochs=3 if arguments.smoke else 200,
    early_stopping=20,
    lr=2e-3,
    progress=not arguments.smoke,
)

# Evaluate: the density is exact, so this is the likelihood and not a bound.
value, error, kind = log_likelihood(model, digits.test)
reference = log_likelihood(independent, digits.test).value
print(
    f"MADE, test: {value:.2f} +- {error:.2f} nats ({kind}), {-value / 64 / math.log(2):.3f} bits/dim; "
    f"independent pixels {reference:.2f}"
)

# A picture: data beside samples.
picture = image_grid({"real": digits.test[:60], "samples": model.sample(60)}, digits.image_shape)
picture.savefig(arguments.picture, dpi=150)
