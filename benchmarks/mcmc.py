"""Effective draws a second of MCMC engines on the same posteriors, in one run.

Ours (HMC, ChEES, NUTS, MEADS, HMC with a low-rank metric) beside Pyro's NUTS, NumPyro's NUTS (vectorised chains,
jitted) and blackjax's NUTS (vmap, jit), all in float32. The figure is arviz's bulk ESS, the smallest over the
parameters, a second of sampling, and a second of everything (tracing, compiling, warm-up, sampling). A row whose R-hat
exceeds 1.05 is marked: its ESS means nothing.

Each engine compiles anew, with no kernel left from the one before; with ``--cell-seconds`` each has a process of its
own and is stopped when it takes longer than that. Pyro's draws are sequential and slow: it makes one
chain, with warm-up of its own length, and stops after ``--pyro-seconds`` of sampling.

After each model the engines' posterior means are compared with those of the engine of the largest smallest ESS: the
largest difference in Monte Carlo standard errors over all parameters, beside the bound that independent correct engines
exceed once in a thousand comparisons of so many parameters. Engines that an earlier call wrote to ``--out`` with
the same settings are compared along, so slow engines can have a call each.

    python benchmarks/mcmc.py --models "eight schools" radon --chains 1 64 --engines NUTS ChEES NumPyro
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from apart import within
from mcmc_models import MODELS, Model
from pyro import poutine
from scipy.stats import norm
from torch._inductor.utils import fresh_cache

import pyrodgm
from pyrodgm.diagnostics.inference_data import arviz, many_chains
from pyrodgm.kernels import HMC, MEADS, NUTS, ChEES, Kernel, LowRank

Found = tuple[dict[str, np.ndarray], float, float]  # draws by site, seconds of sampling, seconds in all


class Score(NamedTuple):
    """Of the parameters that count: smallest bulk ESS, largest R-hat, and of all parameters means and their errors."""

    ess: float
    rhat: float
    mean: np.ndarray
    error: np.ndarray


def ours(make: Callable[..., Kernel]) -> Callable[..., Found]:
    def run(model: Model, chains: int, options: argparse.Namespace) -> Found:
        with nullcontext() if options.eager else fresh_cache():
            posterior = pyrodgm.mcmc(
                model.program,
                make() if options.target is None else make(target=options.target),
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


class _Enough(Exception):  # noqa: N818
    """Pyro's chain has had its time."""


def pyro_nuts(model: Model, chains: int, options: argparse.Namespace) -> Found:
    """One chain: Pyro's chains run one after another in a process, so the rate is the same for more."""
    from pyro.infer import mcmc as reference

    pyro.set_rng_seed(options.seed)
    kept: list[dict[str, torch.Tensor]] = []
    warm = [0.0]

    def hook(kernel: Any, samples: Any, stage: str, i: int) -> None:
        if stage.lower().startswith("warmup"):
            warm[0] = time.perf_counter()
            return
        kept.append({k: kernel.transforms[k].inv(v) if k in kernel.transforms else v for k, v in samples.items()})
        if time.perf_counter() - warm[0] > options.pyro_seconds:
            raise _Enough

    began = time.perf_counter()
    kernel = reference.NUTS(model.program, target_accept_prob=options.target or 0.8)
    sampler = reference.MCMC(
        kernel, options.draws, min(options.warmup, options.pyro_warmup), disable_progbar=True, hook_fn=hook
    )
    with suppress(_Enough):
        sampler.run(*model.args)
    ended = time.perf_counter()
    found = [_with_deterministic(model, draw) for draw in kept]
    return {k: np.stack([d[k] for d in found])[None] for k in found[0]}, ended - warm[0], ended - began


def _with_deterministic(model: Model, draw: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """A draw's latent sites, and what the program computes of them."""
    with torch.no_grad():
        trace = poutine.trace(poutine.condition(model.program, data=draw)).get_trace(*model.args)
    fixed = {
        k: s["value"] for k, s in trace.nodes.items() if s["type"] == "sample" and s["infer"].get("_deterministic")
    }
    return {k: v.numpy() for k, v in {**draw, **fixed}.items()}


def in_jax(name: str) -> Callable[..., Found]:
    def run(model: Model, chains: int, options: argparse.Namespace) -> Found:
        import mcmc_numpyro

        return getattr(mcmc_numpyro, name)(
            model, chains, options.warmup, options.draws, options.seed, options.target or 0.8
        )

    return run


ENGINES: dict[str, Callable[..., Found]] = {
    "HMC": ours(HMC),
    "ChEES": ours(ChEES),
    "NUTS": ours(NUTS),
    "MEADS": ours(lambda **_: MEADS()),  # it has no acceptance to aim at
    "HMC low-rank": ours(lambda **settings: HMC(metric=LowRank(), **settings)),
    "NumPyro": in_jax("numpyro_nuts"),
    "blackjax": in_jax("blackjax_nuts"),
    "Pyro": pyro_nuts,
}

FEWEST = {"ChEES": 2, "MEADS": 8}  # chains


def score(draws: dict[str, np.ndarray], sites: tuple[str, ...]) -> Score:
    az = arviz()
    ess, rhat, mean, error = [], [], [], []
    with many_chains(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numbers that do not vary have no R-hat
        for name in sorted(draws):
            if sites and name not in sites:
                continue
            flat = draws[name].reshape(*draws[name].shape[:2], -1).astype(np.float64)
            for i in range(flat.shape[-1]):
                ess.append(float(az.ess(flat[..., i])))
                halves = np.concatenate(np.array_split(flat[:, : flat.shape[1] // 2 * 2, i], 2, axis=1))
                rhat.append(float(az.rhat(halves)))  # one chain too has two halves
                mean.append(flat[..., i].mean())
                error.append(float(az.mcse(flat[..., i])))
    return Score(min(ess), float(np.nanmax(rhat)), np.array(mean), np.array(error))


def compare_means(scores: dict[str, Score]) -> dict[str, float]:
    """Of every engine the largest difference of a mean from the surest engine's, in Monte Carlo standard errors."""
    surest = max(scores, key=lambda name: scores[name].ess if scores[name].rhat < 1.05 else 0)
    b = scores[surest]
    return {
        name: float(np.max(np.abs(a.mean - b.mean) / np.sqrt(a.error**2 + b.error**2)))
        for name, a in scores.items()
        if name != surest
    }


def cell(name: str, engine: str, chains: int, options: argparse.Namespace) -> tuple[Score, float, float]:
    """One engine on one model: the score, seconds of sampling, seconds in all."""
    torch.set_num_threads(options.threads)
    if {"NumPyro", "blackjax"} & set(options.engines):
        _prepare()
    model = MODELS[name]()
    draws, sampling, total = ENGINES[engine](model, chains, options)
    return score(draws, model.sites), sampling, total


@cache
def _prepare() -> None:
    """What a process does once (libraries, the compilers' own start) is nobody's time."""
    torch._inductor.compile(torch.fx.symbolic_trace(lambda x: (x + 1,)), [torch.ones(3)])(torch.ones(3))
    import jax

    jax.jit(lambda x: x + 1)(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--chains", nargs="+", type=int, default=[1, 4, 64, 1024])
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--pyro-warmup", type=int, default=200)
    parser.add_argument("--pyro-seconds", type=float, default=30.0)
    parser.add_argument("--target", type=float, default=None, help="acceptance of every engine; default: each its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="no compiling")
    parser.add_argument(
        "--cell-seconds", type=float, default=None, help="each engine in a process, for so long at most"
    )
    parser.add_argument("--out", default=None, help="a file for the rows as JSON lines")
    parser.add_argument("--smoke", action="store_true", help="a few steps of two small models, to see that it runs")
    options = parser.parse_args()
    if options.smoke:
        options.models, options.chains, options.eager = ["eight schools", "funnel"], [4], True
        options.engines = [e for e in options.engines if e not in ("NumPyro", "blackjax")]
        options.warmup = options.draws = 30
        options.pyro_warmup = 10
    print(f"{'model':24s} {'chains':>6s} {'engine':12s} {'ESS':>9s} {'ESS/s':>10s} {'ESS/s in all':>13s} {'R-hat':>6s}")
    for name in options.models:
        for chains in options.chains:
            settings = {"model": name, "of": chains, "seed": options.seed, "warmup": options.warmup}
            settings |= {"draws": options.draws, "target": options.target}
            scores = _read(options.out, settings)
            for engine in options.engines:
                if (engine == "Pyro" and chains != options.chains[0]) or (engine in FEWEST and chains < FEWEST[engine]):
                    continue
                asked = (name, engine, chains, options)
                answer = within(options.cell_seconds, cell, *asked) if options.cell_seconds else cell(*asked)
                if answer is None:
                    print(f"{name:24s} {chains:6d} {engine:12s} no end in {options.cell_seconds:.0f} s", flush=True)
                    continue
                found, sampling, total = answer
                scores[engine] = found
                row = {
                    **settings,
                    "chains": 1 if engine == "Pyro" else chains,
                    "engine": engine,
                    "ess": found.ess,
                    "ess_per_second": found.ess / sampling,
                    "ess_per_second_in_all": found.ess / total,
                    "seconds": sampling,
                    "seconds_in_all": total,
                    "rhat": found.rhat,
                    "mean": found.mean.tolist(),
                    "error": found.error.tolist(),
                }
                mark = "" if found.rhat < 1.05 else " not converged"
                print(
                    f"{name:24s} {row['chains']:6d} {engine:12s} {found.ess:9.0f} {found.ess / sampling:10.1f} "
                    f"{found.ess / total:13.1f} {found.rhat:6.3f}{mark}",
                    flush=True,
                )
                _write(options.out, row)
            if not scores:
                continue
            count = len(next(iter(scores.values())).mean)
            bound = float(norm.isf(0.0005 / count))
            off = compare_means(scores)
            print(f"means of {count} parameters, bound {bound:.1f} standard errors: {_listed(off)}", flush=True)
            _write(options.out, {**settings, "means": off, "bound": bound, "parameters": count})


def _listed(off: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in off.items())


def _read(path: str | None, settings: dict[str, Any]) -> dict[str, Score]:
    """What an earlier call with the same settings found."""
    if path is None or not os.path.exists(path):
        return {}
    with open(path) as file:
        rows = [json.loads(line) for line in file]
    rows = [row for row in rows if "engine" in row and all(row[k] == v for k, v in settings.items())]
    return {r["engine"]: Score(r["ess"], r["rhat"], np.array(r["mean"]), np.array(r["error"])) for r in rows}


def _write(path: str | None, row: dict[str, Any]) -> None:
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
