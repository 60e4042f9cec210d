"""A run: what a folder holds, as a model that can be sampled and scored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrodgm.core import GenerativeModel
from pyrodgm.data import DataSet, bits_per_dim, load
from pyrodgm.evaluation import log_likelihood
from pyrodgm.runs.config import build_model, fit_command
from pyrodgm.runs.folder import AGAIN, read_config, read_history, read_metrics
from pyrodgm.seeding import random_state

__all__ = ["Run", "evaluate", "load_run"]


@dataclass(frozen=True)
class Run:
    """A trained model with what it was trained on.

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
        return read_metrics(self.path)

    @property
    def history(self) -> list[dict[str, float]]:
        """The epochs of ``metrics.csv``."""
        return read_history(self.path)

    def data(self) -> DataSet:
        """The data set, loaded again.

        Raises: ValueError if its training rows are no longer those of the run.
        """
        data = load(self.config["data"], self.config["data_seed"])
        if data.digest != self.config.get("data_digest", data.digest):
            raise ValueError(
                f"{data.name} has changed since {self.path} was trained on it: its training rows (or their labels) are "
                "others, so its test rows may be rows of the training; put the old data back, fit it again, or give "
                "rows that training never saw (pyrodgm evaluate RUN DATA)"
            )
        return data

    def context(self, rows: int, label: str | None = None) -> Tensor | None:
        """One-hot contexts (rows, classes) for a conditional model: one label, or all in turn; else None.

        Raises: ValueError for a label that the data does not have.
        """
        classes = self.config["shape"]["classes"]
        if not self.config["labels"]:
            if label is not None:
                raise ValueError(
                    f"{self.path} was trained without labels; fit it with labels=True (--labels true on the command "
                    "line)"
                )
            return None
        if label is not None and label not in classes:
            raise ValueError(f"unknown label {label!r}: expected one of {', '.join(classes)}")
        which = torch.arange(rows) % len(classes) if label is None else torch.full((rows,), classes.index(label))
        return torch.nn.functional.one_hot(which, len(classes)).float()

    def sample(self, n: int, label: str | None = None, seed: int = 0) -> Tensor:
        """``n`` samples, (n, *event), a function of the seed."""
        context = self.context(n, label)
        with random_state(self.model.device, seed):
            return self.model.sample(n) if context is None else self.model.sample(context=context)


def load_run(path: str | Path) -> Run:
    """The run in a folder: the model built from its config, with the stored state.

    Raises: ValueError if the folder is not a run, was never trained to an end, or is damaged.
    """
    path = Path(path)
    config = read_config(path)
    if not (path / "model.pt").exists():
        raise ValueError(f"{path} is unfinished (no model.pt); resume it by {fit_command(config, path)}")
    model = build_model(config)
    try:
        state = torch.load(path / "model.pt", weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"{path / 'model.pt'} is damaged ({type(error).__name__}); {AGAIN}") from error
    model.load_state_dict(state)
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
    Raises: ValueError if the data has another shape or kind, or a count is below 1.
    """
    for name, count in (("rows", rows), ("particles", particles)):
        if count is not None and count < 1:
            raise ValueError(f"expected {name} of at least 1, got {count}")
    source = run.data() if data is None else load(data) if isinstance(data, str) else data
    _check_data(run, source)
    x = source.part(part)[:rows].reshape(-1, *run.model.event_shape)
    context = source.context(part)[:rows] if run.config["labels"] else None
    with random_state(run.model.device, run.config["seed"]):
        found = log_likelihood(run.model, x, context, particles=particles)
    value, error = (v if math.isfinite(v) else None for v in (float(found.value), float(found.standard_error)))
    bits = None
    if source.levels is not None and value is not None:
        bits = bits_per_dim(value, math.prod(source.event_shape), source.levels)
    return {
        "value": value, "standard_error": error, "kind": found.kind, "unit": "nats/datum", "bits_per_dim": bits,
        "data": source.name, "part": part, "rows": len(x),
    }  # fmt: skip


def _check_data(run: Run, data: DataSet) -> None:
    shape = run.config["shape"]
    if math.prod(data.event_shape) != math.prod(shape["event_shape"]):
        raise ValueError(
            f"{data.name} has rows of shape {data.event_shape}, {run.path} was trained on "
            f"{tuple(shape['event_shape'])}; evaluate it on data of that shape"
        )
    if ":standardised" in data.name and data.name != run.config["data"]:
        raise ValueError(
            f"{data.name} is standardised by its own training rows, {run.path} was trained on {run.config['data']}: "
            "their densities have other units; evaluate it on data in the units that it was trained on"
        )
    if shape["binary"] != data.binary and run.model.family != "implicit":
        kinds = ("real-valued", "binary")
        raise ValueError(
            f"{data.name} is {kinds[data.binary]}, {run.path} was trained on {kinds[shape['binary']]} "
            "data; evaluate it on data of that kind"
        )
    if run.config["labels"] and data.classes != tuple(shape["classes"]):
        raise ValueError(
            f"{run.path} needs the labels {', '.join(shape['classes'])}, and {data.name} has "
            f"{', '.join(data.classes) or 'none'}; evaluate it on data with those labels"
        )
