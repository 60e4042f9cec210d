"""An RBM of 500 hidden units on fixed-binarized MNIST: test log-likelihood by AIS, between two estimates of log Z.

    python benchmarks/rbm.py --data-dir DIR                       # DIR/mnist_binarized_fixed.npz
    python benchmarks/rbm.py --data-dir DIR --epochs 20 --no-centered

Persistent CD with the centred gradient, 100 chains, batches of 100, a learning rate that falls linearly to zero and a
weight cost. Settings are chosen by the validation rows. Printed (Salakhutdinov and Murray 2008, table 1; NADE 2011,
table 2): CD-1 -125.53, CD-3 -105.50, CD-25 -86.34, all by the same AIS, trained on 60,000 rows (``--all-rows``).

AIS whose chains miss modes gives too low a log Z, so too high a likelihood, with a small error. The reverse estimate
errs the other way as far as its starting points are draws of the model: they are the persistent chains and chains from
data, each moved on by ``--chain-steps`` Gibbs steps, and both are printed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pyrodgm
from pyrodgm.energy import RBM
from pyrodgm.objectives import ContrastiveDivergence

PRINTED = "printed: CD-1 -125.53, CD-3 -105.50, CD-25 -86.34"


def mnist(folder: Path) -> dict[str, Tensor]:
    """train (50000, 784), valid and test (10000, 784): the fixed binarization."""
    with np.load(folder / "mnist_binarized_fixed.npz", allow_pickle=False) as z:
        parts = {key: np.unpackbits(z[key], axis=1)[:, : int(z["d"])] for key in ("train", "valid", "test")}
    return {key: torch.as_tensor(part, dtype=torch.float32) for key, part in parts.items()}


def falling(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Linearly to zero: the noise of the chains averages out, which decides the likelihood."""
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, steps)


@torch.no_grad()
def report(rbm: RBM, rows: dict[str, Tensor], chains: Tensor, args: argparse.Namespace) -> None:
    """The bracket of log Z and what each end says of the rows."""
    start = time.process_time()
    options = {"temperatures": args.temperatures, "data": rows["train"], "seed": args.seed}
    torch.manual_seed(args.seed)
    low, error = rbm.log_partition("ais", chains=args.chains, **options)
    print(f"AIS, {args.chains} chains x {args.temperatures}: log Z {low:.2f} +- {error:.2f}", flush=True)
    ends = {}
    for name, at in {"persistent chains": chains[: args.chains], "data": rows["valid"][: args.chains]}.items():
        samples = rbm.run_kernel(at, None, args.chain_steps)
        ends[name] = rbm.log_partition("reverse", samples=samples, **options)
        print(f"reverse AIS from {name}: log Z {ends[name][0]:.2f} +- {ends[name][1]:.2f}", flush=True)
    for name in ("train", "valid", "test"):
        score = -torch.cat([rbm.energy(part) for part in rows[name].split(5000)]).double()
        high = ", ".join(f"{score.mean() - z:.2f} ({start})" for start, (z, _) in ends.items())
        spread = score.std() / len(score) ** 0.5
        print(
            f"{name}: {score.mean() - low:.2f} nats, +- {error:.2f} by AIS and {spread:.2f} by {len(score)} rows; "
            f"by the reverse log Z {high}"
        )
    print(f"{(time.process_time() - start) / 60:.1f} core-minutes of AIS; {PRINTED}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of mnist_binarized_fixed.npz")
    parser.add_argument("--all-rows", action="store_true", help="train on the validation rows too, as the papers did")
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=28)
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--weight-cost", type=float, default=1e-4)
    parser.add_argument("--centered", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--chains", type=int, default=100, help="of AIS")
    parser.add_argument("--temperatures", type=int, default=10_000)
    parser.add_argument("--chain-steps", type=int, default=2000, help="Gibbs steps to reverse AIS")
    parser.add_argument("--save", type=Path, help="file for the machine and its chains")
    parser.add_argument("--load", type=Path, help="such a file, to estimate without training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = mnist(args.data_dir)
    if args.all_rows:
        rows["train"] = torch.cat((rows["train"], rows["valid"]))
    torch.manual_seed(args.seed)
    rbm = RBM(visible=784, hidden=args.hidden)
    rbm.set_visible_bias(rows["train"])
    objective = ContrastiveDivergence(
        k=args.k, persistent=True, chains=100, weight_cost=args.weight_cost, centered=args.centered
    )
    chains = torch.empty(0)
    if args.load:
        state = torch.load(args.load, weights_only=True)
        rbm.load_state_dict(state["rbm"])
        chains = state["chains"]
    else:
        start = time.process_time()
        pyrodgm.fit(
            rbm,
            rows["train"],
            objective,
            epochs=args.epochs,
            batch_size=100,
            lr=args.lr,
            lr_schedule=falling,
            device=args.device,
            seed=args.seed,
            progress=False,
            callbacks=[
                lambda run: print(f"epoch {len(run.history)}", flush=True) if len(run.history) % 10 == 0 else None
            ],
        )
        minutes = (time.process_time() - start) / 60
        print(f"{args.epochs} epochs of PCD-{args.k} on {len(rows['train'])} rows in {minutes:.1f} core-minutes")
        if objective.negatives is not None:
            chains = objective.negatives.cpu()
    rbm.cpu()
    if args.save:
        torch.save({"rbm": rbm.state_dict(), "chains": chains}, args.save)
    report(rbm, rows, chains, args)


if __name__ == "__main__":
    main()
