"""Seconds an epoch of RBM training: 10,000 rows of 784 pixels, 500 hidden units, batches of 100, one move a step.

    python benchmarks/rbm_epoch.py --data-dir DIR --threads 2     # DIR/mnist_binarized_fixed.npz; default random rows

Side by side in one run, interleaved: ``pyrodgm.fit`` by CD-1 and by persistent CD-1, scikit-learn's ``BernoulliRBM``
(persistent, in float32 as it comes in), and, where they are installed, learnergy's RBM (CD-1) and torchebm's
``ContrastiveDivergence``, which has no RBM and no Gibbs sampler and gets both from here. The floor is a hand-written
loop: CD-1 by the bare formulas, in place, without autograd, sharing no product that CD-1 does not share.

Each call trains ``--epochs`` epochs from new weights by the library's public ``fit`` (torchebm: by its loss), and its
time is divided by them. learnergy also computes a pseudo-likelihood at every step, which cannot be turned off.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.neural_network import BernoulliRBM
from timing import arguments, hardware, interleave, table
from torch import Tensor, nn
from torch.nn.functional import linear, softplus
from torch.utils.data import DataLoader, TensorDataset

import pyrodgm
from pyrodgm.energy import RBM
from pyrodgm.objectives import ContrastiveDivergence

VISIBLE, HIDDEN, BATCH, LR = 784, 500, 100, 0.05


def rows(folder: Path | None, n: int) -> Tensor:
    """(n, 784) of zeros and ones."""
    if folder is None:
        return (torch.rand(n, VISIBLE, generator=torch.Generator().manual_seed(0)) < 0.13).float()
    with np.load(folder / "mnist_binarized_fixed.npz", allow_pickle=False) as z:
        return torch.as_tensor(np.unpackbits(z["train"][:n], axis=1)[:, :VISIBLE], dtype=torch.float32)


def draw(logits: Tensor) -> Tensor:
    return torch.empty_like(logits).uniform_().lt_(logits.sigmoid_())


def plain(x: Tensor, epochs: int) -> None:
    """The floor: CD-1, without momentum."""
    w, b, c = 0.01 * torch.randn(HIDDEN, VISIBLE), torch.zeros(VISIBLE), torch.zeros(HIDDEN)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(BATCH):
            v = x[index]
            mean = torch.addmm(c, v, w.t()).sigmoid_()
            h = torch.empty_like(mean).uniform_().lt_(mean)
            negative = draw(torch.addmm(b, h, w))
            fantasy = torch.addmm(c, negative, w.t()).sigmoid_()
            w.addmm_(mean.t(), v, alpha=LR / BATCH).addmm_(fantasy.t(), negative, alpha=-LR / BATCH)
            b.add_(v.sum(0) - negative.sum(0), alpha=LR / BATCH)
            c.add_(mean.sum(0) - fantasy.sum(0), alpha=LR / BATCH)


def ours(x: Tensor, epochs: int, persistent: bool, momentum: float) -> None:
    rbm, objective = RBM(VISIBLE, HIDDEN), ContrastiveDivergence(k=1, persistent=persistent)
    optimizer = None if momentum else lambda p: torch.optim.SGD(p, lr=LR, fused=True)
    options: dict[str, Any] = {"device": "cpu", "progress": False, "optimizer": optimizer, "lr": LR}
    pyrodgm.fit(rbm, x, objective, epochs=epochs, batch_size=BATCH, **options)


def learnergy(x: Tensor, epochs: int) -> None:
    from learnergy.models import bernoulli

    machine = bernoulli.RBM(VISIBLE, HIDDEN, steps=1, learning_rate=LR)
    machine.fit(TensorDataset(x, torch.zeros(len(x))), batch_size=BATCH, epochs=epochs)


class _Machine(nn.Module):
    """The free energy that torchebm's loss is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(HIDDEN, VISIBLE))
        self.b, self.c = nn.Parameter(torch.zeros(VISIBLE)), nn.Parameter(torch.zeros(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return -(x @ self.b) - softplus(linear(x, self.weight, self.c)).sum(-1)

    @torch.no_grad()
    def sample(self, x: Tensor, n_steps: int, **_: Any) -> Tensor:
        for _ in range(n_steps):
            x = draw(torch.addmm(self.b, draw(linear(x, self.weight, self.c)), self.weight))
        return x


def torchebm(x: Tensor, epochs: int) -> None:
    from torchebm.losses import ContrastiveDivergence as Theirs

    machine = _Machine()
    loss = Theirs(machine, machine, k_steps=1, energy_reg_weight=0.0)
    optimizer = torch.optim.SGD(machine.parameters(), lr=LR)
    for _ in range(epochs):
        for (v,) in DataLoader(TensorDataset(x), batch_size=BATCH, shuffle=True):
            optimizer.zero_grad()
            loss(v)[0].backward()
            optimizer.step()


def contenders(x: Tensor, epochs: int) -> dict[str, Callable[[], Any]]:
    """Those that are installed, each a call of ``epochs`` epochs."""
    found: dict[str, Callable[[], Any]] = {
        "hand-written CD-1": lambda: plain(x, epochs),
        "pyrodgm CD-1": lambda: ours(x, epochs, False, 0.0),
        "pyrodgm CD-1, momentum 0.5": lambda: ours(x, epochs, False, 0.5),
        "pyrodgm PCD-1": lambda: ours(x, epochs, True, 0.0),
        "pyrodgm PCD-1, momentum 0.5": lambda: ours(x, epochs, True, 0.5),
        "scikit-learn PCD-1": lambda: BernoulliRBM(HIDDEN, learning_rate=LR, batch_size=BATCH, n_iter=epochs).fit(
            x.numpy()
        ),
    }
    for name, run in (("learnergy CD-1", learnergy), ("torchebm CD-1", torchebm)):
        try:
            run(x[:BATCH], 1)
        except ImportError as error:
            print(f"without {name}: {error}")
        else:
            found[name] = lambda run=run: run(x, epochs)  # type: ignore[misc]
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=2, help="of one call")
    parser.set_defaults(repeats=5, warmup=1)
    args: argparse.Namespace = parser.parse_args()
    print(hardware(args))
    x = rows(args.data_dir, args.rows)
    times = interleave(contenders(x, args.epochs), args.repeats, args.warmup)
    each = {name: [value / args.epochs for value in values] for name, values in times.items()}
    print(table(f"one epoch of {len(x)} x {VISIBLE}, {HIDDEN} hidden, batches of {BATCH}", each, "hand-written CD-1"))


if __name__ == "__main__":
    main()
