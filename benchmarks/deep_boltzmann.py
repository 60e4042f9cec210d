"""A deep belief network and a deep Boltzmann machine on fixed-binarized MNIST: bounds beside the printed ones.

    python benchmarks/deep_boltzmann.py --data-dir DIR --model dbn --minutes 5     # DIR/mnist_binarized_fixed.npz
    python benchmarks/deep_boltzmann.py --data-dir DIR --model dbm --minutes 5

The sizes are those of the papers: 500 and 2000 hidden units (DBN), 500 and 1000 (DBM). The minutes are shared by the
greedy layers and the joint training; the papers trained for hundreds of epochs. Printed: DBN -84.55, DBM -84.62
(Salakhutdinov and Hinton 2009, table of section 4.1; Salakhutdinov and Murray 2008), both with the same AIS bounds.

AIS that misses modes gives too low a log Z and so too high a bound, with a small error: believe a bound as far as the
reverse estimate, from long chains that start at data, agrees.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pyrodgm
from pyrodgm.energy import RBM, DeepBeliefNetwork, DeepBoltzmannMachine, Recognition
from pyrodgm.engine import fit_stack
from pyrodgm.objectives import ContrastiveDivergence, MeanFieldContrastive, UpDown

PRINTED = {"dbn": -84.55, "dbm": -84.62}
GREEDY = 0.6  # share of the minutes


def mnist(folder: Path) -> tuple[Tensor, Tensor]:
    """(60000, 784) and (10000, 784), the fixed binarization."""
    with np.load(folder / "mnist_binarized_fixed.npz", allow_pickle=False) as z:
        parts = [np.unpackbits(z[key], axis=1)[:, : int(z["d"])] for key in ("train", "valid", "test")]
    train, valid, test = (torch.as_tensor(part, dtype=torch.float32) for part in parts)
    return torch.cat((train, valid)), test


def clock(minutes: float) -> Callable[[object], bool]:
    """A callback that ends a run after so many minutes, at an epoch's end."""
    end = time.perf_counter() + 60 * minutes
    return lambda run: time.perf_counter() > end


def decay(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """1 / (1 + t / 3000): Robbins-Monro, as persistent chains ask for."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 3000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of mnist_binarized_fixed.npz")
    parser.add_argument("--model", choices=["dbn", "dbm"], default="dbm")
    parser.add_argument("--hidden", type=int, nargs=2, help="default 500 2000 (dbn), 500 1000 (dbm)")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rows", type=int, help="training rows; default all 60,000")
    parser.add_argument("--test-rows", type=int, default=1000, help="rows of the bound")
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--temperatures", type=int, default=5000)
    parser.add_argument("--chain-steps", type=int, default=500, help="Gibbs steps from data to reverse AIS")
    parser.add_argument("--particles", type=int, default=100, help="of the DBN's bound")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    train, test = mnist(args.data_dir)
    train, test = train[: args.rows], test[: args.test_rows]
    deep = args.model == "dbm"
    hidden = args.hidden or ([500, 1000] if deep else [500, 2000])
    torch.manual_seed(args.seed)
    stack = DeepBoltzmannMachine.stack(784, hidden) if deep else [RBM(784, hidden[0]), RBM(hidden[0], hidden[1])]
    options = {"batch_size": 100, "seed": args.seed, "device": args.device, "progress": False, "epochs": 1000}
    rows = train
    for i, machine in enumerate(stack):
        each = clock(args.minutes * GREEDY / len(stack))
        run = fit_stack([machine], rows, ContrastiveDivergence, callbacks=[each], lr=0.05, **options)[0]
        rows = machine.to("cpu").draw_hidden(rows.repeat(1, machine.event_shape[0] // rows.shape[1]))
        print(f"layer {i}: {len(run.history)} epochs", flush=True)
    model = DeepBoltzmannMachine.from_stack(stack) if deep else DeepBeliefNetwork.from_stack(stack)
    recognition = None if deep else Recognition.from_stack(stack)  # type: ignore[arg-type]

    def bound(name: str) -> None:
        start = time.perf_counter()
        model.to("cpu")
        data = {"data": train} if deep else {"data": recognition.to("cpu").draw(train)[-1]}
        ais = {"chains": args.chains, "temperatures": args.temperatures, "seed": args.seed, **data}
        with torch.no_grad():
            log_z, error = model.log_partition("ais", **ais)
            start_at = test[: args.chains] if deep else recognition.draw(test[: args.chains])[-1]
            samples = (model if deep else model.top).run_kernel(start_at, None, args.chain_steps)
            high, _ = model.log_partition("reverse", samples=samples, **ais)
            if deep:
                value = -(model.variational_energy(test).double() + log_z).mean()
            else:
                weights = torch.stack([model.log_weights(test, recognition)[0] for _ in range(args.particles)]).double()
                value = (weights.logsumexp(0) - np.log(args.particles) - log_z).mean()
        print(
            f"{name}: log Z {log_z:.2f} +- {error:.2f} (reverse {high:.2f}), bound {value:.2f} "
            f"(by the reverse log Z {value - (high - log_z):.2f}) nats on {len(test)} test rows "
            f"({time.perf_counter() - start:.0f} s); printed {PRINTED[args.model]}",
            flush=True,
        )

    bound(f"{args.model} {hidden}, greedy")
    objective = MeanFieldContrastive(k=5) if deep else UpDown(recognition, k=10)
    rest = clock(args.minutes * (1 - GREEDY))
    joint = {"lr": 0.005 if deep else 0.01, "lr_schedule": decay, "callbacks": [rest]}
    run = pyrodgm.fit(model, train, objective, **joint, **options)
    print(f"joint training: {len(run.history)} epochs")
    bound(f"{args.model} {hidden}, trained jointly")


if __name__ == "__main__":
    main()
