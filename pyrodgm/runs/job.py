"""From a model and data to a run folder: everything is checked first, then trained, scored and drawn."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

import pyrodgm
from pyrodgm.core import GenerativeModel
from pyrodgm.data import DataSet, load
from pyrodgm.engine import Fit
from pyrodgm.engine.fabric import check_precision
from pyrodgm.files import write_atomically
from pyrodgm.members import member
from pyrodgm.runs.arguments import check_fit
from pyrodgm.runs.config import build_model, build_objective, fit_command, make_config
from pyrodgm.runs.folder import clear, is_run, read_json, write_arrays, write_json
from pyrodgm.runs.run import Run, evaluate, load_run

__all__ = ["Job", "prepare", "train"]

_SHOWN = 500  # rows of samples.npz


@dataclass(frozen=True)
class Job:
    """A run that is checked and ready: :meth:`execute` trains it.

    Attributes:
        out: the folder.
        config: what its ``config.json`` will hold.
        data, model: loaded and built.
        options: of :func:`pyrodgm.fit`.
        overwrite: whether what is in the folder goes.
    """

    out: Path
    config: dict[str, Any]
    data: DataSet
    model: GenerativeModel
    options: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False

    def execute(self) -> Run:
        """Fit, evaluate, draw, write the folder."""
        from pyrodgm.diagnostics.report import write_report  # which reads run folders, and so imports this package

        out, seed = self.out, self.config["seed"]
        if self.overwrite and out.exists():
            clear(out)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "config.json", self.config)
        hook = member(self.config["model"]).prepare
        if hook:  # a checkpoint, where there is one, overwrites it
            getattr(self.model, hook)(self._rows("train"))
        result = pyrodgm.fit(
            self.model, self._pair("train"), validate=self._pair("valid"), csv=out / "metrics.csv",
            checkpoint=out / "checkpoint", seed=seed, **self.options,
        )  # fmt: skip
        write_atomically(out / "model.pt", lambda path: torch.save(result.model.to("cpu").state_dict(), path))
        run = load_run(out)  # what is scored and drawn from is what the folder holds, in its precision
        samples = run.sample(_SHOWN, seed=seed).flatten(1)
        write_arrays(out / "samples.npz", real=self._shown(), samples=samples)
        metrics = _metrics(result, evaluate(run, self.data))
        write_report(out, metrics)
        write_json(out / "metrics.json", metrics)  # the last file: the run is finished
        return run

    def _rows(self, part: str) -> Tensor:
        return self.data.part(part).reshape(-1, *self.model.event_shape)

    def _pair(self, part: str) -> Any:
        return (self._rows(part), self.data.context(part)) if self.config["labels"] else self._rows(part)

    def _shown(self) -> Tensor:
        """Test rows to show beside samples: given labels, in the samples' order 0, 1, ..., 0, 1, ..."""
        rows = self.data.test
        if self.config["labels"] and self.data.labels is not None:
            rows = rows[_in_turn(self.data.labels["test"], len(self.data.classes))]
        return rows[:_SHOWN]


def prepare(
    model: str,
    data: str | Path,
    out: str | Path,
    *,
    labels: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    arguments: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    **fit: Any,
) -> Job:
    """Everything of :func:`train` that can go wrong by a wrong argument, and nothing that takes long.

    Nothing is written.

    Raises: ValueError or TypeError for an unknown model or data, data of a kind that the model does not
        have, an argument that the model, its objective or fit refuses, or a folder that is not a run;
        FileExistsError for a finished run without ``overwrite``.
    """
    which, out = member(model), Path(out)
    which.build()
    _needs_pictures()
    check_fit(fit | {"seed": seed})
    source = load(data)
    config = make_config(which, source, labels, seed, arguments or {}, objective or {}, fit)
    _check_folder(out, config, overwrite)
    built = build_model(config)
    check_precision(built, fit.get("precision"))
    if (chosen := build_objective(config, built)) is not None:
        fit["objective"] = chosen
    return Job(out, config, source, built, fit, overwrite)


def train(
    model: str,
    data: str | Path,
    out: str | Path,
    *,
    labels: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    arguments: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    **fit: Any,
) -> Run:
    """Fit a member to data and write a run folder.

    The size of the data, and the kind of its values, choose the arguments of the model that follow
    from them: features, context, conditional or likelihood.

    Args:
        model: a name of :data:`pyrodgm.members.MEMBERS`.
        data: what :func:`pyrodgm.data.load` reads.
        out: the folder.
        labels: condition on the one-hot labels.
        overwrite: replace a run that is there.
        seed: of the parameters' start, the training and the samples.
        arguments: of the model's constructor.
        objective: of its objective, where the default is not wanted.
        fit: arguments of :func:`pyrodgm.fit`.
    Raises: as :func:`prepare`, before anything is written; as :func:`pyrodgm.fit` afterwards.
    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = train("MADE", "moons", f"{folder}/made", arguments={"hidden": [8]}, steps=2, progress=False)
        >>> run.sample(3).shape
        torch.Size([3, 2])
    """
    job = prepare(
        model, data, out, labels=labels, overwrite=overwrite, seed=seed, arguments=arguments, objective=objective, **fit
    )
    return job.execute()


def _needs_pictures() -> None:
    """Raise ImportError where the report's pictures could not be drawn: before training, and not after it."""
    from pyrodgm.diagnostics.canvas import new_figure

    new_figure(1, 1)


def _check_folder(out: Path, config: dict[str, Any], overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    old = read_json(out / "config.json") if out.is_dir() else {}
    if not is_run(old):
        raise ValueError(f"{out} is there and is not a run; choose another folder")
    if overwrite:
        return
    metrics = read_json(out / "metrics.json")
    if metrics and metrics["stopped"] != "interrupted":
        raise FileExistsError(
            f"{out} holds a finished run of {old['model']} on {old['data']}; pass overwrite=True (--overwrite on the "
            "command line), or choose another folder"
        )
    digest = config["data_digest"]
    if old["data"] == config["data"] and old.get("data_digest", digest) != digest:
        raise FileExistsError(
            f"{out} holds an unfinished run, and {config['data']} has changed since it began; put the old data back to "
            "resume it, or pass overwrite=True (--overwrite on the command line)"
        )
    if {"data_digest": digest} | old != config:
        raise FileExistsError(
            f"{out} holds an unfinished run with other settings; resume it by {fit_command(old, out)}, or pass "
            "overwrite=True (--overwrite on the command line)"
        )


def _metrics(result: Fit, held_out: dict[str, Any]) -> dict[str, Any]:
    return {
        "held_out": held_out,
        "stopped": result.stopped,
        "best": result.best,
        "timings": result.timings,
        "epochs": len(result.history),
        "unit": result.unit,
        "held_out_name": result.held_out_name,
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "pyro": pyro.__version__,
            "pyrodgm": pyrodgm.__version__,
        },
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def _in_turn(labels: Tensor, classes: int) -> Tensor:
    """Rows ordered so that the labels come 0, 1, ..., 0, 1, ...: as far as each class has rows."""
    seen = [0] * classes
    rank = []
    for label in labels.tolist():
        rank.append(seen[label] * classes + label)
        seen[label] += 1
    return torch.tensor(rank).argsort()
