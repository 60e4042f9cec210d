"""``config.json`` as a value: made from arguments and data, and read back into a model, an objective or a command."""

from __future__ import annotations

import inspect
import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch

from pyrodgm.core import GenerativeModel
from pyrodgm.data import DataSet
from pyrodgm.distributions.conditionals import BernoulliConditional, GaussianMixtureConditional
from pyrodgm.members import Member, member
from pyrodgm.objectives.base import Objective
from pyrodgm.runs.arguments import check_names, completed, listed, objective_arguments, plain_arguments
from pyrodgm.seeding import random_state

__all__ = ["build_model", "build_objective", "fit_command", "make_config", "train_call"]

_COMPONENTS = 10  # normals in each conditional of real data


def make_config(
    which: Member,
    data: DataSet,
    labels: bool,
    seed: int,
    arguments: Mapping[str, Any],
    objective: Mapping[str, Any],
    fit: Mapping[str, Any],
) -> dict[str, Any]:
    """What ``config.json`` holds.

    Raises: ValueError for data of a kind that the model does not have, and for unknown arguments.
    """
    if labels and data.labels is None:
        raise ValueError(
            f"{data.name} has no labels; leave out labels=True (--labels on the command line), or use data with a "
            "label column"
        )
    if which.data == "binary" and not data.binary:
        raise ValueError(
            f"{which.name} models binary data, and {data.name} is not; "
            "use digits_binary, or FILE:binary to round a file's values"
        )
    if which.data == "real" and data.binary:
        raise ValueError(
            f"{which.name} is a density of continuous data, and {data.name} is binary; "
            "use digits_dequantized, or MADE, VAE or RBM"
        )
    check_names(f"the objective of {which.name}", objective, objective_arguments(which))
    return {
        "format": 1,
        "model": which.name,
        "arguments": completed(which, arguments),
        "objective": {k: listed(v) for k, v in objective.items()},
        "data": data.name,
        "data_seed": 0,
        "data_digest": data.digest,
        "labels": labels,
        "seed": seed,
        "fit": {k: v for k, v in fit.items() if k != "progress" and _is_plain(v)},
        "shape": {
            "event_shape": list(data.event_shape),
            "binary": data.binary,
            "levels": data.levels,
            "image_shape": None if data.image_shape is None else list(data.image_shape),
            "classes": list(data.classes),
            "unit": bool(((data.train >= 0) & (data.train <= 1)).all()),
        },
    }


def build_model(config: Mapping[str, Any]) -> GenerativeModel:
    """The model of a config: its arguments, and those that follow from the shape and the kind of the data.

    Raises: ValueError for arguments that the model refuses.
    """
    build = member(config["model"]).build()
    shape, arguments = config["shape"], dict(config["arguments"])
    known = inspect.signature(build).parameters
    features = math.prod(shape["event_shape"])
    context = len(shape["classes"]) if config["labels"] else 0
    if context and "context" not in known:
        raise ValueError(f"{config['model']} takes no labels; leave out labels=True (--labels on the command line)")
    components = arguments.pop("components", None) or _COMPONENTS
    derived = {
        "features": features,
        "visible": features,
        "event_shape": tuple(shape["image_shape"] or shape["event_shape"]),
        "context": context,
        "conditional": BernoulliConditional() if shape["binary"] else GaussianMixtureConditional(components),
        "family": dist.Bernoulli if shape["binary"] else dist.Normal,
        "output": torch.nn.Sigmoid() if shape["unit"] else None,
    }
    try:
        with random_state(torch.get_default_device(), config["seed"]):
            model: GenerativeModel = build(**{k: v for k, v in derived.items() if k in known} | arguments)
    except TypeError as error:
        raise ValueError(f"{config['model']}: {error}; see pyrodgm fit {config['model']} --help") from error
    return model


def build_objective(config: Mapping[str, Any], model: GenerativeModel) -> Objective | None:
    """The objective of a config, or None for a member that has the family's."""
    which = member(config["model"])
    build = which.build_objective()
    if build is None:
        return None
    settings = {k: v for k, v in which.settings if not (k == "persistent" and model.context)}
    first = [model] if "model" in inspect.signature(build).parameters else []
    with random_state(torch.get_default_device(), config["seed"]):
        objective: Objective = build(*first, **settings | config["objective"])
    try:
        objective.check(model)
    except ValueError:
        if config["objective"] or not model.context:
            raise
        return None  # it takes no context: given labels the family's own objective
    return objective


def fit_command(config: Mapping[str, Any], out: str | Path) -> str:
    """The command line that makes a run with this config."""
    words = ["pyrodgm", "fit", config["model"], config["data"], "--out", str(out)]
    objective = {f"objective.{k}": v for k, v in config["objective"].items()}
    for key, value in (_chosen(config) | objective | config["fit"]).items():
        words += [f"--{key}", json.dumps(value) if isinstance(value, bool | list | None) else str(value)]
    if config["labels"]:
        words += ["--labels", "true"]
    if config["seed"]:
        words += ["--seed", str(config["seed"])]
    return shlex.join(words)


def train_call(config: Mapping[str, Any], out: str | Path) -> str:
    """The call of :func:`pyrodgm.runs.train` that makes a run with this config."""
    options = {
        "arguments": _chosen(config), "objective": config["objective"], "labels": config["labels"],
        "seed": config["seed"],
    }  # fmt: skip
    words = [", ".join(repr(word) for word in (config["model"], config["data"], str(out)))]
    words += [f"{k}={v!r}" for k, v in (options | config["fit"]).items() if v or k in config["fit"]]
    return "run = train(\n" + "".join(f"    {word},\n" for word in words) + ")"


def _chosen(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are not the defaults."""
    defaults = {k: listed(p.default) for k, p in plain_arguments(member(config["model"])).items()}
    return {k: v for k, v in config["arguments"].items() if k not in defaults or v != defaults[k]}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list)
