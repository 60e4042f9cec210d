"""Simulation-based calibration and expected coverage: are posteriors right over the data that a program makes?"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from tqdm import trange

from pyrodgm.core import Latent, evaluating
from pyrodgm.engine.surroundings import quiet
from pyrodgm.traces import refuse_auxiliary, sample_sites

__all__ = ["Calibration", "guide_calibration", "latent_calibration", "mcmc_calibration"]

DENSITY = "log density"


@dataclass(frozen=True)
class Calibration:
    r"""Ranks of the true latents among draws of their posterior; uniform on 0, ..., L where the posterior is right.

    A hump in the middle says that the posterior is too wide, a valley too narrow, a slope that it is shifted.

    Attributes:
        ranks: site -> (N, D), how many of the L draws lie below the truth, for each number of the site; under
            "log density", (N, 1), the rank of the truth's density.
        draws: L.
    Source: Talts et al. (2018), arXiv:1804.06788; Hermans et al. (2022), arXiv:2110.06581 (coverage).
    Example:
        >>> right = Calibration({"z": torch.arange(1000).remainder(10).unsqueeze(-1)}, draws=9)
        >>> right.p_value, Calibration({"z": torch.zeros(1000, 1).long()}, draws=9).p_value
        (1.0, 0.0)
    """

    ranks: Mapping[str, Tensor]
    draws: int

    @property
    def simulations(self) -> int:
        """N."""
        return len(next(iter(self.ranks.values())))

    @property
    def bins(self) -> int:
        """The largest number of equal bins of ranks, 20 at most, that expect five simulations each at least."""
        return _bins(self.simulations, self.draws)

    def histograms(self) -> dict[str, Tensor]:
        """Counts of the ranks in equal bins, site -> (bins, D)."""
        bins, width = self.bins, (self.draws + 1) // self.bins
        return {
            name: torch.nn.functional.one_hot(ranks // width, bins).sum(0).t() for name, ranks in self.ranks.items()
        }

    def chi_square(self) -> dict[str, Tensor]:
        """p-values of Pearson's test that the ranks are uniform, site -> (D,)."""
        found = {}
        for name, counts in self.histograms().items():
            expected = self.simulations / len(counts)
            statistic = (counts - expected).double().square().sum(0) / expected
            found[name] = torch.special.gammaincc(torch.full_like(statistic, (len(counts) - 1) / 2), statistic / 2)
        return found

    def kolmogorov(self) -> dict[str, Tensor]:
        r"""p-values of the largest gap between the ECDF of the ranks and the uniform one, site -> (D,).

        .. math:: P(\sqrt N D > t) \to 2 \sum_{k \ge 1} (-1)^{k-1} e^{-2 k^2 t^2}

        Ranks are discrete, which makes it conservative. Source: Kolmogorov (1933).
        """
        found = {}
        for name, ranks in self.ranks.items():
            counts = torch.zeros(self.draws + 1, ranks.shape[1], dtype=torch.float64, device=ranks.device)
            counts.scatter_add_(0, ranks.long(), torch.ones_like(ranks, dtype=counts.dtype))
            below = counts.cumsum(0) / self.simulations  # (L + 1, D)
            even = torch.arange(1, self.draws + 2, dtype=below.dtype, device=ranks.device) / (self.draws + 1)
            gap = (below - even.unsqueeze(-1)).abs().amax(0)
            t, k = gap * math.sqrt(self.simulations), torch.arange(1, 101, dtype=gap.dtype, device=gap.device)
            terms = (-1) ** (k - 1) * (-2 * k.square() * t.square().unsqueeze(-1)).exp()
            p = 2 * terms.sum(-1)
            # below 0.2 the series needs more terms, and its sum is 1 to twelve digits
            found[name] = torch.where(t < 0.2, torch.ones_like(p), p.clamp(0, 1))
        return found

    @property
    def p_value(self) -> float:
        """The least p-value of all tests times their number (Bonferroni): small where anything is wrong."""
        values = torch.cat([p for test in (self.chi_square(), self.kolmogorov()) for p in test.values()])
        return min(1.0, values.min().item() * len(values))

    def coverage(self, levels: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
        r"""Share of the simulations whose truth lies in the highest-density region of each level, and its error.

        Equal to the level where the posterior is right, below it where a guide is overconfident. A chain's region is
        that of the program's density: draws that lie too far out cover too much, wherever they are.

        Args:
            levels: inside (0, 1), (M,).
        Shapes: returns (M,), (M,): the share and its binomial standard error at the level.
        Source: Hermans et al. (2022); Lueckmann et al. (2021), arXiv:2101.04653.
        """
        levels = torch.as_tensor(levels, dtype=torch.float64)
        # the share of the draws that are denser than the truth is the level at which the region reaches it
        rank = self.ranks[DENSITY][:, 0].double().cpu()
        denser = self.draws - rank
        share = (denser < levels.unsqueeze(-1) * (self.draws + 1)).double().mean(-1)
        return share, (levels * (1 - levels) / self.simulations).sqrt()


def latent_calibration(
    model: Latent, context: Tensor | None = None, *, simulations: int = 1000, draws: int = 99
) -> Calibration:
    """Ranks of a latent model's z ~ p(z) among draws of its guide q(z | x) at x ~ p(x | z), all at once.

    Args:
        model: whose guide is judged against its own program.
        context: (N, C) for a conditional model, a row for each simulation.
        simulations: N, without a context.
        draws: L.
    Raises: ValueError for fewer than two simulations or one draw, or if no small number of bins divides L + 1;
        TypeError for a guide with auxiliary sites.
    Source: Talts et al. (2018), algorithm 1.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> found = latent_calibration(VAE.mlp(features=6, latent=2, hidden=[8]), simulations=50, draws=19)
        >>> found.ranks["z"].shape
        torch.Size([50, 2])
    """
    _, context = model.check(None, context)
    rows = simulations if context is None else len(context)
    _check_counts(rows, draws)
    with evaluating(model), poutine.block():
        truth: Any = poutine.trace(model).get_trace(None, context, n=rows)
        x = truth.nodes["x"]["value"]
        drawn = model.particle_trace(model.guide, draws, x, context)
        refuse_auxiliary(drawn, "latent_calibration")
        replayed = poutine.trace(poutine.replay(model.guide, trace=truth)).get_trace(x, context)
        ranks = {}
        for name, site in sample_sites(drawn).items():
            value = truth.nodes[name]["value"]
            ranks[name] = _ranks(site["value"].expand(draws, *value.shape), value).reshape(rows, -1)
        density = model.row_log_prob(drawn).expand(draws, rows)
        ranks[DENSITY] = _ranks(density, model.row_log_prob(replayed).expand(rows)).unsqueeze(-1)
    return Calibration(ranks, draws)


@torch.no_grad()
def guide_calibration(
    program: Callable[[], Any],
    guide: Callable[..., Any],
    observed: Sequence[str],
    *,
    simulations: int = 300,
    draws: int = 63,
    progress: bool = True,
) -> Calibration:
    """Ranks of a program's latents among draws of an amortized guide.

    Args:
        program: without data, so that it draws all its sites: ``lambda: model(None)``.
        guide: called with the values of the ``observed`` sites, in that order; samples the latent sites.
        observed: names of the sites that are data.
        simulations: N.
        draws: L of each posterior; the guide runs N x L times.
        progress: show a bar.
    Raises: ValueError if the program lacks an observed site, or a site of the guide, or if no small number of bins
        divides L + 1.
    Source: Talts et al. (2018), algorithm 1.
    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program():
        ...     pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0))
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(x / 2, 0.5 ** 0.5))
        >>> guide_calibration(program, guide, ["x"], simulations=20, draws=9, progress=False).ranks["z"].shape
        torch.Size([20, 1])
    """
    _check_counts(simulations, draws)
    found: list[dict[str, Tensor]] = []
    for _ in trange(simulations, desc="simulations", disable=not progress):
        with quiet(program, guide), poutine.block():
            truth, data = _simulate(program, observed)
            traces: list[Any] = [poutine.trace(guide).get_trace(*data.values()) for _ in range(draws)]
            own: Any = poutine.trace(poutine.replay(guide, trace=truth)).get_trace(*data.values())
        names = [name for name, site in sample_sites(own).items() if not site["is_observed"]]
        missing = set(names) - set(truth.nodes)
        if missing:
            raise ValueError(f"expected the guide's sites in the program, got {sorted(missing)} in the guide alone")
        ranks = {
            name: _ranks(torch.stack([t.nodes[name]["value"] for t in traces]), truth.nodes[name]["value"]).flatten()
            for name in names
        }
        density = torch.stack([torch.as_tensor(t.log_prob_sum()) for t in traces])
        ranks[DENSITY] = _ranks(density, torch.as_tensor(own.log_prob_sum())).reshape(1)
        found.append(ranks)
    return _gathered(found, draws)


def mcmc_calibration(
    program: Callable[[], Any],
    sampler: Callable[..., Any],
    observed: Sequence[str],
    *,
    simulations: int = 100,
    draws: int = 63,
    progress: bool = True,
) -> Calibration:
    """Ranks of a program's latents among draws of a Markov chain at the data that it made.

    Of a sampler's draws L are kept, evenly spaced with the chain running fastest, so that many chains give nearly
    independent ones; give it at least L effective draws, or the ranks pile up at the ends (algorithm 2).

    Args:
        program: without data, so that it draws all its sites.
        sampler: the conditioned program -> its draws: anything with ``samples``, or a mapping of them, site ->
            (chains, draws, *shape). An argument named seed gets another one in each simulation, without which the
            ranks would depend on each other: ``lambda p, seed: pyrodgm.mcmc(p, NUTS(), chains=64, seed=seed, ...)``.
        observed: names of the sites that are data.
        simulations: N runs of the sampler.
        draws: L.
        progress: show a bar; the sampler may have one of its own.
    Raises: ValueError if the program lacks an observed site, the sampler gives fewer than L draws, or no small number
        of bins divides L + 1.
    Source: Talts et al. (2018), algorithm 2.
    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program():
        ...     pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0))
        >>> def exact(conditioned):
        ...     x = pyro.poutine.trace(conditioned).get_trace().nodes["x"]["value"]
        ...     return {"z": x / 2 + 0.5 ** 0.5 * torch.randn(1, 9)}
        >>> mcmc_calibration(program, exact, ["x"], simulations=5, draws=9, progress=False).ranks["log density"].shape
        torch.Size([5, 1])
    """
    _check_counts(simulations, draws)
    found: list[dict[str, Tensor]] = []
    seeded = "seed" in inspect.signature(sampler).parameters
    for _ in trange(simulations, desc="simulations", disable=not progress):
        with torch.no_grad(), quiet(program):
            truth, data = _simulate(program, observed)
        conditioned = poutine.condition(program, data=data)
        seed = int(torch.randint(2**31, ()))
        with quiet(program), torch.enable_grad():  # the posterior of the program that made the data
            result = sampler(conditioned, seed=seed) if seeded else sampler(conditioned)
        samples = _thinned(getattr(result, "samples", result), draws)
        known = [n for n in samples if n in truth.nodes]  # a chain's own sites, such as a reparam's, have no truth
        with torch.no_grad(), quiet(program), poutine.block():
            ranks = {
                n: _ranks(samples[n].to(truth.nodes[n]["value"]), truth.nodes[n]["value"]).flatten() for n in known
            }
            density = [_joint(conditioned, {n: samples[n][i] for n in known}) for i in range(draws)]
            own = _joint(conditioned, {n: truth.nodes[n]["value"] for n in known})
        ranks[DENSITY] = _ranks(torch.stack(density), own).reshape(1)
        found.append(ranks)
    return _gathered(found, draws)


def _bins(simulations: int, draws: int) -> int:
    most = max(2, min(20, simulations // 5))
    fits = [b for b in range(2, most + 1) if (draws + 1) % b == 0]
    if not fits:
        raise ValueError(f"expected draws + 1 with a divisor of 2 to {most}, got draws={draws}; choose 63 or 99")
    return fits[-1]


def _check_counts(simulations: int, draws: int) -> None:
    if simulations < 2 or draws < 1:
        raise ValueError(f"expected simulations >= 2 and draws >= 1, got {simulations} and {draws}")
    _bins(simulations, draws)  # now, and not after all the work


def _simulate(program: Callable[[], Any], observed: Sequence[str]) -> tuple[Any, dict[str, Tensor]]:
    """A run of the program and what of it is data."""
    with poutine.block():
        trace: Any = poutine.trace(program).get_trace()
    free = {name for name, site in sample_sites(trace).items() if not site["is_observed"]}
    if not set(observed) <= free:
        raise ValueError(f"expected {list(observed)} among the sites that the program draws, got {sorted(free)}")
    return trace, {name: trace.nodes[name]["value"] for name in observed}


def _joint(program: Callable[[], Any], values: dict[str, Tensor]) -> Tensor:
    return torch.as_tensor(poutine.trace(poutine.condition(program, data=values)).get_trace().log_prob_sum())


def _thinned(samples: Mapping[str, Tensor], draws: int) -> dict[str, Tensor]:
    """(chains, draws, *shape) -> (L, *shape)."""
    chains, each = next(iter(samples.values())).shape[:2]
    if chains * each < draws:
        raise ValueError(f"expected at least {draws} draws from the sampler, got {chains} chains of {each}")
    # a round takes one draw of every chain: from the end, as far apart as there are rounds
    rounds = -(-draws // chains)
    i = torch.arange(draws)
    chain, draw = i % chains, each - 1 - (i // chains) * each // rounds
    return {name: samples[name][chain, draw] for name in samples}


def _ranks(draws: Tensor, truth: Tensor) -> Tensor:
    """How many draws lie below the truth, ties broken at random: (L, *shape), (*shape) -> (*shape)."""
    below, ties = (draws < truth).sum(0), (draws == truth).sum(0)
    return below + (torch.rand(ties.shape, device=ties.device) * (ties + 1)).long().clamp(max=len(draws))


def _gathered(found: list[dict[str, Tensor]], draws: int) -> Calibration:
    return Calibration({name: torch.stack([ranks[name] for ranks in found]) for name in found[0]}, draws)
