"""Known densities of the plane recovered by a neural energy: KL on a grid, by each objective that needs no normaliser.

    python benchmarks/energy_2d.py                     # both densities, every objective, 2000 steps each: minutes
    python benchmarks/energy_2d.py --only replay --steps 1000

KL(target || model) in nats, both normalised on one grid; the bar is 0.05. Beside it the KL of the moment-matched
Gaussian, of a flow that is fitted by maximum likelihood and is the noise of noise-contrastive estimation, and what
smoothing the target by the noise of denoising score matching costs. The exit status says whether the bar was met.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import pyrodgm
from pyrodgm.energy import NeuralEnergy
from pyrodgm.objectives import (
    DenoisingScoreMatching,
    NoiseContrastive,
    Objective,
    ReplayDivergence,
    ScoreMatching,
    SlicedScoreMatching,
)
from pyrodgm.tractable import NSF

BAR = 0.05
ROWS, SIGMA = 50_000, 0.1
HALF, POINTS = 6.0, 301
CENTRES = 1.5 * torch.tensor([[0.0, 1.0], [-(0.75**0.5), -0.5], [0.75**0.5, -0.5]])
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])
OBJECTIVES: dict[str, Callable[[NSF], Objective]] = {
    "replay": lambda flow: ReplayDivergence(k=20),
    "denoising": lambda flow: DenoisingScoreMatching(SIGMA),
    "sliced": lambda flow: SlicedScoreMatching(),
    "exact score": lambda flow: ScoreMatching(),
    "noise": lambda flow: NoiseContrastive(flow, ratio=4),
}


def ring(x: Tensor) -> Tensor:
    """log-density up to a constant: radius 2, width 0.3."""
    return -((x.norm(dim=-1) - 2) ** 2) / (2 * 0.3**2)


def mixture(x: Tensor) -> Tensor:
    """log-density up to a constant: three Gaussians of scale 0.5 with unequal weights."""
    squares = (x.unsqueeze(-2) - CENTRES.to(x)).square().sum(-1)
    return (WEIGHTS.to(x).log() - squares / (2 * 0.5**2)).logsumexp(-1)


def grid() -> Tensor:
    axis = torch.linspace(-HALF, HALF, POINTS)
    return torch.cartesian_prod(axis, axis)


def draw(log_density: Callable[[Tensor], Tensor], n: int) -> Tensor:
    """Rows by the grid's cells, uniform inside a cell of 0.04: its share of the variance is 1.3e-4."""
    nodes = grid()
    cells = log_density(nodes).softmax(0).multinomial(n, replacement=True)
    return nodes[cells] + (torch.rand(n, 2) - 0.5) * 2 * HALF / (POINTS - 1)


@torch.no_grad()
def divergence(log_p: Tensor, log_q: Tensor) -> float:
    """KL(p || q) of two tables of unnormalised log-densities on the grid."""
    log_p, log_q = log_p.double().log_softmax(0), log_q.double().log_softmax(0)
    return (log_p.exp() * (log_p - log_q)).sum().item()


def smoothed(log_p: Tensor) -> Tensor:
    """The table convolved with N(0, SIGMA^2 I)."""
    axis = torch.linspace(-HALF, HALF, POINTS, dtype=torch.float64)
    blur = (-((axis.unsqueeze(0) - axis.unsqueeze(1)) ** 2) / (2 * SIGMA**2)).softmax(-1)
    return (blur.T @ log_p.double().softmax(0).reshape(POINTS, POINTS) @ blur).clamp(min=1e-300).log().flatten()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--only", choices=OBJECTIVES, help="one objective")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    worst = -math.inf
    nodes = grid()
    for target in (ring, mixture):
        torch.manual_seed(args.seed)
        x, log_p = draw(target, ROWS), target(nodes)
        gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
        flow = NSF(2, 4, hidden=[64, 64])
        settings = {"steps": args.steps, "batch_size": 256, "seed": args.seed, "progress": False, "lr_schedule": cosine}
        pyrodgm.fit(flow, x, lr=2e-3, **settings)
        print(f"{target.__name__}: KL of the Gaussian {divergence(log_p, gaussian.log_prob(nodes)):.4f}", end=", ")
        print(f"flow {divergence(log_p, flow.log_prob(nodes)):.4f}, ", end="")
        print(f"target smoothed by {SIGMA} {divergence(log_p, smoothed(log_p)):.4f}")
        for name in [args.only] if args.only else OBJECTIVES:
            torch.manual_seed(args.seed)
            model = NeuralEnergy.mlp(features=2, hidden=[128, 128])
            start = time.perf_counter()
            pyrodgm.fit(model, x, OBJECTIVES[name](flow), lr=2e-3, **settings)
            seconds = time.perf_counter() - start
            kl = divergence(log_p, -model.energy(nodes))
            worst = max(worst, kl)
            print(f"  {name:12s} KL {kl:.4f}   {seconds:5.0f} s", flush=True)
    print(f"largest {worst:.4f}, bar {BAR}")
    return 0 if worst < BAR else 1


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


if __name__ == "__main__":
    sys.exit(main())
