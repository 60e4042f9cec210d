"""What a run is between two steps, as plain values, and such values put back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pyrodgm.engine.checkpoint import CheckpointError, load_latest

if TYPE_CHECKING:
    from pyrodgm.engine.loop import Trainer

__all__ = ["capture", "restore"]


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
        "counters": {k: getattr(run, k) for k in ("epoch", "batch", "steps", "stale", "per_epoch")},
        "model": run.model.state_dict(),
        "objective": run.objective.state_dict(),
        "optimizers": {k: o.state_dict() for k, o in run.optimizers.items()},
        "schedules": {k: s.state_dict() for k, s in run.schedules.items()},
        "precision": run.fabric.strategy.precision.state_dict(),
        "ranks": ranks,
        "seconds": run.seconds,
        "sums": run.sums,
        "history": run.fit.history,
        "best": run.fit.best,
        "best_state": run.best_state,
        "best_learned": run.best_learned,
    }


def restore(run: Trainer) -> None:
    """Put the newest usable checkpoint of the run's folder into it, if there is one.

    Raises: CheckpointError if it belongs to a run with another seed, number of processes, schedule of the learning rate
        (such as one that was to end with the run), or, where it was written inside an epoch, number of batches.
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
    mine = {"seed": run.settings.seed, "processes": run.fabric.world_size}
    theirs = {"seed": state["seed"], "processes": len(state["ranks"])}
    if state["counters"]["batch"] > 0:
        mine["batches an epoch"], theirs["batches an epoch"] = run.per_epoch, state["counters"]["per_epoch"]
    for what, value in theirs.items():
        if mine[what] != value:
            raise CheckpointError(
                f"{run.saved} was written with {what}={value}, this run has {what}={mine[what]}; "
                "run it as before, or pass resume=False to start over"
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
