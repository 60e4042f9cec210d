"""A run folder: one model fitted to one data set, with all that is needed to use it again.

=====================  =======================================================================
``config.json``        the model, its arguments, the data, the seed: enough to build it again
``model.pt``           its state dict, loaded with ``weights_only=True``
``checkpoint/``        where training resumes
``metrics.csv``        one row an epoch
``metrics.json``       held-out likelihood with its kind and standard error, timings, versions
``samples.npz``        real rows and samples
``*.png, report.html`` pictures, and the page that shows them
=====================  =======================================================================

Every file appears whole or not at all. A folder without ``metrics.json`` is unfinished; the same
call again resumes it.
"""

from __future__ import annotations

import collections.abc
import csv
import difflib
import inspect
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pyro
import torch
from torch import Tensor

from pyrodgm.core import Energy, GenerativeModel
from pyrodgm.data import DataSet, bits_per_dim, load
from pyrodgm.energy import RBM
from pyrodgm.evaluation import LogLikelihood, log_likelihood
from pyrodgm.members import Member, member

__all__ = [
    "Job",
    "Run",
    "check_data",
    "evaluate",
    "load_run",
    "objective_arguments",
    "plain_arguments",
    "prepare",
    "train",
]

_SHOWN = 500  # rows of samples.npz


@dataclass(frozen=True)
class Run:
    """A finished (or interrupted) run.

    Attributes:
        path: the folder.
        config: what ``config.json`` holds.
        model: built from the config, with the stored state.
    """

    path: Path
    config: dict[str, Any]
    model: GenerativeModel

    @property
    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` holds."""
        return _read_json(self.path / "metrics.json")

    @property
    def history(self) -> list[dict[str, float]]:
        """The epochs of ``metrics.csv``."""
        return read_history(self.path)

    def data(self) -> DataSet:
        """The data set, loaded again."""
        return load(self.config["data"], self.config["data_seed"])

    def context(self, rows: int, label: str | None = None) -> Tensor | None:
        """One-hot contexts (rows, classes) for a conditional model: one label, or all in turn; else None.

        Raises: ValueError for a label that the data does not have.
        """
        classes = self.config["shape"]["classes"]
        if not self.config["labels"]:
            if label is not None:
                raise ValueError(f"{self.path} was trained without labels; fit it with --labels true")
            return None
        if label is not None and label not in classes:
            raise ValueError(f"unknown label {label!r}: expected one of {', '.join(classes)}")
        which = torch.arange(rows) % len(classes) if label is None else torch.full((rows,), classes.index(label))
        return torch.nn.functional.one_hot(which, len(classes)).float()

    def sample(self, n: int, label: str | None = None, seed: int = 0) -> Tensor:
        """``n`` samples, (n, *event), a function of the seed."""
        context = self.context(n, label)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.model.sample(n) if context is None else self.model.sample(context=context)


@dataclass(frozen=True)
class Job:
    """A run that is checked and ready: :meth:`execute` trains it."""

    out: Path
    config: dict[str, Any]
    data: DataSet
    model: GenerativeModel
    options: dict[str, Any] = field(default_factory=dict)  # of fit
    overwrite: bool = False

    def execute(self) -> Run:
        """Fit, evaluate, draw, write the folder."""
        import pyrodgm

        out, config = self.out, self.config
        if self.overwrite and out.exists():
            _clear(out)
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "config.json", json.dumps(config, indent=2) + "\n")
        if isinstance(self.model, RBM) and not (out / "checkpoint").exists():
            self.model.set_visible_bias(self.data.train)
        pairs = {part: self._pair(part) for part in ("train", "valid")}
        result = pyrodgm.fit(
            self.model, pairs["train"], validate=pairs["valid"], csv=str(out / "metrics.csv"),
            checkpoint=str(out / "checkpoint"), seed=config["seed"], **self.options,
        )  # fmt: skip
        model = result.model.to("cpu")
        write_atomic(out / "model.pt", lambda path: torch.save(model.state_dict(), path))
        run = Run(out, config, model)
        held_out = evaluate(run, self.data)
        real, shown = self.data.test[:_SHOWN], run.sample(_SHOWN, seed=config["seed"])
        if config["labels"] and self.data.labels is not None:  # the same labels beside one another
            order = _in_turn(self.data.labels["test"], len(self.data.classes))
            real = self.data.test[order][:_SHOWN]
        write_atomic(out / "samples.npz", lambda path: _savez(path, real=real, samples=shown.flatten(1)))
        metrics = {
            "held_out": held_out,
            "stopped": result.stopped,
            "best": _plain(result.best),
            "timings": _plain(result.timings),
            "epochs": len(result.history),
            "unit": result.unit,
            "held_out_name": result.held_out_name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "versions": {
                "python": platform.python_version(), "torch": torch.__version__, "pyro": pyro.__version__,
                "pyrodgm": getattr(pyrodgm, "__version__", ""),
            },
            "threads": torch.get_num_threads(),
        }  # fmt: skip
        write_text(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        from pyrodgm.diagnostics.report import write_report

        write_report(out)
        return run

    def _pair(self, part: str) -> Any:
        x = self.data.part(part).reshape(-1, *self.model.event_shape)
        return (x, self.data.context(part)) if self.config["labels"] else x


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

    Raises: ValueError for an unknown model or data, data of a kind that the model does not have, or a
        folder that is not a run; FileExistsError for a finished run without ``overwrite``.
    """
    which, out = member(model), Path(out)
    which.build()
    source = load(data)
    if labels and source.labels is None:
        raise ValueError(f"{source.name} has no labels; leave --labels out, or use data with a label column")
    _check_kind(which, source)
    config = {
        "format": 1, "model": which.name, "arguments": _complete(which, arguments or {}),
        "objective": _known(which, {k: _listed(v) for k, v in (objective or {}).items()}, objective_arguments(which)),
        "data": source.name, "data_seed": 0,
        "labels": labels, "seed": seed, "fit": {k: v for k, v in fit.items() if k != "progress" and _is_plain(v)},
        "shape": {
            "event_shape": list(source.event_shape), "binary": source.binary, "levels": source.levels,
            "image_shape": None if source.image_shape is None else list(source.image_shape),
            "classes": list(source.classes), "unit": bool(((source.train >= 0) & (source.train <= 1)).all()),
        },
    }  # fmt: skip
    _check_folder(out, config, overwrite)
    trained = _build(config)
    if config["objective"]:
        fit["objective"] = _objective(which, trained, config)
    return Job(out, config, source, trained, fit, overwrite)


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
    Raises: as :func:`prepare`.
    Example:
        >>> run = train("MADE", "digits_binary", "runs/made", arguments={"hidden": [200]}, epochs=20)  # doctest: +SKIP
        >>> run.sample(3).shape  # doctest: +SKIP
        torch.Size([3, 64])
    """
    job = prepare(model, data, out, labels=labels, overwrite=overwrite, seed=seed, arguments=arguments,
                  objective=objective, **fit)
    return job.execute()


def load_run(path: str | Path) -> Run:
    """The run in a folder: the model built from its config, with the stored state.

    Raises: ValueError if the folder is not a run, or was never trained to an end.
    """
    path = Path(path)
    config = read_config(path)
    if not (path / "model.pt").exists():
        raise ValueError(f"{path} is unfinished (no model.pt); resume it by {fit_command(config, path)}")
    model = _build(config)
    model.load_state_dict(torch.load(path / "model.pt", weights_only=True, map_location="cpu"))
    return Run(path, config, model.eval())


def evaluate(
    run: Run, data: DataSet | str | None = None, part: str = "test", rows: int | None = None, particles: int = 500
) -> dict[str, Any]:
    """The held-out log-likelihood of a run, in nats for each datum, with its kind and standard error.

    Args:
        run: what :func:`load_run` gives.
        data: other data of the same shape; default the run's own.
        part: "train", "valid" or "test".
        rows: only the first so many.
        particles: importance samples a datum, where the kind is a bound.
    Raises: ValueError if the data has another shape or kind.
    """
    source = run.data() if data is None else load(data) if isinstance(data, str) else data
    check_data(run, source)
    x = source.part(part)[:rows].reshape(-1, *run.model.event_shape)
    context = source.context(part)[:rows] if run.config["labels"] else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.config["seed"])
        if context is not None and isinstance(run.model, Energy):
            found = _by_label(run.model, x, context)
        else:
            found = log_likelihood(run.model, x, context, particles=particles)
    value, error = (v if math.isfinite(v) else None for v in (float(found.value), float(found.standard_error)))
    bits = None
    if source.levels is not None and value is not None:
        bits = bits_per_dim(value, math.prod(source.event_shape), source.levels)
    return {
        "value": value, "standard_error": error, "kind": found.kind, "unit": "nats/datum", "bits_per_dim": bits,
        "data": source.name, "part": part, "rows": len(x),
    }  # fmt: skip


def check_data(run: Run, data: DataSet) -> None:
    """Raise ValueError, with the cure, if a run cannot score these data."""
    shape = run.config["shape"]
    if math.prod(data.event_shape) != math.prod(shape["event_shape"]):
        raise ValueError(f"{data.name} has rows of shape {data.event_shape}, {run.path} was trained on "
                         f"{tuple(shape['event_shape'])}; evaluate it on data of that shape")
    if shape["binary"] != data.binary and run.model.family != "implicit":
        kinds = ("real-valued", "binary")
        raise ValueError(f"{data.name} is {kinds[data.binary]}, {run.path} was trained on {kinds[shape['binary']]} "
                         "data; evaluate it on data of that kind")
    if run.config["labels"] and data.classes != tuple(shape["classes"]):
        raise ValueError(f"{run.path} needs the labels {', '.join(shape['classes'])}, and {data.name} has "
                         f"{', '.join(data.classes) or 'none'}; evaluate it on data with those labels")


def read_config(path: str | Path) -> dict[str, Any]:
    """The config of a run folder.

    Raises: ValueError if the folder is no run.
    """
    config = _read_json(Path(path) / "config.json")
    if not config:
        raise ValueError(f"{path} is not a run (no config.json); pyrodgm fit MODEL DATA --out {path} makes one")
    return config


def read_history(path: str | Path) -> list[dict[str, float]]:
    """The epochs of a run folder's ``metrics.csv``; cells without a number are left out."""
    file = Path(path) / "metrics.csv"
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return [
            {key: float(cell) for key, cell in row.items() if key and cell and _is_float(cell)}
            for row in csv.DictReader(lines)
        ]


def fit_command(config: dict[str, Any], out: str | Path) -> str:
    """The command line that makes a run with this config."""
    import shlex

    words = ["pyrodgm", "fit", config["model"], config["data"], "--out", str(out)]
    defaults = {k: p.default for k, p in plain_arguments(member(config["model"])).items()}
    chosen = {k: v for k, v in config["arguments"].items() if k not in defaults or v != _listed(defaults[k])}
    objective = {f"objective.{k}": v for k, v in config["objective"].items()}
    for key, value in (chosen | objective | config["fit"]).items():
        words += [f"--{key}", json.dumps(value) if isinstance(value, bool | list | None) else str(value)]
    if config["labels"]:
        words += ["--labels", "true"]
    if config["seed"]:
        words += ["--seed", str(config["seed"])]
    return shlex.join(words)


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write`` with a temporary name beside ``path``, then put it in place."""
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def plain_arguments(which: Member) -> dict[str, inspect.Parameter]:
    """The arguments of a member that are plain values and do not follow from the data."""
    found = {
        name: p
        for name, p in inspect.signature(which.build(), eval_str=True).parameters.items()
        if name not in ("features", "visible", "event_shape", "context") and is_simple(p.annotation)
    }
    for name, value in which.defaults:
        found[name] = found[name].replace(default=value)
    return found


def is_simple(hint: Any) -> bool:
    """Whether a type hint is a number, a text, a truth value, a sequence of these, or None."""
    if get_origin(hint) is collections.abc.Callable:
        return False
    parts = [part for part in get_args(hint) if part is not Ellipsis]
    if parts:  # X | None, Sequence[X], tuple[X, ...], Literal[...]
        return all(is_simple(part) for part in parts)
    return hint in (int, float, str, bool, type(None)) or isinstance(hint, str | int)


def objective_arguments(which: Member) -> dict[str, inspect.Parameter]:
    """The arguments of a member's objective that are plain values."""
    build = which.build_objective()
    if build is None:
        return {}
    return {k: p for k, p in inspect.signature(build, eval_str=True).parameters.items() if is_simple(p.annotation)}


def _known(which: Member, arguments: dict[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """The arguments themselves, if all are known."""
    known = list(known)
    for name in arguments:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"{which.name} has no argument {name!r}: {hint}expected {', '.join(known) or 'none'}")
    return arguments


def _complete(which: Member, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the defaults of today, so that a run stays what it is when a default changes.

    Raises: ValueError for an argument that the member does not have.
    """
    known = plain_arguments(which)
    _known(which, {k: v for k, v in arguments.items() if k != "components"}, known)
    defaults = {k: p.default for k, p in known.items() if p.default is not inspect.Parameter.empty}
    merged = defaults | arguments
    if missing := [k for k in known if k not in merged]:
        raise ValueError(f"{which.name} needs {missing[0]}: pass --{missing[0]}")
    return {k: _listed(v) for k, v in merged.items()}


def _build(config: dict[str, Any]) -> GenerativeModel:
    """The model of a config: its arguments, and those that follow from the shape of the data."""
    import pyro.distributions as dist

    build = member(config["model"]).build()
    shape, arguments = config["shape"], dict(config["arguments"])
    known = inspect.signature(build).parameters
    features = math.prod(shape["event_shape"])
    context = len(shape["classes"]) if config["labels"] else 0
    if context and "context" not in known:
        raise ValueError(f"{config['model']} takes no labels; leave --labels out")
    components = arguments.pop("components", None)
    derived = {
        "features": features,
        "visible": features,
        "event_shape": tuple(shape["image_shape"] or shape["event_shape"]),
        "context": context,
        "conditional": _conditional(shape["binary"], components),
        "family": dist.Bernoulli if shape["binary"] else dist.Normal,
        "output": torch.nn.Sigmoid() if shape["unit"] else None,
    }
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config["seed"])
            model: GenerativeModel = build(**{k: v for k, v in derived.items() if k in known} | arguments)
    except TypeError as error:
        raise ValueError(f"{config['model']}: {error}; see pyrodgm fit {config['model']} --help") from error
    return model


def _objective(which: Member, model: GenerativeModel, config: dict[str, Any]) -> Any:
    build = which.build_objective()
    assert build is not None  # without one there are no arguments, which is checked before
    first = [model] if "model" in inspect.signature(build).parameters else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        return build(*first, **config["objective"])


def _conditional(binary: bool, components: int | None) -> Any:
    from pyrodgm.distributions.conditionals import BernoulliConditional, GaussianMixtureConditional

    return BernoulliConditional() if binary else GaussianMixtureConditional(components or 10)


def _by_label(model: Energy, x: Tensor, context: Tensor) -> LogLikelihood:
    """The log-likelihood of an energy model given labels: every label has a log Z of its own."""
    rows, variance, kind = [], 0.0, "exact"
    for one in torch.unique(context, dim=0):
        mine = x[(context == one).all(-1)]
        try:
            log_z, error = model.log_partition("exact", context=one)
        except ValueError:
            log_z, error = model.log_partition("ais", context=one)
            kind = "AIS estimate"
        with torch.no_grad():
            rows.append(-model.energy(mine, one.expand(len(mine), -1)).double() - log_z.double())
        variance += (float(error) * len(mine) / len(x)) ** 2
    each = torch.cat(rows)
    return LogLikelihood(float(each.mean()), math.sqrt(float(each.var()) / len(each) + variance), kind)


def _check_kind(which: Member, data: DataSet) -> None:
    if which.data == "binary" and not data.binary:
        raise ValueError(f"{which.name} models binary data, and {data.name} is not; "
                         "use digits_binary, or FILE:binary to round a file's values")
    if which.data == "real" and data.binary:
        raise ValueError(f"{which.name} is a density of continuous data, and {data.name} is binary; "
                         "use digits_dequantized, or MADE, VAE or RBM")


def _check_folder(out: Path, config: dict[str, Any], overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    old = _read_json(out / "config.json") if out.is_dir() else {}
    if not old:
        raise ValueError(f"{out} is there and is not a run; choose another folder")
    if overwrite:
        return
    metrics = _read_json(out / "metrics.json")
    if metrics and metrics["stopped"] != "interrupted":
        raise FileExistsError(f"{out} holds a finished run of {old['model']} on {old['data']}; "
                              "use --overwrite, or another folder")
    if old != config:
        raise FileExistsError(f"{out} holds an unfinished run with other settings; resume it by "
                              f"{fit_command(old, out)}, or use --overwrite")


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _in_turn(labels: Tensor, classes: int) -> Tensor:
    """Rows ordered so that the labels come 0, 1, ..., 0, 1, ...: as far as each class has rows."""
    seen = [0] * classes
    rank = []
    for label in labels.tolist():
        rank.append(seen[label] * classes + label)
        seen[label] += 1
    return torch.tensor(rank).argsort()


def _savez(path: Path, **tensors: Tensor) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **{k: v.detach().cpu().numpy() for k, v in tensors.items()})  # type: ignore[arg-type]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); remove the run, or fit it again with --overwrite") from None
    return found


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, no tensors."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list)


def _is_float(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
