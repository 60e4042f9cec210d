"""Densities over the plane."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrodgm.core import Energy, GenerativeModel, Latent, Tractable, evaluating
from pyrodgm.diagnostics.canvas import INK, POINTS, new_figure, set_title, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["density_2d"]

_ROWS_AT_ONCE = 2000


def density_2d(
    model: GenerativeModel,
    points: Tensor | None = None,
    context: Tensor | None = None,
    bounds: tuple[float, float] = (-4.0, 4.0),
    resolution: int = 150,
    particles: int = 100,
    title: str = "",
) -> Figure:
    """p(x) over the plane: exact, by importance sampling, or normalised on the grid, as the family has it.

    Args:
        model: a Tractable, Latent or Energy model with event shape (2,).
        points: rows drawn on top, (B, 2).
        context: one vector (C,).
        bounds: of both coordinates.
        resolution: grid points along a side.
        particles: importance samples for each grid point of a Latent model.
    Raises: ValueError if events are not pairs of real numbers, or no grid point lies in the model's support; TypeError
        if it has no density.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> len(density_2d(RealNVP(2, layers=2), resolution=20).axes)
        2
    """
    if tuple(model.event_shape) != (2,):
        raise ValueError(f"expected a model of pairs, event shape (2,), got {tuple(model.event_shape)}; use scatter")
    side = torch.linspace(*bounds, resolution, dtype=model.dtype, device=model.device)
    log_prob, name = _log_density(model, torch.cartesian_prod(side, side), context, particles), "density p(x)"
    if isinstance(model, Latent):
        name += f", {particles} particles"
    if isinstance(model, Energy):
        cell = ((bounds[1] - bounds[0]) / (resolution - 1)) ** 2
        log_prob = log_prob - torch.logsumexp(log_prob, 0) - math.log(cell)
        name += ", normalised on this grid"
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


def _log_density(model: GenerativeModel, grid: Tensor, context: Tensor | None, particles: int) -> Tensor:
    """log p of each grid point, -inf outside the support and up to a constant for energies, (G, 2) -> (G,)."""

    def score(x: Tensor) -> Tensor:
        given = None if context is None else context.to(x.device).expand(len(x), -1)
        if isinstance(model, Tractable):
            return model.log_prob(x, given)
        if isinstance(model, Latent):
            return model.log_weights(x, given, particles=particles).logsumexp(0) - math.log(particles)
        if isinstance(model, Energy):
            return -model.energy(x, given)
        raise TypeError(f"expected a model with a density, got {type(model).__name__}; show its samples by scatter")

    with evaluating(model):
        support: Any = model.support
        if support.is_discrete:
            raise ValueError(f"expected a model of real numbers, got one over {support}; show its samples by scatter")
        inside = support.check(grid).reshape(len(grid), -1).all(-1)  # (G,)
        if not bool(inside.any()):
            raise ValueError(f"expected bounds that meet the model's support, {support}, got none of the grid inside")
        log_prob = torch.full_like(grid[:, 0], -math.inf)
        log_prob[inside] = torch.cat([score(part) for part in grid[inside].split(_ROWS_AT_ONCE)])
    return log_prob
