"""Pictures of calibration: rank histograms and expected coverage."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from pyrodgm.diagnostics.canvas import INK, MODEL, new_figure, style_axes
from pyrodgm.evaluation.calibration import DENSITY, Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["calibration_plot"]

_PANELS = 7
_Z = 2.576  # standard errors within which 99 of 100 normal values lie


def calibration_plot(calibration: Calibration) -> Figure:
    """Histograms of the ranks with the band that 99 of 100 bars of a right posterior lie in, and expected coverage.

    Args:
        calibration: from :mod:`pyrodgm.evaluation`; the first seven numbers of its sites are shown.
    Raises: ImportError without matplotlib.
    Source: Talts et al. (2018), arXiv:1804.06788; Hermans et al. (2022), arXiv:2110.06581.
    Example:
        >>> ranks = torch.randint(20, (500, 1))
        >>> len(calibration_plot(Calibration({"z": ranks, "log density": ranks}, draws=19)).axes)
        2
    """
    panels = [
        (f"{name}[{d}]" if counts.shape[1] > 1 else name, counts[:, d])
        for name, counts in calibration.histograms().items()
        if name != DENSITY
        for d in range(counts.shape[1])
    ][:_PANELS]
    columns = min(4, len(panels) + 1)
    rows = math.ceil((len(panels) + 1) / columns)
    figure = new_figure(2.6 * columns, 2.2 * rows)
    n, bins, draws = calibration.simulations, calibration.bins, calibration.draws
    expected, width = n / bins, (draws + 1) // bins
    spread = _Z * math.sqrt(expected * (1 - 1 / bins))
    for i, (name, counts) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        middles = torch.arange(bins) * width + (width - 1) / 2
        axes.bar(middles.numpy(), counts.cpu().numpy(), width=width, color=MODEL)
        axes.axhspan(expected - spread, expected + spread, color=INK, alpha=0.2, linewidth=0)
        axes.set_title(name, fontsize=9, color=INK)
        axes.set_xticks([0, draws])
        style_axes(axes, "rank of the truth", "simulations")
    axes = figure.add_subplot(rows, columns, len(panels) + 1)
    levels = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    share, error = calibration.coverage(levels)
    axes.fill_between(levels, levels - _Z * error, levels + _Z * error, color=INK, alpha=0.2, linewidth=0)
    axes.plot(levels, levels, color=INK, linewidth=0.8, linestyle="--")
    axes.plot(levels, share, color=MODEL)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_title("expected coverage", fontsize=9, color=INK)
    style_axes(axes, "level of the region", "share of truths inside")
    return figure
