"""The page of one run: its number, its samples beside real data, its training, and how to make it again."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyrodgm.diagnostics.canvas import png, save
from pyrodgm.diagnostics.page import KINDS, badge, bits, duration, interval, picture_html, short, write_page
from pyrodgm.diagnostics.plots import OF_THE_LOSS, curves, real_and_samples
from pyrodgm.members import member
from pyrodgm.runs.config import fit_command, train_call
from pyrodgm.runs.folder import read_config, read_history, read_metrics, read_samples

__all__ = ["write_report"]


def write_report(run_dir: str | Path, metrics: Mapping[str, Any] | None = None) -> Path:
    """Draw a run folder's pictures and write its ``report.html``, a single file without external links.

    Args:
        run_dir: a run of :func:`pyrodgm.runs.train`.
        metrics: what its ``metrics.json`` will hold; by default what it holds.
    Raises: ValueError if the folder is no finished run.
    """
    path = Path(run_dir)
    config = read_config(path)
    metrics = read_metrics(path) if metrics is None else metrics
    drawn = real_and_samples(*read_samples(path), config["shape"]["image_shape"])
    save(drawn, path / "samples.png")
    pictures = picture_html(png(drawn), "real data beside samples", _about_samples(config))
    drawn = curves(read_history(path), metrics["unit"], metrics["held_out_name"])
    save(drawn, path / "curves.png")
    training = picture_html(png(drawn), "loss against epoch", _about_training(metrics))
    which = member(config["model"])
    scored = "Held-out score" if metrics["held_out"]["value"] is None else "Held-out log-likelihood"
    lead = f"{which.line}. Family: {which.family}. Source: {which.source}, {which.year}."
    title = f"{config['model']} on {short(config['data'])}" + (", given labels" if config["labels"] else "")
    call = (
        f"from pyrodgm.runs import load_run, train\n\n{train_call(config, path)}\n"
        f"run = load_run({str(path)!r})  # later, without training"
    )
    body = f"""<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead[0].upper() + lead[1:])}</p>
<h2>{scored}</h2>{_headline(metrics)}
<h2>Real data and samples</h2>{pictures}
<h2>Training</h2>{training}
<h2>The run</h2>{_facts(config, metrics)}
<h2>Make it again</h2><p class="note">In a shell</p><pre>{html.escape(fit_command(config, path))}</pre>
<p class="note">In Python</p><pre>{html.escape(call)}</pre>"""
    return write_page(path / "report.html", title, body)


def _headline(metrics: Mapping[str, Any]) -> str:
    held_out, best = metrics["held_out"], metrics["best"]
    kind = f"{badge(held_out['kind'])} {KINDS[held_out['kind']].meaning}."
    if held_out["value"] is None:
        score = f"{best['held_out']:.4f}" if best else "&ndash;"
        return (
            f'<p><span class="big">{score}</span> {metrics["held_out_name"]}</p><p>{kind}</p>'
            '<p class="note">Between samples and the validation rows; 0 if their distributions agree.</p>'
        )
    dense = held_out["bits_per_dim"] is not None
    extra = f"; {bits(held_out)} bits/dim" if dense else ""
    about = " The density is that of the dequantized rows; bits/dim count their levels." if dense else ""
    where = f"{held_out['rows']} {held_out['part']} rows of {html.escape(short(held_out['data']))}"
    return (
        f'<p><span class="big">{interval(held_out)}</span> nats/datum{extra}</p><p>{kind}</p>'
        f'<p class="note">Mean over {where} &plusmn; one standard error; larger is better.{about}</p>'
    )


def _about_samples(config: Mapping[str, Any]) -> str:
    order = " In both, the labels come in turn." if config["labels"] else ""
    return f"Test rows, which training never saw, beside draws from the model.{order}"


def _about_training(metrics: Mapping[str, Any]) -> str:
    best = metrics["best"]
    if not best:
        return ""
    name = html.escape(metrics["held_out_name"])
    about = f"The model is that of epoch {best['epoch']:g}, where the {name} of the validation rows is lowest."
    return about if name in OF_THE_LOSS else f"{about} The loss, on the left, does not measure how good it is."


def _facts(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    timings, shape = metrics["timings"], config["shape"]
    kind = "binary" if shape["binary"] else "dequantized" if shape["levels"] else "real"
    labels = f", given {len(shape['classes'])} labels" if config["labels"] else ""
    threads = metrics["threads"]
    rows = {
        "model": f"{config['model']}, {metrics['parameters']:,} parameters",
        "its arguments": _listing(config["arguments"]),
        "objective": _listing(config["objective"]),
        "fit": _listing(config["fit"]),
        "data": f"{config['data']}, {math.prod(shape['event_shape'])} {kind} features{labels}",
        "training": f"{metrics['epochs']} epochs, {timings['steps']:,.0f} steps; "
                    + metrics["stopped"].replace("_", " "),
        "time": f"{duration(timings['seconds'])} on {threads} thread{'s' * (threads > 1)}"
                + (f", {rate:,.0f} steps/s" if (rate := timings["steps_per_second"]) else ""),
        "seed": str(config["seed"]),
        "versions": ", ".join(f"{k} {v}" for k, v in metrics["versions"].items()),
    }  # fmt: skip
    cells = "".join(f"<tr><th>{k}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items() if v)
    return f'<table class="facts">{cells}</table>'


def _listing(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} = {v}" for k, v in values.items() if v is not None)
