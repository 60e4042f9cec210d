"""The up-down algorithm: contrastive wake-sleep for deep belief networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor
from torch.nn import Parameter

from pyrodgm.core import GenerativeModel, evaluating
from pyrodgm.energy.dbn import DeepBeliefNetwork
from pyrodgm.energy.recognition import Recognition
from pyrodgm.objectives.base import Objective
from pyrodgm.objectives.centring import refuse_weight_cost, weight_groups
from pyrodgm.objectives.contrastive import ContrastiveDivergence
from pyrodgm.objectives.partition import AIS, PartitionMemory

__all__ = ["UpDown"]


class UpDown(Objective):
    r"""Fine-tune a deep belief network and its recognition network together.

    .. math::
        \text{model: } & -\sum_{l < L-1} \log p(h_l \mid h_{l+1}) + E(h_{L-1}) - E(h'_{L-1}), \quad
            h_0 = x, \; h \sim q(h \mid x) \\
        \text{recognition: } & -\sum_{l < L-1} \log q(h'_{l+1} \mid h'_l), \quad h'_l \sim p(h_l \mid h'_{l+1})

    The wake phase draws upwards; ``k`` moves of the top machine from there give :math:`h'_{L-1}`, from which the sleep
    phase draws downwards. The first line is an upper bound of -log p(x) up to an entropy, with log Z by contrastive
    divergence. :meth:`held_out` is minus the bound by importance sampling.

    ``top`` says how the top machine is trained where CD-k does not do: persistent chains, from which the dreams then
    come, a centred gradient, a weight cost (which the optimiser gives all weights of the model).

    Args:
        recognition: q, of the network's layers without the last; the objective owns it.
        k: moves of the top machine.
        particles: of :meth:`held_out`.
        top: replaces ``ContrastiveDivergence(k)``.
    Raises: ValueError for k or particles below 1, and from ``check`` for layers of other sizes.
    Source: Hinton, Osindero and Teh (2006), A fast learning algorithm for deep belief nets.
    Example:
        >>> objective = UpDown(Recognition(6, [4]), k=1)
        >>> [player for player, _ in objective(DeepBeliefNetwork(6, [4, 3]), torch.ones(5, 6))]
        ['model', 'recognition']
    """

    held_out_name = "negative bound"
    lr = 0.01

    def __init__(
        self,
        recognition: Recognition,
        k: int = 10,
        particles: int = 20,
        *,
        top: ContrastiveDivergence | None = None,
    ) -> None:
        super().__init__()
        if min(k, particles) < 1:
            raise ValueError(f"expected k >= 1 and particles >= 1, got {k} and {particles}")
        self.recognition, self.particles = recognition, particles
        self.top = ContrastiveDivergence(k) if top is None else top
        self._memory = PartitionMemory()

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, DeepBeliefNetwork):
            raise TypeError(
                f"expected a DeepBeliefNetwork, got {type(model).__name__}; use WakeSleep for latent models"
            )
        sizes = tuple((layer.out_features, layer.in_features) for layer in self.recognition.up)
        wanted = tuple((model.sizes[i + 1], model.sizes[i]) for i in range(len(model.sizes) - 2))
        if sizes != wanted:
            raise ValueError(
                f"expected a recognition network with weights of {list(wanted)}, got {list(sizes)}; "
                f"use Recognition({model.sizes[0]}, {list(model.sizes[1:-1])})"
            )
        self.top.check(model.top)

    def players(self, model: GenerativeModel) -> dict[str, Iterable[Parameter]]:
        return {"model": model.parameters(), "recognition": self.recognition.parameters()}

    def forward(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        self.check(model)
        model = cast(DeepBeliefNetwork, model)
        x, context = model.check(x, context)
        h = self.recognition.draw(x)
        gap, negative = self.top.gap(model.top, h[-1], context)
        dream = model.descend(negative)  # before the model's step, as in the paper
        yield "model", gap - model.log_likelihood(x, h).mean()
        yield "recognition", -self.recognition.log_prob(dream[0], dream[1:]).mean()

    def check_optimizer(self) -> None:
        refuse_weight_cost(self.top.weight_cost)

    def optimizer(self, player: str, parameters: list[Parameter], lr: float) -> torch.optim.Optimizer:
        # as for contrastive divergence, whose noise Adam takes whole
        cost = self.top.weight_cost if player == "model" else 0.0
        return torch.optim.SGD(weight_groups(parameters, cost), lr=lr, momentum=0.5)

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        """Minus the bound of the rows, a mean, ()."""
        self.check(model)
        model = cast(DeepBeliefNetwork, model)
        x, context = model.check(x, context)
        with evaluating(model):
            if context is not None:
                options = {"method": "exact"} if model.top.enumerable else AIS
                bound = model.bound(x, self.recognition, context, particles=self.particles, **options)
                return -bound.mean()
            weights = model.log_weights(x, self.recognition, particles=self.particles).double()
            return -(weights.logsumexp(0) - math.log(self.particles) - self._log_partition(model)).mean()

    def _log_partition(self, model: DeepBeliefNetwork) -> Tensor:
        options = {"method": "exact"} if model.top.enumerable else AIS
        return self._memory.of(model.top, lambda: model.log_partition(**options)[0])
