"""A log Z that is estimated once for a state of the model, which the batches of one validation share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrodgm.core import GenerativeModel

__all__ = ["AIS", "PartitionMemory"]

# of a held-out score: a second or so, an error of tenths of a nat
AIS: dict[str, Any] = {"method": "ais", "chains": 100, "temperatures": 500}


class PartitionMemory:
    """The last log Z with the parameters and buffers that it belongs to.

    They are compared by value: a fused optimiser moves parameters without counting a version, and another model may
    stand at the address of an old one.

    Example:
        >>> from pyrodgm.energy import RBM
        >>> memory, rbm, calls = PartitionMemory(), RBM(3, 2), []
        >>> for _ in range(2):
        ...     log_z = memory.of(rbm, lambda: calls.append(0) or rbm.log_partition("exact")[0])
        >>> len(calls)
        1
    """

    def __init__(self) -> None:
        self._state: list[Tensor] | None = None
        self._log_z: Tensor | None = None

    def of(self, model: GenerativeModel, compute: Callable[[], Tensor]) -> Tensor:
        """``compute()``, or what it was when the model was last the same."""
        state = [t.detach() for t in (*model.parameters(), *model.buffers())]
        if self._log_z is None or self._state is None or not _same(self._state, state):
            self._state, self._log_z = [t.clone() for t in state], compute()
        return self._log_z

    def __getstate__(self) -> dict[str, Any]:
        return {"_state": None, "_log_z": None}  # copies and pickles of an objective need no copy of its last model


def _same(old: list[Tensor], new: list[Tensor]) -> bool:
    return len(old) == len(new) and all(
        a.shape == b.shape and a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(old, new, strict=True)
    )
