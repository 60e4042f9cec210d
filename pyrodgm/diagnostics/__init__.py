"""Looking at a model: pictures and reports."""

from pyrodgm.diagnostics.comparison import write_comparison
from pyrodgm.diagnostics.plots import curves, density_2d, image_grid, png, real_and_samples, save, scatter
from pyrodgm.diagnostics.report import write_report

__all__ = [
    "curves",
    "density_2d",
    "image_grid",
    "png",
    "real_and_samples",
    "save",
    "scatter",
    "write_comparison",
    "write_report",
]
