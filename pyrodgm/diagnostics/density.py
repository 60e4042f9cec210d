"""Densities over the plane."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrodgm.core import Energy, GenerativeModel, Latent, Tractable, evaluating
from pyrodgm.diagnostics.canvas import INK, POINTS, new_figure, set_title, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["density_2d"]


def density_2d(
    model: GenerativeModel,
    points: Tensor | None = None,
    context: Tensor | None = None,
    bounds: tuple[float, float] = (-4.0, 4.0),
    resolution: int = 150,
    particles: int = 100,
    title: str = "",
) -> Figure:
    """p(x) over the plane: exact, by importance sampling, or up to its normaliser, as the family has it.

    Args:
        model: a Tractable, Latent or Energy model with event shape (2,).
        points: rows drawn on top, (B, 2).
        context: one vector (C,).
        bounds: of both coordinates.
        resolution: grid points along a side.
        particles: importance samples for each grid point of a Latent model.
    Raises: ValueError if events are not pairs; TypeError if the model has no density.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> len(density_2d(RealNVP(2, layers=2), resolution=20).axes)
        2
    """
    if tuple(model.event_shape) != (2,):
        raise ValueError(f"expected a model of pairs, event shape (2,), got {tuple(model.event_shape)}; use scatter")
    side = torch.linspace(*bounds, resolution, dtype=model.dtype, device=model.device)
    grid = torch.cartesian_prod(side, side)
    rows = None if context is None else context.expand(len(grid), -1)
    with evaluating(model):
        if isinstance(model, Tractable):
            log_prob, name = model.log_prob(grid, rows), "density p(x)"
        elif isinstance(model, Latent):
            parts = [
                model.log_weights(
                    grid[i : i + 2000], None if rows is None else rows[i : i + 2000], particles=particles
                ).logsumexp(0)
                for i in range(0, len(grid), 2000)
            ]
            log_prob, name = torch.cat(parts) - math.log(particles), f"density p(x), {particles} particles"
        elif isinstance(model, Energy):
            log_prob, name = -model.energy(grid, rows), "density p(x), normalised on this grid"
            cell = ((bounds[1] - bounds[0]) / (resolution - 1)) ** 2
            log_prob = log_prob - torch.logsumexp(log_prob, 0) - math.log(cell)
        else:
            raise TypeError(f"{type(model).__name__} has no density; draw samples with scatter instead")
    figure = new_figure(4.6, 4.0)
    axes = figure.add_subplot()
    shown = log_prob.exp().reshape(resolution, resolution).T.cpu().numpy()
    mesh = axes.imshow(shown, origin="lower", extent=(*bounds, *bounds), cmap="Blues", interpolation="bilinear")
    bar = figure.colorbar(mesh, ax=axes, shrink=0.85, pad=0.03)
    bar.set_label(name, color=INK, fontsize=8)
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.outline.set_visible(False)
    if points is not None:
        p = points.detach().cpu()[:POINTS]
        axes.plot(p[:, 0], p[:, 1], ".", markersize=1.5, color=INK, alpha=0.35, markeredgewidth=0)
    axes.set(xlim=bounds, ylim=bounds)
    style_axes(axes, "$x_1$", "$x_2$")
    set_title(figure, title)
    return figure
