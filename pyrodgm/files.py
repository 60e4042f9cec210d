"""Files that appear whole or not at all, and what tells the rows of one from another's."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["remove_unfinished", "rows_digest", "write_atomically", "write_text"]

_PREFIX = ".writing-"  # of a file that is not whole yet
_ABANDONED = 600.0  # seconds without a write after which such a file has no writer, on this machine or another


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write`` with a name beside ``path``, see that it is on the disk, then put it in place.

    Whatever happens between, ``path`` is the old file or the whole new one.
    """
    part = path.with_name(f"{_PREFIX}{os.getpid()}-{path.name}")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes had begun to write into a folder, but not what another may be writing."""
    for part in folder.glob(f"{_PREFIX}*"):
        try:
            if time.time() - part.stat().st_mtime > _ABANDONED:
                part.unlink()
        except FileNotFoundError:  # whole by now, or removed by another run
            continue


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8, whole or not at all."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def rows_digest(*parts: Tensor | None) -> str:
    """A short word that other rows do not share."""
    found = hashlib.blake2b(digest_size=8)
    for rows in parts:
        if rows is not None:
            found.update(rows.float().cpu().flatten().numpy().data)
    return found.hexdigest()
