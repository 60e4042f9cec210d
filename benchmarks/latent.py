"""Bounds on MNIST beside printed figures, flow guides beside mean-field ones, and posterior collapse with its remedies.

Three tables, each chosen by ``--what``:

iwae      VAE and IWAE (K = 50), 784-200-200-50 with tanh units, on dynamically binarized MNIST; test log-likelihood by
          importance sampling with 5000 particles. Printed: Burda et al. (2016), arXiv:1509.00519, table 1, which trains
          for 3280 epochs in batches of 20; here a run is as long as ``--minutes``, and the table says how far it came.
flow      a Gaussian guide and one with a flow behind it, on the fixed binarization. Printed: Rezende and Mohamed
          (2015), arXiv:1505.05770, table 2: -89.9 without a flow, -85.1 with 80 planar maps (and another network).
collapse  an autoregressive decoder (MADE), which needs no latents, on the fixed binarization: the plain bound and its
          remedies, by the use of the latents.

Every network of a table has the same number of minutes, with a cosine from ``--lr`` to 0 over the steps that fit them.
Data: ``<data-dir>/mnist.npz`` and ``<data-dir>/mnist_binarized_fixed.npz``.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset

import pyrodgm
from pyrodgm.bijectors import AffineCoupling
from pyrodgm.evaluation import importance_estimate, latent_use
from pyrodgm.latent import VAE
from pyrodgm.objectives import (
    ELBO,
    CyclicalAnnealing,
    FreeBits,
    ImportanceWeighted,
    InfoVAE,
    LaggingInference,
    LinearAnnealing,
    Objective,
)
from pyrodgm.tractable import MADE, Flow, Parametric, StandardNormal

D, Z = 784, 50
HIDDEN = [200, 200]
TIMED_STEPS = 30


class Binarized(Dataset[Tensor]):
    """Grey levels in [0, 1] of which every reading draws the pixels anew."""

    def __init__(self, grey: Tensor) -> None:
        self.grey = grey

    def __len__(self) -> int:
        return len(self.grey)

    def __getitem__(self, i: int) -> Tensor:
        return self.grey[i].bernoulli()

    def __getitems__(self, rows: Sequence[int]) -> Tensor:
        return self.grey[torch.as_tensor(rows)].bernoulli()


def dynamic_mnist(folder: Path, options: argparse.Namespace) -> tuple[Any, Tensor, Tensor]:
    """A loader over the training digits, their mean, and the test digits binarized once."""
    with np.load(folder / "mnist.npz", allow_pickle=False) as packed:
        train, test = (torch.from_numpy(packed[f"{k}_x"].reshape(-1, D) / np.float32(255)) for k in ("train", "test"))
    if options.smoke:
        train = train[:400]
    loader = DataLoader(Binarized(train), batch_size=options.batch_size, shuffle=True, collate_fn=lambda rows: rows)
    test = torch.bernoulli(test, generator=torch.Generator().manual_seed(0))
    return loader, train.mean(0), test[: options.test_rows]


def fixed_mnist(folder: Path, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Training and test rows of the fixed binarization."""
    with np.load(folder / "mnist_binarized_fixed.npz", allow_pickle=False) as packed:
        columns = int(packed["d"])
        parts = [np.unpackbits(packed[k], axis=1)[:, :columns].astype(np.float32) for k in ("train", "test")]
    train, test = (torch.from_numpy(part) for part in parts)
    return (train[:400] if options.smoke else train), test[: options.test_rows]


def bernoulli_decoder(mean: Tensor) -> Parametric:
    """200-200 tanh units; the last bias starts at the pixels' mean, as in the paper."""
    decoder = Parametric(dist.Bernoulli, D, context=Z, hidden=HIDDEN, activation=nn.Tanh)
    last = [m for m in decoder.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.bias.copy_(mean.clamp(0.001, 0.999).logit())
    return decoder


def gaussian_guide(latent: int = Z) -> Parametric:
    return Parametric(dist.Normal, latent, context=D, hidden=HIDDEN, activation=nn.Tanh)


def flow_guide(layers: int = 8) -> Flow:
    """The Gaussian of the encoder, moved by couplings that halves of z set for each other."""
    return Flow(gaussian_guide(), [AffineCoupling(Z, 0, [100], flip=i % 2 == 1) for i in range(layers)])


def train(
    model: VAE, data: Any, build: Callable[[int], Objective], options: argparse.Namespace
) -> tuple[pyrodgm.Fit, float]:
    """A run that fits the minutes, and the epochs that it made; ``build`` has the number of its steps."""
    run = {"batch_size": options.batch_size, "device": options.device, "seed": options.seed, "progress": False}
    if options.smoke:
        steps = 6
    else:
        trial = copy.deepcopy(model)
        start = time.perf_counter()
        pyrodgm.fit(trial, data, build(1000), steps=2, **run)  # what is done once, reading and checking the data
        once = time.perf_counter() - start
        start = time.perf_counter()
        pyrodgm.fit(trial, data, build(1000), steps=2 + TIMED_STEPS, **run)
        each = max(time.perf_counter() - start - once, 1e-3) / TIMED_STEPS
        steps = max(TIMED_STEPS, int((60 * options.minutes - 2 * once) / each))
    if options.steps is not None:
        steps = options.steps
    fit = pyrodgm.fit(
        model,
        data,
        build(steps),
        steps=steps,
        optimizer=lambda p: torch.optim.Adam(p, lr=options.lr, eps=1e-4, fused=True),
        lr_schedule=lambda optimizer, total: CosineAnnealingLR(optimizer, total),
        compile=options.compile,
        **run,
    )
    rows = len(data.dataset) if isinstance(data, DataLoader) else len(data)
    return fit, steps * options.batch_size / rows


def measure(model: VAE, test: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Likelihood by importance sampling, the plain bound, and the use of the latents, on the test rows."""
    found = importance_estimate(model, test, particles=options.particles, batch_size=options.eval_batch)
    with torch.no_grad():
        model.eval()
        device = model.device
        bound = -sum(ELBO(10).held_out(model, x.to(device)).item() * len(x) for x in test.split(500)) / len(test)
    use = latent_use(model, test[:2000])
    return {
        "estimate": found.value,
        "error": found.standard_error,
        "sampling": found.sampling_error,
        "khat": (found.khat > 0.7).double().mean().item(),
        "bound": bound,
        **use._asdict(),
    }


COLUMNS = "epochs | estimate ± rows ± particles | k-hat > 0.7 | printed | bound | active | KL | I(x; z) | seconds |"


def show(table: str, name: str, epochs: float, seconds: float, figures: dict[str, Any], printed: float | None) -> None:
    f = figures
    estimate = f"{f['estimate']:.2f} ± {f['error']:.2f} ± {f['sampling']:.3f}"
    use = f"{f['active']} of {f['units']} | {f['kl']:.2f} | {f['information']:.2f}"
    cells = (
        f"{epochs:.1f} | {estimate} | {f['khat']:.1%} | {'' if printed is None else printed} | {f['bound']:.2f} | {use}"
    )
    print(f"| {table} | {name} | {cells} | {seconds:.0f} |", flush=True)


def contenders(
    table: str, folder: Path, options: argparse.Namespace
) -> tuple[Any, Tensor, list[tuple[str, Callable[[], VAE], Callable[[int], Objective], float | None]]]:
    """Data, test rows, and (name, model, objective of the steps, printed figure) of a table."""
    if table == "iwae":
        loader, mean, test = dynamic_mnist(folder, options)

        def plain() -> VAE:
            return VAE(StandardNormal(Z), bernoulli_decoder(mean), gaussian_guide())

        return loader, test, [
            ("VAE", plain, lambda steps: ELBO(), -86.76),
            (f"IWAE, K = {options.k}", plain, lambda steps: ImportanceWeighted(options.k), -84.78),
            (f"IWAE, K = {options.k}, DReG", plain, lambda steps: ImportanceWeighted(options.k, doubly=True), -84.78),
        ]  # fmt: skip
    rows, test = fixed_mnist(folder, options)
    mean = rows.mean(0)
    if table == "flow":
        builds: dict[str, Callable[[], Any]] = {"Gaussian guide": gaussian_guide, "flow guide": flow_guide}
        printed = {"Gaussian guide": -89.9, "flow guide": -85.1}

        def annealed(steps: int) -> Objective:
            return ELBO(analytic_kl=False, beta=LinearAnnealing(max(1, steps // 10), start=0.01))

        return rows, test, [
            (name, lambda b=b: VAE(StandardNormal(Z), bernoulli_decoder(mean), b()), annealed, printed[name])
            for name, b in builds.items()
        ]  # fmt: skip

    def strong() -> VAE:
        latent = 20
        return VAE(StandardNormal(latent), MADE(D, [200], context=latent), gaussian_guide(latent))

    remedies: dict[str, Callable[[int], Objective]] = {
        "MADE decoder, plain bound": lambda steps: ELBO(),
        "+ cyclical annealing": lambda steps: ELBO(beta=CyclicalAnnealing(max(1, steps // 4))),
        "+ free bits, 0.25 a dimension": lambda steps: ELBO(free_bits=FreeBits(0.25)),
        "+ lagging inference, 5 steps": lambda steps: LaggingInference(5),
        "+ InfoVAE (alpha 0.9, lambda 100)": lambda steps: InfoVAE(0.9, 100.0),
    }
    return rows, test, [(name, strong, objective, None) for name, objective in remedies.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--what", nargs="+", default=["iwae", "flow", "collapse"], choices=("iwae", "flow", "collapse"))
    parser.add_argument("--minutes", type=float, default=10.0, help="of training for each network")
    parser.add_argument("--steps", type=int, default=None, help="instead of --minutes")
    parser.add_argument("--k", type=int, default=50, help="particles of the IWAE")
    parser.add_argument("--particles", type=int, default=5000, help="of the test likelihood")
    parser.add_argument("--test-rows", type=int, default=10_000)
    parser.add_argument("--eval-batch", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="a few steps, rows and particles: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.smoke:
        options.particles, options.test_rows, options.k = min(options.particles, 50), 60, min(options.k, 5)
    print(f"{options.particles} particles, {options.test_rows} test rows, {options.minutes} minutes a network\n")
    print(f"| table | model | {COLUMNS}")
    print("|---" * (COLUMNS.count("|") + 2) + "|")
    found: list[dict[str, Any]] = []
    for table in options.what:
        data, test, rows = contenders(table, options.data_dir, options)
        for name, build, objective, printed in rows:
            torch.manual_seed(options.seed)
            model = build()
            fit, epochs = train(model, data, objective, options)
            seconds = fit.timings["seconds"]
            figures = measure(model, test, options)
            show(table, name, epochs, seconds, figures, printed)
            found.append({"table": table, "model": name, "epochs": epochs, "seconds": seconds, **figures})
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
