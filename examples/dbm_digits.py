"""A deep Boltzmann machine on binarized digits: greedy layers, then joint training; its bound beside an RBM's."""

import argparse

import torch

import pyrodgm
from pyrodgm.data import load
from pyrodgm.diagnostics import image_grid
from pyrodgm.energy import RBM, DeepBoltzmannMachine
from pyrodgm.evaluation import log_likelihood
from pyrodgm.objectives import ContrastiveDivergence, MeanFieldContrastive

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="dbm_digits.png")
arguments = parser.parse_args()

# Data, and a reference: one hidden layer.
digits = load("digits_binary")
options = {"epochs": 2 if arguments.smoke else 100, "device": "cpu", "progress": not arguments.smoke}
torch.manual_seed(0)
rbm = RBM(visible=64, hidden=14)
rbm.set_visible_bias(digits.train)
pyrodgm.fit(rbm, digits.train, ContrastiveDivergence(k=5, persistent=True), **options)

# Greedy layers with doubled weights, then mean field on the data and persistent chains, all weights together.
stack = DeepBoltzmannMachine.stack(64, [14, 20])
pyrodgm.fit_stack(stack, digits.train, lambda: ContrastiveDivergence(k=1), **options)
dbm = DeepBoltzmannMachine.from_stack(stack)
greedy = dbm.bound(digits.test, method="exact").mean()
pyrodgm.fit(dbm, digits.train, MeanFieldContrastive(k=5), validate=digits.valid, **options)

# Fourteen units in the odd layer can be enumerated: log Z and even log p(x) are exact, and AIS must find log Z.
exact, _ = dbm.log_partition("exact")
estimate, error = dbm.log_partition("ais", chains=100 if arguments.smoke else 1000, data=digits.train, seed=0)
print(f"log Z: AIS {estimate.item():.3f} +- {error.item():.3f}, enumerated {exact.item():.3f}")
value, error, kind = log_likelihood(rbm, digits.test)
print(f"RBM of 14 hidden units, test: {value:.2f} +- {error:.2f} nats ({kind})")
print(f"DBM of 14 and 20, greedy, test: {greedy:.2f} nats (bound)")
bound, likelihood = dbm.bound(digits.test, method="exact").mean(), dbm.log_prob(digits.test).mean()
print(f"DBM after joint training, test: {bound:.2f} nats (bound), {likelihood:.2f} (exact)")

# A picture: data, samples of the chains, and the first layer's weights.
filters = dbm.weights[0].detach()
low, high = filters.min(), filters.max()
pictures = {"real": digits.test[:60], "samples": dbm.sample(60), "filters": (filters - low) / (high - low)}
image_grid(pictures, digits.image_shape).savefig(arguments.picture, dpi=150)
