"""Looking at a model: pictures and reports."""

from pyrodgm.diagnostics.calibration import calibration_plot
from pyrodgm.diagnostics.canvas import png, save
from pyrodgm.diagnostics.comparison import write_comparison
from pyrodgm.diagnostics.density import density_2d
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
from pyrodgm.diagnostics.plots import curves, image_grid, real_and_samples, scatter
from pyrodgm.diagnostics.reconstruction import completions, reconstructions
from pyrodgm.diagnostics.report import write_report
from pyrodgm.diagnostics.topic_words import topic_words
from pyrodgm.diagnostics.traversal import plane, traversals

__all__ = [
    "attribute",
    "calibration_plot",
    "completions",
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
    "plane",
    "png",
    "real_and_samples",
    "reconstructions",
    "samples_by_layer",
    "save",
    "scatter",
    "topic_words",
    "traversals",
    "write_comparison",
    "write_report",
]
