"""Effective draws a second of MCMC engines on the same posteriors, in one run: ours and Pyro's NUTS.

The figure is arviz's bulk ESS, the smallest over the parameters, a second of sampling, and a second of everything
(tracing, compiling, warm-up, sampling). A row whose R-hat exceeds 1.05 is marked: its ESS means nothing.

    python benchmarks/mcmc.py --models "eight schools" radon --chains 1 64 --engines NUTS ChEES Pyro
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from mcmc_models import MODELS, Model

import pyrodgm
from pyrodgm.diagnostics.inference_data import arviz, many_chains
from pyrodgm.kernels import HMC, NUTS, ChEES, Kernel

Found = tuple[dict[str, np.ndarray], float, float]  # draws by site, seconds of sampling, seconds in all


def ours(make: Callable[[], Kernel]) -> Callable[..., Found]:
    def run(model: Model, chains: int, options: argparse.Namespace) -> Found:
        torch._dynamo.reset()  # so that each engine pays for its own compiling
        posterior = pyrodgm.mcmc(
            model.program,
            make(),
            *model.args,
            chains=chains,
            warmup=options.warmup,
            draws=options.draws,
            seed=options.seed,
            compile=not options.eager,
            progress=False,
        )
        draws = {k: v.numpy() for k, v in posterior.samples.items()}
        return draws, posterior.timings["sampling_seconds"], posterior.timings["seconds"]

    return run


def pyro_nuts(model: Model, chains: int, options: argparse.Namespace) -> Found:
    """Pyro runs chains one after another here: one is timed, and the rate does not grow with more on one core."""
    from pyro.infer import mcmc as reference

    pyro.set_rng_seed(options.seed)
    warm = [0.0]

    def hook(kernel: Any, samples: Any, stage: str, i: int) -> None:
        if stage.lower().startswith("warmup"):
            warm[0] = time.perf_counter()

    began = time.perf_counter()
    draws, warmup = (options.draws, options.warmup) if not options.smoke else (20, 10)
    sampler = reference.MCMC(reference.NUTS(model.program), draws, warmup, disable_progbar=True, hook_fn=hook)
    sampler.run(*model.args)
    ended = time.perf_counter()
    found = {k: v.numpy() for k, v in sampler.get_samples(group_by_chain=True).items()}
    return found, ended - warm[0], ended - began


ENGINES: dict[str, Callable[..., Found]] = {
    "HMC": ours(HMC),
    "ChEES": ours(ChEES),
    "NUTS": ours(NUTS),
    "Pyro": pyro_nuts,
}


def score(draws: dict[str, np.ndarray], sites: tuple[str, ...]) -> tuple[float, float]:
    """Smallest bulk ESS and largest R-hat over the numbers of the sites that count."""
    az = arviz()
    ess, rhat = [], []
    with many_chains(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numbers that do not vary have no R-hat
        for name, values in draws.items():
            if sites and name not in sites:
                continue
            flat = values.reshape(*values.shape[:2], -1).astype(np.float64)
            for i in range(flat.shape[-1]):
                ess.append(float(az.ess(flat[..., i])))
                halves = np.concatenate(np.array_split(flat[:, : flat.shape[1] // 2 * 2, i], 2, axis=1))
                rhat.append(float(az.rhat(halves)))  # one chain too has two halves
    return min(ess), float(np.nanmax(rhat))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--chains", nargs="+", type=int, default=[1, 4, 64, 1024])
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true", help="no compiling")
    parser.add_argument("--out", default=None, help="a file for the rows as JSON lines")
    parser.add_argument("--smoke", action="store_true", help="a few steps of two small models, to see that it runs")
    options = parser.parse_args()
    if options.smoke:
        options.models, options.chains, options.eager = ["eight schools", "funnel"], [4], True
        options.warmup = options.draws = 30
    print(f"{'model':24s} {'chains':>6s} {'engine':8s} {'ESS':>9s} {'ESS/s':>10s} {'ESS/s in all':>13s} {'R-hat':>6s}")
    for name in options.models:
        model = MODELS[name]()
        for chains in options.chains:
            for engine in options.engines:
                if (engine == "Pyro" and chains != options.chains[0]) or (engine == "ChEES" and chains < 2):
                    continue
                draws, sampling, total = ENGINES[engine](model, chains, options)
                ess, rhat = score(draws, model.sites)
                row = {
                    "model": name,
                    "chains": 1 if engine == "Pyro" else chains,
                    "engine": engine,
                    "ess": ess,
                    "ess_per_second": ess / sampling,
                    "ess_per_second_in_all": ess / total,
                    "rhat": rhat,
                }
                mark = "" if rhat < 1.05 else " not converged"
                print(
                    f"{name:24s} {row['chains']:6d} {engine:8s} {ess:9.0f} {ess / sampling:10.1f} "
                    f"{ess / total:13.1f} {rhat:6.3f}{mark}",
                    flush=True,
                )
                if options.out:
                    with open(options.out, "a") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
