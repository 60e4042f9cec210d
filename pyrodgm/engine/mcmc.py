"""Markov chains over the posterior of any static Pyro program, all chains in one tensor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

from pyrodgm.core import Energy
from pyrodgm.engine.posterior import Posterior
from pyrodgm.engine.settings import check_count, check_seed
from pyrodgm.engine.store import DrawStore, described, digest, identity
from pyrodgm.engine.surroundings import quiet
from pyrodgm.engine.target import Target, as_target, moved
from pyrodgm.kernels.base import Info, Kernel, State
from pyrodgm.kernels.stochastic_gradient import SGLD
from pyrodgm.seeding import random_state

__all__ = ["mcmc"]

_BLOCK = 100  # draws between two visits to the host


def mcmc(
    program: Callable[..., Any] | Energy,
    kernel: Kernel,
    *args: Any,
    chains: int = 4,
    warmup: int = 1000,
    draws: int = 1000,
    thin: int = 1,
    seed: int = 0,
    device: torch.device | str | None = None,
    compile: bool = True,
    initial: Any = None,
    store: str | Path | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> Posterior:
    r"""Draws from p(z | x) of a Pyro program, or from an energy model, by many chains at once.

    The program's latent sites become one unconstrained vector a chain, with the energy

    .. math:: E(u) = -\log p(z(u), x) - \log \left| \det \frac{\partial z}{\partial u} \right|

    batched over the chains by ``torch.func``, traced once through Pyro's messengers and compiled; what cannot be
    traced runs as it is, with one warning. Warm-up tunes the kernel over all chains together, then it is fixed.
    The result is a function of the arguments: equal seeds give equal draws on one machine.

    Args:
        program: static (the same sites in every run), conditioned by ``obs=`` or ``poutine.condition``; discrete latent
            sites are summed out by enumeration. A plate with ``subsample_size`` reads fresh rows at every step, each
            chain its own, and wants SGLD or SGHMC. Or an :class:`~pyrodgm.Energy` model, whose x is drawn.
        kernel: from :mod:`pyrodgm.kernels`, such as ``NUTS()``, ``ChEES()``, ``HMC()``, ``MALA(0.1)``.
        args, kwargs: what the program is called with, an argument of a name below by ``functools.partial``; for an
            energy model at most its context.
        chains: rows of the state; hundreds cost little more than one.
        warmup: steps that tune the kernel and are thrown away.
        draws: kept of each chain.
        thin: steps for each draw that is kept, whose statistics tell of all of them where they count divergences and
            leapfrog steps.
        seed: of the starts and of all noise.
        device: where to run; the default is where the program's values are.
        compile: compile the traced graph, seconds once for each number of chains; False runs it op by op.
        initial: where chains start: name -> value, one for all or (chains, *shape); for an energy model x. The
            default is uniform on (-2, 2) in the unconstrained space, or the model's own start.
        store: a folder that draws are written to as they are made (``draws.zarr``, in arviz's layout), so that memory
            does not grow with them. Where it holds draws of the same run already, that run goes on.
        progress: show a bar.
    Shapes: the draws of a site are (chains, draws, *site shape), in its own support.
    Raises: ValueError for a program that is not static, has no continuous latent site, has discrete sites without
        finite support, or no finite energy to start from; for data outside the support of their site; for numbers
        below 1.
    Source: Phan et al. (2019), arXiv:1912.11554; Lao et al. (2020), arXiv:2002.01184.
    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyrodgm.kernels import HMC
        >>> def program(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> quiet = {"compile": False, "progress": False}
        >>> posterior = mcmc(program, HMC(), torch.randn(20), chains=8, warmup=50, draws=25, **quiet)
        >>> posterior["scale"].shape
        torch.Size([8, 25])
    """
    if not isinstance(kernel, Kernel):
        raise TypeError(f"expected a kernel such as NUTS() from pyrodgm.kernels, got {type(kernel).__name__}")
    chains, draws, thin = (check_count(*v) for v in (("chains", chains), ("draws", draws), ("thin", thin)))
    warmup, seed = check_count("warmup", warmup, 0), check_seed(seed)
    began = time.perf_counter()
    place = None if device is None else torch.device(device)
    if place is None and isinstance(program, Energy):
        place = program.device
    given = (value.device for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
    with quiet(program), random_state(place or next(given, torch.device("cpu")), seed):
        target = as_target(program, args, kwargs, place, compile)
        generator = torch.Generator(target.device).manual_seed(seed)
        run = _Run(target, kernel, generator, warmup, draws, thin, progress)
        kept = None
        if store is not None:
            of_program = identity(program, *moved((args, kwargs), target.device))
            of_program["settings"] = digest([described(kernel), _named(initial)])
            kept = DrawStore(Path(store), _fingerprint(kernel, chains, warmup, thin, seed, of_program))
        resumed = None if kept is None else kept.resume(kernel, target.potential, generator)
        if resumed is None:
            run.begin(target.start(chains, initial, generator))
        else:
            run.state, run.kernel, run.done = resumed
        started = time.perf_counter()
        blocks = run.blocks()
        samples: Mapping[str, Tensor]
        stats: Mapping[str, Tensor]
        if kept is None:
            parts = list(blocks)
            samples = {k: torch.cat([p[0][k] for p in parts], 1) for k in parts[0][0]}
            stats = {k: torch.cat([p[1][k] for p in parts], 1) for k in parts[0][1]}
        else:
            for block in blocks:
                kept.append(*block, run.state, run.kernel, generator)
            samples, stats = kept.read(draws)
    ended = time.perf_counter()
    timings = {
        "seconds": ended - began,
        "compile_seconds": started - began - run.warmup_seconds,
        "warmup_seconds": run.warmup_seconds,
        "sampling_seconds": ended - started,
    }
    if place is not None:
        args, kwargs = moved((args, kwargs), place)  # where the program's own values are now
    return Posterior(samples, stats, run.kernel, program, args, kwargs, timings, seed, target.device)


class _Run:
    """The chains of one call, from their start to the last draw."""

    def __init__(
        self, target: Target, kernel: Kernel, generator: torch.Generator, warmup: int, draws: int, thin: int, bar: bool
    ) -> None:
        self.target, self.kernel, self.generator = target, kernel, generator
        self.warmup, self.draws, self.thin, self.progress = warmup, draws, thin, bar
        self.done = 0
        self.warmup_seconds = 0.0
        self.state: State

    @torch.no_grad()
    def begin(self, positions: Tensor) -> None:
        """Put the chains at their start and tune the kernel."""
        self.state = self.kernel.init(self.target.potential, positions)
        before = time.perf_counter()
        if self.warmup:
            tuner = self.kernel.tuner(self.state, self.warmup, self.generator)
            with tqdm(total=self.warmup, desc="warmup", disable=not self.progress) as bar:
                for _ in range(self.warmup):
                    old = self.state
                    self.state, info = tuner.kernel.step(old, self.generator)
                    tuner.update(old, self.state, info)
                    _show(bar, info, tuner.kernel)
            self.kernel = tuner.kernel
        self.warmup_seconds = time.perf_counter() - before

    @torch.no_grad()
    def blocks(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Draws and statistics, each name to (chains, block, *shape) on the CPU."""
        with tqdm(total=self.draws, initial=self.done, desc="draws", disable=not self.progress) as bar:
            while self.done < self.draws:
                rows = min(_BLOCK, self.draws - self.done)
                positions, stats = [], list[dict[str, Tensor]]()
                for _ in range(rows):
                    self.state, info = self.kernel.step(self.state, self.generator)
                    for _ in range(self.thin - 1):
                        before = info
                        self.state, info = self.kernel.step(self.state, self.generator)
                        info = _with_counts(info, before)
                    positions.append(self.state.positions)
                    stats.append(self._stats(info))
                    _show(bar, info, self.kernel)
                self.done += rows
                flat = torch.stack(positions, 1)  # (chains, rows, *event)
                sites = self.target.sites(flat.flatten(0, 1))
                samples = {k: v.unflatten(0, flat.shape[:2]).cpu() for k, v in sites.items()}
                yield samples, {k: torch.stack([s[k] for s in stats], 1).cpu() for k in stats[0]}

    def _stats(self, info: Info) -> dict[str, Tensor]:
        step_size = getattr(self.kernel, "step_size", None)
        if isinstance(self.kernel, SGLD):
            step_size = self.kernel.step_size_at(self.state.moves - 1)
        found = {
            "lp": None if self.state.energy is None else -self.state.energy,
            "acceptance_rate": info.accept_prob,
            "diverging": info.diverging,
            "n_steps": info.steps,
            "tree_depth": info.depth,
            "energy": info.energy,
            "step_size": None if step_size is None else torch.full_like(info.accept_prob, step_size),
        }
        return {k: v for k, v in found.items() if v is not None}


def _with_counts(info: Info, before: Info) -> Info:
    """What a step did, with the divergences and the leapfrog steps of those before it."""
    if info.diverging is not None and before.diverging is not None:
        info = info._replace(diverging=info.diverging | before.diverging)
    if info.steps is not None and before.steps is not None:
        info = info._replace(steps=info.steps + before.steps)
    return info


def _named(initial: Any) -> Any:
    """Starts with the names of their sites, in one order."""
    return [[name, initial[name]] for name in sorted(initial)] if isinstance(initial, dict) else initial


def _show(bar: Any, info: Info, kernel: Kernel) -> None:
    bar.update()
    if not bar.disable and bar.n == bar.last_print_n:  # as often as the bar is drawn: reading a number waits for it
        step_size = getattr(kernel, "step_size", None)
        parts = {"acceptance": f"{info.accept_prob.mean().item():.2f}"}
        if step_size is not None:
            parts["step"] = f"{step_size:.2g}"
        bar.set_postfix(parts, refresh=False)


def _fingerprint(
    kernel: Kernel, chains: int, warmup: int, thin: int, seed: int, of_program: dict[str, Any]
) -> dict[str, Any]:
    settings = {"kernel": type(kernel).__name__, "chains": chains, "warmup": warmup, "thin": thin, "seed": seed}
    return settings | of_program
