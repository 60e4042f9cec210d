"""The arguments of a run as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrodgm.engine.result import Fit

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The arguments of :func:`pyrodgm.fit` that the loop needs, as they are explained there."""

    epochs: int | None
    steps: int | None
    batch_size: int
    lr: float
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None
    lr_schedule: Callable[[Optimizer, int], LRScheduler] | None
    clip: float | None
    compile: bool
    checkpoint: Path | None
    checkpoint_every: int | None
    resume: bool
    callbacks: tuple[Callable[[Fit], bool | None], ...]
    early_stopping: int | None
    csv: Path | None
    seed: int
    progress: bool

    def check(self, held_out: bool) -> None:
        """Raise ValueError for values that cannot be meant; ``held_out`` says whether there are held-out rows."""
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"expected epochs or steps, got both (epochs={self.epochs}, steps={self.steps})")
        for name in ("epochs", "steps", "batch_size", "checkpoint_every", "early_stopping"):
            value = getattr(self, name)
            if value is not None and (int(value) != value or value < 1):
                raise ValueError(f"expected {name} as a whole number >= 1, got {value}")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"expected {name} > 0, got {value}")
        if self.seed < 0:
            raise ValueError(f"expected seed >= 0, got {self.seed}")
        if self.early_stopping is not None and not held_out:
            raise ValueError("expected validate= with early_stopping=: stopping looks at held-out rows")
        if self.checkpoint_every is not None and self.checkpoint is None:
            raise ValueError("expected checkpoint= with checkpoint_every=: the folder to write to")
