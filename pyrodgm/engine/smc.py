"""Evidence and posterior of any static Pyro program by sequential Monte Carlo, from its prior to its posterior."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from pyrodgm.engine.batched import BatchedEnergy
from pyrodgm.engine.posterior import Posterior
from pyrodgm.engine.predictive import check_ancestral
from pyrodgm.engine.surroundings import quiet, validation
from pyrodgm.engine.target import ProgramTarget, as_target, moved
from pyrodgm.engine.unconstrained import UnconstrainedProgram, beside
from pyrodgm.kernels.base import Kernel
from pyrodgm.kernels.hmc import HMC
from pyrodgm.kernels.smc import sequential_monte_carlo
from pyrodgm.seeding import random_state
from pyrodgm.traces import is_deterministic, refuse_unnormalised

__all__ = ["Evidence", "smc"]


class Evidence(NamedTuple):
    """What :func:`smc` finds.

    Attributes:
        log_z: log p(x) of the program's data, nats.
        standard_error: of log_z, by the spread of independent runs.
        posterior: the particles as draws; a run is a chain.
        betas: inverse temperatures of each run.
    """

    log_z: float
    standard_error: float
    posterior: Posterior
    betas: list[list[float]]


class _Prior(Messenger):
    """The program with its data left out of the density."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not is_deterministic(msg):
            msg["mask"] = False


def smc(
    program: Callable[..., Any],
    *args: Any,
    kernel: Kernel | None = None,
    particles: int = 1000,
    runs: int = 8,
    moves: int = 5,
    ess: float = 0.5,
    seed: int = 0,
    device: torch.device | str | None = None,
    compile: bool = False,
    progress: bool = True,
    **kwargs: Any,
) -> Evidence:
    r"""log p(x) and draws from p(z | x) of a Pyro program, by the path :math:`p(z) \, p(x \mid z)^\beta`.

    Args:
        program: as :func:`pyrodgm.mcmc` takes it; ``pyro.factor`` counts as data.
        args, kwargs: what the program is called with; an argument of a name below goes in by ``functools.partial``.
        kernel: moves the particles in the unconstrained space; default ``HMC()``, tuned at every temperature.
        particles: N of each run.
        runs: independent populations, two at least; they give the standard error.
        moves, ess: as :func:`pyrodgm.kernels.sequential_monte_carlo` has them.
        seed: of all noise.
        device: where to run; the default is where the program's values are.
        compile: compile the energies' graphs.
        progress: show a bar.
    Raises: ValueError for a program that is not static, has no continuous latent site, does not draw from its own
        prior (NeuTra's reparameterisation), or whose data are scored up to a log Z (an energy model's); for data that
        no particle explains; for numbers out of range. TypeError for an energy model, which has ``log_partition``,
        and for a kernel that :func:`pyrodgm.kernels.sequential_monte_carlo` refuses.
    Source: Del Moral, Doucet and Jasra (2006), Sequential Monte Carlo samplers, JRSS B 68; Chopin (2002).
    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
        >>> found = smc(program, particles=50, runs=3, progress=False)
        >>> found.posterior["z"].shape
        torch.Size([3, 50])
    """
    if particles < 2 or runs < 2:
        raise ValueError(f"expected particles >= 2 and runs >= 2, got {particles} and {runs}")
    began = time.perf_counter()
    kernel = HMC() if kernel is None else kernel
    place = None if device is None else torch.device(device)
    with quiet(program), random_state(place or torch.device("cpu"), seed):
        target = as_target(program, args, kwargs, place, compile)
        if not isinstance(target, ProgramTarget):
            raise TypeError(f"expected a Pyro program, got {type(program).__name__}; use its log_partition()")
        if place is not None:
            args, kwargs = moved((args, kwargs), place)
        reference = UnconstrainedProgram(_Prior()(program), args, kwargs)
        reference.slots = target.program.slots  # the masks of the data tell what obs_mask= leaves unread
        drawn = _run(reference)
        check_ancestral(drawn)
        refuse_unnormalised(drawn, "the evidence")
    with quiet(program), random_state(target.device, seed):
        generator = torch.Generator(target.device).manual_seed(seed)
        start = _draws(reference, runs * particles).unflatten(0, (runs, particles))
        found = sequential_monte_carlo(
            BatchedEnergy(reference, compile),
            target.potential,
            start,
            kernel,
            moves=moves,
            ess=ess,
            generator=generator,
            progress=progress,
        )
        sites = target.sites(found.positions.flatten(0, 1))
    samples = {name: value.unflatten(0, (runs, particles)).cpu() for name, value in sites.items()}
    timings = {"seconds": time.perf_counter() - began}
    posterior = Posterior(samples, {}, kernel, program, args, kwargs, timings, seed, target.device)
    return Evidence(found.log_z.item(), found.standard_error.item(), posterior, found.betas)


@torch.no_grad()
def _run(prior: UnconstrainedProgram) -> Any:
    with poutine.block():
        return poutine.trace(prior.program).get_trace(*prior.args, **prior.kwargs)


@torch.no_grad()
def _draws(prior: UnconstrainedProgram, n: int) -> Tensor:
    """Ancestral draws in the unconstrained space, (n, D)."""

    def one() -> Tensor:
        trace = _run(prior)
        parts = []
        for name, slot in prior.slots.items():
            site: Any = trace.nodes[name]
            u = biject_to(site["fn"].support).inv(site["value"]).expand(slot.shape)
            if slot.unread is not None:
                u = torch.where(beside(slot.unread, u), torch.randn_like(u), u)
            parts.append(u.reshape(-1).to(prior.dtype))
        return torch.cat(parts)

    with validation(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # the sampler's, which the loop has too
        try:
            return torch.func.vmap(lambda _: one(), randomness="different")(torch.zeros(n, device=prior.device))
        except (RuntimeError, NotImplementedError, ValueError):  # a sampler that vmap has no rule for
            return torch.stack([one() for _ in range(n)])
