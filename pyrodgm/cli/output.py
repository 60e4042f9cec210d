"""What a command prints, and the files that it writes samples to."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyrodgm.diagnostics.canvas import save
from pyrodgm.diagnostics.plots import image_grid, in_ink, scatter
from pyrodgm.files import write_atomically
from pyrodgm.runs import Run
from pyrodgm.runs.folder import write_arrays

__all__ = ["FORMATS", "print_table", "score", "write_samples"]

FORMATS = (".npy", ".npz", ".csv", ".png")


def score(held_out: Mapping[str, Any]) -> str:
    """A held-out log-likelihood as a line."""
    if held_out["value"] is None:
        return "no likelihood: this model can only be sampled"
    error = "" if held_out["standard_error"] is None else f" +- {held_out['standard_error']:.3f}"
    bits = "" if held_out["bits_per_dim"] is None else f", {held_out['bits_per_dim']:.3f} bits/dim"
    where = f"{held_out['rows']} {held_out['part']} rows of {held_out['data']}"
    return f"log-likelihood {held_out['value']:.3f}{error} nats/datum ({held_out['kind']}{bits}; {where})"


def print_table(rows: Sequence[Sequence[str]], numeric: Sequence[str] = ()) -> None:
    """Print columns, those whose heading is in ``numeric`` to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [heading in numeric for heading in rows[0]]
    for row in rows:
        cells = zip(row, widths, right, strict=True)
        print("  ".join(cell.rjust(width) if r else cell.ljust(width) for cell, width, r in cells).rstrip())


def _named(labels: Tensor, run: Run) -> np.ndarray[Any, Any]:
    """The labels of the data, for their numbers (n,); whole numbers where all of them are."""
    classes = np.array(run.config["shape"]["classes"])
    with suppress(ValueError):  # of words
        classes = classes.astype(int)
    return classes[labels.numpy()]


def write_samples(out: Path, x: Tensor, labels: Tensor | None, run: Run) -> None:
    """Write samples (n, *event) in the format of the file's ending, with their labels (n,) if there are any."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        shape = run.config["shape"]["image_shape"]
        columns = max(1, round(len(x) ** 0.5))
        real = run.data().test
        if shape is None:
            save(scatter(real, x), out)
        else:
            save(image_grid(in_ink(x, real), shape, columns, -(-len(x) // columns)), out)
    elif out.suffix == ".csv":
        flat = x.flatten(1).numpy()
        names = [f"x{i}" for i in range(flat.shape[1])]
        if labels is not None:
            flat, names = np.column_stack((flat.astype(object), _named(labels, run))), [*names, "label"]
        form = ["%.7g"] * x.flatten(1).shape[1] + ["%s"] * (labels is not None)
        write_atomically(out, lambda part: np.savetxt(part, flat, form, ",", header=",".join(names), comments=""))
    elif out.suffix == ".npz":
        write_arrays(out, x=x, **({} if labels is None else {"y": _named(labels, run)}))
    else:
        write_atomically(out, lambda part: part.write_bytes(_npy(x)))


def _npy(x: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x.numpy())
    return buffer.getvalue()
