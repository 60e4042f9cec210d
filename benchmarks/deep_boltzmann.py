"""A deep belief network and a deep Boltzmann machine on fixed-binarized MNIST: bounds beside the printed ones.

    python benchmarks/rbm.py --data-dir DIR --save rbm.pt                       # DIR/mnist_binarized_fixed.npz
    python benchmarks/deep_boltzmann.py --data-dir DIR --model dbn --first rbm.pt
    python benchmarks/deep_boltzmann.py --data-dir DIR --model dbm --first rbm.pt
    python benchmarks/deep_boltzmann.py --data-dir DIR --model dbm              # greedy layers, as in the paper

The sizes are those of the papers: 500 and 2000 hidden units (DBN), 500 and 1000 (DBM). With ``--first`` both begin at
the likelihood of a trained RBM: the DBN's upper machine as that one turned over (``--no-tied`` starts it from scratch),
the DBM with small weights above it. Without, greedy layers are trained by persistent CD first. Then all layers are
trained together (up-down with persistent chains on top; mean field and chains), with centred gradients and a learning
rate that falls to zero. The papers trained for hundreds of epochs. Printed: DBN -84.55, DBM -84.62 (Salakhutdinov and
Murray 2008; Salakhutdinov and Hinton 2009), on 60,000 training rows. Settings are chosen by the validation rows.

AIS that misses modes gives too low a log Z and so too high a bound, with a small error: believe a bound as far as the
reverse estimate, from long chains that start at data, agrees.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rbm import falling, mnist
from torch import Tensor

import pyrodgm
from pyrodgm.energy import RBM, DeepBeliefNetwork, DeepBoltzmannMachine, Recognition
from pyrodgm.engine import fit_stack
from pyrodgm.objectives import ContrastiveDivergence, MeanFieldContrastive, Objective, UpDown

PRINTED = {"dbn": -84.55, "dbm": -84.62}


class Contender:
    """A deep model, how it is trained jointly, and its bound."""

    def __init__(self, args: argparse.Namespace, rows: dict[str, Tensor]) -> None:
        self.args, self.rows = args, rows
        self.deep = args.model == "dbm"
        self.hidden = args.hidden or ([500, 1000] if self.deep else [500, 2000])
        self.recognition: Recognition | None = None
        self.model: Any
        self.chains: Tensor | None = None

    def chains_objective(self) -> ContrastiveDivergence:
        args = self.args
        return ContrastiveDivergence(k=args.k, persistent=True, weight_cost=args.weight_cost, centered=True)

    def fit(self, machine: Any, x: Tensor, objective: Objective, lr: float, epochs: int) -> None:
        args = self.args
        begun = time.process_time()
        pyrodgm.fit(
            machine,
            x,
            objective,
            lr=lr,
            epochs=epochs,
            batch_size=100,
            seed=args.seed,
            device=args.device,
            progress=False,
            lr_schedule=falling,
            callbacks=[lambda run: print(f"  epoch {len(run.history)}: {minutes(begun)}", flush=True)],
        )
        machine.to("cpu")
        objective.to("cpu")

    def greedy(self) -> None:
        """The layers one by one, or from a trained RBM."""
        args, train = self.args, self.rows["train"]
        begun = time.process_time()
        stack: list[Any]
        if args.first:
            saved = torch.load(args.first, weights_only=True)
            first = RBM(784, self.hidden[0])
            first.load_state_dict(saved["rbm"])
            self.chains = saved["chains"]
            if self.deep:
                self.model = DeepBoltzmannMachine.from_rbm(first, self.hidden[1:])
                return
            stack = [first, RBM(*self.hidden)]
            rows, objective = first.draw_hidden(train), self.chains_objective()
            stack[1].set_visible_bias(rows)
            if args.tied:
                stack[1].tie(first)
                objective.begin(first.draw_hidden(self.chains))
            if args.greedy_epochs:
                self.fit(stack[1], rows, objective, args.greedy_lr, args.greedy_epochs)
                self.chains = objective.negatives
            else:
                self.chains = first.draw_hidden(self.chains)
        else:
            stack = (
                DeepBoltzmannMachine.stack(784, self.hidden)
                if self.deep
                else [RBM(784, self.hidden[0]), RBM(*self.hidden)]
            )
            options = {"epochs": args.greedy_epochs, "batch_size": 100, "seed": args.seed, "progress": False}
            tied = {} if self.deep else {"tied": args.tied}
            runs = fit_stack(
                stack, train, self.chains_objective, lr=args.greedy_lr, lr_schedule=falling, **tied, **options
            )
            self.chains = None if self.deep else runs[-1].objective.negatives
        self.model = DeepBoltzmannMachine.from_stack(stack) if self.deep else DeepBeliefNetwork.from_stack(stack)
        self.recognition = None if self.deep else Recognition.from_stack(stack)
        print(f"layers: {minutes(begun)}", flush=True)

    def joint(self) -> None:
        args, begun = self.args, time.process_time()
        objective: Objective
        if self.deep:
            objective = MeanFieldContrastive(
                k=args.k, mean_field=args.mean_field, weight_cost=args.weight_cost, centered=True
            )
            if self.chains is not None:
                objective.begin(self.model, self.chains)
        else:
            top = self.chains_objective()
            if self.chains is not None:
                top.begin(self.chains)
            objective = UpDown(self.recognition, top=top)  # type: ignore[arg-type]
        self.fit(self.model, self.rows["train"], objective, args.lr, args.epochs)
        print(f"joint training: {args.epochs} epochs, {minutes(begun)}", flush=True)

    def state(self) -> dict[str, Any]:
        recognition = {} if self.recognition is None else self.recognition.state_dict()
        return {"model": self.model.state_dict(), "recognition": recognition}

    def load(self, state: dict[str, Any]) -> None:
        self.model = (DeepBoltzmannMachine if self.deep else DeepBeliefNetwork)(784, self.hidden)
        self.model.load_state_dict(state["model"])
        if not self.deep:
            self.recognition = Recognition(784, self.hidden[:-1])
            self.recognition.load_state_dict(state["recognition"])

    @torch.no_grad()
    def bound(self, name: str) -> None:
        args, model, begun = self.args, self.model, time.process_time()
        torch.manual_seed(args.seed)
        # of a belief network the hidden rows under its top machine
        above = (lambda x: x) if self.deep else (lambda x: self.recognition.draw(x)[-1])  # type: ignore[union-attr]
        ais = {"temperatures": args.temperatures, "seed": args.seed, "data": above(self.rows["train"])}
        low, error = model.log_partition("ais", chains=args.chains, **ais)
        print(f"{name}: log Z {low:.2f} +- {error:.2f} by AIS", flush=True)
        start = above(self.rows["valid"][: args.chains])
        samples = (model if self.deep else model.top).run_kernel(start, None, args.chain_steps)
        high, high_error = model.log_partition("reverse", samples=samples, **ais)
        print(f"  log Z {high:.2f} +- {high_error:.2f} by reverse AIS", flush=True)
        for part in ("valid", "test"):
            rows = self.rows[part][:: max(1, len(self.rows[part]) // args.rows)]  # the test rows lie digit by digit
            score = torch.cat([self._score(x) for x in rows.split(500)])
            print(
                f"  {part}: bound {score.mean() - low:.2f}, by the reverse log Z {score.mean() - high:.2f} nats "
                f"(+- {score.std() / len(score) ** 0.5:.2f} by {len(score)} rows)",
                flush=True,
            )
        print(f"  {minutes(begun)} of AIS; printed {PRINTED[args.model]}", flush=True)

    def _score(self, x: Tensor) -> Tensor:
        """The bound without log Z, (B,)."""
        if self.deep:
            return -self.model.variational_energy(x).double()
        weights = [self.model.log_weights(x, self.recognition)[0] for _ in range(self.args.particles)]
        return torch.stack(weights).double().logsumexp(0) - np.log(self.args.particles)


def minutes(begun: float) -> str:
    return f"{(time.process_time() - begun) / 60:.1f} core-minutes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of mnist_binarized_fixed.npz")
    parser.add_argument("--model", choices=["dbn", "dbm"], default="dbm")
    parser.add_argument("--hidden", type=int, nargs=2, help="default 500 2000 (dbn), 500 1000 (dbm)")
    parser.add_argument("--first", type=Path, help="an RBM, trained and saved by benchmarks/rbm.py --save")
    parser.add_argument("--tied", action=argparse.BooleanOptionalAction, default=True, help="the DBN's top machine")
    parser.add_argument("--greedy-epochs", type=int, default=10, help="of each layer")
    parser.add_argument("--greedy-lr", type=float, default=0.05)
    parser.add_argument("--epochs", type=int, default=20, help="of joint training")
    parser.add_argument("--lr", type=float, default=0.02, help="of joint training")
    parser.add_argument("--weight-cost", type=float, default=1e-4)
    parser.add_argument("--k", type=int, default=2, help="moves of the chains")
    parser.add_argument("--mean-field", type=int, default=5, help="sweeps in training")
    parser.add_argument("--save", type=Path, help="file for the model; before joint training FILE.greedy.pt")
    parser.add_argument("--load", type=Path, help="such a file, to estimate without training")
    parser.add_argument("--bound", action=argparse.BooleanOptionalAction, default=True, help="--no-bound: --save only")
    parser.add_argument("--bound-greedy", action="store_true", help="also before joint training")
    parser.add_argument(
        "--rows", type=int, default=10_000, help="of the bound, about so many in validation and test, evenly spaced"
    )
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--temperatures", type=int, default=10_000)
    parser.add_argument("--chain-steps", type=int, default=1000, help="Gibbs steps from data to reverse AIS")
    parser.add_argument("--particles", type=int, default=20, help="of the DBN's bound")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    contender = Contender(args, mnist(args.data_dir))
    name = f"{args.model} {contender.hidden}"
    if args.load:
        contender.load(torch.load(args.load, weights_only=True))
        contender.bound(f"{name}, loaded")
        return
    contender.greedy()
    if args.save:
        torch.save(contender.state(), args.save.with_suffix(".greedy.pt"))
    if args.bound_greedy or (args.bound and not args.epochs):
        contender.bound(f"{name}, before joint training")
    if args.epochs:
        contender.joint()
        if args.save:
            torch.save(contender.state(), args.save)
        if args.bound:
            contender.bound(f"{name}, trained jointly")


if __name__ == "__main__":
    main()
