"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["PREFIX", "write_atomically", "write_text"]

PREFIX = ".writing-"  # of a file that is not whole yet


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write`` with a name beside ``path``, see that it is on the disk, then put it in place.

    Whatever happens between, ``path`` is the old file or the whole new one.
    """
    part = path.with_name(f"{PREFIX}{os.getpid()}-{path.name}")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8, whole or not at all."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
