"""What all pictures share: matplotlib figures that touch no global state, colours, axes, files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from pyrodgm.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FAINT", "INK", "MODEL", "POINTS", "REAL", "new_figure", "png", "save", "set_title", "style_axes"]

REAL, MODEL, INK, FAINT = "#4a5568", "#c2562d", "#2d3748", "#d9dee5"
POINTS = 2000  # of a cloud that are drawn at most


def png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def save(figure: Figure, path: str | Path, dpi: int = 130) -> Path:
    """Write a PNG; the file appears whole or not at all."""
    path = Path(path)
    write_atomically(path, lambda part: part.write_bytes(png(figure, dpi)))
    return path


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    Raises: ImportError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "pyrodgm[cli]"') from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def set_title(figure: Figure, title: str) -> None:
    """A title over all panels, where there is one."""
    if title:
        figure.suptitle(title, fontsize=11, color=INK)


def style_axes(axes: Axes, x: str, y: str) -> None:
    """Labels, ticks and two pale lines in the manner of all pictures."""
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#9aa5b1")
