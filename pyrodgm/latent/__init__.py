"""Models with latent variables: a normalised joint density and a guide."""

from pyrodgm.latent.vae import VAE

__all__ = ["VAE"]
