"""A training step of VAE, beta-VAE, IWAE and VQ-VAE through ``pyrodgm.fit``, pythae's trainer and a loop by hand.

The same nets (784-512-L-512-784), batch, Adam and rows. Every contender trains a whole epoch at a time, taken in turn;
an epoch's time includes fetching the rows in a new order. pythae's is the time of ``BaseTrainer.train_step``, its epoch
without validation, checkpoints or copies of the best model; ours is what ``fit`` says of its loop. The likelihood is
Bernoulli, but for pythae's VQ-VAE, which knows squared errors only. Needs ``pip install pythae``.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from timing import arguments, hardware, table
from torch import Tensor, nn
from torch.nn import functional as F

import pyrodgm
from pyrodgm.latent import VAE, VQVAE
from pyrodgm.objectives import ELBO, ImportanceWeighted, Objective, VectorQuantization

FEATURES, HIDDEN, LATENT = 784, 512, 16
BETA, PARTICLES = 4.0, 10
CODES, LR = 512, 1e-3
SYSTEMS = ("VAE", "beta-VAE", "IWAE", "VQ-VAE")


class Plain(nn.Module):
    """The loss of a system on the networks of the others, written by hand."""

    def __init__(self, system: str) -> None:
        super().__init__()
        self.system = system
        outputs = LATENT if system == "VQ-VAE" else 2 * LATENT
        self.encoder = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))
        self.decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, FEATURES))
        if system == "VQ-VAE":
            self.register_buffer("book", torch.randn(CODES, LATENT))
            self.register_buffer("counts", torch.ones(CODES))
            self.register_buffer("sums", self.get_buffer("book").clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.quantized(x) if self.system == "VQ-VAE" else self.variational(x)

    def variational(self, x: Tensor) -> Tensor:
        """The bound: analytic KL weighed by beta, or the log-mean of the importance weights."""
        mean, log_scale = self.encoder(x).chunk(2, -1)
        scale = log_scale.exp()
        if self.system != "IWAE":
            logits = self.decoder(mean + scale * torch.randn_like(mean))
            kl = 0.5 * (scale * scale + mean * mean - 1).sum() - log_scale.sum()
            weight = BETA if self.system == "beta-VAE" else 1.0
            return (F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + weight * kl) / len(x)
        noise = torch.randn(PARTICLES, *mean.shape, device=x.device)
        z = mean + scale * noise
        logits = self.decoder(z)
        likelihood = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_weights = likelihood + (0.5 * (noise * noise - z * z) + log_scale).sum(-1)  # (K, B)
        return -torch.logsumexp(log_weights, 0).mean()

    def quantized(self, x: Tensor) -> Tensor:
        """Reconstruction and commitment, the codebook by exponential averages."""
        vectors = self.encoder(x)
        with torch.no_grad():
            chosen = torch.cdist(vectors, self.book).argmin(-1)
            used = torch.bincount(chosen, minlength=CODES).to(x.dtype)
            self.counts.lerp_(used, 0.01)
            self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, chosen, vectors), 0.01)
            self.book.copy_(self.sums / self.counts.clamp_min(1e-5).unsqueeze(-1))
        nearest = self.book[chosen]
        logits = self.decoder(vectors + (nearest - vectors).detach())
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (reconstruction + 0.25 * (vectors - nearest).square().sum()) / len(x)


def hand(system: str, x: Tensor, batch: int) -> Callable[[], float]:
    """Milliseconds a step of a loop over an epoch."""
    model = Plain(system).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)

    def epoch() -> float:
        start = time.perf_counter()
        parts = torch.randperm(len(x), device=x.device).split(batch)
        for rows in parts:
            optimizer.zero_grad(set_to_none=True)
            model(x[rows]).backward()
            optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start) / len(parts)

    return epoch


def ours(system: str, x: Tensor, batch: int, compile: bool) -> Callable[[], float]:
    """Milliseconds a step of ``fit``."""
    objectives: dict[str, Objective] = {
        "VAE": ELBO(),
        "beta-VAE": ELBO(beta=BETA),
        "IWAE": ImportanceWeighted(PARTICLES),
        "VQ-VAE": VectorQuantization(),
    }
    if system == "VQ-VAE":
        model: Any = VQVAE.mlp(FEATURES, positions=1, codes=CODES, size=LATENT, hidden=[HIDDEN])
    else:
        model = VAE.mlp(FEATURES, LATENT, [HIDDEN])

    def epoch() -> float:
        fit = pyrodgm.fit(
            model, x, objectives[system], epochs=1, batch_size=batch, lr=LR, compile=compile, device=x.device.type,
            progress=False,
        )  # fmt: skip
        return 1e3 / fit.timings["steps_per_second"]

    return epoch


def pythaes(system: str, x: Tensor, batch: int, fused: bool, folder: str) -> Callable[[], float]:
    """Milliseconds a step of pythae's trainer on its own networks, which are those of :class:`Plain`."""
    from pythae import models
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    sizes: dict[str, Any] = {"input_dim": (1, 28, 28), "latent_dim": LATENT}
    bernoulli = {**sizes, "reconstruction_loss": "bce"}  # its VQ-VAE has squared errors only
    built: dict[str, Callable[[], Any]] = {
        "VAE": lambda: models.VAE(models.VAEConfig(**bernoulli)),
        "beta-VAE": lambda: models.BetaVAE(models.BetaVAEConfig(**bernoulli, beta=BETA)),
        "IWAE": lambda: models.IWAE(models.IWAEConfig(**bernoulli, number_samples=PARTICLES)),
        "VQ-VAE": lambda: models.VQVAE(models.VQVAEConfig(**sizes, num_embeddings=CODES, use_ema=True)),
    }
    data = BaseDataset(x.unflatten(-1, (1, 28, 28)), torch.zeros(len(x)))
    config = BaseTrainerConfig(
        output_dir=folder,
        per_device_train_batch_size=batch,
        learning_rate=LR,
        optimizer_cls="Adam",
        optimizer_params={"fused": True} if fused else None,
        no_cuda=not x.is_cuda,
    )
    trainer = BaseTrainer(built[system](), data, training_config=config)
    trainer.prepare_training()
    trainer.callback_handler.callbacks.clear()  # a progress bar for each step

    def epoch() -> float:
        start = time.perf_counter()
        trainer.train_step(1)
        if x.is_cuda:
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start) / len(trainer.train_loader)

    return epoch


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(repeats=7, warmup=1)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    options = parser.parse_args()
    print(hardware(options))
    logging.disable(logging.INFO)  # pythae tells of every stage
    torch.manual_seed(0)
    x = (torch.rand(options.rows, FEATURES) < 0.13).float().to(options.device)
    for system in options.systems:
        with tempfile.TemporaryDirectory() as folder:
            contenders = {
                "hand-written loop": hand(system, x, options.batch_size),
                "pyrodgm.fit": ours(system, x, options.batch_size, False),
                "pythae, its Adam": pythaes(system, x, options.batch_size, False, folder),
                "pythae, fused Adam": pythaes(system, x, options.batch_size, True, folder),
            }
            if options.compile:
                contenders["pyrodgm.fit, compile=True"] = ours(system, x, options.batch_size, True)
            times: dict[str, list[float]] = {name: [] for name in contenders}
            names = list(contenders)
            for i in range(options.warmup + options.repeats):
                for name in names[i % len(names) :] + names[: i % len(names)]:
                    value = contenders[name]()
                    if i >= options.warmup:
                        times[name].append(value)
        print(table(f"{system}, batch {options.batch_size}: one step in epochs", times, "hand-written loop"))


if __name__ == "__main__":
    main()
