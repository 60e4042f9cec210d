"""Users' mistakes with latent models and guides: each is named, with what was expected and what came."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrodgm.guides import (
    Corrupted,
    FlowGuide,
    FullCovariance,
    Hierarchical,
    ImplicitGuide,
    MeanField,
    SemiAmortized,
    Sites,
)
from pyrodgm.latent import M2, NVDM, VAE, VQVAE, Dequantized, ProdLDA, resample_missing
from pyrodgm.latent.codebook import Codebook
from pyrodgm.nets import MLP
from pyrodgm.tractable import MADE, CategoricalConditional, Parametric, RealNVP, StandardNormal

X = torch.ones(4, 6)


def vae():
    return VAE.mlp(6, 2, [8])


def vqvae(encoder=6, codes=4, code_prior=None):
    return VQVAE(MLP(6, encoder), Parametric(dist.Bernoulli, 6, context=6), Codebook(codes, 3), code_prior)


def code_prior(positions, codes):
    return MADE(positions, [4], conditional=CategoricalConditional(codes))


def program(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def sites():
    return Sites(program, (torch.zeros(5),))


MISTAKES = {
    "no particles": (lambda: vae().log_weights(X, particles=0), "particles >= 1, got 0"),
    "no particles for M2": (lambda: M2.mlp(6, 3, 2, [8]).bounds(X, torch.zeros(4, 3), particles=0), "particles >= 1"),
    "a lone row": (lambda: vae().log_weights(X[0]), r"x of shape \(rows, 6\), got \(6,\)"),
    "a lone row drawn again": (lambda: vae().reconstruct(X[0]), r"\(rows, 6\)"),
    "a lone row completed": (lambda: vae().complete(X[0], X[0] > 0), r"\(rows, 6\)"),
    "a lone row resampled": (lambda: resample_missing(vae(), X[0], X[0] > 0), r"\(rows, 6\)"),
    "a lone row of M2": (lambda: M2.mlp(6, 3, 2, [8]).bounds(X[0], torch.zeros(3)), r"\(rows, 6\)"),
    "negative steps": (lambda: vae().complete(X, X > 0, steps=-1), "steps >= 0, got -1"),
    "negative sweeps": (lambda: Dequantized(RealNVP(6), 4).complete(X, X > 0, steps=-1), "steps >= 0, got -1"),
    "positions of a code prior": (
        lambda: vqvae(code_prior=code_prior(3, 4)),
        r"over 2 codes of 0, ..., 3, got event shape \(3,\)",
    ),
    "fewer codes": (
        lambda: vqvae(codes=8, code_prior=code_prior(2, 4)),
        r"0, ..., 7, got event shape \(2,\) of 0, ..., 3",
    ),
    "more codes": (lambda: vqvae(code_prior=code_prior(2, 9)), r"0, ..., 3, got event shape \(2,\) of 0, ..., 8"),
    "half an embedding": (lambda: vqvae(encoder=5).log_weights(X), r"encoder of L \* 3 numbers"),
    "one topic": (lambda: ProdLDA(5, 1), "at least two topics"),
    "no hidden layer": (lambda: ProdLDA(5, 3, hidden=()), "at least one hidden layer"),
    "too many words": (lambda: NVDM(5, 2).top_words(6), "n of 1, ..., 5 words, got 6"),
    "rows of another width": (lambda: MeanField(sites())(torch.zeros(5, 3)), "rows of 1 numbers"),
}
WRONG_TYPES = {
    "prior": (lambda: VAE("normal", vae().likelihood, vae().guide), "prior as a model, such as a Tractable, got str"),
    "likelihood": (lambda: VAE(StandardNormal(2), MLP(2, 6), vae().guide), "likelihood as a model"),
    "guide": (
        lambda: VAE(StandardNormal(2), vae().likelihood, None),
        "guide as a Tractable over z or a module, got None",
    ),
    "corruption": (lambda: Corrupted(vae().guide, 0.3), r"use MaskingNoise\(0.3\)"),
    "program": (lambda: Sites(None), "expected a Pyro program"),
    "arguments": (lambda: Sites(program, torch.zeros(5)), r"as a tuple, \(x,\), got Tensor"),
} | {
    guide.__name__: (lambda guide=guide: guide(program), r"expected Sites\(program, \(arguments,\)\).* got program")
    for guide in (MeanField, FullCovariance, FlowGuide, Hierarchical, ImplicitGuide, SemiAmortized)
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    attempt, match = MISTAKES[name]
    with pytest.raises(ValueError, match=match):
        attempt()


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_wrong_types_are_named(name):
    attempt, match = WRONG_TYPES[name]
    with pytest.raises(TypeError, match=match):
        attempt()


def test_a_code_prior_of_the_books_codes_is_taken():
    assert vqvae(code_prior=code_prior(2, 4)).log_weights(X).isfinite().all()
