"""Looking at a model: pictures and reports."""

from pyrodgm.diagnostics.calibration import calibration_plot
from pyrodgm.diagnostics.comparison import write_comparison
from pyrodgm.diagnostics.flow_path import path_2d, samples_by_layer
from pyrodgm.diagnostics.latent_space import (
    attribute,
    decode,
    encode,
    interpolate,
    latent_grid,
    manifold,
    manipulate,
)
from pyrodgm.diagnostics.plots import curves, density_2d, image_grid, png, real_and_samples, save, scatter
from pyrodgm.diagnostics.report import write_report

__all__ = [
    "attribute",
    "calibration_plot",
    "curves",
    "decode",
    "density_2d",
    "encode",
    "image_grid",
    "interpolate",
    "latent_grid",
    "manifold",
    "manipulate",
    "path_2d",
    "png",
    "real_and_samples",
    "samples_by_layer",
    "save",
    "scatter",
    "write_comparison",
    "write_report",
]
