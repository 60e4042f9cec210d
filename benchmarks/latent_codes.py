"""How much of its codebook a VQ-VAE uses on fixed-binarized MNIST, with and without the revival of dead codes.

Two stages, as in van den Oord et al. (2017), arXiv:1711.00937: encoder, decoder and codebook first, then a prior over
the codes, here independent ones and a MADE. "used" is the share of the K codes that the test digits choose at all,
"perplexity" the exponential of the entropy of their choices, which is K where all are chosen equally often. The
bounds are log p(x | codes) + log p(codes) at the encoder's codes, one term of the sum over all codes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pyro.distributions as dist
import torch
from latent_tables import learn, packed_rows

from pyrodgm.core import Tractable
from pyrodgm.distributions import Codes
from pyrodgm.latent import VQVAE
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--prior-steps", type=int, default=5_000)
    parser.add_argument("--codes", type=int, default=512)
    parser.add_argument("--positions", type=int, default=16)
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
    print(f"K = {options.codes} codes of {options.size} numbers, {options.positions} a digit, {options.steps} steps\n")
    print("| codebook | used | perplexity | reconstruction, nats | bound, independent prior | bound, MADE | minutes |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, revive_below in (("dead codes revived", 0.1), ("dead codes stay", 0.0)):
        torch.manual_seed(options.seed)
        model = build(options, revive_below)
        began = time.process_time()
        learn(model, train, options.steps, options, VectorQuantization())
        perplexity, used = model.usage(test)
        with torch.no_grad():
            rows = torch.cat([model.decode(model.posterior(x).sample()).log_prob(x) for x in test.split(500)])
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
