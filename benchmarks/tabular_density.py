"""Flows on small tables and on image patches: test log-likelihood in nats beside the printed rows.

Tables by the protocol of the RNADE paper: for each of ten folds, columns are standardised by the other nine, the last
of which is the validation part; the figure is the average over the ten held-out folds. What each fold and each epoch
gives goes to stderr; settings are to be chosen by the validation column.
Printed: Uria et al. (2013), arXiv:1306.0186, table 1, and Uria et al. (2014), arXiv:1310.1757.
Patches (8x8, mean subtracted, D = 63): Papamakarios et al. (2017), arXiv:1705.07057, table 1, on patches cut anew. They
are turned and mirrored for training, and put on their principal axes.
Data: ``<data-dir>/uci/*.npz`` with ``x`` and ``fold``; ``<data-dir>/bsds300_patches_resampled.npz``.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyrodgm
from pyrodgm.core import Tractable
from pyrodgm.tractable import MADE, MAF, NSF, GaussianMixtureConditional, RealNVP

PRINTED = {  # Gaussian, mixture of factor analysers, RNADE-MoG
    "red_wine": (-13.18, -10.19, -9.36),
    "parkinsons": (-10.85, -1.99, -0.90),
    "boston_housing": (-11.37, -4.54, -0.64),
}
ENSEMBLE = 157.0  # of deep, orderless RNADE, on patches
PATCHES = {
    "MADE MoG": 153.71,
    "RealNVP": 153.28,
    "RealNVP MoG": 153.28,
    "MAF": 155.69,
    "MAF MoG": 156.36,
    "NSF": 157.54,
    "NSF autoregressive": 157.31,
}


def networks(o: argparse.Namespace) -> dict[str, Any]:
    """The options that all networks share; dropout stands behind every activation."""
    activation = (lambda: nn.Sequential(nn.ReLU(), nn.Dropout(o.dropout))) if o.dropout else nn.ReLU
    return {"hidden": o.hidden, "activation": activation}


def made_mog(features: int, o: argparse.Namespace) -> MADE:
    """RNADE's form: every conditional a mixture of normals; each mean has a linear part, as ``direct`` gives it."""
    return MADE(features, conditional=GaussianMixtureConditional(o.components), direct=o.direct, **networks(o))


def spline_flow(features: int, layers: int, autoregressive: bool, o: argparse.Namespace) -> NSF:
    splines = {"autoregressive": autoregressive, "mix": True, "bins": o.bins, "bound": 5.0}
    return NSF(features, layers, **splines, **networks(o))


class Member(NamedTuple):
    """Log-densities of the validation and test patches, each in its eight turnings, (8, N)."""

    valid: Tensor
    test: Tensor


MODELS: dict[str, Callable[[int, argparse.Namespace], Tractable]] = {
    "MADE MoG": made_mog,
    "MAF": lambda features, o: MAF(features, o.layers, **networks(o)),
    "MAF MoG": lambda features, o: MAF(features, o.layers, base=made_mog(features, o), **networks(o)),
    "RealNVP": lambda features, o: RealNVP(features, 2 * o.layers, **networks(o)),
    "RealNVP MoG": lambda features, o: RealNVP(features, 2 * o.layers, base=made_mog(features, o), **networks(o)),
    "NSF": lambda features, o: spline_flow(features, 2 * o.layers, False, o),
    "NSF autoregressive": lambda features, o: spline_flow(features, o.layers, True, o),
}


def fit(model: Tractable, train: Tensor, valid: Tensor, options: argparse.Namespace) -> pyrodgm.Fit:
    return pyrodgm.fit(
        model,
        train,
        validate=valid,
        batch_size=options.batch,
        steps=options.steps,
        optimizer=lambda p: torch.optim.AdamW(p, lr=options.lr, weight_decay=options.weight_decay, fused=True),
        lr_schedule=lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
        early_stopping=options.patience,
        clip=5.0,
        callbacks=[_tell],
        compile=options.compile,
        precision=options.precision,
        device=options.device,
        progress=False,
    )


def _tell(run: pyrodgm.Fit) -> None:
    last = run.history[-1]
    if len(run.history) % 10 == 0 or last["step"] > 500 * len(run.history):
        print({k: round(v, 3) for k, v in last.items()}, file=sys.stderr, flush=True)


@torch.no_grad()
def score(model: Tractable, x: Tensor) -> Tensor:
    return torch.cat([model.log_prob(rows.to(model.device)).cpu() for rows in x.split(2000)]).double()


def table(name: str, options: argparse.Namespace) -> None:
    with np.load(options.data_dir / "uci" / f"{name}.npz", allow_pickle=False) as packed:
        x, fold = torch.from_numpy(packed["x"]), torch.from_numpy(packed["fold"]).long()
    for model_name in options.models:
        start, valid, means = time.perf_counter(), [], []
        for k in options.folds:
            rest, last = fold != k, (k - 1) % 10
            mean, scale = x[rest].mean(0), x[rest].std(0)
            parts = [(part - mean) / scale for part in (x[rest & (fold != last)], x[fold == last], x[fold == k])]
            torch.manual_seed(k)
            model = MODELS[model_name](x.shape[1], options)
            run = fit(model, parts[0], parts[1], options)
            valid.append(-run.best["held_out"] if run.best else float("nan"))
            means.append(score(model, parts[2]).mean().item())
            print(
                f"{name} {model_name} fold {k}: valid {valid[-1]:.3f} test {means[-1]:.3f}", file=sys.stderr, flush=True
            )
        value, error = float(np.mean(means)), float(np.std(means) / max(len(means) - 1, 1) ** 0.5)
        gaussian, mfa, rnade = PRINTED[name]
        cells = [name, model_name, f"{np.mean(valid):.2f}", f"{value:.2f} ± {error:.2f}", gaussian, mfa, rnade]
        print(f"| {' | '.join(map(str, cells))} | {time.perf_counter() - start:.0f} |", flush=True)


def symmetries(rows: Tensor) -> Tensor:
    """Every patch turned and mirrored, (N, 64) -> (8, N, 64)."""
    squares = rows.view(-1, 8, 8)
    return torch.stack(
        [square.flip(axes).flatten(1) for square in (squares, squares.mT) for axes in ((), (1,), (2,), (1, 2))]
    )


def principal_axes(x: Tensor) -> tuple[Tensor, float]:
    """The map that whitens x along its principal axes, the longest first, (D, D), and its log-determinant."""
    values, vectors = torch.linalg.eigh(x.double().T.cov())
    return (vectors / values.sqrt()).flip(1), -0.5 * values.log().sum().item()


def patch_parts(options: argparse.Namespace) -> tuple[dict[str, Tensor], float]:
    """Parts of (8, N, 63) on the training part's principal axes, and the ladj of that change of units.

    Uniform noise, scaled to [0, 1), turned and mirrored, the patch's mean subtracted, the last pixel dropped.
    """
    generator = torch.Generator().manual_seed(0)
    parts = {}
    with np.load(options.data_dir / "bsds300_patches_resampled.npz", allow_pickle=False) as packed:
        for key in ("train", "valid", "test"):
            raw = torch.from_numpy(packed[key]).float()
            if key == "train":
                turned = symmetries(raw)
                x = (turned + torch.rand(turned.shape, generator=generator)) / 256
            else:
                x = symmetries((raw + torch.rand(raw.shape, generator=generator)) / 256)
            parts[key] = (x - x.mean(-1, keepdim=True))[..., :-1]
    axes, ladj = principal_axes(parts["train"].flatten(0, 1))
    return {key: (x.double() @ axes).float() for key, x in parts.items()}, ladj


def member(name: str, seed: int, parts: dict[str, Tensor], ladj: float, options: argparse.Namespace) -> Member:
    """Log-densities of a fit from this seed; those that are in ``--out`` already are read from there."""
    file = None if options.out is None else options.out / f"{name.replace(' ', '-')}-{seed}.pt"
    if file is not None and file.exists():
        return Member(*torch.load(file, weights_only=True)["scores"])
    torch.manual_seed(seed)
    model = MODELS[name](63, options)
    fit(model, parts["train"].flatten(0, 1), parts["valid"][0], options)
    scores = Member(*(torch.stack([score(model, x) for x in parts[key]]) + ladj for key in Member._fields))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": model.state_dict(), "scores": tuple(scores)}, file)
    return scores


def patches(options: argparse.Namespace) -> None:
    """Each seed's model; the mixture of its eight turned copies; the mixture of all these, and of those in ``--out``.

    Turning a patch keeps volumes, so the copies are densities of the same space, and every mixture of them is.
    """
    parts, ladj = patch_parts(options)
    members = []
    for name in options.models:
        for seed in options.seeds:
            start = time.perf_counter()
            members.append(member(name, seed, parts, ladj, options))
            seconds = f"{time.perf_counter() - start:.0f}"
            _show(f"{name}, seed {seed}", Member(*(v[0] for v in members[-1])), PATCHES[name], seconds)
            _show(f"{name}, seed {seed}, turned", _mixed(members[-1:]), PATCHES[name], seconds)
    if options.out is not None:
        members = [Member(*torch.load(f, weights_only=True)["scores"]) for f in sorted(options.out.glob("*.pt"))]
    if len(members) > 1:
        _show(f"all {len(members)}, turned", _mixed(members), ENSEMBLE, "")


def _mixed(members: list[Member]) -> Member:
    """Log-density of the mixture of equal shares of the members' copies, each (8, N) -> (N,)."""
    return Member(*(torch.cat(v).logsumexp(0) - math.log(8 * len(members)) for v in zip(*members, strict=True)))


def _show(label: str, scores: Member, printed: float, seconds: str) -> None:
    error = scores.test.std().item() / len(scores.test) ** 0.5
    cells = [
        "patches",
        label,
        f"{scores.valid.mean():.2f}",
        f"{scores.test.mean():.2f} ± {error:.2f}",
        printed,
        seconds,
    ]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(PRINTED), choices=[*PRINTED, "patches"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(10)), choices=range(10))
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--components", type=int, default=10, help="of each mixture of normals")
    parser.add_argument("--bins", type=int, default=16, help="of each spline")
    parser.add_argument("--direct", action="store_true", help="means of the mixtures with a linear part")
    parser.add_argument("--dropout", type=float, default=0.0, help="in every network")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=1.0)
    parser.add_argument("--patience", type=int, default=30, help="epochs without a better validation score")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--precision", default="32-true", help="of training; figures are always of float32")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="patches: one member of the mixture for each")
    parser.add_argument("--out", type=Path, default=None, help="patches: folder of the members' parameters")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if set(options.sets) - {"patches"}:
        print("| set | model | valid | test ± standard error over folds | Gaussian | MFA | RNADE-MoG | seconds |")
        print("|---|---|---|---|---|---|---|---|")
    for name in options.sets:
        if name != "patches":
            table(name, options)
    if "patches" in options.sets:
        print("\n| set | model | valid | test ± standard error | printed | seconds |")
        print("|---|---|---|---|---|---|")
        patches(options)


if __name__ == "__main__":
    main()
