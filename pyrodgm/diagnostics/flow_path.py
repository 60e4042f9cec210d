"""The way of samples through the layers of a flow, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrodgm.core import evaluating
from pyrodgm.diagnostics.canvas import new_figure, set_title
from pyrodgm.tractable.flow import Flow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["path_2d", "samples_by_layer"]


def samples_by_layer(flow: Flow, n: int = 1000, context: Tensor | None = None) -> list[Tensor]:
    """The same n draws after the base and after each bijector, without gradients, in eval mode.

    Args:
        context: one vector (C,).
    Shapes: one (n, *event) for the base and for every bijector; the last are the flow's draws.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> [x.shape[0] for x in samples_by_layer(RealNVP(2, layers=2), 5)]
        [5, 5, 5]
    """
    with evaluating(flow):
        d = flow.condition(context)
        stages = [d.base_dist.sample((n,))]
        for transform in d.transforms:
            stages.append(transform.call_and_ladj(stages[-1])[0])
    return stages


def path_2d(flow: Flow, n: int = 2000, context: Tensor | None = None, columns: int = 5, title: str = "") -> Figure:
    """Where draws of a flow over the plane stand after each layer, each in the colour of its start.

    Args:
        flow: with event shape (2,).
        n: draws.
        context: one vector (C,).
        columns: panels at most; with more layers, evenly spaced ones, the base and the last always.
    Raises: ValueError if events are not pairs or columns < 2.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> len(path_2d(RealNVP(2, layers=8), n=50).axes)
        5
    """
    if tuple(flow.event_shape) != (2,) or columns < 2:
        raise ValueError(
            f"expected a flow over pairs, event shape (2,), and columns >= 2, got {tuple(flow.event_shape)}, {columns}"
        )
    stages = samples_by_layer(flow, n, context)
    shown = torch.linspace(0, len(stages) - 1, min(columns, len(stages))).round().long().tolist()
    start = stages[0].cpu()
    angle = torch.atan2(start[:, 1] - start[:, 1].mean(), start[:, 0] - start[:, 0].mean())
    figure = new_figure(2.2 * len(shown), 2.5)
    for i, stage in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), i + 1)
        x = stages[stage].cpu().numpy()
        axes.scatter(x[:, 0], x[:, 1], c=angle.numpy(), cmap="twilight", s=2, linewidths=0)
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.set_title("base" if stage == 0 else f"after layer {stage}", fontsize=10)
    set_title(figure, title)
    return figure
