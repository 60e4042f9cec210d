"""Variational EM: each row's own variational parameters first, then a step of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from pyro import poutine
from torch import Tensor
from torch.nn import Parameter

from pyrodgm.core import GenerativeModel, Latent
from pyrodgm.guides.local import Local, refine
from pyrodgm.objectives.base import Objective
from pyrodgm.objectives.elbo import ELBO
from pyrodgm.objectives.wake_sleep import generative_parameters

__all__ = ["VariationalEM"]


class VariationalEM(Objective):
    r"""The E-step fits q of every row by itself, the M-step moves the model on the bound under those q.

    .. math:: \lambda_b = \arg\max_\lambda E_{q_\lambda} \bigl[ \log p_\theta(x_b, z) - \log q_\lambda(z) \bigr], \qquad
        \theta \leftarrow \theta + \eta \nabla_\theta \frac1B \sum_b E_{q_{\lambda_b}} \log p_\theta(x_b, z)

    with Gaussian q on unconstrained space, see :func:`pyrodgm.guides.refine`. There is no amortization gap: on a
    fixed model its bound is at least that of a Gaussian guide. ``amortized`` starts the E-step at the model's guide,
    which then has a step of its own on the plain bound, as has what the program shares with it; otherwise the guide is
    not used at all, and the M-step moves what they share (the components of a VampPrior) too. The held-out score fits
    the held-out rows' parameters too.

    Args:
        steps: inner steps for each batch.
        lr: first step size of the inner steps.
        particles: draws for each row, in both steps.
        amortized: start at the guide and train it beside, else start at the prior.
    Raises: ValueError for steps < 1 or particles < 1; TypeError or ValueError from :class:`pyrodgm.guides.Local`.
    Source: Neal and Hinton (1998), A view of the EM algorithm, section 2; Hoffman et al. (2013), arXiv:1206.7051,
        figure 4; amortized: Krishnan et al. (2018), arXiv:1710.06085, algorithm 2.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> vae = VAE.mlp(features=6, latent=2, hidden=[8])
        >>> [player for player, _ in VariationalEM(steps=3)(vae, torch.ones(4, 6))]
        ['model']
    """

    held_out_name = "negative bound"

    def __init__(self, steps: int = 20, lr: float = 0.1, particles: int = 1, amortized: bool = False) -> None:
        super().__init__()
        if steps < 1 or particles < 1:
            raise ValueError(f"expected steps >= 1 and particles >= 1, got {steps} and {particles}")
        self.steps, self.inner_lr, self.particles, self.amortized = steps, lr, particles, amortized

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, Latent):
            raise TypeError(f"expected a Latent model (its rows have posteriors), got {type(model).__name__}")

    def players(self, model: GenerativeModel) -> dict[str, Iterable[Parameter]]:
        if self.amortized:
            return {"guide": model.guide.parameters(), "model": generative_parameters(model)}
        # a parameter that the program shares with its guide has a name of the program's own beside the guide's
        named = model.named_parameters(remove_duplicate=False)
        return {"model": list({id(p): p for name, p in named if not name.startswith("guide.")}.values())}

    def forward(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        if self.amortized:
            yield "guide", ELBO(self.particles).loss(model, x, context, n=n)
        local = self.infer(model, x, context)
        yield "model", self._bound(model, local, x, context)

    def infer(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None) -> Local:
        """The E-step: q of the rows, with parameters that no longer change."""
        self.check(model)
        options = {"lr": self.inner_lr, "particles": self.particles, "from_guide": self.amortized}
        return refine(cast(Latent, model), x, context, steps=self.steps, **options)  # type: ignore[arg-type]

    def _bound(self, model: GenerativeModel, local: Local, x: Tensor, context: Tensor | None) -> Tensor:
        latent = cast(Latent, model)
        x, context = latent.check(x, context)
        drawn = latent.particle_trace(local, self.particles, x, context)
        program = latent.particle_trace(poutine.replay(latent, trace=drawn), self.particles, x, context)
        return (latent.row_log_prob(drawn) - latent.row_log_prob(program)).mean()

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        local = self.infer(model, x, context)
        with torch.no_grad():
            return self._bound(model, local, x, context)
