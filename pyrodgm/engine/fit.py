"""``fit``: train any model with any objective on any data, on one device or many."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrodgm.core import Energy, GenerativeModel, Latent, evaluating
from pyrodgm.engine.batches import Batches, as_batches
from pyrodgm.engine.fabric import SPAWNED, check_precision, make_fabric
from pyrodgm.engine.loop import Trainer
from pyrodgm.engine.result import Fit
from pyrodgm.engine.settings import Settings, check_seed
from pyrodgm.engine.surroundings import interruptible
from pyrodgm.evaluation.likelihood import unnormalised_site
from pyrodgm.objectives.base import Objective
from pyrodgm.objectives.default import default_objective
from pyrodgm.seeding import random_state

__all__ = ["fit"]

_EPOCHS = 20  # where neither epochs nor steps are given
_START_ROWS = 128  # at least so many set what starts from data, where there are so many
_RANK_SEED = 1_000_003  # apart from any seed + 1 that a user may take next


def _check_types(model: Any, objective: Any, optimizer: Any, callbacks: Any) -> None:
    """Raise TypeError for what stands where a model, an objective, a maker of optimisers or callbacks should."""
    if not isinstance(model, GenerativeModel):
        raise TypeError(f"expected a model such as RealNVP(features=2), got {_described(model)}")
    if objective is not None and not isinstance(objective, Objective):
        raise TypeError(
            f"expected an objective such as MaximumLikelihood(), got {_described(objective)}; a Pyro ELBO goes in by "
            "pyrodgm.objectives.PyroObjective"
        )
    if optimizer is not None and (not callable(optimizer) or isinstance(optimizer, PyroOptim)):
        raise TypeError(
            "expected optimizer as a function of a list of parameters, such as lambda ps: torch.optim.SGD(ps, lr=0.1), "
            f"got {_described(optimizer)}"
        )
    if callable(callbacks) or not all(map(callable, callbacks)):
        raise TypeError(
            f"expected callbacks as a sequence of functions of the run, got {callbacks!r}; put it in a list"
        )


def _described(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def fit(
    model: GenerativeModel,
    data: Any,
    objective: Objective | None = None,
    *,
    context: Any = None,
    validate: Any = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    lr: float | None = None,
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
    lr_schedule: Callable[[Optimizer, int], LRScheduler] | None = None,
    clip: float | None = None,
    device: str | torch.device = "auto",
    precision: Any = "32-true",
    strategy: Any = "auto",
    devices: int = 1,
    compile: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    callbacks: Sequence[Callable[[Fit], bool | None]] = (),
    early_stopping: int | None = None,
    csv: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Fit:
    """Train ``model`` on ``data``.

    The run is a function of ``seed``: orders and noise follow from it, and the caller's random
    state and validation flags are left as they were. Data that the model cannot have drawn are
    refused before the first step. The model is in eval mode afterwards, also after an error. Ctrl-C
    ends the run after the step at hand, with the state so far; a second one ends it at once.

    Args:
        model: any member of the four families.
        data: None for an objective that needs none (ReverseKL, Distillation), with 100 steps an epoch; else rows
            (B, *event) as array or tensor, a pair (x, context), a map-style Dataset or a
            DataLoader that yields x or (x, context); what is not in memory is read once to be checked.
        objective: default by family: maximum likelihood, ELBO, (persistent) contrastive divergence,
            the adversarial game.
        context: (B, C) beside x.
        validate: held-out rows in the same forms as x or (x, context); they pick the best state.
        epochs: passes over the data; default 20.
        steps: length of the run in batches, instead of ``epochs``.
        batch_size: rows of a step, over all devices together.
        lr: learning rate of the objective's own optimiser; default the objective's (1e-3 for Adam, 0.05 for
            contrastive divergence by SGD).
        optimizer: makes an optimiser of a player's parameters.
        lr_schedule: makes a schedule of (optimiser, total steps), stepped after each step.
        clip: largest gradient norm.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1"; model and objective stay there afterwards.
        precision: as Lightning Fabric takes it, such as "bf16-mixed" (not for Boltzmann machines); "16-true" and
            "bf16-true" are refused.
        strategy: as Lightning Fabric takes it: "ddp", which several devices have by default, under ``torchrun``,
            "ddp_spawn" in a script.
        devices: processes of a node; each takes an equal share of every batch, with noise of its own.
        compile: trace the loss through the program and compile it (one player); where that fails,
            train as without, with a warning that says why.
        checkpoint: folder of this run's atomic checkpoints.
        checkpoint_every: steps between checkpoints besides those at the epochs' ends.
        resume: go on bit-exactly from the newest checkpoint in the folder, if there is one; a
            finished run returns at once, or goes on where ``epochs`` or ``steps`` are more, unless its
            schedule of the learning rate was to end with it. Noise that a Dataset draws by another generator than
            torch's, or in persistent workers, does not come again.
        callbacks: called with the run so far after each epoch; a True ends it.
        early_stopping: epochs without a better held-out score after which the run ends.
        csv: file for the history, a row an epoch.
        seed: of orders and noise.
        progress: show a bar with the loss in its unit on stderr.
    Raises: ValueError or TypeError for bad data, arguments or folders, before the first step;
        FloatingPointError when a loss is not finite, with the parameter, layer or site named;
        CheckpointError if there are checkpoints and none can be used, or the newest is of a run with another seed,
        number of processes, learning rate, schedule or argument of the objective, or with other data.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> run = fit(RealNVP(features=2), torch.randn(64, 2), epochs=2, progress=False)
        >>> run.stopped, len(run.history)
        ('finished', 2)
    """
    _check_types(model, objective, optimizer, callbacks)
    seed = check_seed(seed)
    if objective is None:
        with random_state(torch.device("cpu"), seed):
            objective = default_objective(model)
    objective.check(model)
    settings = Settings(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        lr=objective.lr if lr is None else lr,
        optimizer=optimizer,
        lr_schedule=lr_schedule,
        clip=clip,
        compile=compile,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        checkpoint_every=checkpoint_every,
        resume=resume,
        callbacks=tuple(callbacks),
        early_stopping=early_stopping,
        csv=None if csv is None else Path(csv),
        seed=seed,
        progress=progress,
    ).checked(validate is not None)
    if data is None:
        data = _own_rows(model, objective, context, settings.batch_size, seed)
    check_precision(model, precision)
    fabric = make_fabric(str(device), precision, strategy, devices)
    # Ctrl-C reaches spawned processes too, which then end well: the one that waits for them must outlast it
    waiting = interruptible() if strategy in SPAWNED else nullcontext()
    with tempfile.TemporaryDirectory() as folder, waiting:
        job = _Job(model, objective, data, context, validate, settings, os.getpid(), Path(folder) / "run.pt")
        run: Fit | None = fabric.launch(job)
        return job.fetch() if run is None else run


def _own_rows(model: GenerativeModel, objective: Objective, context: Any, batch_size: int, seed: int) -> Tensor:
    """Rows that only say how many draws are wanted: of each context, or 100 batches."""
    if objective.needs_data:
        raise ValueError(f"expected data: {type(objective).__name__} learns from rows, got None")
    with random_state(model.device, seed):
        if context is None:
            return model.sample(1).expand(100 * batch_size, *model.event_shape)
        return model.sample(None, torch.as_tensor(context).to(model.device, model.dtype))


@dataclass
class _Job:
    """A run as a value, so that it can be handed to spawned processes.

    ``process`` is the one that asked for it; any other leaves its result in the file ``result``.
    """

    model: GenerativeModel
    objective: Objective
    data: Any
    context: Any
    validate: Any
    settings: Settings
    process: int
    result: Path

    def __call__(self, fabric: Any) -> Fit | None:
        s, where = self.settings, {"rank": fabric.global_rank, "world": fabric.world_size}
        if os.getpid() != self.process:  # tensors come to spawned processes as one shared memory
            self.model, self.objective = copy.deepcopy((self.model, self.objective))
        with random_state(fabric.device, s.seed + _RANK_SEED * fabric.global_rank):
            batches = as_batches(self.model, self.data, self.context, s.batch_size, fabric.device, **where)
            held_out = None
            if self.validate is not None:
                held_out = as_batches(
                    self.model, self.validate, None, s.batch_size, fabric.device, even=False, name="validate", **where
                )
                _check_scores(self.model, held_out, s.seed, fabric.device)
            s.make_folders()
            _initialize(self.model, batches, s.seed, fabric.device)
            total = s.steps if s.steps is not None else (s.epochs or _EPOCHS) * batches.per_epoch
            run = Trainer(self.model, self.objective, s, fabric, total, batches.per_epoch).run(batches, held_out)
        if os.getpid() == self.process:
            return run
        if fabric.global_rank == 0:
            states = {"model": run.model.state_dict(), "objective": run.objective.state_dict()}
            torch.save({**vars(run), **states}, self.result)
        if torch.distributed.is_initialized():  # its threads must not outlive what they work on
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
        return None

    def fetch(self) -> Fit:
        """The run of spawned processes, which trained copies, with its states put into the caller's objects."""
        values = torch.load(self.result, map_location="cpu", weights_only=True)
        self.model.load_state_dict(values.pop("model"))
        self.objective.load_state_dict(values.pop("objective"))
        return Fit(self.model.eval(), self.objective.eval(), **values)


def _initialize(model: GenerativeModel, batches: Batches, seed: int, device: torch.device) -> None:
    """Let the parts that start from data do so by the first rows; between processes, rank 0's start is copied."""
    if all(bool(getattr(module, "started", True)) for module in model.modules()):
        return
    rows: list[Tensor] = []
    contexts: list[Tensor] = []
    for x, context in batches.epoch(seed, 0, 0):  # more than one small batch: a single row has no variance
        rows.append(x)
        contexts += [] if context is None else [context]
        if sum(map(len, rows)) >= _START_ROWS:
            break
    model.to(device)
    dtype = model.dtype
    with evaluating(model):
        model.initialize(torch.cat(rows).to(device, dtype), torch.cat(contexts).to(device, dtype) if contexts else None)


def _check_scores(model: GenerativeModel, held_out: Batches, seed: int, device: torch.device) -> None:
    """Refuse held-out rows for a program with an energy that learns: its log Z moves, so scores do not compare."""
    if not isinstance(model, Latent):
        return
    model.to(device)
    first = next(held_out.epoch(seed, 0), None)
    if first is None:  # where a process has no held-out row, another has one
        return
    x, context = first
    row = x[:1].to(device, model.dtype), None if context is None else context[:1].to(device, model.dtype)
    name = unnormalised_site(model, *row)
    energies = [m for m in model.modules() if isinstance(m, Energy)]
    fixed = bool(energies) and not any(m.context or any(p.requires_grad for p in m.parameters()) for m in energies)
    if name is not None and not fixed:
        raise ValueError(
            f"expected a program of normalised densities to score held-out rows, got {name!r}, whose log Z moves as it "
            "trains; fit without validate="
        )
