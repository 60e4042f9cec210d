"""A deep belief network and a deep Boltzmann machine on fixed-binarized MNIST: bounds beside the printed ones.

    python benchmarks/deep_boltzmann.py --data-dir DIR --model dbm     # DIR/mnist_binarized_fixed.npz
    python benchmarks/deep_boltzmann.py --data-dir DIR --model dbn --first rbm.pt     # of benchmarks/rbm.py --save

The sizes are those of the papers: 500 and 2000 hidden units (DBN), 500 and 1000 (DBM). Greedy layers are trained by
persistent CD, then all of them jointly (mean field and chains, up-down), all with centred gradients where there are
any and a learning rate that falls to zero. ``--greedy-epochs 0`` trains a DBM jointly from the start. The papers
trained for hundreds of epochs. Printed: DBN -84.55, DBM -84.62 (Salakhutdinov and Hinton 2009, table of section 4.1;
Salakhutdinov and Murray 2008), both with the same AIS bounds.

AIS that misses modes gives too low a log Z and so too high a bound, with a small error: believe a bound as far as the
reverse estimate, from long chains that start at data, agrees.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pyrodgm
from pyrodgm.energy import RBM, DeepBeliefNetwork, DeepBoltzmannMachine, Recognition
from pyrodgm.engine import fit_stack
from pyrodgm.objectives import ContrastiveDivergence, MeanFieldContrastive, Objective, UpDown

PRINTED = {"dbn": -84.55, "dbm": -84.62}


def mnist(folder: Path) -> tuple[Tensor, Tensor]:
    """(50000, 784) and (10000, 784), the fixed binarization."""
    with np.load(folder / "mnist_binarized_fixed.npz", allow_pickle=False) as z:
        parts = [np.unpackbits(z[key], axis=1)[:, : int(z["d"])] for key in ("train", "test")]
    train, test = (torch.as_tensor(part, dtype=torch.float32) for part in parts)
    return train, test


def falling(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Linearly to zero, by which the noise of the chains averages out."""
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of mnist_binarized_fixed.npz")
    parser.add_argument("--model", choices=["dbn", "dbm"], default="dbm")
    parser.add_argument("--hidden", type=int, nargs=2, help="default 500 2000 (dbn), 500 1000 (dbm)")
    parser.add_argument("--first", type=Path, help="the first layer of a DBN, trained and saved by benchmarks/rbm.py")
    parser.add_argument("--greedy-epochs", type=int, default=10, help="of each layer")
    parser.add_argument("--epochs", type=int, default=20, help="of joint training")
    parser.add_argument("--lr", type=float, nargs=2, help="greedy and joint; default 0.1 0.1 (dbm), 0.1 0.005 (dbn)")
    parser.add_argument("--weight-cost", type=float, default=2e-4)
    parser.add_argument("--k", type=int, help="moves of the chains in joint training; default 1 (dbm), 10 (dbn)")
    parser.add_argument("--save", type=Path, help="file for the trained model")
    parser.add_argument("--load", type=Path, help="such a file of a DBM, to estimate without training")
    parser.add_argument("--bound-greedy", action="store_true", help="also before joint training")
    parser.add_argument("--test-rows", type=int, default=1000, help="rows of the bound")
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--temperatures", type=int, default=10_000)
    parser.add_argument("--chain-steps", type=int, default=1000, help="Gibbs steps from data to reverse AIS")
    parser.add_argument("--particles", type=int, default=100, help="of the DBN's bound")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.load and args.model != "dbm":
        parser.error("--load takes a DBM: a belief network's bound also needs its recognition network")

    train, test = mnist(args.data_dir)
    torch.set_num_threads(args.threads)
    test = test[: args.test_rows]
    deep = args.model == "dbm"
    hidden = args.hidden or ([500, 1000] if deep else [500, 2000])
    torch.manual_seed(args.seed)
    stack = DeepBoltzmannMachine.stack(784, hidden) if deep else [RBM(784, hidden[0]), RBM(hidden[0], hidden[1])]
    options = {"batch_size": 100, "seed": args.seed, "device": args.device, "progress": False, "lr_schedule": falling}
    greedy, joint = args.lr or ((0.1, 0.1) if deep else (0.1, 0.005))
    start, rows = time.process_time(), train

    def objective() -> ContrastiveDivergence:
        return ContrastiveDivergence(k=1, persistent=True, weight_cost=args.weight_cost, centered=True)

    for i, machine in enumerate([] if args.load else stack):
        if i == 0 and args.first:
            machine.load_state_dict(torch.load(args.first, weights_only=True)["rbm"])
        elif args.greedy_epochs:
            fit_stack([machine], rows, objective, lr=greedy, epochs=args.greedy_epochs, **options)
        else:
            machine.set_visible_bias(rows.repeat(1, machine.event_shape[0] // rows.shape[1]))
        rows = machine.to("cpu").draw_hidden(rows.repeat(1, machine.event_shape[0] // rows.shape[1]))
        print(f"layer {i}: {(time.process_time() - start) / 60:.1f} core-minutes so far", flush=True)
    model = DeepBoltzmannMachine.from_stack(stack) if deep else DeepBeliefNetwork.from_stack(stack)
    recognition = None if deep else Recognition.from_stack(stack)  # type: ignore[arg-type]

    def bound(name: str) -> None:
        begun = time.process_time()
        model.to("cpu")
        data = {"data": train} if deep else {"data": recognition.to("cpu").draw(train)[-1]}
        ais = {"chains": args.chains, "temperatures": args.temperatures, "seed": args.seed, **data}
        with torch.no_grad():
            log_z, error = model.log_partition("ais", **ais)
            start_at = test[: args.chains] if deep else recognition.draw(test[: args.chains])[-1]
            samples = (model if deep else model.top).run_kernel(start_at, None, args.chain_steps)
            high, high_error = model.log_partition("reverse", samples=samples, **ais)
            if deep:
                value = -(model.variational_energy(test).double() + log_z).mean()
            else:
                weights = torch.stack([model.log_weights(test, recognition)[0] for _ in range(args.particles)]).double()
                value = (weights.logsumexp(0) - np.log(args.particles) - log_z).mean()
        print(
            f"{name}: log Z {log_z:.2f} +- {error:.2f} (reverse {high:.2f} +- {high_error:.2f}), bound {value:.2f} "
            f"(by the reverse log Z {value - (high - log_z):.2f}) nats on {len(test)} test rows "
            f"({(time.process_time() - begun) / 60:.1f} core-minutes of AIS); printed {PRINTED[args.model]}",
            flush=True,
        )

    if args.load:
        model.load_state_dict(torch.load(args.load, weights_only=True))
        bound(f"{args.model} {hidden}, loaded")
        return
    if args.bound_greedy or not args.epochs:
        bound(f"{args.model} {hidden}, greedy")
    if args.epochs:
        k, begun = args.k or (1 if deep else 10), time.process_time()
        both: Objective
        if deep:
            both = MeanFieldContrastive(k=k, mean_field=5, weight_cost=args.weight_cost, centered=True)
        else:
            both = UpDown(recognition, k=k)
        pyrodgm.fit(model, train, both, lr=joint, epochs=args.epochs, **options)
        print(
            f"joint training: {args.epochs} epochs, {(time.process_time() - begun) / 60:.1f} core-minutes", flush=True
        )
        if args.save:
            torch.save(model.cpu().state_dict(), args.save)
        bound(f"{args.model} {hidden}, trained jointly")


if __name__ == "__main__":
    main()
