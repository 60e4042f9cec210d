"""The arguments of a run as one value."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrodgm.engine.result import Fit

__all__ = ["Settings", "check_count", "check_seed"]


def check_count(name: str, value: float, least: int = 1) -> int:
    """``value`` as an int; ValueError for what is no whole number >= ``least``."""
    if not float(value).is_integer() or value < least:
        raise ValueError(f"expected {name} as a whole number >= {least}, got {value}")
    return int(value)


def check_seed(seed: float) -> int:
    """``seed`` as an int; ValueError for what is no whole number >= 0."""
    return check_count("seed", seed, 0)


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

    def checked(self, held_out: bool) -> Settings:
        """The same as plain ints and floats; ``held_out`` says whether there are held-out rows.

        Raises: ValueError for values that cannot be meant.
        """
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"expected epochs or steps, got both (epochs={self.epochs}, steps={self.steps})")
        plain: dict[str, Any] = {"seed": check_seed(self.seed)}
        for name in ("epochs", "steps", "batch_size", "checkpoint_every", "early_stopping"):
            value = getattr(self, name)
            if value is not None:
                plain[name] = check_count(name, value)
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None:
                if not value > 0:
                    raise ValueError(f"expected {name} > 0, got {value}")
                plain[name] = float(value)
        if self.early_stopping is not None and not held_out:
            raise ValueError("expected validate= with early_stopping=: stopping looks at held-out rows")
        if self.checkpoint_every is not None and self.checkpoint is None:
            raise ValueError("expected checkpoint= with checkpoint_every=: the folder to write to")
        return replace(self, **plain)

    def make_folders(self) -> None:
        """Make the folders that the run writes to; ValueError for one that cannot be written."""
        if self.csv is not None and self.csv.is_dir():
            raise ValueError(f"expected csv as a file, got the folder {self.csv}; name a file in it")
        for name, folder in (("checkpoint", self.checkpoint), ("csv", None if self.csv is None else self.csv.parent)):
            if folder is None:
                continue
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"expected {name}= in a folder that can be made, got {folder}: {error}") from error
            if not os.access(folder, os.W_OK):
                raise ValueError(f"expected {name}= in a folder that can be written to, got {folder}")
