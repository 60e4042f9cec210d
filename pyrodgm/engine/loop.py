"""The training loop: steps, epochs, held-out scores, stopping. It knows players and losses, not models."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrodgm.core import GenerativeModel
from pyrodgm.engine import checkpoint as checkpoints
from pyrodgm.engine.batches import Batches
from pyrodgm.engine.compile import CompiledLoss, compile_loss
from pyrodgm.engine.diagnose import bad_parameter, find_nonfinite
from pyrodgm.engine.fabric import unfuse
from pyrodgm.engine.held_out import held_out_score
from pyrodgm.engine.report import Bar, write_csv
from pyrodgm.engine.result import Fit
from pyrodgm.engine.settings import Settings
from pyrodgm.engine.state import capture, learned, restore, told_by_arguments, told_by_data
from pyrodgm.engine.surroundings import interruptible, validation
from pyrodgm.objectives.base import Objective
from pyrodgm.seeding import random_state

__all__ = ["Trainer"]

_PENDING = 16  # losses that may wait on an accelerator before the host looks at them
_AGREE = 16  # steps after which several processes ask each other about Ctrl-C


class _Step(nn.Module):
    """What Fabric wraps: its forward advances an objective by one loss, so the hooks of DDP see every loss."""

    def __init__(self, model: GenerativeModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, losses: Iterator[tuple[str, Tensor]]) -> tuple[str, Tensor] | None:
        return next(losses, None)


class Trainer:
    """The loop and its state; what it needs to go on bit-exactly is what :mod:`pyrodgm.engine.state` saves.

    Args:
        fabric: launched.
        total: steps of the run.
        per_epoch: batches of an epoch.
    """

    def __init__(
        self, model: GenerativeModel, objective: Objective, settings: Settings, fabric: Any, total: int, per_epoch: int
    ) -> None:
        self.model, self.objective, self.settings, self.fabric = model, objective, settings, fabric
        self.total, self.per_epoch, self.device = total, per_epoch, fabric.device
        self.several, self.main = fabric.world_size > 1, fabric.global_rank == 0
        self.lazy = self.device.type != "cpu"  # losses are read late: there, one at every step would stop the queue
        model.to(self.device)
        objective.to(self.device)
        self.players = {
            k: [p for p in parameters if p.requires_grad] for k, parameters in objective.players(model).items()
        }
        self.one_loss = type(objective).forward is Objective.forward
        self._set_up_optimizers()
        self.dtype = model.dtype
        self.fit = Fit(model, objective, unit=objective.unit, held_out_name=objective.held_out_name)
        self.epoch = self.batch = self.steps = 0
        self.stale = 0  # epochs since the best score
        self.sums: dict[str, list[float]] = {}  # for each player: loss times rows, rows
        self.pending: list[tuple[str, Tensor, Tensor, Tensor | None]] = []
        self.best_state: dict[str, Tensor] | None = None
        self.best_learned: dict[str, Tensor] = {}  # by the objective, beside it
        self.moved: set[str] = set()  # players, in the step at hand
        self.seconds = self.compile_seconds = 0.0
        self.saved: Path | None = None  # the last checkpoint
        self.checks, self.checking = ExitStack(), True  # holds validation, which is on for the first step
        self.asked: Callable[[], bool] = lambda: False  # whether Ctrl-C was pressed
        self.before: Tensor | None = None  # the random state at the start of a step
        self.clock = time.perf_counter()
        self.compiled: CompiledLoss | None = None
        self.to_compile = settings.compile
        if self.to_compile and len(self.players) > 1:
            compile_loss(model, objective, torch.empty(0), None, 0)  # says why not
            self.to_compile = False

    def _set_up_optimizers(self) -> None:
        s = self.settings
        if s.optimizer:
            self.objective.check_optimizer()
        plain = {
            k: s.optimizer(ps) if s.optimizer else self.objective.optimizer(k, ps, s.lr)
            for k, ps in self.players.items()
            if ps
        }
        self.told = told_by_arguments(self.objective, plain)  # before a schedule changes it
        self.schedules = {} if s.lr_schedule is None else {k: s.lr_schedule(o, self.total) for k, o in plain.items()}
        scaled = bool(self.fabric.strategy.precision.state_dict())  # by the scaler of float16
        if scaled and s.clip is not None:
            for o in plain.values():
                unfuse(o)
        step: nn.Module = _Step(self.model, self.objective)
        self.step_module, wrapped = step, list(plain.values())
        if plain:
            self.step_module, *wrapped = self.fabric.setup(step, *plain.values())
        self.fingerprint = checkpoints.fingerprint(  # now that the precision has set the parameters' type
            (self.model, self.objective), (*plain.values(), *self.schedules.values())
        )
        self.optimizers = dict(zip(plain, wrapped, strict=True))
        self.bad = torch.zeros((), device=self.device)  # 1 once a loss was not finite
        if self.lazy and not scaled:
            for o in plain.values():
                if getattr(o, "_step_supports_amp_scaling", False):
                    o.found_inf = self.bad  # type: ignore[attr-defined]  # such an optimiser then stands still

    def run(self, batches: Batches, held_out: Batches | None) -> Fit:
        """Train until ``total`` steps are done or something asks to stop."""
        s = self.settings
        stopped: str | None = None
        if s.checkpoint is not None:
            self.told |= told_by_data(self.objective, batches, held_out)
        if s.checkpoint is not None and s.resume:
            restore(self)
            if held_out is None:  # the best of held-out rows that are no longer there is not what to end with
                self.best_state, self.best_learned, self.fit.best = None, {}, None
            if s.early_stopping is not None and self.stale >= s.early_stopping:
                stopped = "early_stopping"
        try:
            shown = Bar(self.fit, self.steps, self.total, s.progress and self.main)
            with shown as bar, interruptible() as self.asked, self.checks:
                self.checks.enter_context(validation(True))
                self.clock = time.perf_counter()
                while self.steps < self.total and stopped is None:
                    stopped = self._run_epoch(batches, held_out, bar)
                if self.batch > 0 and stopped is None:
                    # The run ends inside an epoch. Its row is not saved: a longer run has a row of the whole epoch.
                    stopped = self._end_epoch(held_out, bar)
            if self.best_state is not None:
                self.model.load_state_dict(self.best_state)
                with torch.no_grad():  # what it has learned belongs to that state: log Z, a critic, a recognition net
                    for name, tensor in learned(self.objective).items():
                        tensor.copy_(self.best_learned[name])
        finally:
            self.model.eval()
            self.objective.eval()
        self.fit.stopped = stopped or "finished"
        self.fit.timings = self._timings()
        return self.fit

    def _run_epoch(self, batches: Batches, held_out: Batches | None, bar: Bar) -> str | None:
        """The rest of one epoch; why to stop, if so."""
        self.model.train()
        self.objective.train()
        before, every, stopped = self.steps, self.settings.checkpoint_every, None
        for x, context in batches.epoch(self.settings.seed, self.epoch, self.batch):
            x = x.to(self.device, self.dtype, non_blocking=True)
            context = None if context is None else context.to(self.device, self.dtype, non_blocking=True)
            self._step(x, context, batches.rows)
            bar.step(self.steps, self.epoch, self._means)
            if self.checking:  # the first step has shown shapes and supports to be right
                self.checks.enter_context(validation(False))
                self.checking = False
            if self._interrupted():
                stopped = "interrupted"
                break
            if self.steps >= self.total:
                break
            if every and self.steps % every == 0 and self.batch < self.per_epoch:
                self._save()
        else:
            if self.steps == before:
                raise ValueError(f"expected batches in every epoch, got none in epoch {self.epoch + 1}")
            self.batch = self.per_epoch
        if self.batch >= self.per_epoch:
            stopped = self._end_epoch(held_out, bar) or stopped
        self._save()
        return stopped

    def _step(self, x: Tensor, context: Tensor | None, n: int) -> None:
        # The first step is eager: it makes what an objective makes lazily. A ragged last batch is no shape to compile.
        if self.to_compile and self.steps and (self.batch + 1 < self.per_epoch or self.per_epoch == 1):
            self._compile(x, context, n)
        self.before = None if self.lazy else torch.get_rng_state()  # to find again what was not finite
        losses: Iterator[tuple[str, Tensor]]
        if self.compiled is not None:
            losses = (("model", loss(x, context, n)) for loss in (self.compiled,))
        else:
            losses = self.objective(self.model, x, context, n=n)
        try:
            while (pair := self._next(losses)) is not None:
                self._note(*pair, x, context)
                self._move(*pair)
                if self.one_loss:
                    break
        except ValueError as error:  # in the first step a distribution refuses nan before a loss is nan
            reason = self._reason(x, context, n)
            if reason is None:
                raise
            raise self._refusal(f"a loss cannot be computed at step {self.steps + 1}: {reason}") from error
        for player in sorted(self.moved & set(self.schedules)):  # once a step, however often the player moved in it
            self.schedules[player].step()
        self.moved.clear()
        self.steps += 1
        self.batch += 1

    def _next(self, losses: Iterator[tuple[str, Tensor]]) -> tuple[str, Tensor] | None:
        if self.several:
            return self.step_module(losses)
        with self.fabric.autocast():
            return next(losses, None)

    def _compile(self, x: Tensor, context: Tensor | None, n: int) -> None:
        began = time.perf_counter()
        with self.fabric.autocast():
            self.compiled = compile_loss(self.model, self.objective, x, context, n)
        self.to_compile = False
        self.compile_seconds = time.perf_counter() - began
        self.clock += self.compile_seconds

    def _move(self, player: str, loss: Tensor) -> None:
        """One gradient step of one player."""
        if player not in self.optimizers:
            return
        optimizer = self.optimizers[player]
        for p in self.players[player]:
            p.grad = None
        self.fabric.backward(loss)
        if self.settings.clip is not None:
            norm = {"max_norm": self.settings.clip, "error_if_nonfinite": False}
            self.fabric.clip_gradients(self.step_module, optimizer, **norm)
        optimizer.step()
        self.moved.add(player)

    def _note(self, player: str, loss: Tensor, x: Tensor, context: Tensor | None) -> None:
        """Count a loss: at once on the CPU, elsewhere later, and till then an optimiser that can stand still does."""
        self.pending.append((player, loss.detach(), x, context))
        if self.lazy:
            torch.maximum(self.bad, (~torch.isfinite(self.pending[-1][1])).to(self.bad), out=self.bad)
        if not self.lazy or len(self.pending) >= _PENDING:
            self._settle()

    def _settle(self) -> None:
        """Read the losses that wait, and refuse the first that is not finite."""
        if not self.pending:
            return
        values = torch.stack([loss for _, loss, _, _ in self.pending]).tolist()
        for (player, _, x, context), value in zip(self.pending, values, strict=True):
            if not math.isfinite(value):
                reason = self._reason(x, context, None) or "the parameters and layers are finite, the loss is not"
                raise self._refusal(f"the loss of {player!r} is {value} at step {self.steps + 1}: {reason}")
            total = self.sums.setdefault(player, [0.0, 0.0])
            total[0] += value * len(x)
            total[1] += len(x)
        self.pending.clear()

    def _reason(self, x: Tensor, context: Tensor | None, n: int | None) -> str | None:
        if self.before is not None:
            torch.set_rng_state(self.before)
        with self.fabric.autocast(), validation(False):
            return find_nonfinite(self.model, self.objective, x, context, n)

    def _refusal(self, what: str) -> FloatingPointError:
        kept = f"; the last good checkpoint is {self.saved}" if self.saved else ""
        return FloatingPointError(f"{what} (epoch {self.epoch + 1}); try a smaller lr, clip=1.0 or scaled data{kept}")

    def _interrupted(self) -> bool:
        if not self.several:
            return self.asked()
        if self.steps % _AGREE:
            return False
        return bool(self.fabric.all_reduce(torch.tensor(float(self.asked()), device=self.device), reduce_op="max"))

    def _end_epoch(self, held_out: Batches | None, bar: Bar) -> str | None:
        """Close the epoch: its row of the history, the held-out score, the best state; why to stop, if so."""
        self._check()
        if self.several:  # what gradients do not keep equal, such as a batch norm's statistics
            for buffer in self.model.buffers():
                buffer.copy_(self.fabric.broadcast(buffer))
        row = {"epoch": self.epoch + 1.0, "step": float(self.steps), "seconds": self.seconds, **self._means(True)}
        stop = None
        if held_out is not None:
            row["held_out"] = held_out_score(self.model, self.objective, held_out, self.fabric, self.settings.seed)
            stop = self._compare(row)
            bar.held_out(row["held_out"])
        self.fit.history.append(row)
        if self.batch >= self.per_epoch:
            self.epoch, self.batch, self.sums = self.epoch + 1, 0, {}
        self.fit.timings = self._timings()
        try:
            for callback in self.settings.callbacks:
                with random_state(self.device, self.settings.seed + self.epoch):
                    stop = "callback" if callback(self.fit) and stop is None else stop
        except Exception:
            if self.batch == 0 and not self.several:  # a mistake in a callback costs no epoch
                self._save()
            raise
        finally:
            if self.settings.csv is not None and self.main:
                write_csv(self.settings.csv, self.fit.history)  # with what callbacks add to it
        return self.fabric.broadcast(stop) if self.several else stop

    def _check(self) -> None:
        """No state that is not finite is scored or saved."""
        self._settle()
        self._tick()
        bad = bad_parameter(self.model, self.objective)
        if bad:
            raise self._refusal(f"parameter {bad!r} is not finite after step {self.steps}")

    def _compare(self, row: dict[str, float]) -> str | None:
        best, patience = self.fit.best, self.settings.early_stopping
        if math.isfinite(row["held_out"]) and (best is None or row["held_out"] < best["held_out"]):
            self.fit.best, self.stale = {"epoch": row["epoch"], "held_out": row["held_out"]}, 0
            self.best_state = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
            self.best_learned = {k: t.detach().clone() for k, t in learned(self.objective).items()}
            return None
        self.stale += 1
        return "early_stopping" if patience is not None and self.stale >= patience else None

    def _means(self, over_ranks: bool = False) -> dict[str, float]:
        sums = self.sums
        if self.several and over_ranks:
            pairs = torch.tensor(list(sums.values()), dtype=torch.float64, device=self.device)
            sums = dict(zip(sums, self.fabric.all_reduce(pairs, reduce_op="sum").tolist(), strict=True))
        return {"loss" if len(self.players) == 1 else k: total / rows for k, (total, rows) in sums.items()}

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now

    def _timings(self) -> dict[str, float]:
        rate = self.steps / self.seconds if self.seconds else 0.0
        timings = {"seconds": self.seconds, "steps": float(self.steps), "steps_per_second": rate}
        return {**timings, "compile_seconds": self.compile_seconds}

    def _save(self) -> None:
        folder = self.settings.checkpoint
        if folder is None:
            return
        self._check()
        state = capture(self)  # every process has its part in it
        if self.main:
            self.saved = checkpoints.save(folder, self.steps, state, alone=self.saved is None)
