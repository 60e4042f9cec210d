"""VQ-VAE-2 on 8x8 digits: codes of two levels by convolutions, a MADE over each; new details for the same top codes."""

import argparse

import torch

import pyrodgm
from pyrodgm.data import load
from pyrodgm.diagnostics import image_grid
from pyrodgm.evaluation import log_likelihood
from pyrodgm.latent import VQVAE, VQVAE2
from pyrodgm.objectives import VectorQuantization
from pyrodgm.tractable import MADE, CategoricalConditional

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="vqvae2_digits.png")
arguments = parser.parse_args()
epochs = 2 if arguments.smoke else 60

# Data as images, and the model: 2 x 2 codes above 4 x 4, each one of 16.
digits = load("digits_binary")
train, valid, test = (rows.reshape(-1, 1, 8, 8) for rows in (digits.train, digits.valid, digits.test))
torch.manual_seed(0)
codes, size = 16, 4
priors = (
    MADE(4, [200], conditional=CategoricalConditional(codes)),
    MADE(16, [200], conditional=CategoricalConditional(codes), context=4 * size),  # given the top's embeddings
)
model = VQVAE2.conv((1, 8, 8), codes=codes, size=size, channels=32, halvings=1, priors=priors)

# First stage: encoder, codebooks and decoder. Second stage: each prior by itself.
options = {"epochs": epochs, "device": "cpu", "progress": not arguments.smoke}
pyrodgm.fit(model, train, VectorQuantization(), validate=valid, **options)
top, bottom = model.codes(train)
pyrodgm.fit(model.top_prior, top, **options)
pyrodgm.fit(model.bottom_prior, (bottom, model.bottom_context(top)), **options)
for level, (perplexity, share) in zip(("top", "bottom"), model.usage(train), strict=True):
    print(f"{level}: perplexity {perplexity:.1f} of {codes}, {share:.0%} of the codes in use")

# Beside it, one level of perceptrons with as many codes: both numbers are lower bounds on log p(x).
flat = VQVAE.mlp(64, 20, codes, size, [200], code_prior=MADE(20, [200], conditional=CategoricalConditional(codes)))
pyrodgm.fit(flat, digits.train, VectorQuantization(), **options)
pyrodgm.fit(flat.code_prior, flat.codes(digits.train), **options)
for name, fitted, rows in (("VQ-VAE-2", model, test), ("VQ-VAE", flat, digits.test)):
    value, error, kind = log_likelihood(fitted, rows, particles=1)
    print(f"{name}, test: {value:.2f} +- {error:.2f} nats ({kind})")

# A picture: data, what their codes give back, the same top codes with new ones at the bottom, and samples.
shown = test[:20]
top, _ = model.codes(shown)
above = model.codebooks[0].embed(top).flatten(1)
below = model.codebooks[1].embed(model.bottom_prior.sample(context=model.bottom_context(top))).flatten(1)
drawn = model.decode(torch.cat((above, below), 1)).sample()
pictures = {"real": shown, "reconstructed": model.reconstruct(shown), "new details": drawn, "samples": model.sample(20)}
image_grid({name: rows.flatten(1) for name, rows in pictures.items()}, digits.image_shape).savefig(
    arguments.picture, dpi=150
)
