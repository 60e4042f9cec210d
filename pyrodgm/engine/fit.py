"""``fit``: train any model with any objective on any data, on one device or many."""

from __future__ import annotations

import csv as csv_module
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from pyrodgm.core import Energy, GenerativeModel, Implicit, Latent, Tractable, evaluating
from pyrodgm.engine import checkpoint as checkpoints
from pyrodgm.engine.compile import compile_loss
from pyrodgm.engine.diagnose import find_nonfinite
from pyrodgm.engine.rows import Batches, as_batches
from pyrodgm.objectives import ELBO, Adversarial, ContrastiveDivergence, MaximumLikelihood
from pyrodgm.objectives.base import Objective

__all__ = ["Fit", "default_objective", "fit"]

_EPOCHS = 20  # where neither epochs nor steps are given


@dataclass
class Fit:
    """What a run of :func:`fit` did.

    Attributes:
        model: the trained model, with the best state where held-out rows were given.
        objective: the objective, with its critics or chains.
        history: a dict for each epoch: "epoch", "step", "seconds", the mean loss of each player, and "held_out".
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


def default_objective(model: GenerativeModel) -> Objective:
    """The objective that follows from the family."""
    if isinstance(model, Tractable):
        return MaximumLikelihood()
    if isinstance(model, Latent):
        return ELBO()
    if isinstance(model, Energy):
        return ContrastiveDivergence(persistent=not model.context)
    if isinstance(model, Implicit):
        return Adversarial.mlp(model)
    raise TypeError(f"expected a model of one of the four families, got {type(model).__name__}; pass objective=")


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
    lr: float = 1e-3,
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
    lr_schedule: Callable[[Optimizer, int], LRScheduler] | None = None,
    clip: float | None = None,
    device: str = "auto",
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
    state is left as it was. Data that the model cannot have drawn are refused before the first step.

    Args:
        model: any member of the four families.
        data: rows (B, *event) as array or tensor, a pair (x, context), a map-style Dataset or a
            DataLoader that yields x or (x, context).
        objective: default by family: maximum likelihood, ELBO, (persistent) contrastive divergence,
            the adversarial game.
        context: (B, C) beside x.
        validate: held-out rows in the same forms as x or (x, context); they pick the best state.
        epochs, steps: length of the run, one of them; default 20 epochs.
        batch_size: rows of a step, over all devices together.
        lr: learning rate of the default optimiser, fused Adam.
        optimizer: makes an optimiser of a player's parameters.
        lr_schedule: makes a schedule of (optimiser, total steps), stepped after each step.
        clip: largest gradient norm.
        device: "auto", "cpu", "cuda" or "cuda:1"; precision, strategy, devices: as Lightning Fabric takes them.
        compile: trace the loss through the program and compile it (one player).
        checkpoint: folder for atomic checkpoints; with ``resume`` a run goes on from the newest, bit-exactly.
        checkpoint_every: steps between checkpoints besides those at the epochs' ends.
        callbacks: called with the run so far after each epoch; a True ends it.
        early_stopping: epochs without a better held-out score after which the run ends.
        csv: file for the history, a row an epoch.
        seed: of orders and noise.
        progress: show a bar with the loss in its unit on stderr.
    Raises: ValueError or TypeError for bad data or arguments, before the first step;
        FloatingPointError when a loss is not finite, with the layer or site named.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> run = fit(RealNVP(features=2), torch.randn(64, 2), epochs=2, progress=False)
        >>> run.stopped, len(run.history)
        ('finished', 2)
    """
    objective = default_objective(model) if objective is None else objective
    objective.check(model)
    _check_arguments(epochs, steps, lr, clip, early_stopping, validate)
    trainer = _Trainer(
        model=model,
        objective=objective,
        compile=compile,
        clip=clip,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        checkpoint_every=checkpoint_every,
        resume=resume,
        callbacks=callbacks,
        early_stopping=early_stopping,
        csv=None if csv is None else Path(csv),
        seed=seed,
        progress=progress,
    )
    fabric = _fabric(device, precision, strategy, devices, len(objective.players(model)))

    def job(fabric: Any) -> Fit:
        rank_devices = [fabric.device] if fabric.device.type == "cuda" else []
        with torch.random.fork_rng(rank_devices), pyro.validation_enabled(True):
            torch.manual_seed(seed + 1_000_003 * fabric.global_rank)
            to_batches = _batcher(model, batch_size, fabric)
            batches = to_batches(data, context)
            held_out = None if validate is None else to_batches(validate, None)
            total = steps if steps is not None else (_EPOCHS if epochs is None else epochs) * batches.per_epoch
            trainer.set_up(fabric, lr, optimizer, lr_schedule, total)
            return trainer.run(batches, held_out, total)

    fabric.launch()
    return job(fabric)


def _check_arguments(
    epochs: int | None, steps: int | None, lr: float, clip: float | None, patience: int | None, validate: Any
) -> None:
    if epochs is not None and steps is not None:
        raise ValueError(f"expected epochs or steps, got both (epochs={epochs}, steps={steps})")
    for name, value in (("epochs", epochs), ("steps", steps), ("lr", lr), ("clip", clip), ("early_stopping", patience)):
        if value is not None and not value > 0:
            raise ValueError(f"expected {name} > 0, got {value}")
    if patience is not None and validate is None:
        raise ValueError("expected validate= with early_stopping=: stopping looks at held-out rows")


def _fabric(device: str, precision: Any, strategy: Any, devices: int, players: int) -> Any:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda"):
        raise ValueError(f'expected device "auto", "cpu", "cuda" or "cuda:INDEX", got {device!r}')
    if strategy == "ddp":  # a player's backward leaves the other players' parameters without gradients
        strategy = DDPStrategy(find_unused_parameters=players > 1)
    return Fabric(
        accelerator="auto" if kind == "auto" else kind,
        devices=[int(index)] if index else devices,
        precision=precision,
        strategy=strategy,
    )


def _batcher(model: GenerativeModel, batch_size: int, fabric: Any) -> Callable[[Any, Any], Batches]:
    return lambda data, context: as_batches(
        model, data, context, batch_size, fabric.device, fabric.global_rank, fabric.world_size
    )


class _Step(nn.Module):
    """The module that Fabric wraps: its forward advances an objective by one loss, so hooks of DDP and autocast apply."""

    def __init__(self, model: GenerativeModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, losses: Iterator[tuple[str, Tensor]]) -> tuple[str, Tensor] | None:
        return next(losses, None)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks the loop to end after the step at hand; a second one ends it at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def ask(signum: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signum)

    old = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, old)


@dataclass
class _Trainer:
    """The loop and its state; what it needs to go on bit-exactly is exactly what :meth:`_state` returns."""

    model: GenerativeModel
    objective: Objective
    compile: bool
    clip: float | None
    checkpoint: Path | None
    checkpoint_every: int | None
    resume: bool
    callbacks: Sequence[Callable[[Fit], bool | None]]
    early_stopping: int | None
    csv: Path | None
    seed: int
    progress: bool

    def set_up(
        self,
        fabric: Any,
        lr: float,
        optimizer: Callable[[list[nn.Parameter]], Optimizer] | None,
        lr_schedule: Callable[[Optimizer, int], LRScheduler] | None,
        total: int,
    ) -> None:
        """Optimisers, schedules and Fabric's wrapping; the counters of a fresh run."""
        self.fabric = fabric
        self.model.to(fabric.device)
        self.objective.to(fabric.device)
        self.players = {
            k: [p for p in parameters if p.requires_grad] for k, parameters in self.objective.players(self.model).items()
        }
        plain = {
            k: optimizer(ps) if optimizer else self.objective.optimizer(k, ps, lr) for k, ps in self.players.items() if ps
        }
        self.schedules = {} if lr_schedule is None else {k: lr_schedule(o, total) for k, o in plain.items()}
        step = _Step(self.model, self.objective)
        if plain:
            self.step_module, *wrapped = fabric.setup(step, *plain.values())
        else:
            self.step_module, wrapped = step, []
        self.optimizers = dict(zip(plain, wrapped, strict=True))
        self.fingerprint = checkpoints.fingerprint(self.model, self.objective)
        self.fit = Fit(self.model, self.objective, unit=self.objective.unit, held_out_name=self.objective.held_out_name)
        self.epoch = self.batch = self.steps = self.stale = 0
        self.sums: dict[str, float] = {}
        self.best_state: dict[str, Tensor] | None = None
        self.seconds = 0.0
        self.saved: Path | None = None

    def run(self, batches: Batches, held_out: Batches | None, total: int) -> Fit:
        """Train until ``total`` steps are done or something asks to stop."""
        if self.checkpoint is not None and self.resume:
            self._restore()
        bar = tqdm(total=total, initial=self.steps, disable=not self.progress or self.fabric.global_rank > 0)
        stopped = "finished"
        with _interruptible() as interrupted, ExitStack() as validation:
            self.model.train()
            compiled, compile_seconds = self._compile(batches)
            began = time.perf_counter() - self.seconds
            while self.steps < total and stopped == "finished":
                for x, context in batches.epoch(self.seed, self.epoch, self.batch):
                    self._step(self.fabric.to_device(x), self.fabric.to_device(context), batches.rows, compiled, bar)
                    if self.steps == 1 or self.batch == 1:  # the first step has shown the shapes and supports to be right
                        validation.enter_context(pyro.validation_enabled(False))
                    due = self.checkpoint_every and self.steps % self.checkpoint_every == 0
                    if due and self.batch < batches.per_epoch:
                        self._save()
                    if interrupted():
                        stopped = "interrupted"
                        break
                    if self.steps >= total:
                        break
                else:
                    self.batch = batches.per_epoch
                self.seconds = time.perf_counter() - began
                if self.batch >= batches.per_epoch or self.steps >= total:
                    stopped = self._end_epoch(held_out, bar) or stopped
                if self.checkpoint is not None:
                    self._save()
        bar.close()
        return self._finish(stopped, compile_seconds)

    def _compile(self, batches: Batches) -> tuple[Any, float]:
        if not self.compile:
            return None, 0.0
        began = time.perf_counter()
        x, context = next(iter(batches.epoch(self.seed, 0)))
        with self.fabric.autocast():
            x, context = self.fabric.to_device(x), self.fabric.to_device(context)
            compiled = compile_loss(self.model, self.objective, x, context, batches.rows)
        return compiled, time.perf_counter() - began

    def _step(self, x: Tensor, context: Tensor | None, n: int, compiled: Any, bar: Any) -> None:
        losses: Iterator[tuple[str, Tensor]]
        if compiled is not None:
            losses = (("model", compiled(x, context, n)) for _ in range(1))
        else:
            losses = self.objective(self.model, x, context, n=n)
        rows = len(x)
        while (pair := self.step_module(losses)) is not None:
            player, loss = pair
            value = float(loss.detach())
            if not math.isfinite(value):
                self._refuse(player, value, x, context)
            self.sums[player] = self.sums.get(player, 0.0) + value * rows
            self.sums[f"{player} rows"] = self.sums.get(f"{player} rows", 0.0) + rows
            self._move(player, loss)
        self.steps += 1
        self.batch += 1
        bar.update()
        if self.steps % 20 == 0 or self.steps == 1:
            bar.set_description(f"epoch {self.epoch + 1}", refresh=False)
            means = ", ".join(f"{k} {v:.4g}" for k, v in self._means().items())
            bar.set_postfix_str(f"{means} {self.fit.unit}", refresh=False)

    def _move(self, player: str, loss: Tensor) -> None:
        """One gradient step of one player."""
        if player not in self.optimizers:
            return
        optimizer = self.optimizers[player]
        optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.players[player], self.clip)
        optimizer.step()
        if player in self.schedules:
            self.schedules[player].step()

    def _means(self) -> dict[str, float]:
        return {k: v / self.sums[f"{k} rows"] for k, v in self.sums.items() if not k.endswith(" rows")}

    def _refuse(self, player: str, value: float, x: Tensor, context: Tensor | None) -> None:
        reason = find_nonfinite(self.model, self.objective, x, context)
        kept = f"; the last good checkpoint is {self.saved}" if self.saved else ""
        raise FloatingPointError(
            f"the loss of {player!r} is {value} at epoch {self.epoch + 1}, step {self.steps + 1}: {reason}; "
            f"try a smaller lr, clip=1.0 or scaled data{kept}"
        )

    def _end_epoch(self, held_out: Batches | None, bar: Any) -> str | None:
        """Close the epoch: its row of the history, the held-out score, the best state; why to stop, if so."""
        row = {"epoch": self.epoch + 1.0, "step": float(self.steps), "seconds": self.seconds, **self._means()}
        stop = None
        if held_out is not None:
            score = row["held_out"] = self._score(held_out)
            if self.fit.best is None or score < self.fit.best["held_out"]:
                self.fit.best, self.stale = {"epoch": row["epoch"], "held_out": score}, 0
                self.best_state = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
            else:
                self.stale += 1
                if self.early_stopping is not None and self.stale >= self.early_stopping:
                    stop = "early_stopping"
            bar.set_postfix_str(f"held-out {self.fit.held_out_name} {score:.4g} {self.fit.unit}")
        self.fit.history.append(row)
        self._write_csv()
        self.epoch, self.batch, self.sums = self.epoch + 1, 0, {}
        self.fit.timings = self._timings()
        for callback in self.callbacks:
            if callback(self.fit):
                stop = stop or "callback"
        return stop

    def _score(self, held_out: Batches) -> float:
        total = rows = 0.0
        with evaluating(self.model), evaluating(self.objective):
            for x, context in held_out.epoch(self.seed, 0):
                x, context = self.fabric.to_device(x), self.fabric.to_device(context)
                with self.fabric.autocast():
                    total += float(self.objective.held_out(self.model, x, context)) * len(x)
                rows += len(x)
        pair = self.fabric.all_reduce(torch.tensor([total, rows], dtype=torch.float64), reduce_op="sum")
        score = float(pair[0] / pair[1])
        return score if math.isfinite(score) else math.inf

    def _write_csv(self) -> None:
        if self.csv is None or self.fabric.global_rank > 0:
            return
        self.csv.parent.mkdir(parents=True, exist_ok=True)
        with self.csv.open("w", newline="") as file:
            writer = csv_module.DictWriter(file, fieldnames=list(self.fit.history[0]))
            writer.writeheader()
            writer.writerows(self.fit.history)

    def _timings(self) -> dict[str, float]:
        rate = self.steps / self.seconds if self.seconds else 0.0
        return {"seconds": self.seconds, "steps": float(self.steps), "steps_per_second": rate}

    def _finish(self, stopped: str, compile_seconds: float) -> Fit:
        if self.best_state is not None:
            self.model.load_state_dict(self.best_state)
        self.model.eval()
        self.fit.stopped = stopped
        self.fit.timings = {**self._timings(), "compile_seconds": compile_seconds}
        return self.fit

    def _state(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state(self.fabric.device) if self.fabric.device.type == "cuda" else None
        return {
            "fingerprint": self.fingerprint,
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizers": {k: o.state_dict() for k, o in self.optimizers.items()},
            "schedules": {k: s.state_dict() for k, s in self.schedules.items()},
            "rng": torch.get_rng_state(),
            "cuda_rng": cuda,
            "counters": [self.epoch, self.batch, self.steps, self.stale, self.seed],
            "seconds": self.seconds,
            "sums": self.sums,
            "history": self.fit.history,
            "best": self.fit.best,
            "best_state": self.best_state,
        }

    def _save(self) -> None:
        if self.checkpoint is not None and self.fabric.global_rank == 0:
            self.saved = checkpoints.save(self.checkpoint, self.steps, self._state())

    def _restore(self) -> None:
        found = checkpoints.load_latest(self.checkpoint, self.fingerprint)  # type: ignore[arg-type]
        if found is None:
            return
        state, self.saved = found
        self.epoch, self.batch, self.steps, self.stale, seed = state["counters"]
        if seed != self.seed:
            raise checkpoints.CheckpointError(f"{self.saved} was trained with seed={seed}, this run has seed={self.seed}")
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        for k, o in self.optimizers.items():
            o.load_state_dict(state["optimizers"][k])
        for k, s in self.schedules.items():
            s.load_state_dict(state["schedules"][k])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.fabric.device)
        self.seconds, self.sums = state["seconds"], state["sums"]
        self.fit.history, self.fit.best, self.best_state = state["history"], state["best"], state["best_state"]


