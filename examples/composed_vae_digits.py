"""Composition: a flow as prior, a flow as guide and MADE as decoder, in one program under Pyro's own SVI."""

import argparse

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO

from pyrodgm.data import load
from pyrodgm.diagnostics import image_grid
from pyrodgm.evaluation import log_likelihood
from pyrodgm.latent import VAE
from pyrodgm.tractable import MADE, RealNVP

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="composed_vae_digits.png")
arguments = parser.parse_args()

# Data, and the parts: each is an ordinary conditional distribution.
digits = load("digits_binary")
torch.manual_seed(0)
plain = VAE.mlp(features=64, latent=4, hidden=[200])
composed = VAE(
    prior=RealNVP(features=4, layers=4),
    likelihood=MADE(features=64, hidden=[200], context=4),
    guide=RealNVP(features=4, layers=4, hidden=[100], context=64),
)

# Training: the stock Pyro script.
bounds = {}
for name, vae in (("plain", plain), ("composed", composed)):
    svi = SVI(*vae.svi(), pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    for _ in range(1 if arguments.smoke else 60):
        for rows in digits.train[torch.randperm(len(digits.train))].split(64):
            svi.step(rows)
    bounds[name] = log_likelihood(vae, digits.test, particles=20 if arguments.smoke else 500)
print(
    f"test, nats: plain VAE {bounds['plain'].value:.2f} (bound), with flow prior, flow guide and MADE decoder "
    f"{bounds['composed'].value:.2f} (bound, +- {bounds['composed'].standard_error:.2f})"
)

# A picture: data beside samples.
figure = image_grid({"real": digits.test[:60], "samples": composed.sample(60)}, digits.image_shape)
figure.savefig(arguments.picture, dpi=150)
