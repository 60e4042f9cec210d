"""Checkpoints that are written atomically, checked when read, and never hold code."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyrodgm.files import remove_unfinished, write_atomically

__all__ = ["CheckpointError", "fingerprint", "load_latest", "save"]

_FORMAT = "pyrodgm-checkpoint"
_VERSION = 4
_KEPT = 2  # the newest and, in case that one is damaged, the one before


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used, with the reason."""


def fingerprint(modules: Iterable[nn.Module], helpers: Iterable[object]) -> str:
    """Classes, parameter names and shapes: two runs with equal fingerprints can exchange states.

    Args:
        modules: model and objective.
        helpers: optimisers and schedules, of which the class counts.
    """
    lines = []
    for module in modules:
        lines.append(type(module).__qualname__)
        lines += [f"{k}{tuple(v.shape)}{v.dtype}" for k, v in module.named_parameters()]
    return "\n".join([*lines, *(type(helper).__name__ for helper in helpers)])


def save(folder: Path, step: int, state: dict[str, Any], alone: bool = False) -> Path:
    """Write ``state`` as ``step-N.pt``, whole or not at all, and drop the checkpoints that it replaces.

    Args:
        folder: of one run.
        step: N.
        state: tensors and plain values.
        alone: drop all other checkpoints, which belong to a run that was started over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:010d}.pt"
    write_atomically(target, lambda part: torch.save({"format": _FORMAT, "version": _VERSION, **state}, part))
    for old in [p for p in _files(folder) if p != target] if alone else _files(folder)[:-_KEPT]:
        old.unlink(missing_ok=True)
    return target


def load_latest(folder: Path, expected: str) -> tuple[dict[str, Any], Path] | None:
    """The newest usable checkpoint of ``folder``, or None where there is none at all.

    A damaged or foreign newest file is passed over, with a warning, for the one before it, and
    renamed to ``*.refused``. What a killed run had begun to write is removed.
    Raises: CheckpointError if files are there and none can be used.
    """
    remove_unfinished(folder)
    refused: list[tuple[Path, CheckpointError]] = []
    for path in reversed(_files(folder)):
        try:
            state = _read(path, expected)
        except CheckpointError as error:
            refused.append((path, error))
            continue
        for bad, why in refused:
            bad.rename(bad.with_name(f"{bad.name}.refused"))
            warnings.warn(f"{why}; went on from {path.name}", stacklevel=2)
        return state, path
    if refused:
        reasons = "; ".join(str(why) for _, why in refused)
        raise CheckpointError(f"{reasons}; pass resume=False to start over, or another checkpoint folder")
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt")) if folder.is_dir() else []


def _read(path: Path, expected: str) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file: all of them mean the same here
        raise CheckpointError(f"{path} is damaged or cut short ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"{path} was not written by pyrodgm.fit")
    if state.get("version") != _VERSION:
        raise CheckpointError(f"{path} has version {state.get('version')}, this library reads version {_VERSION}")
    if state.get("fingerprint") != expected:
        raise CheckpointError(
            f"{path} belongs to another run (classes or shapes of the model, objective, optimisers or schedules differ)"
        )
    return state
