"""Pages: one run, or several side by side; each a single file without external links."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrodgm.diagnostics.plots import curves, png, real_and_samples, save

__all__ = ["comparison_rows", "write_comparison", "write_report"]

_STYLE = """
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;color:#2d3748;max-width:60rem;margin:2.5rem auto;
padding:0 1.2rem;background:#fff}
h1{font-size:1.6rem;margin:0 0 .2rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem;border-bottom:1px solid #d9dee5;
padding-bottom:.25rem}h3{font-size:1rem;margin:1.4rem 0 .3rem}p.lead{color:#4a5568;margin-top:0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{text-align:left;padding:.35rem .7rem .35rem 0;border-bottom:1px solid #edf0f4;vertical-align:top}
th{font-weight:600;color:#4a5568;font-size:.85rem}td.n,th.n{text-align:right}
tr.first td{font-weight:600}code,pre{font:13px/1.45 ui-monospace,Menlo,Consolas,monospace;background:#f5f7f9;
border-radius:4px}code{padding:.1rem .3rem}pre{padding:.7rem .9rem;overflow-x:auto;white-space:pre-wrap}
img{max-width:100%;height:auto;display:block;margin:.6rem 0}.big{font-size:1.5rem;font-weight:600}
.note{color:#66707d;font-size:.88rem}.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));
gap:1rem}.pictures figure{margin:0}figcaption{font-size:.85rem;color:#4a5568}
"""

_KINDS = {
    "exact": ("", "exact"),
    "bound": ("&ge; ", "lower bound, by importance sampling"),
    "AIS estimate": ("&asymp; ", "estimate: the normaliser by annealed importance sampling"),
    "none": ("", "no likelihood: samples only"),
}


def write_report(run_dir: str | Path) -> Path:
    """Draw a run folder's pictures and write its ``report.html``.

    Args:
        run_dir: a run of :func:`pyrodgm.runs.train`.
    Raises: ValueError if the folder is no finished run.
    """
    path = Path(run_dir)
    config, metrics = _read(path)
    from pyrodgm.runs import fit_command, read_history

    history = read_history(path)
    blocks = []
    if history:
        figure = curves(history, metrics["unit"], metrics["held_out_name"])
        save(figure, path / "curves.png")
        blocks.append(f"<h2>Training</h2>{_image(png(figure), 'loss against epoch')}")
    shown = _samples(path)
    if shown is not None:
        figure = real_and_samples(*shown, config["shape"]["image_shape"])
        save(figure, path / "samples.png")
        blocks.append(f"<h2>Real data and samples</h2>{_image(png(figure), 'real data beside samples')}")
    title = f"{config['model']} on {_short(config['data'])}"
    command = fit_command(config, path)
    body = f"""<h1>{html.escape(title)}</h1>
<p class="lead">{html.escape(_line(config))}</p>
<h2>Held-out log-likelihood</h2>{_headline(metrics["held_out"])}
{"".join(blocks)}
<h2>The run</h2>{_facts(config, metrics)}
<h2>Reproduce</h2><pre>{html.escape(command)}</pre><pre>{html.escape(_python(config, path))}</pre>"""
    return _page(path / "report.html", title, body)


def write_comparison(run_dirs: Iterable[str | Path], path: str | Path) -> Path:
    """One page for several runs: a table a data set, the best held-out log-likelihood first, and pictures.

    Args:
        run_dirs: runs of :func:`pyrodgm.runs.train`.
        path: of the page.
    Raises: ValueError if a folder is no finished run, or there is none.
    """
    runs = [(Path(run), *_read(Path(run))) for run in run_dirs]
    if not runs:
        raise ValueError("expected at least one run to compare, got none")
    groups: dict[str, list[tuple[Path, dict[str, Any], dict[str, Any]]]] = {}
    for run in sorted(runs, key=lambda r: -_value(r[2])):
        groups.setdefault(run[2]["held_out"]["data"], []).append(run)
    sections = []
    for data, members in sorted(groups.items(), key=lambda g: -len(g[1])):
        sections.append(f"<h2>{html.escape(_short(data))}</h2>{_table(members)}{_pictures(members)}")
    title = "Models compared"
    note = (
        '<p class="lead">Test log-likelihood in nats for each datum, larger is better, &plusmn; one standard error. '
        "Numbers compare only within one data set. A lower bound may be below the model's own value; "
        "an AIS estimate tends to lie above it.</p>"
    )
    return _page(Path(path), title, f"<h1>{title}</h1>{note}{''.join(sections)}")


def comparison_rows(run_dirs: Iterable[str | Path]) -> list[tuple[str, ...]]:
    """The same table as text, a heading first.

    Raises: ValueError if a folder is no finished run.
    """
    rows: list[tuple[str, ...]] = [("data", "model", "log-likelihood", "+-", "kind", "bits/dim", "run")]
    runs = [(str(run), *_read(Path(run))) for run in run_dirs]
    for path, config, metrics in sorted(runs, key=lambda r: (r[2]["held_out"]["data"], -_value(r[2]))):
        held_out = metrics["held_out"]
        numbers = [_decimals(held_out[k], d) for k, d in (("value", 2), ("standard_error", 2), ("bits_per_dim", 3))]
        name = config["model"] + (" given labels" if config["labels"] else "")
        rows.append((_short(held_out["data"]), name, numbers[0], numbers[1], held_out["kind"], numbers[2], path))
    return rows


def _decimals(value: float | None, places: int) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from pyrodgm.runs import _read_json, read_config

    config, metrics = read_config(path), _read_json(path / "metrics.json")
    if not metrics:
        raise ValueError(f"{path} is unfinished (no metrics.json); run its fit again to resume it")
    return config, metrics


def _samples(path: Path) -> tuple[Tensor, Tensor] | None:
    if not (path / "samples.npz").exists():
        return None
    with np.load(path / "samples.npz", allow_pickle=False) as stored:
        return torch.as_tensor(stored["real"]), torch.as_tensor(stored["samples"])


def _value(metrics: Mapping[str, Any]) -> float:
    value = metrics["held_out"]["value"]
    return -math.inf if value is None else value


def _line(config: Mapping[str, Any]) -> str:
    from pyrodgm.members import member

    which = member(config["model"])
    return f"{which.line} ({which.family}; {which.source}, {which.year})"


def _number(held_out: Mapping[str, Any]) -> str:
    if held_out["value"] is None:
        return "&ndash;"
    error = held_out["standard_error"]
    return f"{_KINDS.get(held_out['kind'], ('', ''))[0]}{held_out['value']:.2f}" + (
        f" &plusmn; {error:.2f}" if error is not None else ""
    )


def _headline(held_out: Mapping[str, Any]) -> str:
    kind = _KINDS.get(held_out["kind"], ("", held_out["kind"]))[1]
    where = f"{held_out['rows']} {held_out['part']} rows of {html.escape(_short(held_out['data']))}"
    if held_out["value"] is None:
        return f'<p class="big">&ndash;</p><p class="note">{kind}. Judge it by its samples.</p>'
    bits = held_out["bits_per_dim"]
    extra = "" if bits is None else f" &nbsp;({bits:.3f} bits/dim of the levels)"
    dense = " The density is that of the dequantized rows." if bits is not None else ""
    return (
        f'<p><span class="big">{_number(held_out)}</span> nats/datum{extra}</p>'
        f'<p class="note">{kind}; mean over {where}, &plusmn; one standard error.{dense}</p>'
    )


def _facts(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    timings, best = metrics["timings"], metrics["best"] or {}
    shape = config["shape"]
    arguments = ", ".join(f"{k}={v}" for k, v in (config["arguments"] | config["objective"] | config["fit"]).items())
    kind = "binary" if shape["binary"] else "dequantized" if shape["levels"] else "real"
    rows = {
        "model": f"{config['model']}, {metrics['parameters']:,} parameters",
        "arguments": arguments,
        "data": f"{config['data']}, {math.prod(shape['event_shape'])} {kind} features"
        + (f", given {len(shape['classes'])} labels" if config["labels"] else ""),
        "training": f"{metrics['epochs']} epochs, {int(timings.get('steps', 0))} steps, "
        + metrics["stopped"].replace("_", " "),
        "best epoch": f"{best['epoch']:g}" if best else "",
        "time": f"{_seconds(timings.get('seconds'))}, {timings.get('steps_per_second') or math.nan:.0f} steps/s, "
        f"{metrics['threads']} thread{'s' * (metrics['threads'] > 1)}",
        "seed": str(config["seed"]),
        "versions": ", ".join(f"{k} {v}" for k, v in metrics["versions"].items() if v),
    }
    cells = "".join(f"<tr><th>{k}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items() if v)
    return f"<table>{cells}</table>"


def _table(members: Sequence[tuple[Path, dict[str, Any], dict[str, Any]]]) -> str:
    bits = any(m["held_out"]["bits_per_dim"] is not None for _, _, m in members)
    head = ["model", "family", "log-likelihood", *(["bits/dim"] if bits else []), "kind", "parameters", "time", "run"]
    numeric = {"log-likelihood", "bits/dim", "parameters", "time"}
    lines = ["".join(f"<th{' class=n' * (h in numeric)}>{h}</th>" for h in head)]
    from pyrodgm.members import member

    for path, config, metrics in members:
        held_out = metrics["held_out"]
        given = " given labels" if config["labels"] else ""
        cells = [
            html.escape(config["model"] + given), member(config["model"]).family, _number(held_out),
            *(["" if held_out["bits_per_dim"] is None else f"{held_out['bits_per_dim']:.3f}"] if bits else []),
            _KINDS.get(held_out["kind"], ("", held_out["kind"]))[1], f"{metrics['parameters']:,}",
            _seconds(metrics["timings"].get("seconds")), f"<code>{html.escape(path.name)}</code>",
        ]  # fmt: skip
        lines.append("".join(f"<td{' class=n' * (h in numeric)}>{c}</td>" for h, c in zip(head, cells, strict=True)))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _pictures(members: Sequence[tuple[Path, dict[str, Any], dict[str, Any]]]) -> str:
    from pyrodgm.diagnostics.plots import image_grid

    figures = []
    for i, (path, config, _) in enumerate(members):
        shown, shape = _samples(path), config["shape"]["image_shape"]
        if shown is None:
            continue
        if shape is None:
            image = png(real_and_samples(*shown, None, config["model"]))
            figures.append(_image(image, f"real data beside samples of {config['model']}"))
            continue
        if i == 0:
            figures.append(_figure(png(image_grid({"real data": shown[0]}, shape, 8, 8)), "real data"))
        image = png(image_grid({config["model"]: shown[1]}, shape, 8, 8))
        figures.append(_figure(image, f"samples of {config['model']}"))
    return f'<div class="pictures">{"".join(figures)}</div>'


def _figure(data: bytes, text: str) -> str:
    return f"<figure>{_image(data, text)}</figure>"


def _image(data: bytes, text: str) -> str:
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def _python(config: Mapping[str, Any], path: Path) -> str:
    words = [repr(config["model"]), repr(config["data"]), repr(str(path))]
    words += [f"arguments={config['arguments']!r}"] if config["arguments"] else []
    words += [f"objective={config['objective']!r}"] if config["objective"] else []
    words += [f"{k}={v!r}" for k, v in config["fit"].items()]
    words += ["labels=True"] if config["labels"] else []
    words += [f"seed={config['seed']}"] if config["seed"] else []
    return f"from pyrodgm.runs import load_run, train\n\nrun = train({', '.join(words)})\nrun = load_run({str(path)!r})"


def _page(path: Path, title: str, body: str) -> Path:
    from pyrodgm.runs import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>'
        f"<body>{body}</body></html>\n",
    )
    return path


def _short(data: str) -> str:
    """A path by its last part, a name as it is."""
    return data.rsplit("/", 1)[-1]


def _seconds(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:.1f} s" if value < 90 else f"{int(value // 60)} min {int(value % 60)} s"
