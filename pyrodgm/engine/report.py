"""How a run shows itself: a bar on stderr and a CSV file."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from pyrodgm.engine.result import Fit
from pyrodgm.files import write_atomically

__all__ = ["Bar", "write_csv"]

_EVERY = 0.1  # seconds between new numbers


class Bar:
    """A progress bar over steps, with losses in their unit and the last held-out score.

    Args:
        fit: whose units and names are shown.
        done, total: steps.
        on: whether there is anything to see.
    """

    def __init__(self, fit: Fit, done: int, total: int, on: bool) -> None:
        self.fit, self.score, self.shown = fit, "", 0.0
        self.bar = tqdm(total=total, initial=done, unit="step") if on else None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()

    def step(self, steps: int, epoch: int, means: Callable[[], dict[str, float]]) -> None:
        """One more step is done; ``means`` gives the epoch's losses so far."""
        if self.bar is None:
            return
        now = time.perf_counter()
        if now - self.shown > _EVERY or steps == self.bar.total:
            self.shown = now
            losses = ", ".join(f"{k} {v:.4g}" for k, v in means().items())
            self.bar.set_description_str(f"epoch {epoch + 1}", refresh=False)
            self.bar.set_postfix_str(f"{losses} {self.fit.unit}{self.score}", refresh=False)
        self.bar.update()

    def held_out(self, score: float) -> None:
        """Show a new held-out score from now on."""
        self.score = f", held-out {self.fit.held_out_name} {score:.4g}"


def write_csv(path: Path, history: list[dict[str, float]]) -> None:
    """A history as a table, a row an epoch; a reader finds either the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(k for row in history for k in row))

    def write(part: Path) -> None:
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=columns)
            writer.writeheader()
            writer.writerows(history)

    write_atomically(path, write)
