"""The same numbers on CUDA as on the CPU, and training there."""

import copy

import pytest
import torch

import pyrodgm
from pyrodgm.energy import RBM
from pyrodgm.implicit import GAN
from pyrodgm.latent import VAE
from pyrodgm.tractable import MADE, GaussianMixtureConditional, RealNVP

pytestmark = pytest.mark.gpu

BINARY = {"MADE": lambda: MADE(12, [32]), "VAE": lambda: VAE.mlp(12, 3, [16]), "RBM": lambda: RBM(12, 5)}
REAL = {
    "RealNVP": lambda: RealNVP(12),
    "MADE mixture": lambda: MADE(12, [32], GaussianMixtureConditional(3)),
    "GAN": lambda: GAN.mlp(12, 4, [16]),
}


def rows(name):
    x = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))
    return (x > 0).float() if name in BINARY else x


@pytest.mark.parametrize("name", [*BINARY, *REAL])
def test_fit_on_cuda(name):
    model = {**BINARY, **REAL}[name]()
    run = pyrodgm.fit(model, rows(name), validate=rows(name), epochs=2, device="cuda", progress=False)
    assert model.device.type == "cuda"
    assert len(run.history) == 2
    assert model.sample(4).device.type == "cuda"


@pytest.mark.parametrize("name", ["MADE", "RealNVP", "MADE mixture"])
def test_log_prob_agrees_with_cpu(name):
    model = {**BINARY, **REAL}[name]()
    there = copy.deepcopy(model).to("cuda")
    x = rows(name)
    # TF32 is off by default, so float32 sums in another order differ by rounding only.
    torch.testing.assert_close(there.log_prob(x.cuda()).cpu(), model.log_prob(x), rtol=1e-4, atol=1e-4)


def test_ais_on_cuda_agrees_with_enumeration():
    rbm = RBM(12, 5).to("cuda")
    exact, _ = rbm.log_partition("exact")
    estimate, error = rbm.log_partition("ais", chains=200, temperatures=200, seed=0)
    assert abs(float(estimate - exact)) < 5 * float(error) + 1e-4


@pytest.mark.parametrize("name", ["MADE", "VAE"])
def test_compiled_fit_on_cuda(name):
    model = BINARY[name]()
    pyrodgm.fit(model, rows(name), steps=5, device="cuda", compile=True, progress=False)
    assert all(torch.isfinite(p).all() for p in model.parameters())
