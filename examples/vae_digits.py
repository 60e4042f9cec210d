"""A linear-Gaussian VAE on 8x8 digits finds probabilistic PCA, whose likelihood is known; then a deep VAE."""

import argparse
from pathlib import Path

import pyro.distributions as dist
import torch
from sklearn.decomposition import PCA

import pyrodgm
from pyrodgm.data import load
from pyrodgm.diagnostics import completions, image_grid, latent_grid, manifold, reconstructions, traversals
from pyrodgm.evaluation import log_likelihood
from pyrodgm.latent import VAE
from pyrodgm.tractable import Parametric, StandardNormal

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="vae_digits.png")
arguments = parser.parse_args()

# Data: grey levels scaled to [0, 1].
digits = load("digits")

# Reference: probabilistic PCA with 8 components has a closed-form fit and likelihood.
ppca = PCA(n_components=8).fit(digits.train.numpy())
noise = float(ppca.noise_variance_) ** 0.5
reference = ppca.score(digits.test.numpy())

# The same model as a VAE: linear decoder, fixed noise, linear amortized guide.
torch.manual_seed(0)
linear = VAE(
    prior=StandardNormal(8),
    likelihood=Parametric(dist.Normal, 64, context=8, fixed={"scale": noise}),
    guide=Parametric(dist.Normal, 8, context=64),
)
deep = VAE(
    prior=StandardNormal(8),
    likelihood=Parametric(dist.Normal, 64, context=8, hidden=[256], fixed={"scale": noise}),
    guide=Parametric(dist.Normal, 8, context=64, hidden=[256]),
)
for name, model in (("linear", linear), ("deep", deep)):
    pyrodgm.fit(
        model,
        digits.train,
        validate=digits.valid,
        epochs=2 if arguments.smoke else 200,
        early_stopping=30,
        lr=2e-3,
        progress=not arguments.smoke,
    )
    value, error, kind = log_likelihood(model, digits.test, particles=20 if arguments.smoke else 1000)
    print(f"{name} VAE, test: {value:.2f} +- {error:.2f} nats ({kind}); probabilistic PCA, exact: {reference:.2f}")

# A picture: data, and the deep model's reconstructions of them.
shown = digits.test[:60]
deep.cpu()  # it stays where it was trained, the data do not
real, back = reconstructions(deep, shown).unbind(1)
image_grid({"real": real, "reconstructed": back}, digits.image_shape).savefig(arguments.picture, dpi=150)

# More of them: lower halves filled in, each latent moved from -3 to 3, the surface through four digits.
upper = (torch.arange(64) < 32).expand(8, 64)  # a digit is eight lines of eight pixels, the upper ones first
pictures = {
    "completions": completions(deep, shown[:8], upper, draws=6, steps=5 if arguments.smoke else 200),
    "traversals": traversals(deep, shown[0], steps=9),
    "manifold": manifold(deep, shown[:4], steps=12),
}
for name, lines in pictures.items():
    picture = Path(arguments.picture)
    latent_grid(lines, digits.image_shape).savefig(picture.with_stem(f"{picture.stem}_{name}"), dpi=150)
