"""What chains found: draws by site, statistics of the sampler, and arviz's view of both."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyrodgm.engine.predictive import log_likelihood, observed_data, posterior_predictive, prior
from pyrodgm.kernels.base import Kernel

__all__ = ["Posterior"]


@dataclass(repr=False)
class Posterior:
    r"""Draws of :func:`pyrodgm.mcmc`.

    ``posterior["site"]`` is the tensor (chains, draws, \*site shape) of a site in its own support.

    Attributes:
        samples: latent and deterministic sites by name, (chains, draws, \*site shape); for an energy model "x".
        sample_stats: (chains, draws) each: "lp", the log density in the unconstrained space, "acceptance_rate",
            "step_size", and for Hamiltonian kernels "diverging", "n_steps", "tree_depth", "energy".
        kernel: as warm-up tuned it.
        program, args, kwargs: what was sampled.
        timings: "seconds" in all, of which "compile_seconds", "warmup_seconds", "sampling_seconds".
        seed: of the run.
        device: where the chains ran, and the program runs anew.
    Example:
        >>> import torch
        >>> posterior = Posterior({"mu": torch.randn(4, 100)}, {"energy": torch.randn(4, 100)})
        >>> posterior["mu"].shape, posterior.ebfmi().shape
        (torch.Size([4, 100]), torch.Size([4]))
    """

    samples: Mapping[str, Tensor]
    sample_stats: Mapping[str, Tensor] = field(default_factory=dict)
    kernel: Kernel | None = None
    program: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    device: torch.device | None = None

    def __getitem__(self, site: str) -> Tensor:
        if site not in self.samples:
            raise KeyError(f"expected one of the sites {sorted(self.samples)}, got {site!r}")
        return self.samples[site]

    def __repr__(self) -> str:
        first = next(iter(self.samples.values()))
        chains, draws = first.shape[:2]
        parts = [f"{chains} chains x {draws} draws of {', '.join(self.samples)}"]
        if self.kernel is not None:
            parts.append(f"by {type(self.kernel).__name__}")
        if "acceptance_rate" in self.sample_stats:
            parts.append(f"acceptance {self.sample_stats['acceptance_rate'].double().mean():.2f}")
        if "diverging" in self.sample_stats:
            parts.append(f"{int(self.sample_stats['diverging'].sum())} divergent")
        if "seconds" in self.timings:
            parts.append(f"{self.timings['seconds']:.3g} s")
        return f"Posterior({'; '.join(parts)})"

    def ebfmi(self) -> Tensor:
        r"""Energy Bayesian fraction of missing information of each chain, (chains,); below 0.3 the tails are missed.

        .. math:: \sum_n (H_n - H_{n-1})^2 \Big/ \sum_n (H_n - \bar H)^2

        It compares neighbouring steps, so it wants a run with ``thin=1``.

        Raises: ValueError for a kernel without a Hamiltonian.
        Source: Betancourt (2016), arXiv:1604.00695, eq. 3.
        """
        if "energy" not in self.sample_stats:
            raise ValueError("expected draws of a Hamiltonian kernel (HMC, ChEES, NUTS), which has energies; got none")
        energy = self.sample_stats["energy"].double()
        return energy.diff(dim=1).square().sum(1) / (energy - energy.mean(1, keepdim=True)).square().sum(1)

    def log_likelihood(self) -> dict[str, Tensor]:
        r"""log p(x_i | z) of every observed site at every draw, (chains, draws, \*batch shape), in nats.

        Here and below a subsampled plate is read whole, block by block.

        Raises: ValueError where discrete sites were summed out, or for data scored up to a log Z (an energy model's).
        """
        return log_likelihood(self._sampled(), self.samples, self.args, self.kwargs, self.device)

    def posterior_predictive(self, seed: int = 0) -> dict[str, Tensor]:
        r"""The observed sites drawn anew at every draw, (chains, draws, \*site shape)."""
        return posterior_predictive(self._sampled(), self.samples, self.args, self.kwargs, seed, self.device)

    def prior(self, draws: int = 500, seed: int = 0) -> dict[str, Tensor]:
        r"""Draws of the latent sites from the program without its data, (1, draws, \*site shape).

        Raises: NotImplementedError for data whose distribution has no sampler.
        """
        return prior(self._sampled(), list(self.samples), draws, self.args, self.kwargs, seed, self.device)

    def _sampled(self) -> Callable[..., Any]:
        from pyrodgm.core import Energy

        if self.program is None or isinstance(self.program, Energy):
            raise ValueError("expected draws from a Pyro program with observed sites, got those of an energy model")
        return self.program

    def summary(self, **options: Any) -> Any:
        """arviz's table: mean, sd, interval, MCSE, bulk and tail ESS, rank-normalised split R-hat.

        Args:
            options: passed to ``arviz.summary``.
        Returns: a pandas DataFrame, a row for each number.
        Raises: ImportError without arviz.
        Source: Vehtari et al. (2021), arXiv:1903.08008.
        """
        from pyrodgm.diagnostics.inference_data import arviz, inference_data, many_chains

        with many_chains():
            return arviz().summary(inference_data({"posterior": self.samples}), **options)

    def to_arviz(self, *, predictive: bool = True, prior_draws: int = 500) -> Any:
        """Groups posterior, sample_stats, log_likelihood, posterior_predictive, prior, observed_data for arviz.

        An energy model has the first two alone; where discrete sites were summed out, rows have no likelihood given
        the other sites, and log_likelihood and posterior_predictive are left out. So is the log_likelihood of data
        scored up to a log Z and, with a warning, what cannot be drawn. A "/" in a site's name is a "." here, as in a
        store.

        Args:
            predictive: run the program anew at each draw, for log_likelihood, posterior_predictive and prior.
            prior_draws: of the prior.
        Returns: ``InferenceData`` (arviz 0.x) or ``DataTree`` (arviz 1.x).
        Raises: ImportError without arviz.
        """
        from pyrodgm.core import Energy
        from pyrodgm.diagnostics.inference_data import inference_data

        groups: dict[str, Mapping[str, Tensor]] = {"posterior": self.samples, "sample_stats": self.sample_stats}
        if self.program is not None and not isinstance(self.program, Energy):
            observed = observed_data(self.program, self.samples, self.args, self.kwargs, self.device)
            if observed and predictive:
                if observed.complete and observed.normalised:
                    groups["log_likelihood"] = self.log_likelihood()
                anew = {"prior": lambda: self.prior(prior_draws, self.seed)}
                if observed.complete:
                    anew["posterior_predictive"] = lambda: self.posterior_predictive(self.seed)
                for group, draw in anew.items():
                    try:
                        groups[group] = draw()
                    except (NotImplementedError, RuntimeError, ValueError) as error:  # improper, or singular somewhere
                        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                        warnings.warn(f"left out the group {group}, whose draws fail: {reason}", stacklevel=2)
            if observed:
                groups["observed_data"] = observed
        return inference_data(groups)
