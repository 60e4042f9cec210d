"""Several runs side by side: a table a data set, the best held-out log-likelihood first, and pictures."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pyrodgm.data import data_sets
from pyrodgm.diagnostics.canvas import png
from pyrodgm.diagnostics.page import KINDS, badge, bits, duration, interval, picture_html, short, write_page
from pyrodgm.diagnostics.plots import image_grid, in_ink, scatter
from pyrodgm.members import member
from pyrodgm.runs.folder import read_config, read_metrics, read_samples

__all__ = ["NUMERIC", "comparison_rows", "write_comparison"]

NUMERIC = ("log-likelihood", "+-", "bits/dim", "parameters", "training")  # headings of numbers
_GRID = (8, 6)  # columns and rows of pictures


@dataclass(frozen=True)
class _Row:
    path: Path
    config: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def name(self) -> str:
        return self.config["model"] + (" given labels" if self.config["labels"] else "")

    @property
    def held_out(self) -> dict[str, Any]:
        found: dict[str, Any] = self.metrics["held_out"]
        return found


def write_comparison(run_dirs: Iterable[str | Path], path: str | Path) -> Path:
    """One page for several runs, pictures inside, with relative links to the runs' reports.

    Args:
        run_dirs: runs of :func:`pyrodgm.runs.train`.
        path: of the page.
    Raises: ValueError if a folder is no finished run, or there is none.
    """
    path = Path(path)
    groups = _groups(run_dirs)
    sections = "".join(_section(data, rows, path) for data, rows in groups.items())
    kinds = {row.held_out["kind"] for rows in groups.values() for row in rows}
    meaning = "".join(f"<tr><td>{badge(k)}</td><td>{KINDS[k].meaning}</td></tr>" for k in KINDS if k in kinds)
    title = "Models compared"
    lead = (
        "Log-likelihood of test rows in nats for each datum, &plusmn; one standard error; larger is better. "
        "Numbers compare only within one data set."
    )
    head = f'<h1>{title}</h1><p class="lead">{lead}</p><table class="kinds">{meaning}</table>'
    return write_page(path, title, head + sections)


def comparison_rows(run_dirs: Iterable[str | Path]) -> list[tuple[str, ...]]:
    """The same table as text, a heading first.

    Raises: ValueError if a folder is no finished run, or there is none.
    """
    rows: list[tuple[str, ...]] = [("data", "model", "log-likelihood", "+-", "kind", "bits/dim", "run")]
    for data, members in _groups(run_dirs).items():
        for row in members:
            places = (("value", 2), ("standard_error", 2), ("bits_per_dim", 3))
            value, error, bits = ("-" if (v := row.held_out[k]) is None else f"{v:.{n}f}" for k, n in places)
            rows.append((short(data), row.name, value, error, row.held_out["kind"], bits, str(row.path)))
    return rows


def _groups(run_dirs: Iterable[str | Path]) -> dict[str, list[_Row]]:
    """Runs by data, the data with most runs first; the best run of each first."""
    rows = [_Row(Path(run), read_config(run), read_metrics(run)) for run in run_dirs]
    if not rows:
        raise ValueError("expected at least one run to compare, got none")
    groups: dict[str, list[_Row]] = {}
    for row in sorted(rows, key=lambda row: math.inf if (v := row.held_out["value"]) is None else -v):
        groups.setdefault(row.held_out["data"], []).append(row)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def _section(data: str, rows: Sequence[_Row], page: Path) -> str:
    about = f"{data_sets().get(data, '')}; {rows[0].held_out['rows']} test rows.".lstrip("; ")
    if any((row.held_out["value"] or 0) > 0 for row in rows):
        about += " The log of a density may be positive."
    wide = "" if rows[0].config["shape"]["image_shape"] else " wide"  # a scatter has real data beside samples
    return (
        f'<h2>{html.escape(short(data))}</h2><p class="note">{html.escape(about)}</p>'
        f'{_table(rows, page)}<div class="pictures{wide}">{_pictures(rows)}</div>'
    )


def _table(rows: Sequence[_Row], page: Path) -> str:
    dense = any(row.held_out["bits_per_dim"] is not None for row in rows)
    head = ["model", "family", "log-likelihood", "kind", *["bits/dim"] * dense, "parameters", "training", "report"]
    lines = [head]
    for row in rows:
        link = html.escape(quote(os.path.relpath(row.path / "report.html", page.parent)))
        lines.append([
            f"<b>{html.escape(row.name)}</b>", member(row.config["model"]).family, interval(row.held_out),
            badge(row.held_out["kind"]), *[bits(row.held_out)] * dense,
            f"{row.metrics['parameters']:,}", duration(row.metrics["timings"]["seconds"]),
            f'<a href="{link}">{html.escape(row.path.name)}</a>',
        ])  # fmt: skip
    cells = [
        "".join(f"<{tag}{' class=n' * (h in NUMERIC)}>{c}</{tag}>" for h, c in zip(head, line, strict=True))
        for tag, line in zip(["th"] + ["td"] * len(rows), lines, strict=True)
    ]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in cells) + "</table>"


def _pictures(rows: Sequence[_Row]) -> str:
    """The real data once, where rows are pictures, then the samples of each model."""
    shape = rows[0].config["shape"]["image_shape"]
    figures = []
    for row in rows:
        real, samples = read_samples(row.path)
        score = "samples only" if row.held_out["value"] is None else interval(row.held_out)
        about = f"<b>{html.escape(row.name)}</b> {score}"
        if shape is None:
            both = f"real data beside samples of {row.name}"
            figures.append(picture_html(png(scatter(real, samples)), both, over=about))
            continue
        if not figures:
            drawn = png(image_grid(in_ink(real, real), shape, *_GRID))
            figures.append(picture_html(drawn, "real data", over='<b class="real">real data</b> test rows'))
        drawn = png(image_grid(in_ink(samples, real), shape, *_GRID))
        figures.append(picture_html(drawn, f"samples of {row.name}", over=about))
    return "".join(figures)
