"""Pictures of calibration: rank histograms and expected coverage."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from pyrodgm.diagnostics.canvas import new_figure
from pyrodgm.evaluation.calibration import DENSITY, Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["calibration_plot"]

_PANELS = 7


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
    n, bins = calibration.simulations, calibration.bins
    expected = n / bins
    spread = 2.576 * math.sqrt(expected * (1 - 1 / bins))
    for i, (name, counts) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.bar(range(bins), counts.cpu().numpy(), width=1.0)
        axes.axhspan(expected - spread, expected + spread, color="0.5", alpha=0.3)
        axes.set_title(name, fontsize=9)
        axes.set_xticks([])
    axes = figure.add_subplot(rows, columns, len(panels) + 1)
    levels = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    share, error = calibration.coverage(levels)
    axes.fill_between(levels, levels - 2.576 * error, levels + 2.576 * error, color="0.5", alpha=0.3)
    axes.plot(levels, share)
    axes.set_title("expected coverage", fontsize=9)
    return figure
