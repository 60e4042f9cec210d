"""What the objectives of Boltzmann machines share: offsets that follow the data, and the weight cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrodgm.energy.gap import Offsets

__all__ = ["RunningOffsets", "refuse_weight_cost", "weight_groups"]

_RATE = 0.01  # of the running means: a hundred batches
# What a unit that never changes decays to is 0: left alone it ends as a denormal number that rounding keeps from
# vanishing, and the products of every later step take several times as long.
_NOTHING = 1e-9


class RunningOffsets(nn.Module):
    r"""Running means of two layers on the data, :math:`\mu \leftarrow (1 - r) \mu + r \bar t` with r = 0.01.

    They exist from :meth:`start` on, or from a loaded state that has them, and are saved with the objective.

    Example:
        >>> offsets = RunningOffsets()
        >>> offsets.start(Offsets(torch.zeros(3), torch.zeros(2)))
        >>> offsets.follow(Offsets(torch.ones(3), torch.ones(2)))
        >>> offsets.current().hidden
        tensor([0.0100, 0.0100])
    """

    visible: Tensor | None
    hidden: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("visible", None)
        self.register_buffer("hidden", None)

    def start(self, offsets: Offsets) -> None:
        """Begin at these, unless begun."""
        if self.visible is None:
            self.visible, self.hidden = offsets.visible.clone(), offsets.hidden.clone()

    def current(self) -> Offsets | None:
        """Copies, since a backward pass may still read them when they move on; None before the start."""
        if self.visible is None or self.hidden is None:
            return None
        return Offsets(self.visible.clone(), self.hidden.clone())

    def follow(self, means: Offsets) -> None:
        """One step towards the means of a batch."""
        if self.visible is not None and self.hidden is not None:
            for own, mean in ((self.visible, means.visible), (self.hidden, means.hidden)):
                own.lerp_(mean.to(own), _RATE)
                own.mul_(own.abs() > _NOTHING)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("visible", "hidden"):  # what is saved decides whether they exist
            saved = state_dict.get(prefix + name)
            setattr(self, name, None if saved is None else torch.empty_like(saved))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def weight_groups(parameters: list[nn.Parameter], weight_cost: float) -> list[dict[str, Any]]:
    """Groups for an optimiser: parameters of two dimensions or more with this decay, the others with none.

    Raises: ValueError for a weight cost below 0.
    Source: Hinton (2010), A practical guide to training restricted Boltzmann machines.
    Example:
        >>> from pyrodgm.energy import RBM
        >>> [(len(g["params"]), g["weight_decay"]) for g in weight_groups(list(RBM(4, 3).parameters()), 0.01)]
        [(1, 0.01), (2, 0.0)]
    """
    if weight_cost < 0:
        raise ValueError(f"expected weight_cost >= 0, got {weight_cost}")
    weights, biases = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() < 2]
    groups = ({"params": weights, "weight_decay": weight_cost}, {"params": biases, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def refuse_weight_cost(weight_cost: float) -> None:
    """Raise ValueError for a weight cost beside an optimiser that the objective did not make."""
    if weight_cost:
        raise ValueError(
            f"expected weight_cost=0 beside optimizer=, which would not know of it, got {weight_cost}; decay the "
            f"weights there: optimizer=lambda ps: torch.optim.SGD(weight_groups(ps, {weight_cost}), lr=...), with "
            "pyrodgm.objectives.weight_groups"
        )
