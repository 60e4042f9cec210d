"""MADE (500 hidden units, one mask) on NADE's binary sets: test log-likelihood beside the printed row.

One setting for all sets, chosen on the validation parts: direct connections, AdamW with weight decay 0.1, learning rate
1e-3 falling to 0 as a cosine, batches of 100; the state with the best validation score is kept. The columns are
taken in the natural order or in a random one, whichever scores better on the validation part.
Printed figures: Germain et al. (2015), arXiv:1502.03509, table 4. Data: ``<data-dir>/<set>.npz`` with bit-packed
``train``, ``valid``, ``test`` and the number of columns ``d``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyrodgm
from pyrodgm.tractable import MADE

PRINTED = {
    "adult": -13.12,
    "connect4": -11.90,
    "dna": -83.63,
    "mushrooms": -9.68,
    "nips": -280.25,
    "ocr_letters": -28.34,
}  # the row "MADE, one mask"; web here is another split than the papers'


def load(path: Path) -> dict[str, Tensor]:
    """The three parts as float rows of zeros and ones."""
    with np.load(path, allow_pickle=False) as packed:
        columns = int(packed["d"])
        parts = {k: np.unpackbits(packed[k], axis=1)[:, :columns] for k in ("train", "valid", "test")}
    return {k: torch.from_numpy(v.astype(np.float32)) for k, v in parts.items()}


def train(data: dict[str, Tensor], options: argparse.Namespace, order: str, seed: int) -> tuple[MADE, pyrodgm.Fit]:
    torch.manual_seed(seed)
    features = data["train"].shape[1]
    model = MADE(features, [500], order=torch.randperm(features) if order == "random" else None, direct=True)
    fit = pyrodgm.fit(
        model,
        data["train"],
        validate=data["valid"],
        batch_size=100,
        optimizer=lambda p: torch.optim.AdamW(p, lr=options.lr, weight_decay=options.weight_decay, fused=True),
        lr_schedule=lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
        early_stopping=options.patience,
        device=options.device,
        compile=options.compile,
        seed=seed,
        progress=False,
        **({"steps": options.steps} if options.epochs is None else {"epochs": options.epochs}),
    )
    return model, fit


@torch.no_grad()
def score(model: MADE, x: Tensor) -> tuple[float, float]:
    """Mean log-likelihood in nats and its standard error."""
    values = torch.cat([model.log_prob(rows.to(model.device)) for rows in x.split(2000)]).double()
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["adult", "mushrooms", "connect4"])
    parser.add_argument("--steps", type=int, default=15_000)
    parser.add_argument("--epochs", type=int, default=None, help="instead of --steps")
    parser.add_argument("--patience", type=int, default=150, help="epochs without a better validation score")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--orders", nargs="+", default=["natural", "random"], choices=("natural", "random"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| set | order | seed | valid | test ± standard error | printed | difference | epochs (best) | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for name in options.sets:
        data = load(options.data_dir / f"{name}.npz")
        for seed in options.seeds:
            start = time.perf_counter()
            runs = {order: train(data, options, order, seed) for order in options.orders}
            order, (model, fit) = max(runs.items(), key=lambda run: score(run[1][0], data["valid"])[0])
            seconds = round(time.perf_counter() - start)
            (valid, _), (test, error) = score(model, data["valid"]), score(model, data["test"])
            printed = PRINTED.get(name)
            difference = "" if printed is None else f"{test - printed:+.2f}"
            epochs = f"{len(fit.history)} ({fit.best['epoch']:.0f})"
            figures = [f"{valid:.3f}", f"{test:.3f} ± {error:.3f}", printed, difference]
            cells = [name, order, seed, *figures, epochs, seconds]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            rows.append({"set": name, "order": order, "seed": seed, "valid": valid, "test": test, "error": error})
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
