"""How much of its codebook a VQ-VAE uses on fixed-binarized MNIST, with and without the revival of dead codes.

Two stages, as in van den Oord et al. (2017), arXiv:1711.00937: encoder, decoder and codebook first, then a prior over
the codes, here independent ones and a MADE. "used" is the share of the K codes that the test digits choose at all,
"perplexity" the exponential of the entropy of their choices, which is K where all are chosen equally often. The
bounds are log p(x | codes) + log p(codes) at the encoder's codes, one term of the sum over all codes.

With ``--system vq-vae-2`` it is the VQ-VAE-2 of Razavi et al. (2019), arXiv:1906.00446: convolutions, 4 x 4 codes above
7 x 7. Its priors are of the top's codes, and of the bottom's given the top's embeddings: independent ones (the bottom's
by convolutions of the embeddings), or a MADE each.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from latent_tables import learn, packed_rows
from torch import Tensor

from pyrodgm.core import Tractable
from pyrodgm.distributions import Codes
from pyrodgm.latent import VAE, VQVAE, VQVAE2
from pyrodgm.latent.codebook import Codebook
from pyrodgm.nets import MLP
from pyrodgm.objectives import VectorQuantization
from pyrodgm.tractable import MADE, CategoricalConditional, Parametric

D = 784


def build(options: argparse.Namespace, revive_below: float) -> VQVAE:
    """Perceptrons of two layers of 400 around L = ``positions`` codes."""
    latent = options.positions * options.size
    return VQVAE(
        encoder=MLP(D, latent, [400, 400]),
        likelihood=Parametric(dist.Bernoulli, D, context=latent, hidden=[400, 400]),
        codebook=Codebook(options.codes, options.size, revive_below=revive_below),
    )


def priors(options: argparse.Namespace) -> dict[str, Tractable]:
    k, positions = options.codes, options.positions
    return {
        "independent": Parametric(Codes, positions, sizes={"logits": k}),
        "MADE": MADE(positions, [500], conditional=CategoricalConditional(k)),
    }


@torch.no_grad()
def reconstructed(model: VAE, x: Tensor) -> Tensor:
    """log p(x | codes) of rows, (B,)."""
    return torch.cat([model.decode(model.posterior(part).sample()).log_prob(part) for part in x.split(500)])


@torch.no_grad()
def scored(prior: Tractable, codes: Tensor, context: Tensor | None = None) -> Tensor:
    """log p(codes | context) of rows, (B,)."""
    given = [None] * len(codes) if context is None else context.split(500)
    return torch.cat([prior.log_prob(c, e) for c, e in zip(codes.split(500), given, strict=False)])


def two_levels(options: argparse.Namespace, train: Tensor, test: Tensor) -> None:
    """A VQ-VAE-2, whose dead codes are revived: the codes, then each prior by itself."""
    torch.manual_seed(options.seed)
    k = options.codes
    model = VQVAE2.conv((1, 28, 28), codes=k, size=options.size, channels=options.channels)
    print(f"2 x K = {k} codes of {options.size} numbers, 16 and 49 a digit, {options.steps} steps\n")
    print(
        "| level | used | perplexity | log p(codes), independent | log p(codes), MADE |\n|---|---|---|---|---|",
        flush=True,
    )
    began = time.process_time()
    learn(model, train, options.steps, options, VectorQuantization())
    rows, usage = reconstructed(model, test), model.usage(test)
    codes = [codes for part in (train, test) for codes in model.codes(part)]
    above, below, test_above, test_below = codes
    given, test_given = model.bottom_context(above), model.bottom_context(test_above)
    priors: dict[str, tuple[Tractable, Tractable]] = {
        "independent": (model.top_prior, model.bottom_prior),
        "MADE": (
            MADE(above.shape[-1], [500], conditional=CategoricalConditional(k)),
            MADE(below.shape[-1], [500], conditional=CategoricalConditional(k), context=given.shape[-1]),
        ),
    }
    scores: dict[str, list[float]] = {}
    pairs: Any = (below, given)
    for kind, (top, bottom) in priors.items():
        learn(top, above, options.prior_steps, options)
        learn(bottom, pairs, options.prior_steps, options)
        scores[kind] = [scored(top, test_above).mean().item(), scored(bottom, test_below, test_given).mean().item()]
    minutes, reconstruction = (time.process_time() - began) / 60, rows.mean().item()
    for i, (level, (perplexity, used)) in enumerate(zip(("top", "bottom"), usage, strict=True)):
        figures = " | ".join(f"{found[i]:.2f}" for found in scores.values())
        print(f"| {level} | {used:.1%} | {perplexity:.1f} | {figures} |")
    bounds = {kind: reconstruction + sum(found) for kind, found in scores.items()}
    shown = ", ".join(f"{kind} {bound:.2f}" for kind, bound in bounds.items())
    print(f"\nreconstruction {reconstruction:.2f} nats; bound by priors: {shown}; {minutes:.1f} minutes", flush=True)
    if options.out is not None:
        found = {"system": "VQ-VAE-2", "usage": usage, "reconstruction": reconstruction, "bounds": bounds}
        with options.out.open("a") as lines:
            lines.write(json.dumps({**found, "codes": scores, "minutes": minutes, "seed": options.seed}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--system", choices=["vq-vae", "vq-vae-2"], default="vq-vae")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--prior-steps", type=int, default=5_000)
    parser.add_argument("--codes", type=int, default=512)
    parser.add_argument("--positions", type=int, default=16, help="codes a digit of the VQ-VAE")
    parser.add_argument("--channels", type=int, default=32, help="of the VQ-VAE-2's networks")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--smoke", action="store_true", help="a few steps and rows: does it run?")
    parser.add_argument("--out", type=Path, default=None, help="file of JSON lines")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.smoke:
        options.steps, options.prior_steps = 6, 6
    train, _, test = packed_rows(options.data_dir / "mnist_binarized_fixed.npz", options)
    if options.system == "vq-vae-2":
        two_levels(options, train.reshape(-1, 1, 28, 28), test.reshape(-1, 1, 28, 28))
        return
    print(f"K = {options.codes} codes of {options.size} numbers, {options.positions} a digit, {options.steps} steps\n")
    print("| codebook | used | perplexity | reconstruction, nats | bound, independent prior | bound, MADE | minutes |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, revive_below in (("dead codes revived", 0.1), ("dead codes stay", 0.0)):
        torch.manual_seed(options.seed)
        model = build(options, revive_below)
        began = time.process_time()
        learn(model, train, options.steps, options, VectorQuantization())
        perplexity, used = model.usage(test)
        rows = reconstructed(model, test)
        with torch.no_grad():
            codes, test_codes = model.codes(train), model.codes(test)
        bounds = {}
        for kind, prior in priors(options).items():
            learn(prior, codes, options.prior_steps, options)
            with torch.no_grad():
                bounds[kind] = (rows + torch.cat([prior.log_prob(c) for c in test_codes.split(500)])).mean().item()
        minutes = (time.process_time() - began) / 60
        reconstruction = rows.mean().item()
        figures = f"{reconstruction:.2f} | {bounds['independent']:.2f} | {bounds['MADE']:.2f} | {minutes:.1f}"
        print(f"| {name} | {used:.1%} | {perplexity:.1f} | {figures} |", flush=True)
        if options.out is not None:
            found = {"codebook": name, "used": used, "perplexity": perplexity, "reconstruction": reconstruction}
            with options.out.open("a") as lines:
                lines.write(json.dumps({**found, **bounds, "minutes": minutes, "seed": options.seed}) + "\n")


if __name__ == "__main__":
    main()
