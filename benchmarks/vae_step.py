"""A VAE 784-400-20-400-784 on binary rows: a step through ``pyrodgm.fit`` beside a hand-written loop and Pyro.

Every contender trains in blocks of an epoch or so, taken in turn; a block's time includes fetching the rows in a new
order. Every block has an optimiser of its own, as every call of ``fit`` has: the averages of one that has run long
become denormal numbers, at which a processor is slow. Compiling and tracing happen outside the clock and are reported
by themselves. Pyro in two ways: ``SVI`` as its examples have it (validation on, its Adam), and ``Trace_ELBO`` with
torch's fused Adam, validation off.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from timing import arguments, hardware, table
from torch import Tensor, nn
from torch.nn import functional as F

import pyrodgm
from pyrodgm.latent import VAE

FEATURES, HIDDEN, LATENT = 784, 400, 20


class Plain(nn.Module):
    """The same network and the same bound (analytic KL), written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        mean, log_scale = self.encoder(x).chunk(2, -1)
        scale = log_scale.exp()
        logits = self.decoder(mean + scale * torch.randn_like(mean))
        kl = 0.5 * (scale * scale + mean * mean - 1).sum() - log_scale.sum()
        return (F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl) / len(x)


def _loop(make: Callable[[], Callable[[Tensor], object]], x: Tensor, batch: int) -> Callable[[int], float]:
    """Milliseconds a step over a block of ``steps`` whole batches in shuffled order; ``make`` begins a block."""

    def run(steps: int) -> float:
        step = make()
        start, done = time.perf_counter(), 0
        while done < steps:
            order = torch.randperm(len(x), device=x.device)
            for rows in order[: len(x) // batch * batch].split(batch)[: steps - done]:
                step(x[rows])
                done += 1
        if x.is_cuda:
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start) / steps

    return run


def _gradient_step(loss: Callable[[Tensor], Tensor], model: nn.Module) -> Callable[[Tensor], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step(x: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(x).backward()
        optimizer.step()

    return step


def hand(x: Tensor, batch: int) -> Callable[[int], float]:
    model = Plain().to(x.device)
    return _loop(lambda: _gradient_step(model, model), x, batch)


def ours(x: Tensor, batch: int, compile: bool, compiling: list[float]) -> Callable[[int], float]:
    model = VAE.mlp(features=FEATURES, latent=LATENT, hidden=[HIDDEN])

    def run(steps: int) -> float:
        fit = pyrodgm.fit(
            model, x, steps=steps, batch_size=batch, compile=compile, device=x.device.type, progress=False
        )
        compiling.append(fit.timings.get("compile_seconds", 0.0))
        return 1e3 / fit.timings["steps_per_second"]

    return run


def pyro_svi(x: Tensor, batch: int) -> Callable[[int], float]:
    model, guide = VAE.mlp(features=FEATURES, latent=LATENT, hidden=[HIDDEN]).to(x.device).svi()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    run = _loop(lambda: lambda rows: svi.step(rows), x, batch)

    def validated(steps: int) -> float:
        with pyro.validation_enabled(True):
            return run(steps)

    return validated


def pyro_elbo(x: Tensor, batch: int) -> Callable[[int], float]:
    vae = VAE.mlp(features=FEATURES, latent=LATENT, hidden=[HIDDEN]).to(x.device)
    elbo = Trace_ELBO()

    def loss(rows: Tensor) -> Tensor:
        return elbo.differentiable_loss(vae, vae.guide, rows) / len(rows)

    run = _loop(lambda: _gradient_step(loss, vae), x, batch)

    def unvalidated(steps: int) -> float:
        with pyro.validation_enabled(False):
            return run(steps)

    return unvalidated


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(repeats=7, warmup=1)
    parser.add_argument("--steps", type=int, default=400, help="steps of a block")
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
    print(hardware(options))
    torch.manual_seed(0)
    x = (torch.rand(options.steps * options.batch_size, FEATURES) < 0.13).float().to(options.device)
    compiling: list[float] = []
    contenders = {
        "hand-written loop": hand(x, options.batch_size),
        "pyrodgm.fit": ours(x, options.batch_size, False, []),
        "Pyro Trace_ELBO, fused Adam": pyro_elbo(x, options.batch_size),
        "Pyro SVI": pyro_svi(x, options.batch_size),
    }
    if options.compile:
        contenders["pyrodgm.fit, compile=True"] = ours(x, options.batch_size, True, compiling)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for i in range(options.warmup + options.repeats):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            value = contenders[name](options.steps)
            if i >= options.warmup:
                times[name].append(value)
    title = f"VAE 784-400-20-400-784, batch {options.batch_size}: one step in blocks of {options.steps}"
    print(table(title, times, "hand-written loop"))
    if compiling:
        print(f"\nTracing and compiling: {compiling[0]:.1f} s the first time, {compiling[-1]:.1f} s in later runs.")


if __name__ == "__main__":
    main()
