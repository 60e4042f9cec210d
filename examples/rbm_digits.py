"""A restricted Boltzmann machine on binarized digits: its log Z by AIS beside the enumerated one."""

import argparse

import torch

import pyrodgm
from pyrodgm.data import load
from pyrodgm.diagnostics import image_grid
from pyrodgm.energy import RBM
from pyrodgm.evaluation import log_likelihood
from pyrodgm.objectives import ContrastiveDivergence

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="rbm_digits.png")
arguments = parser.parse_args()

# Data, model, and training by persistent contrastive divergence.
digits = load("digits_binary")
torch.manual_seed(0)
rbm = RBM(visible=64, hidden=12)
rbm.set_visible_bias(digits.train)
pyrodgm.fit(
    rbm,
    digits.train,
    ContrastiveDivergence(k=5, persistent=True),
    validate=digits.valid,
    epochs=3 if arguments.smoke else 150,
    progress=not arguments.smoke,
)

# Twelve hidden units have 4096 states: log Z is known, and AIS must find it.
exact, _ = rbm.log_partition("exact")
estimate, error = rbm.log_partition("ais", chains=100 if arguments.smoke else 1000)
print(f"log Z: AIS {float(estimate):.3f} +- {float(error):.3f}, enumerated {float(exact):.3f}")
value, error, kind = log_likelihood(rbm, digits.test)
print(f"RBM, test: {value:.2f} +- {error:.2f} nats ({kind})")

# A picture: data, samples of the chains, and what each hidden unit looks for.
filters = rbm.weight.detach()
low, high = filters.min(), filters.max()
pictures = {"real": digits.test[:60], "samples": rbm.sample(60), "filters": (filters - low) / (high - low)}
image_grid(pictures, digits.image_shape).savefig(arguments.picture, dpi=150)
