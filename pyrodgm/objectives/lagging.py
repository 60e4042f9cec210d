"""Lagging inference networks: the guide catches up with the posterior before each step of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from pyrodgm.core import GenerativeModel, Latent
from pyrodgm.evaluation.latent import mutual_information
from pyrodgm.objectives.base import Objective
from pyrodgm.objectives.elbo import ELBO
from pyrodgm.objectives.wake_sleep import generative_parameters

__all__ = ["LaggingInference", "StopLagging"]


class LaggingInference(Objective):
    """Aggressive training of the guide: ``inner_steps`` of it before each step of the model, on one bound.

    A step of ``fit`` has one batch, and all its inner steps use it, each with noise of its own; the
    paper draws a batch for each, so take larger batches than for a plain bound. :class:`StopLagging`
    ends the aggressive phase where the mutual information no longer grows.

    Args:
        inner_steps: steps of the guide before each step of the model.
        objective: bound with one player; default :class:`ELBO`.
    Attributes:
        aggressive: whether the inner steps are taken, else one; it is saved with the run.
    Raises: ValueError for inner_steps < 1; TypeError for an objective of several players.
    Source: He et al. (2019), arXiv:1901.05534, algorithm 1.
    Example:
        >>> import torch
        >>> from pyrodgm.latent import VAE
        >>> vae = VAE.mlp(features=6, latent=2, hidden=[8])
        >>> [player for player, _ in LaggingInference(inner_steps=2)(vae, torch.ones(4, 6))]
        ['guide', 'guide', 'model']
    """

    def __init__(self, inner_steps: int = 10, objective: Objective | None = None) -> None:
        super().__init__()
        if inner_steps < 1:
            raise ValueError(f"expected inner_steps >= 1, got {inner_steps}")
        self.objective = ELBO() if objective is None else objective
        if type(self.objective).forward is not Objective.forward:
            raise TypeError(f"expected an objective with one loss, got {type(objective).__name__}, which has players")
        self.inner_steps = inner_steps
        self.held_out_name = self.objective.held_out_name
        self.aggressive = True

    def get_extra_state(self) -> dict[str, bool]:
        return {"aggressive": self.aggressive}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self.aggressive = state["aggressive"]

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, Latent):
            raise TypeError(f"expected a Latent model (its guide is the other player), got {type(model).__name__}")
        self.objective.check(model)

    def players(self, model: GenerativeModel) -> dict[str, Iterable[Parameter]]:
        return {"guide": model.guide.parameters(), "model": generative_parameters(model)}

    def forward(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        for _ in range(self.inner_steps if self.aggressive else 1):
            yield "guide", self._inner(model, x, context, n)
        yield "model", self.objective.loss(model, x, context, n=n)

    def _inner(self, model: GenerativeModel, x: Tensor, context: Tensor | None, n: int | None) -> Tensor:
        training = self.objective.training
        self.objective.eval()  # an annealed weight counts the steps of the model
        try:
            return self.objective.loss(model, x, context, n=n)
        finally:
            self.objective.train(training)

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        return self.objective.held_out(model, x, context, n=n)


class StopLagging:
    """A callback of ``fit`` that ends the aggressive phase once the mutual information stops growing.

    Its history is its own and no part of a checkpoint: a run that is resumed begins it anew.

    Args:
        x: held-out rows (B, *event).
        context: (B, C).
        patience: epochs without growth.
    Raises: ValueError for patience < 1; TypeError in a run of another objective.
    Source: He et al. (2019), arXiv:1901.05534, section 4.2.
    Example:
        >>> import pyrodgm, torch
        >>> from pyrodgm.latent import VAE
        >>> x = torch.ones(32, 6)
        >>> stop = StopLagging(x)
        >>> vae, objective = VAE.mlp(features=6, latent=2, hidden=[8]), LaggingInference(2)
        >>> _ = pyrodgm.fit(vae, x, objective, epochs=2, callbacks=[stop], progress=False)
        >>> len(stop.history)
        2
    """

    def __init__(self, x: Tensor, context: Tensor | None = None, patience: int = 1) -> None:
        if patience < 1:
            raise ValueError(f"expected patience >= 1 epochs, got {patience}")
        self.x, self.context, self.patience = x, context, patience
        self.history: list[float] = []

    def __call__(self, run: Any) -> bool:
        if not isinstance(run.objective, LaggingInference):
            raise TypeError(f"expected a run of LaggingInference, got {type(run.objective).__name__}")
        self.history.append(mutual_information(run.model, self.x, self.context))
        since = len(self.history) - 1 - max(range(len(self.history)), key=self.history.__getitem__)
        if since >= self.patience:
            run.objective.aggressive = False
        return False
