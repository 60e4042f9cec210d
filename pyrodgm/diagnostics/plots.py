"""Pictures of data, samples and training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrodgm.diagnostics.canvas import FAINT, INK, MODEL, POINTS, REAL, new_figure, set_title, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyrodgm.engine.result import Fit

__all__ = ["OF_THE_LOSS", "curves", "image_grid", "in_ink", "real_and_samples", "scatter"]

_CYCLE = (MODEL, "#2b6c8f", "#6b8e4e", "#8a5a9e")
_WIDE = 7.6  # inches of a figure that fills a page
_NO_LOSS = ("epoch", "step", "seconds", "held_out", "lr")
OF_THE_LOSS = ("loss", "negative log-likelihood", "negative bound")


def image_grid(
    x: Tensor | Mapping[str, Tensor], image_shape: Sequence[int], columns: int = 10, rows: int = 6, title: str = ""
) -> Figure:
    """Rows of data as pictures on a grid; several named tensors side by side.

    Args:
        x: (B, *event), or such tensors by the heading over each.
        image_shape: (H, W) grey, or (C, H, W) with C of 1 or 3.
        columns, rows: how many pictures of each tensor at most.
    Raises: ValueError if the event does not have that many pixels.
    Example:
        >>> figure = image_grid({"real": torch.rand(20, 64), "samples": torch.rand(20, 64)}, (8, 8))
        >>> len(figure.axes)
        2
    """
    panels = x if isinstance(x, Mapping) else {"": x}
    tiles = {name: _tiles(value, image_shape, columns, rows) for name, value in panels.items()}
    tall, wide = next(iter(tiles.values())).shape[:2]
    width = _WIDE / 2 if len(tiles) > 1 else 4.6
    heading = 0.25 * any(tiles) + 0.3 * bool(title)
    figure = new_figure(width * len(tiles), width * tall / wide + heading)
    for i, (name, tile) in enumerate(tiles.items()):
        axes = figure.add_subplot(1, len(tiles), i + 1)
        axes.imshow(tile.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(name, color=REAL if name.startswith("real") else MODEL, fontsize=10, pad=3)
    set_title(figure, title)
    return figure


def curves(
    run: Fit | Sequence[Mapping[str, float]],
    unit: str = "nats/datum",
    held_out_name: str = "loss",
    title: str = "",
) -> Figure:
    """Each player's loss and the held-out score against the epoch.

    The score shares the axes of the loss where both measure the same, else it has its own; the best is marked.

    Args:
        run: a :class:`pyrodgm.Fit`, which says what its numbers are; or its history alone, as a CSV file keeps it: of
            that "loss" is drawn, or, where several players have losses, all that is there.
        unit: of the losses of a history.
        held_out_name: what "held_out" of a history measures.
    Example:
        >>> figure = curves([{"epoch": 1, "model": 3.0, "held_out": 3.2}, {"epoch": 2, "model": 2.0, "held_out": 2.5}])
        >>> len(figure.axes)
        1
    """
    if isinstance(run, Sequence):
        history, names = run, dict.fromkeys(k for row in run for k in row if k not in _NO_LOSS)
        names = {"loss": None} if "loss" in names else names
    else:
        history, names = run.history, dict.fromkeys(run.losses)
        unit, held_out_name = run.unit, run.held_out_name
    players = [k for k in names if any(_is_number(row.get(k)) for row in history)]
    scored = any(_is_number(row.get("held_out")) for row in history)
    shared = scored and len(players) == 1 and held_out_name in OF_THE_LOSS
    panels = 2 if scored and not shared else 1
    figure = new_figure(_WIDE, 2.9)
    axes = figure.add_subplot(1, panels, 1)
    for i, player in enumerate(players):
        name = "training" if player in ("loss", "model") else player
        _line(axes, history, player, name, _CYCLE[i % len(_CYCLE)])
    if scored:
        score = axes if shared else figure.add_subplot(1, panels, 2)
        best = _line(score, history, "held_out", "held out" if shared else held_out_name, REAL)
        score.plot(*best, "o", color=REAL, markersize=5, label=f"best: {best[1]:.4g}, epoch {best[0]:g}")
        if not shared:
            style_axes(score, "epoch", held_out_name)
    style_axes(axes, "epoch", f"{held_out_name if shared else 'loss'} ({unit})")
    for each in (one for one in figure.axes if one.lines):  # a run may end inside its first epoch
        each.legend(
            frameon=False,
            fontsize=8,
            labelcolor=INK,
            ncols=3,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            handlelength=1.2,
            columnspacing=1.0,
            borderaxespad=0.2,
        )
    set_title(figure, title)
    return figure


def scatter(real: Tensor, samples: Tensor, title: str = "", names: Sequence[str] = ()) -> Figure:
    """Samples beside real vectors: the plane for D = 2, else the first pairs of features and their histograms.

    Args:
        real, samples: (B, D).
        names: of the features.
    Example:
        >>> len(scatter(torch.randn(50, 2), torch.randn(50, 2)).axes)
        2
    """
    real, samples = (x.detach().cpu().flatten(1)[:POINTS] for x in (real, samples))
    features = real.shape[1]
    label = [names[d] if d < len(names) else f"$x_{{{d + 1}}}$" for d in range(features)]
    if features == 2:
        low, high = _limits(real)
        tall = (high[1] - low[1]) / (high[0] - low[0])
        figure = new_figure(_WIDE, min(max(0.42 * _WIDE * tall, 1.5), 4.0) + 0.8)  # no margins beside equal axes
        for i, (name, x, colour) in enumerate((("real", real, REAL), ("samples", samples, MODEL))):
            axes = figure.add_subplot(1, 2, i + 1)
            axes.plot(x[:, 0], x[:, 1], ".", markersize=_dot(x), alpha=0.6, color=colour, markeredgewidth=0)
            axes.set_title(name, color=colour, fontsize=10)
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
            style_axes(axes, label[0], label[1])
    else:
        shown = min(features, 4)
        figure = new_figure(2.1 * shown, 2.1 * shown + 0.2 if features > 1 else 3.0)
        _pairs(figure, real, samples, label[:shown])
    set_title(figure, title)
    return figure


def real_and_samples(real: Tensor, samples: Tensor, image_shape: Sequence[int] | None, title: str = "") -> Figure:
    """Real data beside samples: pictures where there is an image shape, else :func:`scatter`."""
    if image_shape is None:
        return scatter(real, samples, title)
    return image_grid({"real": in_ink(real, real), "samples": in_ink(samples, real)}, image_shape, 10, 10, title)


def in_ink(x: Tensor, real: Tensor) -> Tensor:
    """x in the units of ink: the range of the real rows from 0 to 1, where they do not lie in [0, 1] as they are."""
    low, high = float(real.min()), float(real.max())
    return (x - low) / max(high - low, 1e-12) if low < 0 or high > 1 else x


def _line(axes: Axes, history: Sequence[Mapping[str, float]], key: str, name: str, colour: str) -> tuple[float, float]:
    points = [(row.get("epoch", i + 1), row[key]) for i, row in enumerate(history) if _is_number(row.get(key))]
    marker = "." if len(points) < 15 else ""
    axes.plot([e for e, _ in points], [v for _, v in points], marker=marker, color=colour, linewidth=1.6, label=name)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    if len(points) < 8:
        axes.set_xticks([e for e, _ in points])
    else:
        axes.locator_params(axis="x", integer=True)  # no half epochs
    return min(points, key=lambda p: p[1]) if points else (math.nan, math.nan)


def _pairs(figure: Figure, real: Tensor, samples: Tensor, label: Sequence[str]) -> None:
    shown = len(label)
    low, high = _limits(real)
    bins = max(8, min(30, round(2 * len(real) ** (1 / 3))))
    for i in range(shown):
        for j in range(i + 1):
            axes = figure.add_subplot(shown, shown, i * shown + j + 1)
            if i == j:
                for x, colour, name in ((real, REAL, "real"), (samples, MODEL, "samples")):
                    axes.hist(
                        x[:, i].clamp(low[i], high[i]).numpy(), bins=bins, range=(low[i], high[i]), density=True,
                        histtype="stepfilled", alpha=0.45, color=colour, label=name,
                    )  # fmt: skip
                axes.set_yticks([])
                if i == 0:
                    figure.legend(
                        *axes.get_legend_handles_labels(),
                        loc="outside upper right",
                        frameon=False,
                        fontsize=9,
                        labelcolor=INK,
                        ncols=2,
                    )
            else:
                for x, colour in ((samples, MODEL), (real, REAL)):  # real rows are often fewer: on top
                    axes.plot(x[:, j], x[:, i], ".", markersize=_dot(x), alpha=0.5, color=colour, markeredgewidth=0)
                axes.set_ylim(low[i], high[i])
            axes.set_xlim(low[j], high[j])
            left = label[i] if j == 0 and i else "density" if shown == 1 else ""
            style_axes(axes, label[j] if i == shown - 1 else "", left)


def _dot(x: Tensor) -> float:
    """Few points are drawn larger than many."""
    return max(2.5, min(7.0, 80 / math.sqrt(len(x))))


def _limits(x: Tensor) -> tuple[list[float], list[float]]:
    """The range of the data with a margin: a sample far outside must not shrink the picture."""
    low, high = x.min(0).values, x.max(0).values
    margin = 0.1 * torch.where(high > low, high - low, high.abs().clamp_min(1.0))  # constant ones too have a width
    return (low - margin).tolist(), (high + margin).tolist()


def _tiles(x: Tensor, image_shape: Sequence[int], columns: int, rows: int) -> Tensor:
    """(B, *event) -> (rows * (H + 1) + 1, columns * (W + 1) + 1[, 3]) in [0, 1], a pale line between pictures."""
    shape = (1, *image_shape) if len(image_shape) == 2 else tuple(image_shape)
    x = x.detach().cpu().float().flatten(1)
    if len(shape) != 3 or shape[0] not in (1, 3) or x.shape[1] != math.prod(shape):
        raise ValueError(
            f"expected image_shape (H, W), (1, H, W) or (3, H, W) of {x.shape[1]} numbers, got {tuple(image_shape)}"
        )
    x = x[: columns * rows].clamp(0, 1).reshape(-1, *shape)
    columns = min(columns, len(x))
    rows = -(-len(x) // columns)
    colour, height, width = shape
    blank = 0.12 if colour == 1 else 1.0
    canvas = torch.full((colour, rows * (height + 1) + 1, columns * (width + 1) + 1), blank)
    for i, picture in enumerate(x):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        canvas[:, top : top + height, left : left + width] = picture
    return canvas[0] if colour == 1 else canvas.permute(1, 2, 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
