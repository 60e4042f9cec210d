"""The commands but the demo: each takes its words, prints, and raises for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

from pyrodgm import runs
from pyrodgm.cli.output import FORMATS, print_table, score, write_samples
from pyrodgm.cli.parser import add_fit, add_model, make_parser, parse
from pyrodgm.data import data_sets
from pyrodgm.diagnostics.comparison import NUMERIC, comparison_rows, write_comparison
from pyrodgm.members import MEMBERS

__all__ = ["compare", "data", "evaluate", "fit", "models", "sample"]


def models(words: list[str]) -> None:
    parse(make_parser("models", "List the models."), words)
    rows = [("name", "family", "year", "source", "")]
    rows += [(m.name, m.family, str(m.year), m.source, m.line + ("" if m.factory else " (Python)")) for m in MEMBERS]
    print_table(rows)
    print("\n(Python): made of parts in Python; pyrodgm fit takes the others")


def data(words: list[str]) -> None:
    parse(make_parser("data", "List the built-in data sets and the files that can be read."), words)
    print_table([*data_sets().items()])
    print(
        "\nor a path: .npz .npy .csv .parquet .txt or a folder of pictures, and :binary, :dequantized,\n"
        ":standardised, :28x28 or :3x32x32 after it, as in mnist.npz:binary:28x28"
    )


def fit(words: list[str]) -> None:
    parser = make_parser("fit", "Fit a model to data and write a run folder; pyrodgm fit MODEL --help has its options.")
    parser.add_argument("model", metavar="MODEL", help=f"one of {', '.join(m.name for m in MEMBERS if m.factory)}")
    parser.add_argument("data", metavar="DATA", help="a name of pyrodgm data, or a path")
    parser.add_argument("--out", type=str, metavar="RUN", help="folder of the run", required=True)
    parser.add_argument("--labels", type=bool, default=False, help="condition on the labels of the data")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters' start, the training and the samples")
    parser.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    defaults = add_fit(parser)
    named = _first_operand(words)
    of_model, of_objective = ({}, []) if named is None else add_model(parser, named, words)
    chosen = parse(parser, words)
    job = runs.prepare(
        chosen.model, chosen.data, chosen.out, labels=chosen.labels, overwrite=chosen.overwrite, seed=chosen.seed,
        arguments={name: chosen[key] for name, key in of_model.items() if chosen[key] is not None},
        objective={k: v for k in of_objective if (v := chosen[f"objective.{k}"]) is not None},
        **{k: chosen[k] for k, default in defaults.items() if chosen[k] != default},
    )  # fmt: skip
    run = job.execute()
    print(f"{score(run.metrics['held_out'])}\n{run.path / 'report.html'}")
    if run.metrics["stopped"] == "interrupted":  # the first Ctrl-C, which ends a run well
        raise KeyboardInterrupt


def _first_operand(words: list[str]) -> str | None:
    """The first word that is neither an option nor the value of one: MODEL, wherever it stands."""
    value = False
    for word in words:
        if word.startswith("--") or word == "-h":
            value = "=" not in word and word not in ("-h", "--help", "--overwrite")
        elif value:
            value = False
        else:
            return word
    return None


def sample(words: list[str]) -> None:
    parser = make_parser("sample", "Draw from a run into a file.")
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("-n", "--number", type=int, default=100, help="how many")
    parser.add_argument("--out", type=str, metavar="FILE", required=True, help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--label", type=str | None, default=None, help="of a conditional model; default all in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    chosen = parse(parser, words)
    out = Path(chosen.out)
    if out.suffix not in FORMATS:
        raise ValueError(f"expected --out with one of {', '.join(FORMATS)}, got {out.name}")
    if chosen.number < 1:
        raise ValueError(f"expected -n of at least 1, got {chosen.number}")
    run = runs.load_run(chosen.run)
    x = run.sample(chosen.number, chosen.label, chosen.seed)
    context = run.context(chosen.number, chosen.label)
    write_samples(out, x, None if context is None else context.argmax(-1), run)
    print(out)


def evaluate(words: list[str]) -> None:
    parser = make_parser("evaluate", "Held-out log-likelihood of a run.")
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("data", metavar="DATA", nargs="?", default=None, help="other data; default the run's own")
    parser.add_argument("--part", type=str, default="test", help="train, valid or test")
    parser.add_argument("--rows", type=int | None, default=None, help="only the first so many")
    parser.add_argument("--particles", type=int, default=500, help="importance samples a datum, for a bound")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parse(parser, words)
    found = runs.evaluate(runs.load_run(chosen.run), chosen.data, chosen.part, chosen.rows, chosen.particles)
    print(json.dumps(found) if chosen.json else score(found))


def compare(words: list[str]) -> None:
    parser = make_parser("compare", "A table of several runs, the best of each data set first.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    parser.add_argument("--out", type=str | None, default=None, metavar="PAGE", help="write a page with pictures")
    chosen = parse(parser, words)
    print_table(comparison_rows(chosen.runs), NUMERIC)
    if chosen.out:
        print(write_comparison(chosen.runs, chosen.out))
