"""Joint training of a deep Boltzmann machine: mean field on the data, persistent chains for the model."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from pyrodgm.core import GenerativeModel, evaluating
from pyrodgm.energy.dbm import DeepBoltzmannMachine
from pyrodgm.objectives.machines import MachineObjective

__all__ = ["MeanFieldContrastive"]

_CHAINS_SEED = 2009


class MeanFieldContrastive(MachineObjective):
    r"""Raise the variational bound of a deep Boltzmann machine: data go down in energy, persistent chains go up.

    .. math:: L = \frac1B \sum_i E_{q_i} E(x_i, h) - \frac1M \sum_m E(x^-_m, h^-_{2, m}, h^-_{4, m}, \dots), \qquad
        \nabla L \to -\nabla \frac1B \sum_i \bigl(H(q_i) - E_{q_i} E(x_i, h) - \log Z\bigr)

    q_i is the mean-field posterior of row i; the chains hold the even layers, and the odd ones are summed out. They
    move ``k`` times a step by the model's kernel and are saved with the objective. :meth:`held_out` is minus the
    bound, with log Z exact where the model is ``enumerable`` and by a short run of AIS elsewhere. ``centered`` takes
    the centred gradient of :func:`pyrodgm.energy.gap.energy_gap`, with running means of all layers on the data, by
    which a machine also learns without having been pre-trained.

    Args:
        k: moves of the kernel.
        chains: M.
        mean_field: sweeps of :meth:`DeepBoltzmannMachine.mean_field`.
        weight_cost: weight decay of the objective's own optimiser, for weights only; for another make groups by
            :func:`weight_groups`.
        centered: see above; a larger learning rate then serves (0.05).
    Raises: ValueError for arguments below 1 or a weight cost below 0, and from ``check`` for a conditional model, whose
        chains would each need the context that it was run under.
    Source: Salakhutdinov and Hinton (2009), Deep Boltzmann machines, AISTATS;
        Montavon and Mueller (2012), Deep Boltzmann machines and the centering trick; Melchior, Fischer and Wiskott
        (2016), How to center deep Boltzmann machines, JMLR 17.
    Example:
        >>> objective = MeanFieldContrastive(k=1, chains=8)
        >>> objective.loss(DeepBoltzmannMachine(6, [4, 3]), torch.ones(5, 6)).shape
        torch.Size([])
    """

    held_out_name = "negative bound"
    lr = 0.01
    chains_in = "states"
    states: Tensor | None

    def __init__(
        self,
        k: int = 5,
        chains: int = 100,
        mean_field: int = 10,
        *,
        weight_cost: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(weight_cost, centered)
        if min(k, chains, mean_field) < 1:
            raise ValueError(f"expected k, chains and mean_field >= 1, got {k}, {chains} and {mean_field}")
        self.k, self.chains, self.mean_field = k, chains, mean_field

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, DeepBoltzmannMachine):
            raise TypeError(
                f"expected a DeepBoltzmannMachine, got {type(model).__name__}; use ContrastiveDivergence for others"
            )
        if model.context:
            raise ValueError(
                "expected a model without context for persistent chains; use ContrastiveDivergence(persistent=False)"
            )
        if self.offsets is not None:
            self.offsets.start(model.offsets())
        size = sum(model.sizes[::2])
        if self.states is None:
            # here and not in loss, whose traced form needs every buffer to be there; a seed of their own, so that
            # no other random number depends on when they were made
            generator = torch.Generator(model.device).manual_seed(_CHAINS_SEED)
            self.states = model.draw_even(model.start(self.chains, generator=generator), generator=generator)
        if self.states.shape[1] != size:
            raise ValueError(
                f"expected a model of {self.states.shape[1]} units in its even layers, as the chains have, got {size}; "
                "make one MeanFieldContrastive for each model"
            )

    def begin(self, model: DeepBoltzmannMachine, rows: Tensor) -> None:
        """Let the chains go on from ``rows`` x (M, V), for a model that has been trained already."""
        generator = torch.Generator(rows.device).manual_seed(_CHAINS_SEED)
        self.states, self.chains = model.draw_even(rows, generator=generator), len(rows)

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        self.check(model)
        model = cast(DeepBoltzmannMachine, model)
        x, _ = model.check(x, context)
        mu = model.mean_field(x, steps=self.mean_field)
        chains = cast(Tensor, self.states)
        with torch.no_grad():
            state = model.kernel.init(model.potential(), chains.to(x))
            for _ in range(self.k):
                state, _ = model.kernel.step(state)
            chains.copy_(state.positions)
        if self.offsets is None:
            return model.mean_field_gap(x, mu, state.positions).value
        gap = model.mean_field_gap(x, mu, state.positions, self.offsets.current())
        self.offsets.follow(gap.means)
        return gap.value

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        """Minus the bound of the rows, a mean, ()."""
        self.check(model)
        model = cast(DeepBoltzmannMachine, model)
        x, _ = model.check(x, context)
        with evaluating(model):
            return (model.variational_energy(x, steps=self.mean_field).double() + self._log_partition(model)).mean()
