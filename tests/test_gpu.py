"""The same numbers on CUDA as on the CPU, and training there."""

import copy
import math

import pyro
import pytest
import torch

import pyrodgm
from pyrodgm.energy import RBM, DeepBeliefNetwork, DeepBoltzmannMachine, GaussianUnits, Recognition
from pyrodgm.evaluation import WatchCollapse, importance_estimate
from pyrodgm.implicit import GAN
from pyrodgm.latent import VAE, VQVAE, VQVAE2
from pyrodgm.nets import RecurrentNet
from pyrodgm.objectives import (
    ELBO,
    AdversarialAutoencoder,
    AdversarialVariationalBayes,
    BetaTCVAE,
    CyclicalAnnealing,
    FreeBits,
    ImportanceWeighted,
    InfoVAE,
    LaggingInference,
    MeanFieldContrastive,
    ReweightedWakeSleep,
    UpDown,
    VariationalEM,
    default_objective,
)
from pyrodgm.tractable import FFJORD, MADE, GaussianMixtureConditional, RealNVP, Recurrent

pytestmark = [
    pytest.mark.gpu,
    # the compiler's advice to round matrix products, which would count as a reason to fall back to eager
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]

BINARY = {"MADE": lambda: MADE(12, [32]), "VAE": lambda: VAE.mlp(12, 3, [16]), "RBM": lambda: RBM(12, 5)}
REAL = {
    "RealNVP": lambda: RealNVP(12),
    "FFJORD": lambda: FFJORD(12, hidden=[16]),
    "MADE mixture": lambda: MADE(12, [32], conditional=GaussianMixtureConditional(3)),
    "GAN": lambda: GAN.mlp(12, 4, [16]),
    "RBM Gaussian": lambda: RBM(12, 5, units=GaussianUnits(12)),
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


@pytest.mark.parametrize("name", ["MADE", "RealNVP", "FFJORD", "MADE mixture"])
def test_log_prob_agrees_with_cpu(name):
    model = {**BINARY, **REAL}[name]().eval()  # in training FFJORD's trace is a random estimate
    there = copy.deepcopy(model).to("cuda")
    x = rows(name)
    # TF32 is off by default, so float32 sums in another order differ by rounding only.
    torch.testing.assert_close(there.log_prob(x.cuda()).cpu(), model.log_prob(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in (*BINARY, *REAL) if name != "FFJORD"])
def test_losses_do_not_wait_on_cuda(name):
    """CUDA itself says so; ``test_contracts_device.py`` asks it of every member on a device in software."""
    model = {**BINARY, **REAL}[name]().to("cuda")
    objective, x = default_objective(model).to("cuda"), rows(name).cuda()

    def learn():
        for _, loss in objective(model, x):
            loss.backward()

    with pyro.validation_enabled(False):
        learn()  # chains start, libraries load
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            learn()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("cell", [torch.nn.LSTM, torch.nn.GRU])
def test_recurrent_layers_with_a_context_on_cuda(cell):
    """Their states begin at parts of one vector, which cuDNN takes only in pieces of their own."""
    torch.manual_seed(0)
    model = Recurrent(6, 5, context=3, net=RecurrentNet(5, [8, 7], 4, 3, cell))
    x, context = torch.randint(5, (64, 6)).float().cumprod(-1).clamp(max=4), torch.randn(64, 3)
    expected = model.log_prob(x, context)
    pyrodgm.fit(copy.deepcopy(model), (x, context), epochs=2, device="cuda", progress=False)
    model = model.to("cuda")
    # float32 sums of six terms in another order
    torch.testing.assert_close(model.log_prob(x.cuda(), context.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)
    assert model.sample(4, context.cuda()).shape == (4, 64, 6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("build", [VQVAE.mlp, VQVAE2.mlp])
def test_a_codebook_trains_in_mixed_precision_on_cuda(build, precision):
    model = build(12, codes=8, size=3, hidden=[16])
    run = pyrodgm.fit(model, rows("VAE"), epochs=2, device="cuda", precision=precision, validate=rows("VAE"),
                      progress=False)  # fmt: skip
    assert math.isfinite(run.best["held_out"])
    assert bool(model.log_weights(rows("VAE").cuda()).isfinite().all())


@pytest.mark.parametrize("name", ["VAE", "RBM"])
def test_a_run_resumes_on_cuda(name, tmp_path):
    """The noise of the device goes on where the checkpoint left it; another stream would be off by far more."""

    def run(epochs, folder):
        torch.manual_seed(0)
        model = BINARY[name]()
        pyrodgm.fit(model, rows(name), epochs=epochs, device="cuda", checkpoint=folder, progress=False)
        return model.state_dict()

    whole = run(4, tmp_path / "whole")
    run(2, tmp_path / "parts")
    torch.testing.assert_close(run(4, tmp_path / "parts"), whole, rtol=1e-5, atol=1e-6)


def test_ais_on_cuda_agrees_with_enumeration():
    rbm = RBM(12, 5).to("cuda")
    exact, _ = rbm.log_partition("exact")
    estimate, error = rbm.log_partition("ais", chains=200, temperatures=200, seed=0)
    assert abs(float(estimate - exact)) < 5 * float(error) + 1e-4


@pytest.mark.parametrize("name", ["mean field", "up-down"])
def test_deep_energies_on_cuda(name):
    if name == "mean field":
        model, objective = DeepBoltzmannMachine(12, [8, 4]), MeanFieldContrastive(chains=10)
    else:
        model, objective = DeepBeliefNetwork(12, [8, 4]), UpDown(Recognition(12, [8]))
    x = rows("RBM")
    pyrodgm.fit(model, x, objective, validate=x, epochs=2, device="cuda", progress=False)
    estimate, error = model.log_partition("ais", chains=200, temperatures=200, seed=0)
    assert abs(float(estimate - model.log_partition("exact")[0])) < 5 * float(error) + 1e-4
    assert model.sample(4).device.type == "cuda"


OF_LATENTS = {
    "annealed": lambda m: ELBO(beta=CyclicalAnnealing(3), free_bits=FreeBits(0.1)),
    "landing": lambda m: ELBO(stl=True),
    "doubly": lambda m: ImportanceWeighted(5, doubly=True),
    "InfoVAE": lambda m: InfoVAE(0.5),
    "BetaTCVAE": lambda m: BetaTCVAE(),
    "reweighted wake-sleep": lambda m: ReweightedWakeSleep(5, 0.5),
    "variational EM": lambda m: VariationalEM(steps=3),
    "lagging": lambda m: LaggingInference(2),
    "adversarial autoencoder": lambda m: AdversarialAutoencoder.mlp(m, [16]),
    "adversarial variational Bayes": lambda m: AdversarialVariationalBayes.mlp(m, [16]),
}


@pytest.mark.parametrize("name", OF_LATENTS)
def test_objectives_of_latents_on_cuda(name):
    model = BINARY["VAE"]()
    x, watch = rows("VAE"), WatchCollapse(rows("VAE")[:50])
    objective = OF_LATENTS[name](model)
    run = pyrodgm.fit(model, x, objective, validate=x, epochs=2, device="cuda", callbacks=[watch], progress=False)
    assert len(run.history) == len(watch.history) == 2
    assert importance_estimate(model, x, particles=100).khat.device.type == "cuda"


@pytest.mark.parametrize("name", ["annealed", "landing", "doubly", "InfoVAE", "BetaTCVAE"])
def test_compiled_objectives_of_latents_on_cuda(name):
    """A fall-back to eager would warn, which is an error here."""
    model = BINARY["VAE"]()
    objective = OF_LATENTS[name](model)
    pyrodgm.fit(model, rows("VAE"), objective, steps=5, device="cuda", compile=True, progress=False)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    if name == "annealed":
        assert objective.beta.step == 5


@pytest.mark.parametrize("name", ["MADE", "VAE"])
def test_compiled_fit_on_cuda(name):
    model = BINARY[name]()
    pyrodgm.fit(model, rows(name), steps=5, device="cuda", compile=True, progress=False)
    assert all(torch.isfinite(p).all() for p in model.parameters())
