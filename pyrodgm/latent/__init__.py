"""Models with latent variables: a normalised joint density and a guide."""

from pyrodgm.latent.code_pair import NearestCodePair
from pyrodgm.latent.codebook import Codebook
from pyrodgm.latent.completion import resample_missing
from pyrodgm.latent.dequantized import Dequantized
from pyrodgm.latent.quantized import VQVAE, NearestCode
from pyrodgm.latent.semi_supervised import M2, ClassAndStyle
from pyrodgm.latent.topic import ETM, NVDM, ProdLDA
from pyrodgm.latent.vae import VAE
from pyrodgm.latent.vqvae2 import VQVAE2

__all__ = [
    "ETM",
    "M2",
    "NVDM",
    "VAE",
    "VQVAE",
    "VQVAE2",
    "ClassAndStyle",
    "Codebook",
    "Dequantized",
    "NearestCode",
    "NearestCodePair",
    "ProdLDA",
    "resample_missing",
]
