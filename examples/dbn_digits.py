"""A deep belief network on binarized digits: greedy layers, then up-down; its bound beside the bottom RBM alone."""

import argparse

import torch

import pyrodgm
from pyrodgm.data import load
from pyrodgm.diagnostics import image_grid
from pyrodgm.energy import RBM, DeepBeliefNetwork, Recognition
from pyrodgm.evaluation import log_likelihood
from pyrodgm.objectives import ContrastiveDivergence, UpDown

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="dbn_digits.png")
arguments = parser.parse_args()

# Data, and a stack of machines, each trained on the hidden units of the one below.
digits = load("digits_binary")
torch.manual_seed(0)
stack = [RBM(visible=64, hidden=16), RBM(visible=16, hidden=40)]
options = {"epochs": 2 if arguments.smoke else 100, "device": "cpu", "progress": not arguments.smoke}
pyrodgm.fit_stack(stack, digits.train, lambda: ContrastiveDivergence(k=5), **options)

# The lower machine becomes a layer that draws downwards; up-down trains both directions together.
dbn, recognition = DeepBeliefNetwork.from_stack(stack), Recognition.from_stack(stack)
greedy = dbn.bound(digits.test, recognition, method="exact").mean()
pyrodgm.fit(dbn, digits.train, UpDown(recognition, k=5), lr=0.05, validate=digits.valid, **options)

# Sixteen hidden units can be enumerated: log Z is exact, the bound is by importance sampling.
value, error, kind = log_likelihood(stack[0], digits.test)
print(f"RBM of 16 hidden units, test: {value:.2f} +- {error:.2f} nats ({kind})")
print(f"DBN of 16 and 40, greedy, test: {greedy:.2f} nats (bound)")
tuned = dbn.bound(digits.test, recognition, method="exact").mean()
print(f"DBN after up-down, test: {tuned:.2f} nats (bound)")

# A picture: data, samples by the top machine and one pass downwards, and what the first layer's units draw.
filters = dbn.down[0].weight.detach().t()
low, high = filters.min(), filters.max()
pictures = {"real": digits.test[:60], "samples": dbn.sample(60), "filters": (filters - low) / (high - low)}
image_grid(pictures, digits.image_shape).savefig(arguments.picture, dpi=150)
