"""The density of an implicit guide, as a critic estimates it beside a Gaussian of the same moments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn import functional as F

from pyrodgm.guides.implicit import ImplicitGuide, NoiseThrough, Sampler
from pyrodgm.guides.stopped import stopped
from pyrodgm.nets.mlp import MLP

__all__ = ["Contrast"]

_BANK = 64  # draws, at least, whose moments are the reference's
_TINY = 1e-12  # keeps the covariance of a guide that has all but collapsed positive


class Contrast(nn.Module):
    r"""Critics that estimate an implicit guide's density: adaptive contrast, for any Pyro program.

    .. math:: \log q(z \mid x) \approx \log r(z \mid x) + T(x, \tilde z), \quad
        r = N(\mu(x), L L^\top), \quad \tilde z = L^{-1} (z - \mu)

    z are the unconstrained sites: one critic is of the global ones, one of the rows' local ones given the global. r has
    the moments of the guide, and the logistic loss makes T the log of the ratio that is left:

    .. math:: -E_{q(z \mid x)} \log \sigma(T(x, \tilde z)) - E_{N(0, I)} \log(1 - \sigma(T(x, \tilde z)))

    The moments are those of a fixed set of noise with mean 0 and covariance I, so they are functions of x alone, and
    exact where the guide is linear in its noise. T is 0 at first: then the estimate is that of a Gaussian guide.

    Train it and the guide in turn. In Pyro's hands ``scored(guide)`` is the guide of the pair::

        critic_loss = contrast.loss(guide, x)                                       # moves the contrast alone
        loss = Trace_ELBO().differentiable_loss(program, contrast.scored(guide), x)  # moves program and guide

    Whatever is computed from ``scored`` (a bound, ``guide_fit``) is an estimate, right where the critic is at its best.

    Args:
        guide: whose sites and sizes it reads; it keeps no hold of it.
        hidden: widths of the critics.
        draws: draws of the guide, at least, from which a loss is computed.
        covariance: let r have a full covariance; without, a diagonal one, for many numbers a row.
    Raises: TypeError if the guide is not an :class:`~pyrodgm.guides.ImplicitGuide`; ValueError for draws < 1.
    Source: Mescheder et al. (2017), arXiv:1701.04722, eq. 3.3 and "adaptive contrast", where r is diagonal.
    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> from pyrodgm.guides import Sites
        >>> def program():
        ...     pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)) ** 2, 0.5), obs=torch.tensor(1.0))
        >>> guide = ImplicitGuide(Sites(program))
        >>> contrast = Contrast(guide)
        >>> contrast.loss(guide).round(decimals=3)  # 2 log 2: the critic knows nothing yet
        tensor(1.3860, grad_fn=<RoundBackward1>)
        >>> Trace_ELBO().differentiable_loss(program, contrast.scored(guide)).isfinite()
        tensor(True)
    """

    def __init__(
        self, guide: ImplicitGuide, hidden: Sequence[int] = (64, 64), draws: int = 128, covariance: bool = True
    ) -> None:
        super().__init__()
        if not isinstance(guide, ImplicitGuide):
            raise TypeError(f"expected an ImplicitGuide, got {type(guide).__name__}; guides with a density need none")
        if draws < 1:
            raise ValueError(f"expected draws >= 1, got {draws}")
        self.draws = draws
        samplers = {"_globals": guide.posterior_of_globals, "_locals": guide.posterior_of_locals}
        # numbers of a context that are read off the data, and so no part of z
        read = guide.sites.features
        self.ratios = nn.ModuleDict(
            {k: _Ratio(s, read, hidden, covariance) for k, s in samplers.items() if isinstance(s, Sampler)}
        )
        self.to(guide.like)

    def scored(self, guide: ImplicitGuide) -> Scored:
        """The guide with its estimated density; the gradient of that goes by way of the draws alone."""
        return Scored(guide, self)

    def loss(self, guide: ImplicitGuide, *args: Any, **kwargs: Any) -> Tensor:
        """The logistic loss of the critics, summed over globals and locals, on the guide's draws: ()."""
        sites = guide.sites
        rows = max(1, sites.call(args, kwargs).rows)
        deepest = max(len(site.batch) for site in (*sites.continuous, *sites.discrete))
        particles = pyro.plate("_contrast", -(-self.draws // rows), dim=-1 - deepest)
        with torch.no_grad(), poutine.block(), poutine.trace() as handler, particles:
            guide(*args, **kwargs)
        total: Any = 0.0
        for name, ratio in self.ratios.items():
            fn = cast(NoiseThrough, handler.trace.nodes[name]["fn"])
            with torch.no_grad():
                z = fn.rsample((-(-self.draws // fn.batch_shape.numel()),))
            total = total + cast(_Ratio, ratio).loss(fn, z)
        return total


class Scored(nn.Module):
    """An implicit guide whose density is a contrast's estimate.

    Args:
        guide: implicit.
        contrast: made for it.
    """

    def __init__(self, guide: ImplicitGuide, contrast: Contrast) -> None:
        super().__init__()
        self.guide, self.contrast = guide, contrast

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample the latent sites; returns their values by name."""
        with _Score(self.contrast):
            return self.guide(*args, **kwargs)


class _Score(Messenger):
    """Gives the draws from noise their estimated density."""

    def __init__(self, contrast: Contrast) -> None:
        super().__init__()
        self.contrast = contrast

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, NoiseThrough) and not isinstance(fn, _Estimated):
            msg["fn"] = _Estimated(fn.sampler, fn.context, fn.batch_shape, self.contrast.ratios[msg["name"]])


class _Estimated(NoiseThrough):
    def __init__(self, sampler: Sampler, context: Tensor | None, batch_shape: torch.Size, ratio: Any) -> None:
        super().__init__(sampler, context, batch_shape)
        self.ratio = ratio

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Estimated:
        return _Estimated(self.sampler, self.context, torch.Size(batch_shape), self.ratio)

    def log_prob(self, value: Tensor) -> Tensor:  # type: ignore[override]
        return self.ratio.log_density(self, value)


class _Ratio(nn.Module):
    """One critic and its reference, over vectors (*B, D) given contexts (*B, C) of which ``read`` numbers are data."""

    bank: Tensor

    def __init__(self, sampler: Sampler, read: int, hidden: Sequence[int], covariance: bool) -> None:
        super().__init__()
        self.read, self.covariance = read, covariance
        size = sampler.event_shape[0]
        self.critic = MLP(sampler.context + size, 1, hidden, nn.SiLU, last_scale=0.0)
        self.register_buffer("bank", _bank(max(_BANK, 4 * sampler.noise), sampler.noise))

    def log_density(self, fn: NoiseThrough, value: Tensor) -> Tensor:
        """log r + T with gradients in the draws (globals among the context) and in no parameter."""
        context = fn.context
        if context is not None:
            context = torch.cat((context[..., : self.read].detach(), context[..., self.read :]), -1)
        unit, ladj = self._standardise(value, *self._moments(fn, context))
        log_r = -0.5 * unit.square().sum(-1) - 0.5 * math.log(2 * math.pi) * unit.shape[-1] + ladj
        return log_r + self._score(stopped(self.critic), unit, context)

    def loss(self, fn: NoiseThrough, value: Tensor) -> Tensor:
        context = None if fn.context is None else fn.context.detach()
        with torch.no_grad():
            unit, _ = self._standardise(value, *self._moments(fn, context))
        of_guide = self._score(self.critic, unit, context)
        of_reference = self._score(self.critic, torch.randn_like(unit), context)
        return F.softplus(-of_guide).mean() + F.softplus(of_reference).mean()

    def _moments(self, fn: NoiseThrough, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean (*B, D), and the Cholesky factor of the covariance (*B, D, D) or the scales (*B, D)."""
        lead = 0 if context is None else context.dim() - 1
        draws = stopped(fn.sampler)(self.bank.reshape(len(self.bank), *[1] * lead, -1), context)  # (M, *B, D)
        mean = draws.mean(0)
        centred = (draws - mean) / math.sqrt(len(draws))
        if not self.covariance:
            return mean, (centred.square().sum(0) + _TINY).sqrt()
        covariance = torch.einsum("m...i,m...j->...ij", centred, centred)
        eye = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        return mean, torch.linalg.cholesky_ex(covariance + _TINY * eye)[0]  # cholesky would have the host wait

    def _standardise(self, value: Tensor, mean: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """The value in the reference's units, and the log-determinant of the map that takes it there."""
        if not self.covariance:
            return (value - mean) / factor, -factor.log().sum(-1)
        unit = torch.linalg.solve_triangular(factor, (value - mean).unsqueeze(-1), upper=False).squeeze(-1)
        return unit, -factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @staticmethod
    def _score(critic: Any, unit: Tensor, context: Tensor | None) -> Tensor:
        inputs = unit if context is None else torch.cat((context.expand(*unit.shape[:-1], -1), unit), -1)
        return critic(inputs).squeeze(-1)


def _bank(draws: int, noise: int) -> Tensor:
    """Noise (M, N) whose own mean is 0 and covariance I, to rounding."""
    e = torch.randn(draws, noise, dtype=torch.float64)
    e = e - e.mean(0)
    tril = torch.linalg.cholesky(e.T @ e / draws)
    return torch.linalg.solve_triangular(tril, e.T, upper=False).T.to(torch.get_default_dtype())
