"""Contrastive divergence: the likelihood gradient of an energy model from its kernel's negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from pyrodgm.core import Energy, GenerativeModel, evaluating, join_context
from pyrodgm.evaluation.two_sample import energy_distance
from pyrodgm.objectives.base import Objective

__all__ = ["ContrastiveDivergence"]

_HELD_OUT_NEGATIVES = 256  # each costs sample_steps moves of the kernel


class ContrastiveDivergence(Objective):
    r"""CD-k, and persistent CD: data go down in energy, the model's own negatives go up.

    .. math:: L = \frac1B \sum_i E(x_i) - \frac1M \sum_m E(x^-_m), \qquad
        \nabla L \to -\nabla \frac1B \sum_i \log p(x_i) \text{ as } x^- \to p

    The negatives are ``k`` moves of the model's kernel, without gradients, from the rows (CD-k) or from
    where the last step left the chains (persistent). The chains are saved with the objective. L itself
    is an energy gap and no likelihood; :meth:`held_out` is a negative log-likelihood where
    ``model.enumerable``, else the energy distance between the rows and samples of the model.

    Args:
        k: moves of the kernel.
        persistent: keep the chains from step to step.
        chains: M, how many persistent chains; default the rows of the first batch.
    Raises: ValueError for k < 1, for chains without persistent, and for persistent chains of a
        conditional model, whose contexts change with the batch.
    Source: Hinton (2002), Training products of experts, eq. 4-6; Tieleman (2008), Training restricted
        Boltzmann machines using approximations to the likelihood gradient.
    Example:
        >>> from pyrodgm.energy import RBM
        >>> objective = ContrastiveDivergence(k=2, persistent=True, chains=8)
        >>> objective.loss(RBM(visible=6, hidden=3), torch.ones(4, 6)).shape
        torch.Size([])
    """

    held_out_name = "nll"
    negatives: Tensor | None

    def __init__(self, k: int = 1, persistent: bool = False, chains: int | None = None) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"expected k >= 1 moves of the kernel, got {k}")
        if chains is not None and (chains < 1 or not persistent):
            raise ValueError(f"expected chains=None, or chains >= 1 with persistent=True, got chains={chains}")
        self.k = k
        self.persistent = persistent
        self.chains = chains
        self.register_buffer("negatives", None)  # the chains, once the first batch has shown their shape

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, Energy):
            raise TypeError(
                f"expected an energy model for contrastive divergence, got {type(model).__name__}; "
                "its family has a likelihood or a bound to fit by"
            )
        if self.persistent and model.context:
            raise ValueError(
                "expected a model without context for persistent chains, since each chain would need the context "
                "that it was run under; use ContrastiveDivergence(k, persistent=False)"
            )
        if not _enumerable(model):
            self.held_out_name = "energy distance"

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        model = self._energy_model(model)
        x, context = model.check(x, context)
        x = cast(Tensor, x)
        start = self._chains(model, x) if self.persistent else x
        negatives = model.run_kernel(start, context, self.k).detach()
        if self.negatives is not None:
            self.negatives.copy_(negatives)
        return model.energy(x, context).mean() - model.energy(negatives, context).mean()

    def _energy_model(self, model: GenerativeModel) -> Energy:
        self.check(model)
        return cast(Energy, model)

    def _chains(self, model: Energy, x: Tensor) -> Tensor:
        if self.negatives is None:
            self.negatives = model.start(self.chains or len(x)).to(x)
        if self.negatives.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"expected rows like the chains', {tuple(self.negatives.shape[1:])}, got {tuple(x.shape[1:])}; "
                "make one ContrastiveDivergence for each model"
            )
        return self.negatives

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        """The score of the rows (see the class); with a context, the distance is between pairs of x and context."""
        model = self._energy_model(model)
        x, context = model.check(x, context)
        x = cast(Tensor, x)
        with evaluating(model):
            if _enumerable(model):
                nll: Tensor = -model.log_prob(x, context).mean()  # type: ignore[operator]
                return nll
            if self.negatives is not None:
                negatives = self.negatives
            elif context is not None:
                context_of = context[:_HELD_OUT_NEGATIVES]
                negatives = join_context(model.sample(context=context_of).flatten(1), context_of)
            else:
                negatives = model.sample(min(len(x), _HELD_OUT_NEGATIVES))
            return energy_distance(join_context(x.flatten(1), context), negatives.flatten(1))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # the chains exist only after the first batch, so what is saved decides whether they do
        saved = state_dict.get(prefix + "negatives")
        self.negatives = None if saved is None else torch.empty_like(saved)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _enumerable(model: Energy) -> bool:
    return bool(getattr(model, "enumerable", False))
