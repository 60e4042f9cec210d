"""Checkpoints that are written atomically, checked when read, and never hold code."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["CheckpointError", "fingerprint", "load_latest", "save"]

_FORMAT = "pyrodgm-checkpoint"
_VERSION = 1
_KEPT = 2  # the newest and, in case that one is damaged, the one before


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used, with the reason."""


def fingerprint(*modules: nn.Module) -> str:
    """Classes, parameter names and shapes: two runs with equal fingerprints can exchange states."""
    lines = []
    for module in modules:
        lines.append(type(module).__qualname__)
        lines += [f"{k}{tuple(v.shape)}{v.dtype}" for k, v in module.named_parameters()]
    return "\n".join(lines)


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``state`` as ``step-N.pt``: a temporary file first, flushed to disk, then renamed over."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:010d}.pt"
    write_atomically(target, {"format": _FORMAT, "version": _VERSION, **state})
    for old in _files(folder)[:-_KEPT]:
        old.unlink(missing_ok=True)
    return target


def write_atomically(target: Path, payload: Any) -> None:
    """``torch.save`` that leaves either the old file or the whole new one, whatever happens between."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(payload, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_latest(folder: Path, expected: str) -> tuple[dict[str, Any], Path] | None:
    """The newest usable checkpoint of ``folder``, or None where there is none at all.

    A damaged newest file is passed over with a warning for the one before it.
    Raises: CheckpointError if files are there and none can be used.
    """
    problems = []
    for path in reversed(_files(folder)):
        try:
            state = _read(path, expected)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"{problem}; went on from {path.name}", stacklevel=3)
        return state, path
    if problems:
        raise CheckpointError(
            "; ".join(problems) + "; pass resume=False to start over, or another checkpoint folder"
        )
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt")) if folder.is_dir() else []


def _read(path: Path, expected: str) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file: all of them mean the same here
        raise CheckpointError(f"{path.name} is damaged or cut short ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"{path.name} was not written by pyrodgm.fit")
    if state["version"] > _VERSION:
        raise CheckpointError(f"{path.name} has version {state['version']}, this library reads up to {_VERSION}")
    if state["fingerprint"] != expected:
        raise CheckpointError(f"{path.name} belongs to another model or objective (classes or shapes differ)")
    return state
