"""RealNVP or Glow on MNIST grey levels for so many minutes: test bits/dim beside the papers' 1.06 and 1.05.

``--data-dir`` holds mnist.npz (uint8 ``train_x`` (60000, 28, 28) and ``test_x``). No rows pick a state: the last one is
tested. The papers trained for days on GPUs; say how long and on what when quoting a figure of this script.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from timing import hardware

import pyrodgm
from pyrodgm.core import Tractable
from pyrodgm.data import bits_per_dim
from pyrodgm.evaluation import log_likelihood
from pyrodgm.latent import Dequantized
from pyrodgm.tractable import Glow, ImageFlowPlusPlus, ImageRealNVP

SHAPE, LEVELS = (1, 28, 28), 256
PAPERS = {"RealNVP": 1.06, "Glow": 1.05, "Flow++": None}


def build(name: str, channels: int, steps: int) -> Tractable:
    """The density of pixels in [0, 1)."""
    if name == "Glow":
        return Glow(SHAPE, steps, scales=2, hidden=[channels, channels])
    if name == "RealNVP":
        return ImageRealNVP(SHAPE, scales=2, channels=channels, blocks=steps)
    return ImageFlowPlusPlus(SHAPE, 2, scales=2, channels=channels, blocks=steps)


def read(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and test images (N, 1, 28, 28), uint8."""
    with np.load(folder / "mnist.npz", allow_pickle=False) as data:
        train, test = (torch.as_tensor(data[key]).unsqueeze(1) for key in ("train_x", "test_x"))
    return train, test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=["RealNVP", "Glow"], choices=PAPERS)
    parser.add_argument("--minutes", type=float, default=10.0, help="training time of each model")
    parser.add_argument("--channels", type=int, default=64, help="of the networks' hidden layers")
    parser.add_argument("--steps", type=int, default=4, help="of Glow at each level; residual blocks of the others")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--particles", type=int, default=10, help="importance samples of the dequantization noise")
    parser.add_argument("--test-rows", type=int, default=None)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--smoke", action="store_true", help="64 rows, a few steps, tiny networks")
    options = parser.parse_args()
    if options.smoke:
        options.minutes, options.channels, options.steps, options.particles = 0.02, 8, 1, 2
    print(hardware(options))
    train, test = (x[:64] if options.smoke else x for x in read(options.data_dir))
    test = test[: options.test_rows]
    for name in options.models:
        torch.manual_seed(0)
        model = Dequantized(build(name, options.channels, options.steps), LEVELS)
        steps, minutes = fit(model, train, options)
        value, error, kind = log_likelihood(model, test, particles=options.particles)
        bits, spread = bits_per_dim(value, 784, levels=1), error / 784 / np.log(2)
        paper = f"the paper's {PAPERS[name]}" if PAPERS[name] else "no paper's figure"
        print(
            f"{name}: {bits:.3f} +- {spread:.3f} bits/dim on {len(test)} test images ({kind}), {paper}; "
            f"{sum(p.numel() for p in model.parameters()):,} parameters, {minutes:.1f} minutes, {steps} steps of "
            f"{options.batch_size} images",
            flush=True,
        )


def fit(model: Dequantized, train: torch.Tensor, options: argparse.Namespace) -> tuple[int, float]:
    """Train for as many steps as fit into the time, a cosine from lr to 0; returns the steps and the minutes taken."""

    def run(trained: Dequantized, steps: int) -> float:
        start = time.monotonic()
        pyrodgm.fit(
            trained, train.float(), steps=steps, batch_size=options.batch_size, lr=options.lr, clip=100.0,
            lr_schedule=lambda adam, total: torch.optim.lr_scheduler.CosineAnnealingLR(adam, total),
            device=options.device, progress=False,
        )  # fmt: skip
        return time.monotonic() - start

    few = 3 if options.smoke else 20
    run(copy.deepcopy(model), few)  # first calls are slower
    steps = max(few, int(60 * options.minutes * few / run(copy.deepcopy(model), few)))
    return steps, run(model, steps) / 60


if __name__ == "__main__":
    main()
