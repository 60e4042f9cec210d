"""What a run is between two steps, as plain values, and such values put back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from pyrodgm.engine.batches import Batches
from pyrodgm.engine.checkpoint import CheckpointError, load_latest
from pyrodgm.objectives.base import Objective

if TYPE_CHECKING:
    from pyrodgm.engine.loop import Trainer

__all__ = ["capture", "learned", "restore", "told_by_arguments", "told_by_data"]

_HOW = ("params", "foreach", "fused", "capturable", "differentiable")  # how an optimiser computes what it does


def told_by_arguments(objective: Objective, optimizers: Mapping[str, Optimizer]) -> dict[str, Any]:
    """The plain arguments of an objective and of optimisers no step old: what a resumed run has to share."""
    own = inspect.signature(type(objective).__init__).parameters
    told = {f"objective.{k}": v for k, v in vars(objective).items() if k in own}
    for player, optimizer in optimizers.items():
        for i, group in enumerate(optimizer.param_groups):
            where = f"{player}[{i}]" if i else player
            told |= {f"{where}.{k}": v for k, v in group.items() if k not in _HOW}
    return {k: v for k, v in told.items() if isinstance(v, bool | int | float | str | tuple | np.generic)}


def told_by_data(objective: Objective, data: Batches, held_out: Batches | None) -> dict[str, Any]:
    """The size and the digest of the rows that a resumed run has to share."""
    told: dict[str, Any] = {}
    for name, rows in (("data", data if objective.needs_data else None), ("held-out data", held_out)):
        if rows is not None:
            told |= {f"rows of {name}": rows.rows, f"digest of {name}": rows.digest()}
    return {k: v for k, v in told.items() if v is not None}


def learned(objective: Objective) -> dict[str, Tensor]:
    """An objective's parameters, and the buffers of its networks; chains, which it has itself, are not learned."""
    networks = tuple(f"{name}." for name, child in objective.named_children() if any(True for _ in child.parameters()))
    buffers = {name: b for name, b in objective.named_buffers() if name.startswith(networks)}
    return {**dict(objective.named_parameters()), **buffers}


def capture(run: Trainer) -> dict[str, Any]:
    """The state of a run, from all its processes together."""
    own = {
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(run.device) if run.device.type == "cuda" else None,
        # chains and the like differ between processes; one process alone has them in its state dicts
        "buffers": {k: b.cpu() for k, b in run.step_module.named_buffers()} if run.several else {},
    }
    ranks = [own]
    if run.several:
        ranks = [own] * run.fabric.world_size
        torch.distributed.all_gather_object(ranks, own)
    return {
        "fingerprint": run.fingerprint,
        "seed": run.settings.seed,
        "told": _plain(run.told),
        "counters": {k: getattr(run, k) for k in ("epoch", "batch", "steps", "stale", "per_epoch")},
        "model": run.model.state_dict(),
        "objective": run.objective.state_dict(),
        "optimizers": {k: _plain(o.state_dict()) for k, o in run.optimizers.items()},
        "schedules": {k: _plain(s.state_dict()) for k, s in run.schedules.items()},
        "precision": run.fabric.strategy.precision.state_dict(),
        "ranks": ranks,
        "seconds": run.seconds,
        "sums": run.sums,
        "history": _plain(run.fit.history),  # to which a callback may have added
        "best": run.fit.best,
        "best_state": run.best_state,
        "best_learned": run.best_learned,
    }


def _plain(value: Any) -> Any:
    """Without numpy's scalars, such as a learning rate from ``logspace``: a file without code cannot hold them."""
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_plain(v) for v in value])
    return value.item() if isinstance(value, np.generic) else value


def restore(run: Trainer) -> None:
    """Put the newest usable checkpoint of the run's folder into it, if there is one.

    Raises: CheckpointError if it belongs to a run with another seed, number of processes, learning rate, argument of
        the objective, schedule of the learning rate (such as one that was to end with the run), with other data, or,
        where it was written inside an epoch, number of batches.
    """
    folder = run.settings.checkpoint
    found = load_latest(folder, run.fingerprint) if run.main and folder is not None else None
    if run.several:
        found = run.fabric.broadcast(found)
    if found is None:
        return
    state, run.saved = found
    _match(run, state)
    run.epoch, run.batch, run.steps, run.stale = (state["counters"][k] for k in ("epoch", "batch", "steps", "stale"))
    run.model.load_state_dict(state["model"])
    run.objective.load_state_dict(state["objective"])
    run.objective.to(run.device)
    for k, o in run.optimizers.items():
        o.load_state_dict(state["optimizers"][k])
    for k, s in run.schedules.items():
        _same_schedule(run, s.state_dict(), state["schedules"][k])
        s.load_state_dict(state["schedules"][k])
    if run.settings.steps is None:  # so many epochs in all, whatever the batches of those before were
        run.total = run.steps + (run.total // run.per_epoch - run.epoch) * run.per_epoch - run.batch
    run.fabric.strategy.precision.load_state_dict(state["precision"])
    own = state["ranks"][run.fabric.global_rank]
    buffers = dict(run.step_module.named_buffers())
    for k, value in own["buffers"].items():
        buffers[k].copy_(value)
    torch.set_rng_state(own["rng"])
    if own["cuda_rng"] is not None and run.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda_rng"], run.device)
    run.seconds, run.sums = state["seconds"], state["sums"]
    run.best_state, run.best_learned = state["best_state"], state["best_learned"]
    run.fit.history, run.fit.best = state["history"], state["best"]


def _match(run: Trainer, state: dict[str, Any]) -> None:
    mine = {"seed": run.settings.seed, "processes": run.fabric.world_size, **run.told}
    theirs = {"seed": state["seed"], "processes": len(state["ranks"]), **state["told"]}
    if state["counters"]["batch"] > 0:
        mine["batches an epoch"], theirs["batches an epoch"] = run.per_epoch, state["counters"]["per_epoch"]
    for what, value in theirs.items():  # a Dataset has no digest, and a run may go on without held-out data
        if mine.get(what, value) != value:
            raise CheckpointError(
                f"{run.saved} was written with {what}={value}, this run has {what}={mine[what]}; run it as before, "
                "give it a folder of its own, or pass resume=False to start over"
            )


_COUNTERS = ("last_epoch", "base_lrs")  # and what begins with an underscore


def _same_schedule(run: Trainer, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    for key, value in mine.items():
        plain = isinstance(value, int | float | str | bool | list | tuple)
        if plain and not key.startswith("_") and key not in _COUNTERS and theirs.get(key, value) != value:
            raise CheckpointError(
                f"{run.saved} was written with a schedule of {key}={theirs[key]}, this run's has {key}={value}, and "
                "half of each is neither; train as long as before, give a schedule that does not hang on the length of "
                "the run, or pass resume=False to start over"
            )
