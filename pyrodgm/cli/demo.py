"""``pyrodgm demo``: a model of each family on 8x8 digits, about two minutes on one core."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from pyrodgm.cli.output import print_table, score
from pyrodgm.cli.parser import make_parser, parse
from pyrodgm.diagnostics.comparison import NUMERIC, comparison_rows, write_comparison
from pyrodgm.runs import Job, prepare
from pyrodgm.runs.folder import read_metrics

__all__ = ["demo"]

_MODELS: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (  # model, data, arguments, of prepare
    ("MADE", "digits_binary", {"hidden": [500], "masks": 4}, {"epochs": 200, "early_stopping": 20}),
    ("VAE", "digits_binary", {"latent": 16, "hidden": [256]}, {"epochs": 200}),
    ("RBM", "digits_binary", {"hidden": 100}, {"epochs": 50, "batch_size": 32, "objective": {"k": 5}}),
    ("GAN", "digits_binary", {"latent": 32, "hidden": [128]}, {"epochs": 200, "objective": {"hidden": [128]}}),
    ("RealNVP", "digits_dequantized", {"layers": 6, "hidden": [32]}, {"epochs": 150, "early_stopping": 20}),
)


def demo(words: list[str]) -> None:
    parser = make_parser("demo", "Fit a model of each family on 8x8 digits and write a page with pictures.")
    parser.add_argument("--out", type=str, default="demo", metavar="DIR", help="folder of the runs and the page")
    parser.add_argument("--epochs", type=int | None, default=None, help="fewer, for a quick look")
    parser.add_argument("--overwrite", action="store_true", help="fit again what is there")
    parser.add_argument("--progress", type=bool, default=True, help="show progress bars")
    chosen = parse(parser, words)
    jobs: list[Job | Path] = []  # a path is a finished run, which is kept
    for model, data, arguments, options in _MODELS:
        options = options | {"progress": chosen.progress, "overwrite": chosen.overwrite}
        if chosen.epochs is not None:
            options["epochs"] = chosen.epochs
        out = Path(chosen.out) / model.lower()
        try:
            jobs.append(prepare(model, data, out, arguments=arguments, **options))
        except FileExistsError:
            if not (out / "metrics.json").exists() or read_metrics(out)["stopped"] == "interrupted":
                raise  # unfinished, with other settings
            jobs.append(out)
    for i, ((model, data, *_), job) in enumerate(zip(_MODELS, jobs, strict=True)):
        _say(f"{i + 1}/{len(jobs)} {model} on {data}")
        if isinstance(job, Path):
            _say(f"    {job} is there and kept; --overwrite fits it again")
            continue
        start = time.perf_counter()
        metrics = job.execute().metrics
        _say(f"    {time.perf_counter() - start:.0f} s: {score(metrics['held_out'])}")
        if metrics["stopped"] == "interrupted":  # the first Ctrl-C, which ends one run well
            raise KeyboardInterrupt
    paths = [job if isinstance(job, Path) else job.out for job in jobs]
    page = write_comparison(paths, Path(chosen.out) / "index.html")
    print_table(comparison_rows(paths), NUMERIC)
    print(f"\nOpen the page with pictures: {page}")


def _say(line: str) -> None:
    """Progress goes to stderr, so that stdout has the result alone."""
    print(line, file=sys.stderr, flush=True)
