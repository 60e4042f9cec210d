"""What the objectives that train Boltzmann machines by chains share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyrodgm.core import GenerativeModel
from pyrodgm.objectives.base import Objective, fusable
from pyrodgm.objectives.centring import RunningOffsets, refuse_weight_cost, weight_groups
from pyrodgm.objectives.partition import AIS, PartitionMemory

__all__ = ["MachineObjective"]


class MachineObjective(Objective):
    """Chains that are saved with the objective, a weight cost, running offsets and a remembered log Z.

    Args:
        weight_cost: decay of the weights by the objective's own optimiser.
        centered: keep running offsets.
    Attributes:
        chains_in: name of the buffer with the chains, None until the first model is checked.
    Raises: ValueError for a weight cost below 0, and from ``check_optimizer`` for one beside another optimiser.
    """

    chains_in: ClassVar[str]

    def __init__(self, weight_cost: float, centered: bool) -> None:
        super().__init__()
        weight_groups([], weight_cost)  # refuses one below 0
        self.weight_cost = weight_cost
        self.offsets = RunningOffsets() if centered else None
        self.register_buffer(self.chains_in, None)
        self._memory = PartitionMemory()

    def check_optimizer(self) -> None:
        refuse_weight_cost(self.weight_cost)

    def optimizer(self, player: str, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        # Plain steps with some momentum (Hinton 2010): Adam's steps do not shrink with the gradient, so
        # all weights take the sampling noise at full size and the likelihood of a small RBM falls for many epochs.
        groups = weight_groups(parameters, self.weight_cost)
        return torch.optim.SGD(groups, lr=lr, momentum=0.5, fused=fusable(parameters))

    def _log_partition(self, model: GenerativeModel) -> Tensor:
        """log Z, exact where the model is enumerable, else by a short run of AIS."""
        options: dict[str, Any] = {"method": "exact"} if getattr(model, "enumerable", False) else AIS
        return self._memory.of(model, lambda: model.log_partition(**options)[0])  # type: ignore[operator]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # the chains exist only after the first check, so what is saved decides whether they do
        saved = state_dict.get(prefix + self.chains_in)
        setattr(self, self.chains_in, None if saved is None else torch.empty_like(saved))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
