"""Posterior collapse of a sentence VAE on the Penn Treebank, and its remedies, by the use of the latents.

A strong decoder needs no latents: a plain bound ends where the guide is the prior (KL about 0, no active unit, no
mutual information), and the model is an LSTM language model with a latent for show (Bowman et al., 2016,
arXiv:1511.06349). Each row trains the same nets for the same number of steps; "core-seconds" is the processor's time
that they took.
"-bound" is in nats a sentence on the test set, "ppl" the perplexity a token by it (the end counted); both are exact for
the language model. "nll" is by importance sampling, on the first ``--estimate`` test rows only.
Sentences are cut to ``--length`` tokens and words beyond the ``--vocabulary`` most frequent are <unk>, so perplexities
are not those of the papers, which have 10,000 words: Bowman et al. print 116 for the language model and 119 (a bound)
for the VAE.
Data: ``<data-dir>/ptb/ptb.{train,test}.txt.gz``, one sentence a line.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyrodgm
from pyrodgm.core import GenerativeModel
from pyrodgm.data import Vocabulary, read_lines
from pyrodgm.evaluation import importance_estimate, latent_use, log_likelihood
from pyrodgm.latent import VAE
from pyrodgm.nets import RecurrentNet, TokenEncoder
from pyrodgm.objectives import (
    ELBO,
    CyclicalAnnealing,
    FreeBits,
    InfoVAE,
    LaggingInference,
    LinearAnnealing,
    MaximumLikelihood,
    Objective,
)
from pyrodgm.objectives.lagging import StopLagging
from pyrodgm.tractable import Parametric, Recurrent, StandardNormal


@dataclass(frozen=True)
class Row:
    """A row of the table: what differs from the plain bound.

    Attributes:
        objective: of the number of steps.
        word_dropout: of the decoder.
        skip: z enters the logits of every step.
        stop: ends the aggressive phase of lagging inference by the information about held-out rows.
    """

    objective: Callable[[int], Objective]
    word_dropout: float = 0.0
    skip: bool = False
    stop: bool = False


def _cyclical(steps: int) -> CyclicalAnnealing:
    return CyclicalAnnealing(max(1, steps // 4))


ROWS: dict[str, Row] = {
    "language model, no latents": Row(lambda steps: MaximumLikelihood()),
    "VAE, plain bound": Row(lambda steps: ELBO()),
    "linear annealing": Row(lambda steps: ELBO(beta=LinearAnnealing(max(1, steps // 2)))),
    "cyclical annealing": Row(lambda steps: ELBO(beta=_cyclical(steps))),
    "free bits, 0.25 a dimension": Row(lambda steps: ELBO(free_bits=FreeBits(0.25))),
    "lagging inference, 3 steps": Row(lambda steps: LaggingInference(3), stop=True),
    "word dropout 0.5": Row(lambda steps: ELBO(), word_dropout=0.5),
    "skip to every logit": Row(lambda steps: ELBO(), skip=True),
    "InfoVAE (alpha 0.9, lambda 100)": Row(lambda steps: InfoVAE(0.9, 100.0)),
    "InfoVAE (alpha 1, lambda 1000)": Row(lambda steps: InfoVAE(1.0, 1000.0)),
    "skip and linear annealing": Row(lambda steps: ELBO(beta=LinearAnnealing(max(1, steps // 2))), skip=True),
    "word dropout 0.5 and linear annealing": Row(
        lambda steps: ELBO(beta=LinearAnnealing(max(1, steps // 2))), word_dropout=0.5
    ),
    "cyclical, free bits and skip": Row(lambda steps: ELBO(beta=_cyclical(steps), free_bits=FreeBits(0.25)), skip=True),
}


def build(name: str, row: Row, words: int, options: argparse.Namespace) -> GenerativeModel:
    context = 0 if name.startswith("language model") else options.latent
    net = RecurrentNet(words, [options.hidden], options.embedding, context, skip=row.skip)
    decoder = Recurrent(options.length, words, context=context, word_dropout=row.word_dropout, net=net)
    if not context:
        return decoder
    reader = TokenEncoder(options.length, words, 2 * context, [options.hidden], options.embedding)
    return VAE(StandardNormal(context), decoder, Parametric(dist.Normal, context, context=options.length, net=reader))


def train(
    model: GenerativeModel, row: Row, x: Tensor, valid: Tensor, options: argparse.Namespace
) -> Sequence[StopLagging]:
    callbacks = [StopLagging(valid[:500])] if row.stop else []
    pyrodgm.fit(
        model,
        x,
        row.objective(options.steps),
        steps=options.steps,
        batch_size=options.batch_size,
        optimizer=lambda p: torch.optim.Adam(p, lr=options.lr, fused=True),
        lr_schedule=lambda optimizer, total: CosineAnnealingLR(optimizer, total),
        clip=5.0,
        callbacks=callbacks,
        seed=options.seed,
        device=options.device,
        progress=False,
    )
    return callbacks


def measure(model: GenerativeModel, test: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """The bound and the use of the latents on all test rows, the likelihood on some of them."""
    # tokens that are scored: all words, and the end where the row has one
    places = ((test != 0).sum(-1) + (test == 0).any(-1)).sum().item() / len(test)
    if not isinstance(model, VAE):
        found = log_likelihood(model, test)
        part = log_likelihood(model, test[: options.estimate])
        return {"bound": found.value, "ppl": math.exp(-found.value / places), "nll": -part.value, "nll_se": 0.0}
    model.eval()
    with torch.no_grad():
        held = ELBO(4)
        bound = -sum(held.held_out(model, x.to(model.device)).item() * len(x) for x in test.split(200)) / len(test)
    part = importance_estimate(model, test[: options.estimate], particles=options.particles, batch_size=50)
    use = latent_use(model, test[:2000])
    return {
        "bound": bound,
        "ppl": math.exp(-bound / places),
        "nll": -part.value,
        "nll_se": part.sampling_error,
        **use._asdict(),
    }


def show(name: str, steps: int, seconds: float, f: dict[str, Any]) -> None:
    use = f"{f['kl']:.2f} | {f['active']} of {f['units']} | {f['information']:.2f}" if "kl" in f else "- | - | -"
    print(
        f"| {name} | {-f['bound']:.2f} | {f['ppl']:.1f} | {f['nll']:.2f} | {use} | {steps} | {seconds:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--vocabulary", type=int, default=2000)
    parser.add_argument("--length", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--embedding", type=int, default=128)
    parser.add_argument("--latent", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2630, help="of 32 sentences: 1315 are an epoch")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--estimate", type=int, default=500, help="test rows of the importance sampling")
    parser.add_argument("--particles", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--smoke", action="store_true", help="a few steps and rows: does it run?")
    parser.add_argument("--out", type=Path, default=None, help="JSON lines, one a row, as they come")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    parts = {part: read_lines(options.data_dir / "ptb" / f"ptb.{part}.txt.gz") for part in ("train", "valid", "test")}
    vocabulary = Vocabulary.of(parts["train"], options.vocabulary)
    x, valid, test = (vocabulary.encode(lines, options.length) for lines in parts.values())
    if options.smoke:
        options.steps, options.estimate, options.particles = 4, 40, 25
        x, valid, test = x[:200], valid[:60], test[:60]
    unknown = ((x == 1).sum() / (x > 0).sum()).item()
    cut = (x[:, -1] != 0).float().mean().item()
    print(f"{len(x)} sentences, {len(vocabulary)} words ({unknown:.0%} of the tokens unknown), {cut:.0%} cut at "
          f"{options.length} tokens; {options.steps} steps of {options.batch_size}, seed {options.seed}\n")  # fmt: skip
    print("| | -bound | ppl | nll | KL | active | I(x; z) | steps | core-seconds |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.rows:
        torch.manual_seed(options.seed)
        model = build(name, ROWS[name], len(vocabulary), options)
        start = time.process_time()
        callbacks = train(model, ROWS[name], x, valid, options)
        seconds = time.process_time() - start
        figures = measure(model, test, options)
        show(name, options.steps, seconds, figures)
        if callbacks:
            print(f"information about held-out rows after each epoch: {[round(v, 2) for v in callbacks[0].history]}")
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(
                    json.dumps(
                        {"row": name, "seed": options.seed, "steps": options.steps, "seconds": seconds, **figures}
                    )
                    + "\n"
                )


if __name__ == "__main__":
    main()
