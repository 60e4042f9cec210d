"""The score of held-out rows, over all processes."""

from __future__ import annotations

from typing import Any

import torch

from pyrodgm.core import GenerativeModel, evaluating
from pyrodgm.engine.batches import Batches
from pyrodgm.objectives.base import Objective
from pyrodgm.seeding import random_state

__all__ = ["held_out_score"]


def held_out_score(model: GenerativeModel, objective: Objective, rows: Batches, fabric: Any, seed: int) -> float:
    """The mean of ``objective.held_out`` over the rows, in eval mode.

    The noise is the same at every call, so that scores differ by the model alone, and training
    does not notice that it was drawn.
    """
    device, dtype = fabric.device, model.dtype
    total = torch.zeros(2, dtype=torch.float64, device=device)
    with random_state(device, seed + fabric.global_rank), evaluating(model), evaluating(objective):
        for x, context in rows.epoch(seed, 0):
            x = x.to(device, dtype)
            context = None if context is None else context.to(device, dtype)
            with fabric.autocast():
                score = objective.held_out(model, x, context, n=rows.rows)
            total[0] += score.double() * len(x)
            total[1] += len(x)
    weighted, count = fabric.all_reduce(total, reduce_op="sum").tolist()
    return float(weighted / count)
