"""A VampPrior beside the standard prior on 8x8 digits, and the digits that its pseudo-inputs become."""

import argparse

import pyro.distributions as dist
import torch
from torch.distributions import constraints

import pyrodgm
from pyrodgm.data import load
from pyrodgm.diagnostics import image_grid
from pyrodgm.evaluation import log_likelihood
from pyrodgm.latent import VAE
from pyrodgm.tractable import Parametric, StandardNormal, VampPrior

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="vamp_prior_digits.png")
arguments = parser.parse_args()

digits = load("digits_binary")
K, Z = 50, 8
models = {}
for name in ("standard", "VampPrior"):
    torch.manual_seed(0)
    # One object is the guide and, averaged over pseudo-inputs, the prior.
    guide = Parametric(dist.Normal, Z, context=64, hidden=[200])
    prior = StandardNormal(Z)
    if name == "VampPrior":
        prior = VampPrior(guide, K, support=constraints.unit_interval)
        prior.start_from(digits.train[:K])
    model = VAE(prior, Parametric(dist.Bernoulli, 64, context=Z, hidden=[200]), guide)
    pyrodgm.fit(
        model,
        digits.train,
        validate=digits.valid,
        epochs=2 if arguments.smoke else 150,
        early_stopping=30,
        progress=not arguments.smoke,
    )
    value, error, kind = log_likelihood(model, digits.test, particles=20 if arguments.smoke else 500)
    print(f"{name}, test: {value:.2f} +- {error:.2f} nats ({kind})")
    models[name] = model
print("on binarized MNIST, Tomczak and Welling (2018) print -88.56 with the standard prior and -85.57 with a VampPrior")

# A picture: the pseudo-inputs, and samples of both.
rows = {
    "pseudo-inputs": models["VampPrior"].prior.pseudo_inputs[:20].detach(),
    "samples": models["VampPrior"].sample(20),
    "standard": models["standard"].sample(20),
}
image_grid(rows, digits.image_shape).savefig(arguments.picture, dpi=150)
