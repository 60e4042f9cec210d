"""The files of a run folder: one model fitted to one data set, with all that is needed to use it again.

=====================  ===================================================================================
``config.json``        the model, its arguments, the data and their digest, the seed: enough to build it again
``model.pt``           its state dict, loaded with ``weights_only=True``
``checkpoint/``        where training resumes
``metrics.csv``        one row an epoch
``metrics.json``       held-out likelihood with its kind and standard error, timings, versions
``samples.npz``        real rows and samples
``*.png, report.html`` pictures, and the page that shows them
=====================  ===================================================================================

Every file appears whole or not at all. A folder without ``metrics.json`` is unfinished; the same
call again resumes it.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrodgm.files import remove_unfinished, write_atomically, write_text
from pyrodgm.members import MEMBERS

__all__ = [
    "AGAIN",
    "clear",
    "is_run",
    "read_config",
    "read_history",
    "read_json",
    "read_metrics",
    "read_samples",
    "write_arrays",
    "write_json",
]

AGAIN = "remove the run, or fit it again with overwrite=True (--overwrite on the command line)"

_OWN = ("config.json", "model.pt", "checkpoint", "metrics.csv", "metrics.json", "samples.npz", "samples.png",
        "curves.png", "report.html")  # fmt: skip


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a value atomically; a number that is not finite becomes null, which every reader of JSON knows."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def write_arrays(path: Path, **values: Tensor | np.ndarray[Any, Any]) -> None:
    """Write an ``.npz`` file atomically."""
    arrays: dict[str, Any] = {k: x.detach().cpu().numpy() if isinstance(x, Tensor) else x for k, x in values.items()}

    def write(part: Path) -> None:
        with part.open("wb") as file:  # by name, savez would append .npz
            np.savez_compressed(file, **arrays)

    write_atomically(path, write)


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds; {} where there is none.

    Raises: ValueError if it is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); {AGAIN}") from None
    return found


def read_config(path: str | Path) -> dict[str, Any]:
    """The config of a run folder.

    Raises: ValueError if the folder is no run.
    """
    config = read_json(Path(path) / "config.json")
    if not is_run(config):
        lacks = "its config.json is of something else" if config else "no config.json"
        raise ValueError(f"{path} is not a run ({lacks}); pyrodgm fit MODEL DATA --out {path} makes one")
    return config


def is_run(config: Any) -> bool:
    """Whether this is what the ``config.json`` of a run holds, and not that of another program."""
    known = isinstance(config, dict) and config.get("format") == 1
    return known and any(config.get("model") == which.name for which in MEMBERS)


def read_metrics(path: str | Path) -> dict[str, Any]:
    """The metrics of a finished run.

    Raises: ValueError if it is unfinished.
    """
    metrics = read_json(Path(path) / "metrics.json")
    if not metrics:
        raise ValueError(f"{path} is unfinished (no metrics.json); run its fit again to resume it")
    return metrics


def read_history(path: str | Path) -> list[dict[str, float]]:
    """The epochs of a run folder's ``metrics.csv``; cells without a finite number are left out."""
    file = Path(path) / "metrics.csv"
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        rows = [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(lines)]
    return [{key: value for key, value in row.items() if math.isfinite(value)} for row in rows]


def read_samples(path: str | Path) -> tuple[Tensor, Tensor]:
    """Real rows and samples of a finished run, both (B, features)."""
    with np.load(Path(path) / "samples.npz", allow_pickle=False) as stored:
        return torch.as_tensor(stored["real"]).flatten(1), torch.as_tensor(stored["samples"])


def clear(folder: Path) -> None:
    """Remove the files of a run, and no others."""
    remove_unfinished(folder)
    for entry in (folder / name for name in _OWN):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
