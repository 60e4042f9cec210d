"""Script of test_fit_ranks: under torchrun, or alone; trains some members and saves what each process has."""

import os
import sys
import warnings

import torch

import pyrodgm
from pyrodgm.bijectors import AffineCoupling, BatchNorm
from pyrodgm.energy import RBM
from pyrodgm.implicit import GAN
from pyrodgm.latent import VAE, VQVAE, VQVAE2, Codebook
from pyrodgm.objectives import ELBO, Adversarial, ContrastiveDivergence, MaximumLikelihood, VectorQuantization
from pyrodgm.tractable import MADE, Flow, Glow, RealNVP, StandardNormal


def bits(rows=70):
    return (torch.rand(rows, 6, generator=torch.Generator().manual_seed(1)) < 0.3).float()


def reals(rows=70):
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(1))


def gan():
    model = GAN.mlp(2, 2, [8])
    return model, Adversarial.mlp(model, [8])


def quantized():
    """Without revival there is no noise."""
    model = VQVAE.mlp(6, 2, 4, 3, [8])
    model.codebook.revive_below = 0.0
    return model, VectorQuantization(prior=True)


def two_levels():
    """The bottom's codebook follows vectors that depend on the top's, which both processes have moved by then."""
    model = VQVAE2.mlp(6, (1, 2), 4, 3, [8])
    for book in model.codebooks:
        book.revive_below = 0.0
    return model, VectorQuantization(prior=True)


def revived(rank):
    """A codebook after its first batch, of 6 vectors in each of the processes that the runs have joined; the batch."""
    torch.manual_seed(rank)
    book, batch = Codebook(codes=8, size=2), torch.randn(6, 2)
    book.update(batch)
    return {"book": book.state_dict(), "batch": batch}


def normalised():
    return Flow(StandardNormal(2), [AffineCoupling(2, hidden=[8]), BatchNorm(2)]), MaximumLikelihood()


CASES = {
    "RealNVP": (lambda: (RealNVP(features=2), MaximumLikelihood()), reals),
    "MADE": (lambda: (MADE(6, [8]), MaximumLikelihood()), bits),
    "Glow": (
        lambda: (Glow(2, 2, scales=1, hidden=[8]), MaximumLikelihood()),
        reals,
    ),  # its actnorms start from a share of the rows
    "batch norm": (normalised, reals),  # statistics of their own in each process till an epoch ends
    "VAE": (lambda: (VAE.mlp(6, 2, [8]), ELBO()), bits),
    "VQVAE": (quantized, bits),  # a codebook by averages over the batch
    "VQVAE2": (two_levels, bits),
    "RBM": (lambda: (RBM(6, 3), ContrastiveDivergence(persistent=True)), bits),
    "GAN": (gan, reals),
}


def train(case, steps, world, folder=None):
    """Batches of 16 of 70 rows: the last one of an epoch is ragged, and so are two shares of 9 held-out rows."""
    torch.manual_seed(0)
    make, data = CASES[case]
    model, objective = make()
    more = {"checkpoint": f"{folder}/{case}", "checkpoint_every": 2, "csv": f"{folder}/{case}.csv"} if folder else {}
    options = {"strategy": "ddp", "devices": 2} if world == 2 else {}
    return pyrodgm.fit(
        model, data(), objective, steps=steps, batch_size=16, device="cpu", progress=False, validate=data(9),
        optimizer=lambda ps: torch.optim.SGD(ps, lr=0.01), **more, **options,
    )  # fmt: skip


def state(run):
    return {"model": run.model.state_dict(), "objective": run.objective.state_dict(), "history": run.history}


if __name__ == "__main__":
    warnings.filterwarnings("error", module="pyrodgm")
    torch.set_num_threads(1)
    folder = sys.argv[1]
    result = {}
    for case in CASES:
        whole = state(train(case, 7, 2))
        train(case, 3, 2, folder)
        result[case] = {"whole": whole, "resumed": state(train(case, 7, 2, folder)), "noise": torch.rand(1)}
    result["revived"] = revived(int(os.environ["RANK"]))
    torch.save(result, f"{folder}/rank{os.environ['RANK']}.pt")
