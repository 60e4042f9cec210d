"""Learned accept/reject sampling: a normal whose draws a network lets through or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from pyrodgm.core import Tractable
from pyrodgm.distributions.normal import StandardNormalDistribution
from pyrodgm.nets.mlp import MLP
from pyrodgm.shapes import expand_to, join_context

__all__ = ["Resampled"]


class _ResampledDistribution(TorchDistribution):
    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(
        self,
        model: Resampled,
        context: Tensor | None,
        batch_shape: torch.Size,
        validate_args: Any = None,
    ) -> None:
        self.model, self.context = model, context
        super().__init__(batch_shape, model.event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.real_vector

    def expand(self, batch_shape: Any, _instance: Any = None) -> _ResampledDistribution:
        return _ResampledDistribution(
            self.model, self.context, torch.Size(batch_shape), validate_args=self._validate_args
        )

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_z = self.model.log_z(self.context)  # only scoring needs it
        log_accept = F.logsigmoid(self.model.logit(value, self.context))
        # log [ (1 - alpha) a / Z + alpha ], alpha = (1 - Z)^(T - 1): what is still undecided after T - 1 refusals
        log_alpha = (self.model.tries - 1) * torch.log1p(-log_z.exp().clamp(max=1 - 1e-7))
        log_rest = torch.log(-torch.expm1(log_alpha)) - log_z + log_accept
        lift = torch.logaddexp(log_rest, log_alpha.expand_as(log_rest))
        normal = StandardNormalDistribution(self.model.like, self.model.event_shape)
        return expand_to(normal.log_prob(value) + lift, self.batch_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        z = torch.randn(shape, dtype=self.model.like.dtype, device=self.model.like.device)
        waiting = torch.ones(shape[:-1], dtype=torch.bool, device=z.device)
        for i in range(self.model.tries):
            if i:
                z = torch.where(waiting.unsqueeze(-1), torch.randn_like(z), z)
            if i == self.model.tries - 1:
                break  # the last try is taken as it comes
            logit = self.model.logit(z, self.context)
            waiting = waiting & (torch.rand_like(logit) >= logit.sigmoid())
            if not bool(waiting.any()):
                break
        return z


class Resampled(Tractable):
    r"""A standard normal resampled by a learned acceptance, with at most T tries.

    .. math:: p(z \mid c) = \Big[ (1 - \alpha) \frac{a(z, c)}{Z(c)} + \alpha \Big] N(z; 0, I), \quad
        \alpha = (1 - Z)^{T - 1}, \quad Z = \mathbb E_{N(0, I)} [a(z, c)]

    As base of a flow it makes holes and modes that no smooth map makes. Z is a mean over fresh draws in training, and
    over a fixed quasi-random set in eval mode: the density is exact up to the error of that mean, about 1 / points.

    Args:
        features: D.
        hidden: widths of the acceptance network's hidden layers.
        context: size C of the conditioning vector, 0 for none.
        tries: T >= 2; more make a sharper density and a slower draw.
        points: of the mean that estimates Z.
    Shapes: z (*B, D), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError for sizes below 1 or tries < 2.
    Source: Bauer and Mnih (2019), arXiv:1810.11428, eq. 1-5; Stimper et al. (2022), arXiv:2110.15828 (as a base).
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> flow = RealNVP(features=2, base=Resampled(2))
        >>> flow.sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        *,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        tries: int = 100,
        points: int = 4096,
    ) -> None:
        super().__init__((features,), context)
        if tries < 2 or points < 1:
            raise ValueError(f"expected tries >= 2 and points >= 1, got {tries} and {points}")
        self.tries = tries
        self.net = MLP(features + context, 1, hidden, activation=torch.nn.Tanh, last_scale=0.0)
        self.like: Tensor
        self.grid: Tensor
        self.register_buffer("like", torch.empty(0), persistent=False)
        # Sobol points of the cube, scrambled by a fixed seed, through the normal's quantiles.
        cube = torch.quasirandom.SobolEngine(features, scramble=True, seed=0).draw(points, dtype=torch.float64)
        grid = torch.special.ndtri(cube.clamp(1e-12, 1 - 1e-12))
        self.register_buffer("grid", grid.to(torch.get_default_dtype()), persistent=False)

    def logit(self, z: Tensor, context: Tensor | None) -> Tensor:
        """log-odds of accepting z: (*B, D), (*B, C) -> (*B)."""
        return self.net(join_context(z, context)).squeeze(-1).to(z.dtype)

    def log_z(self, context: Tensor | None = None) -> Tensor:
        """log of the mean acceptance, (*B, C) -> (*B): ``points`` evaluations of the network for each context."""
        grid = torch.randn_like(self.grid) if self.training else self.grid
        if context is not None:  # (N, *1, D) against (*B, C)
            grid = grid.reshape(len(grid), *[1] * (context.dim() - 1), -1)
        return F.logsigmoid(self.logit(grid, context)).exp().mean(0).log()

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        _, context = self.check(None, context)
        batch = torch.Size() if context is None else context.shape[:-1]
        return _ResampledDistribution(self, context, batch)
