"""VQ-VAE on 8x8 digits in two stages: codes by a codebook, then MADE over the codes; beside a VAE's bound."""

import argparse

import torch

import pyrodgm
from pyrodgm.data import load
from pyrodgm.diagnostics import image_grid
from pyrodgm.evaluation import log_likelihood
from pyrodgm.latent import VAE, VQVAE
from pyrodgm.objectives import VectorQuantization
from pyrodgm.tractable import MADE, CategoricalConditional

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="vqvae_digits.png")
arguments = parser.parse_args()
epochs = 2 if arguments.smoke else 60

# Data and model: 8 codes of 32 for each digit.
digits = load("digits_binary")
torch.manual_seed(0)
model = VQVAE.mlp(
    features=64,
    positions=8,
    codes=32,
    size=8,
    hidden=[200],
    code_prior=MADE(8, [200], conditional=CategoricalConditional(32)),
)

# First stage: encoder, codebook and decoder. Second stage: the prior over the codes alone.
options = {"epochs": epochs, "device": "cpu", "progress": not arguments.smoke}
pyrodgm.fit(model, digits.train, VectorQuantization(), validate=digits.valid, **options)
perplexity, share = model.usage(digits.train)
pyrodgm.fit(model.code_prior, model.codes(digits.train), validate=model.codes(digits.valid), **options)
print(f"codebook: perplexity {perplexity:.1f} of 32, {share:.0%} of the codes in use")

# Both numbers are lower bounds on log p(x): one term of the sum over codes, and 500 importance samples.
vae = VAE.mlp(features=64, latent=8, hidden=[200])
pyrodgm.fit(vae, digits.train, validate=digits.valid, **options)
for name, fitted, particles in (("VQ-VAE", model, 1), ("VAE", vae, 20 if arguments.smoke else 500)):
    value, error, kind = log_likelihood(fitted, digits.test, particles=particles)
    print(f"{name}, test: {value:.2f} +- {error:.2f} nats ({kind})")

# A picture: data, what their codes give back, and samples.
shown = digits.test[:20]
rows = {"real": shown, "reconstructed": model.reconstruct(shown), "samples": model.sample(20)}
image_grid(rows, digits.image_shape).savefig(arguments.picture, dpi=150)
