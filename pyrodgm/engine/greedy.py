"""Greedy training of a stack of machines, each on the hidden units of the one below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrodgm.energy.rbm import RBM
from pyrodgm.energy.twins import TwinRBM
from pyrodgm.engine.fit import fit
from pyrodgm.engine.result import Fit
from pyrodgm.objectives.base import Objective
from pyrodgm.objectives.contrastive import ContrastiveDivergence

__all__ = ["fit_stack"]


def fit_stack(
    stack: Sequence[RBM | TwinRBM],
    data: Tensor,
    objective: Callable[[], Objective] = ContrastiveDivergence,
    *,
    tied: bool = False,
    **options: Any,
) -> list[Fit]:
    r"""Train machines bottom first: h ~ p(h | v) of the one below are the rows of the next.

    Each machine starts from the visible biases of its rows and ends on the device of the data. A stack of RBMs starts a
    deep belief network, a stack of :class:`TwinRBM` a deep Boltzmann machine.

    Args:
        stack: machines that fit onto each other; rows are repeated where twins have copies of their visible layer.
        data: (N, V).
        objective: makes the objective of one machine.
        tied: start each RBM but the first as the one below turned over (:meth:`RBM.tie`), its persistent chains at the
            hidden units of those below. A belief network's bound then starts at the likelihood of the lower machine;
            otherwise it starts from scratch, and so does the bound.
        **options: of :func:`pyrodgm.fit`, the same for each machine; ``seed`` also draws the hidden units. Machine i
            has the folder ``machine-i`` in ``checkpoint``, and its number in the name of ``csv``. The same call again
            goes on where it stopped. More epochs want another folder: the rows of all machines but the first change.
    Shapes: returns the run of each machine; after Ctrl-C, of those up to the one that it ended.
    Raises: ValueError if a machine does not fit its rows, or cannot be tied, and for validate= or context=, which
        belong to the rows of one machine alone; TypeError for tied twins.
    Source: Hinton, Osindero and Teh (2006), A fast learning algorithm for deep belief nets; Salakhutdinov
        and Hinton (2009), Deep Boltzmann machines.
    Example:
        >>> runs = fit_stack([RBM(6, 4), RBM(4, 3)], torch.ones(20, 6), epochs=1, progress=False)
        >>> len(runs)
        2
    """
    for name in ("validate", "context"):
        if options.get(name) is not None:
            raise ValueError(
                f"expected no {name}= for a stack, each machine of which has rows of its own; fit them one by one"
            )
    runs: list[Fit] = []
    rows = data
    generator = torch.Generator(data.device).manual_seed(options.get("seed", 0))
    for i, machine in enumerate(stack):
        visible = machine.event_shape[0]
        copies = isinstance(machine, TwinRBM)
        if rows.dim() != 2 or (visible % rows.shape[1] if copies else visible != rows.shape[1]):
            raise ValueError(
                f"expected machine {i} of {rows.shape[-1]} visible units{' or whole copies of them' * copies}, got "
                f"{visible}; a machine's visible layer is the hidden layer of the one below"
            )
        rows = rows.repeat(1, visible // rows.shape[1])
        machine.set_visible_bias(rows)
        goal = objective()
        if tied and i:
            _tie(machine, stack[i - 1], goal, runs[-1].objective, generator)
        runs.append(fit(machine, rows, goal, **_own(options, i)))
        machine.to(data.device)
        if runs[-1].stopped == "interrupted":
            break
        rows = machine.draw_hidden(rows.to(machine.dtype), generator=generator)
    return runs


def _own(options: dict[str, Any], i: int) -> dict[str, Any]:
    """The options of one machine, with files of its own."""
    own = dict(options)
    if own.get("checkpoint") is not None:
        own["checkpoint"] = Path(own["checkpoint"]) / f"machine-{i}"
    if own.get("csv") is not None:
        file = Path(own["csv"])
        own["csv"] = file.with_name(f"{file.stem}-{i}{file.suffix}")
    return own


def _tie(
    machine: RBM | TwinRBM, below: RBM | TwinRBM, objective: Objective, last: Objective, generator: torch.Generator
) -> None:
    """Start a machine and its chains where those below have come to."""
    if not isinstance(machine, RBM) or not isinstance(below, RBM):
        raise TypeError(
            f"expected RBMs to tie, got {type(machine).__name__} on {type(below).__name__}; a deep Boltzmann machine "
            "starts from one RBM by DeepBoltzmannMachine.from_rbm"
        )
    machine.tie(below)
    chains = getattr(last, "negatives", None)
    if chains is not None and isinstance(objective, ContrastiveDivergence) and objective.persistent:
        chains = chains.to(below.weight).to(generator.device)
        objective.begin(below.draw_hidden(chains, generator=generator))
