"""Variational autoencoders on images beside printed figures: IWAE, flow guides, VampPrior, posterior collapse.

Tables, each chosen by ``--what`` and described in ``latent_tables.py``:

iwae          VAE and IWAE (K = 50), 784-200-200-50 with tanh units, on dynamically binarized MNIST. Printed: Burda et
              al. (2016), arXiv:1509.00519, table 1, which trains for 3280 epochs in batches of 20. The last rows
              go on from the trained VAE with the IWAE's bound, as section 5 of the paper does.
flow          a Gaussian guide and one with a flow behind it, on the fixed binarization. Printed: Rezende and Mohamed
              (2015), arXiv:1505.05770, table 2: -89.9 without a flow, -85.1 with 80 planar maps (and another network).
collapse      the 784-200-200-50 network on the fixed binarization: dimensions that the plain bound leaves at their
              prior, and its remedies, by the use of the latents.
vamp-caltech  standard prior and VampPrior on Caltech 101 silhouettes, early stopping by the validation rows. Printed:
vamp-mnist    Tomczak and Welling (2018), arXiv:1705.07120, table 1. The same on fixed-binarized MNIST.

Test log-likelihoods are by importance sampling: all test rows with 100 particles, and what 5000 add to that from 1000
of the rows. "± rows" is the standard error of a mean over test rows, "± sampling" that of the particles and of the 1000
rows. "k-hat > 0.7" says for how many of them 5000 particles are too few to rely on.

Every network of a table has the same number of minutes or ``--steps``, with a cosine from ``--lr`` to 0 over them.
"minutes" are of processor time (on a GPU, of the host). With ``--out`` every row is added to ``results.jsonl`` there as
it ends, a run goes on from its last checkpoint, one that has ended is only measured, and ``--only`` may take rows one
by one.
Data: ``mnist.npz``, ``mnist_binarized_fixed.npz`` and ``caltech101_silhouettes.npz`` in ``--data-dir``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import torch
from latent_tables import TABLES, Row, Table
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

import pyrodgm
from pyrodgm.evaluation import importance_estimate, latent_use
from pyrodgm.latent import VAE
from pyrodgm.objectives import ELBO

TIMED_STEPS = 30


def steps_of(row: Row, model: VAE, table: Table, run: dict[str, Any], options: argparse.Namespace) -> int:
    """How many steps fit ``--minutes``, unless they are given."""
    if options.smoke or options.steps is not None:
        return options.steps or 6
    trial = copy.deepcopy(model)
    start = time.perf_counter()
    pyrodgm.fit(trial, table.data, row.objective(1000), steps=2, **run)  # what is done once, such as checking the data
    once = time.perf_counter() - start
    start = time.perf_counter()
    pyrodgm.fit(trial, table.data, row.objective(1000), steps=2 + TIMED_STEPS, **run)
    each = max(time.perf_counter() - start - once, 1e-3) / TIMED_STEPS
    return max(TIMED_STEPS, int((60 * options.minutes - 2 * once) / each))


class NormalizedAdam(torch.optim.Adam):
    """Adam on gradients that are divided by their norm, parameter by parameter, as the VampPrior's authors have it."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.div_(p.grad.norm() + 1e-7)
        return super().step(closure)


def optimizer(parameters: Any, options: argparse.Namespace) -> torch.optim.Optimizer:
    if "gradient" in options.authors:
        return NormalizedAdam(parameters, lr=options.lr, fused=True)
    return torch.optim.Adam(parameters, lr=options.lr, eps=1e-4, fused=True)


def train(row: Row, model: VAE, table: Table, folder: Path | None, options: argparse.Namespace) -> dict[str, Any]:
    """A run of the row: its epochs, its steps, its seconds, and the processor's."""
    run = {"batch_size": options.batch_size, "device": options.device, "seed": options.seed, "progress": False}
    run["precision"] = options.precision
    steps = steps_of(row, model, table, run, options)
    processor = time.process_time()
    fit = pyrodgm.fit(
        model,
        table.data,
        row.objective(steps),
        steps=steps,
        validate=table.valid,
        early_stopping=table.patience,
        optimizer=lambda p: optimizer(p, options),
        lr_schedule=lambda optimizer, total: CosineAnnealingLR(optimizer, options.schedule_steps or total),
        compile=options.compile,
        checkpoint=folder,
        **run,
    )
    rows = len(table.data.dataset) if isinstance(table.data, DataLoader) else len(table.data)
    done = int(fit.timings["steps"])
    return {
        "steps": done,
        "epochs": done * options.batch_size / rows,
        "best": None if fit.best is None else fit.best["epoch"],
        "seconds": fit.timings["seconds"],
        "minutes": (time.process_time() - processor) / 60,
    }


def trained(row: Row, model: VAE, table: Table, folder: Path | None, options: argparse.Namespace) -> dict[str, Any]:
    """What :func:`train` gives; a row that is in its folder already is read from there."""
    if folder is None:
        return train(row, model, table, None, options)
    if not (folder / "run.json").exists():
        run = train(row, model, table, folder, options)
        torch.save(model.state_dict(), folder / "model.pt")
        (folder / "run.json").write_text(json.dumps(run))
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return json.loads((folder / "run.json").read_text())


def likelihood(model: VAE, test: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Mean of the test rows' log p(x) as 5000 particles estimate it, most of which only a share of the rows has.

    All rows have the few particles, ``test_rows`` of them, at equal distances, have them all too, and the mean
    difference on these is added to the mean of all: the rows differ much more than their differences do.
    """
    few = importance_estimate(model, test, particles=options.few, batch_size=options.eval_batch)
    chosen = torch.linspace(0, len(test) - 1, min(options.test_rows, len(test))).long()
    found = importance_estimate(model, test[chosen], particles=options.particles, batch_size=options.eval_batch)
    gain = (found.rows - few.rows[chosen]).double()
    return {
        "estimate": few.value + gain.mean().item(),
        "rows": few.standard_error,
        "error": math.hypot(gain.std().item() / math.sqrt(len(gain)), few.sampling_error),
        "khat": (found.khat > 0.7).double().mean().item(),
    }


def measure(model: VAE, test: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Likelihood by importance sampling, the plain bound, and the use of the latents, on the test rows."""
    torch.manual_seed(options.seed)
    figures = likelihood(model, test, options)
    with torch.no_grad():
        device = model.device
        bound = -sum(ELBO().held_out(model, x.to(device)).item() * len(x) for x in test.split(500)) / len(test)
    use = latent_use(model, test[:: max(1, len(test) // 2000)])
    return {**figures, "bound": bound, **use._asdict()}


COLUMNS = "epochs | minutes | estimate ± rows ± sampling | k-hat > 0.7 | printed | bound | active | KL | I(x; z) |"


def show(table: str, row: Row, f: dict[str, Any]) -> None:
    estimate = f"{f['estimate']:.2f} ± {f['rows']:.2f} ± {f['error']:.3f}"
    printed = "" if row.printed is None else row.printed
    use = f"{f['active']} of {f['units']} | {f['kl']:.2f} | {f['information']:.2f}"
    epochs = f"{f['epochs']:.0f}" + ("" if f["best"] is None else f" (best {f['best']:.0f})")
    run = f"{epochs} | {f['minutes']:.1f}"
    cells = f"{run} | {estimate} | {f['khat']:.1%} | {printed} | {f['bound']:.2f} | {use}"
    print(f"| {table} | {row.name} | {cells} |", flush=True)


def place(options: argparse.Namespace, table: str, name: str) -> Path:
    """The folder of a row's checkpoints and its parameters."""
    return options.out / re.sub(r"[^\w]+", "-", f"{table} {name} {options.seed}").strip("-")


def start_from(model: VAE, row: Row, table: str, options: argparse.Namespace) -> None:
    """The parameters of the row that this one goes on from."""
    file = None if options.out is None else place(options, table, str(row.start)) / "model.pt"
    if file is None or not file.exists():
        raise SystemExit(f"{row.name!r} needs the row {row.start!r} in the folder of --out; run that first")
    model.load_state_dict(torch.load(file, weights_only=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--what", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--only", nargs="+", default=None, help="names of rows")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training for each network")
    parser.add_argument("--steps", type=int, default=None, help="instead of --minutes")
    parser.add_argument("--schedule-steps", type=int, default=None, help="of the cosine, if it is to be cut short")
    parser.add_argument(
        "--warm-up", type=int, default=100, help="epochs in which the weight of VampPrior's KL rises to 1"
    )
    parser.add_argument(
        "--authors",
        nargs="*",
        default=[],
        choices=("gradient", "start", "clamp", "pseudo"),
        help="vamp: choices of its authors' program (normalised gradients, starting weights, bounded scales and "
        "probabilities, pseudo-inputs)",
    )
    parser.add_argument("--k", type=int, default=50, help="particles of the IWAE")
    parser.add_argument("--particles", type=int, default=5000, help="of the test likelihood")
    parser.add_argument("--few", type=int, default=100, help="particles that every test row has")
    parser.add_argument("--test-rows", type=int, default=1000, help="how many have all the particles")
    parser.add_argument("--eval-batch", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--precision", default="32-true", help="of training; figures are always of float32")
    parser.add_argument("--smoke", action="store_true", help="a few steps, rows and particles: does it run?")
    parser.add_argument("--out", type=Path, default=None, help="folder of results, checkpoints and parameters")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # Importance weights of e^-90, early in a run, make denormal gradients, which matrix products are slow with.
    torch.set_flush_denormal(True)
    if options.smoke:
        options.particles, options.few, options.k = min(options.particles, 50), 25, min(options.k, 5)
    print(f"{options.particles} particles for {options.test_rows} test rows, {options.few} for all\n")
    print(f"| table | model | {COLUMNS}")
    print("|---" * (COLUMNS.count("|") + 2) + "|", flush=True)
    for name in options.what:
        table = TABLES[name](options)
        for row in table.rows:
            if options.only is not None and row.name not in options.only:
                continue
            torch.manual_seed(options.seed)
            model = row.build()
            if row.start is not None:
                start_from(model, row, name, options)
            folder = None if options.out is None else place(options, name, row.name)
            figures = trained(row, model, table, folder, options)
            figures |= measure(model, table.test, options)
            show(name, row, figures)
            if options.out is not None:
                with (options.out / "results.jsonl").open("a") as lines:
                    lines.write(json.dumps({"table": name, "model": row.name, "seed": options.seed, **figures}) + "\n")


if __name__ == "__main__":
    main()
