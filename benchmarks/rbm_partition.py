"""AIS against enumeration: log Z of a trained RBM whose 12 hidden units can be summed over.

    python benchmarks/rbm_partition.py                        # scikit-learn's digits, binarized
    python benchmarks/rbm_partition.py --data-dir DIR         # DIR/mnist_binarized_fixed.npz

The two must agree within 0.05 nat; the exit status says whether they did.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import pyrodgm
from pyrodgm.energy import RBM
from pyrodgm.objectives.contrastive import ContrastiveDivergence

TOLERANCE = 0.05  # nats


def digits() -> tuple[Tensor, Tensor]:
    """(1500, 64) and (297, 64): pixels above half of the range."""
    x = torch.as_tensor(load_digits().data > 7.5, dtype=torch.get_default_dtype())
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    return x[:1500], x[1500:]


def mnist(folder: Path) -> tuple[Tensor, Tensor]:
    """(50000, 784) and (10000, 784), the fixed binarization."""
    with np.load(folder / "mnist_binarized_fixed.npz", allow_pickle=False) as z:
        parts = [np.unpackbits(z[key], axis=1)[:, : int(z["d"])] for key in ("train", "valid")]
    train, valid = (torch.as_tensor(part, dtype=torch.get_default_dtype()) for part in parts)
    return train, valid


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder of mnist_binarized_fixed.npz")
    parser.add_argument("--epochs", type=int)
    parser.add_argument(
        "--persistent", action="store_true", help="persistent CD-1: modes farther apart, harder for AIS"
    )
    parser.add_argument("--chains", type=int, default=1000)
    parser.add_argument("--temperatures", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    train, valid = digits() if args.data_dir is None else mnist(args.data_dir)
    torch.manual_seed(args.seed)
    rbm = RBM(visible=train.shape[1], hidden=12)
    rbm.set_visible_bias(train)
    epochs = args.epochs or (100 if args.data_dir is None else 5)
    start = time.perf_counter()
    pyrodgm.fit(
        rbm,
        train,
        ContrastiveDivergence(k=1, persistent=args.persistent),
        epochs=epochs,
        batch_size=100,
        seed=args.seed,
        progress=False,
    )
    print(f"RBM({train.shape[1]}, 12), {epochs} epochs of CD-1 in {time.perf_counter() - start:.1f} s")
    with torch.no_grad():
        print(f"mean |weight| {rbm.weight.abs().mean():.3f}, held-out {rbm.log_prob(valid).mean():.2f} nats a row")
        start = time.perf_counter()
        exact, _ = rbm.log_partition("exact")
        print(f"log Z enumerated  {exact:12.4f}            {time.perf_counter() - start:7.2f} s")
        start = time.perf_counter()
        ais, error = rbm.log_partition(
            "ais", chains=args.chains, temperatures=args.temperatures, data=train, seed=args.seed
        )
        print(f"log Z by AIS      {ais:12.4f} +- {error:.4f}  {time.perf_counter() - start:7.2f} s")
    difference = float(ais - exact)
    agree = abs(difference) <= TOLERANCE
    errors = difference / float(error)
    print(f"difference {difference:+.4f} nat, {errors:+.2f} standard errors: {'ok' if agree else 'OFF'}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
