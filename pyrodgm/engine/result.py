"""What a run of training gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyrodgm.core import GenerativeModel
from pyrodgm.objectives.base import Objective

__all__ = ["Fit"]


@dataclass(repr=False)
class Fit:
    """What a run of :func:`fit` did.

    Attributes:
        model: the trained model in eval mode, with the best state where held-out rows were given.
        objective: the objective, with what it has learned beside that state; its chains are as the last step left them.
        history: a dict for each epoch: "epoch", "step", "seconds", the mean loss ("loss", or one for
            each of several players) and "held_out". Where ``steps`` end a run inside an epoch, its
            last row is of that part.
        best: {"epoch", "held_out"} of the state that the model has, or None without held-out rows.
        stopped: "finished", "early_stopping", "callback" or "interrupted".
        timings: "seconds" of training, "steps", "steps_per_second", and "compile_seconds".
        unit: of the losses.
        held_out_name: what "held_out" measures.
    """

    model: GenerativeModel
    objective: Objective
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    stopped: str = "finished"
    timings: dict[str, float] = field(default_factory=dict)
    unit: str = "nats/datum"
    held_out_name: str = "loss"

    @property
    def losses(self) -> tuple[str, ...]:
        """What a row of the history calls its losses: "loss", or the names of several players."""
        players = tuple(self.objective.players(self.model))
        return ("loss",) if len(players) == 1 else players

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        losses = [f"{k} {last[k]:.4g}" for k in self.losses if k in last]
        parts = [
            f"{type(self.model).__name__} by {type(self.objective).__name__}",
            f"{self.stopped} after {len(self.history)} epochs, {self.timings.get('steps', 0):.0f} steps, "
            f"{self.timings.get('seconds', 0.0):.3g} s",
        ]
        if losses:
            parts.append(f"{', '.join(losses)} {self.unit}")
        if self.best is not None:
            parts.append(f"best {self.held_out_name} {self.best['held_out']:.4g} at epoch {self.best['epoch']:.0f}")
        return f"Fit({'; '.join(parts)})"
