"""The command line: fit, sample, evaluate and compare models without writing a program."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["main"]

_COMMANDS = {
    "models": "list the models",
    "data": "list the built-in data sets and the files that can be read",
    "fit": "fit a model to data and write a run folder",
    "sample": "draw from a run into a file",
    "evaluate": "held-out log-likelihood of a run",
    "compare": "one page for several runs",
    "demo": "fit a model of each family on 8x8 digits and write a page with pictures",
}
_FIT_OPTIONS = (
    "epochs", "steps", "batch_size", "lr", "clip", "device", "precision", "strategy", "devices", "compile",
    "checkpoint_every", "early_stopping", "progress",
)  # fmt: skip
_FORMATS = (".npy", ".npz", ".csv", ".png")
_DEMO: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (  # model, data, arguments, of prepare
    ("MADE", "digits_binary", {"hidden": [500], "masks": 4}, {"epochs": 200, "early_stopping": 20}),
    ("VAE", "digits_binary", {"latent": 16, "hidden": [256]}, {"epochs": 200}),
    ("RBM", "digits_binary", {"hidden": 100}, {"epochs": 50, "batch_size": 32, "objective": {"k": 5}}),
    ("GAN", "digits_binary", {"latent": 32, "hidden": [128]}, {"epochs": 200, "objective": {"hidden": [128]}}),
    ("RealNVP", "digits_dequantized", {"layers": 6, "hidden": [32]}, {"epochs": 150, "early_stopping": 20}),
)


class _UsageError(ValueError):
    """A mistake in the command itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line on stderr.

    Args:
        argv: the words after ``pyrodgm``; default those of the process.
    Returns: 0 if all went well, 1 if the work failed, 2 for a wrong command.
    Example:
        >>> main(["data"])  # doctest: +ELLIPSIS
        digits ...
        0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except (_UsageError, FileExistsError) as error:
        return _complain(error, 2)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _complain(RuntimeError("interrupted; the same command goes on from the last checkpoint"), 1)
    except SystemExit as error:  # --help
        return int(error.code or 0)
    except (ValueError, TypeError, OSError, ArithmeticError, ImportError, RuntimeError) as error:
        return _complain(error, 1)


def _complain(error: BaseException, code: int) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"pyrodgm: error: {text}", file=sys.stderr)
    return code


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        lines = "\n".join(f"  {name:<10}{text}" for name, text in _COMMANDS.items())
        print(f"usage: pyrodgm COMMAND ...\n\n{lines}\n\npyrodgm COMMAND --help tells more")
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        import pyrodgm

        print(pyrodgm.__version__)
        return 0
    command, rest = words[0], words[1:]
    if command not in _COMMANDS:
        hint = _close(command, _COMMANDS)
        raise _UsageError(f"unknown command {command!r}: {hint}expected one of {', '.join(_COMMANDS)}")
    run: Callable[[list[str]], int] = globals()[f"_{command}"]
    return run(rest)


def _models(words: list[str]) -> int:
    _parse(_parser("models"), words)
    from pyrodgm.members import MEMBERS

    rows = [("name", "family", "year", "source", "")]
    rows += [(m.name, m.family, str(m.year), m.source, m.line + ("" if m.factory else " (Python)")) for m in MEMBERS]
    _print_table(rows)
    return 0


def _data(words: list[str]) -> int:
    _parse(_parser("data"), words)
    from pyrodgm.data import data_sets

    _print_table([*data_sets().items()])
    print("\nor a path: .npz .npy .csv .parquet .txt or a folder of pictures, and :binary, :dequantized,\n"
          ":standardised or :28x28 after it, as in mnist.npz:binary:28x28")
    return 0


def _fit(words: list[str]) -> int:
    from pyrodgm.members import MEMBERS

    parser = _parser("fit")
    parser.add_argument("model", metavar="MODEL", help=f"one of {', '.join(m.name for m in MEMBERS if m.factory)}")
    parser.add_argument("data", metavar="DATA", help="a name of pyrodgm data, or a path")
    parser.add_argument("--out", type=str, metavar="RUN", help="folder of the run", required=True)
    parser.add_argument("--labels", type=bool, default=False, help="condition on the labels of the data")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters' start, the training and the samples")
    parser.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    fit_defaults = _add_fit(parser)
    arguments: dict[str, str] = {}
    of_objective: list[str] = []
    if words and not words[0].startswith("-"):
        arguments, of_objective = _add_model(parser, words[0], words)
    chosen = _parse(parser, words)
    from pyrodgm.runs import prepare

    given = {name: chosen[key] for name, key in arguments.items() if chosen[key] is not None}
    objective = {k: v for k in of_objective if (v := chosen[f"objective.{k}"]) is not None}
    options = {k: chosen[k] for k in fit_defaults if chosen[k] != fit_defaults[k]}
    try:
        job = prepare(chosen.model, chosen.data, chosen.out, labels=chosen.labels, overwrite=chosen.overwrite,
                      seed=chosen.seed, arguments=given, objective=objective, **options)
    except ValueError as error:
        raise _UsageError(str(error)) from error
    run = job.execute()
    print(f"{_score(run.metrics['held_out'])}\n{run.path / 'report.html'}")
    return 0


def _sample(words: list[str]) -> int:
    parser = _parser("sample")
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("-n", "--number", type=int, default=100, help="how many")
    parser.add_argument("--out", type=str, metavar="FILE", required=True, help=f"one of {', '.join(_FORMATS)}")
    parser.add_argument("--label", type=str | None, default=None, help="of a conditional model; default all in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    chosen = _parse(parser, words)
    out = Path(chosen.out)
    if out.suffix not in _FORMATS:
        raise _UsageError(f"expected --out with one of {', '.join(_FORMATS)}, got {out.name}")
    if chosen.number < 1:
        raise _UsageError(f"expected -n of at least 1, got {chosen.number}")
    run = _load(chosen.run)
    try:
        context = run.context(chosen.number, chosen.label)
    except ValueError as error:
        raise _UsageError(str(error)) from error
    x = run.sample(chosen.number, chosen.label, chosen.seed)
    labels = None if context is None else context.argmax(-1)
    _write_samples(out, x, labels, run)
    print(out)
    return 0


def _evaluate(words: list[str]) -> int:
    parser = _parser("evaluate")
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("data", metavar="DATA", nargs="?", default=None, help="other data; default the run's own")
    parser.add_argument("--part", type=str, default="test", help="train, valid or test")
    parser.add_argument("--rows", type=int | None, default=None, help="only the first so many")
    parser.add_argument("--particles", type=int, default=500, help="importance samples a datum, for a bound")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = _parse(parser, words)
    import json

    from pyrodgm.data import load
    from pyrodgm.runs import check_data, evaluate

    run = _load(chosen.run)
    try:
        data = run.data() if chosen.data is None else load(chosen.data)
        data.part(chosen.part)
        check_data(run, data)
    except ValueError as error:
        raise _UsageError(str(error)) from error
    found = evaluate(run, data, chosen.part, chosen.rows, chosen.particles)
    print(json.dumps(found) if chosen.json else _score(found))
    return 0


def _compare(words: list[str]) -> int:
    parser = _parser("compare")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    parser.add_argument("--out", type=str | None, default=None, metavar="PAGE", help="write a page with pictures")
    chosen = _parse(parser, words)
    from pyrodgm.diagnostics.report import comparison_rows, write_comparison

    try:
        _print_table(comparison_rows(chosen.runs))
    except ValueError as error:
        raise _UsageError(str(error)) from error
    if chosen.out:
        print(write_comparison(chosen.runs, chosen.out))
    return 0


def _demo(words: list[str]) -> int:
    parser = _parser("demo")
    parser.add_argument("--out", type=str, default="demo", metavar="DIR", help="folder of the runs and the page")
    parser.add_argument("--epochs", type=int | None, default=None, help="fewer, for a quick look")
    parser.add_argument("--overwrite", action="store_true", help="fit again what is there")
    parser.add_argument("--progress", type=bool, default=True, help="show progress bars")
    chosen = _parse(parser, words)
    from pyrodgm.diagnostics.report import comparison_rows, write_comparison
    from pyrodgm.runs import prepare

    jobs, runs = [], []
    for model, data, arguments, fit in _DEMO:
        options = fit | ({} if chosen.epochs is None else {"epochs": chosen.epochs})
        if not chosen.progress:
            options["progress"] = False
        out = Path(chosen.out) / model.lower()
        runs.append(out)
        try:
            jobs.append(prepare(model, data, out, overwrite=chosen.overwrite, arguments=arguments, **options))
        except FileExistsError:
            print(f"{out} is there; --overwrite fits it again", file=sys.stderr)
        except ValueError as error:
            raise _UsageError(str(error)) from error
    for job in jobs:
        print(f"{job.config['model']} on {job.config['data']}", file=sys.stderr, flush=True)
        job.execute()
    _print_table(comparison_rows(runs))
    print(write_comparison(runs, Path(chosen.out) / "index.html"))
    return 0


def _parser(command: str) -> ArgumentParser:
    try:
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise ImportError('the command line needs jsonargparse: pip install "pyrodgm[cli]"') from error
    return ArgumentParser(prog=f"pyrodgm {command}", description=_COMMANDS[command], exit_on_error=False)


def _parse(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """The chosen values; a wrong word becomes one line with the closest right one."""
    import argparse

    known = [s for action in parser._actions for s in action.option_strings if s.startswith("--") and "+" not in s]
    for word in words:
        option = word.split("=")[0]
        if option.startswith("--") and option.rstrip("+") not in known:
            raise _UsageError(f"unknown option {option}: {_close(option, known)}see {parser.prog} --help")
    try:
        return parser.parse_args(list(words))
    except argparse.ArgumentError as error:
        text = re.sub(r"^argument \S+: |Parser key ", "", str(error))
        raise _UsageError(f"{' '.join(text.split())}; see {parser.prog} --help") from error


def _add_fit(parser: ArgumentParser) -> dict[str, Any]:
    """Options of ``fit``; returns their defaults."""
    from pyrodgm import fit

    parameters = inspect.signature(fit, eval_str=True).parameters
    notes = _argument_notes(fit)
    for name in _FIT_OPTIONS:
        p = parameters[name]
        hint = str if p.annotation is Any else p.annotation
        parser.add_argument(f"--{name}", type=hint, default=p.default, help=notes.get(name, "of pyrodgm.fit"))
    return {name: parameters[name].default for name in _FIT_OPTIONS}


def _add_model(parser: ArgumentParser, model: str, words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options of a member's constructor and of its objective.

    Returns: argument of the constructor -> key (``model.NAME`` where fit has that name), and the
        arguments of the objective, whose keys are ``objective.NAME``.

    ``--hidden 500 --hidden 300`` in ``words`` becomes ``--hidden [500,300]``.
    """
    from pyrodgm.members import member
    from pyrodgm.runs import objective_arguments, plain_arguments

    try:
        which = member(model)
        parameters = plain_arguments(which)
    except ValueError as error:
        raise _UsageError(str(error)) from error
    factory = which.build()
    notes = _argument_notes(getattr(factory, "__self__", factory)) | _argument_notes(factory)
    taken = {*_FIT_OPTIONS, "out", "labels", "seed", "overwrite", "model", "data"}
    keys = {}
    for name, p in parameters.items():
        keys[name] = f"model.{name}" if name in taken else name
        default = list(p.default) if isinstance(p.default, tuple) else p.default
        note = notes.get(name, f"of {which.path}")
        parser.add_argument(f"--{keys[name]}", type=p.annotation, default=default, help=note)
        _gather(words, f"--{keys[name]}", p.annotation)
    if "conditional" in inspect.signature(factory).parameters:
        keys["components"] = "components"
        parser.add_argument("--components", type=int | None, default=None,
                            help="normals in each conditional of real data, default 10")
    build = which.build_objective()
    notes = {} if build is None else _argument_notes(getattr(build, "__self__", build)) | _argument_notes(build)
    extra = objective_arguments(which)
    for name, p in extra.items():
        shown = f"{notes.get(name, 'of ' + which.objective)}; default {p.default}"
        parser.add_argument(f"--objective.{name}", type=p.annotation | None, default=None, help=shown)
        _gather(words, f"--objective.{name}", p.annotation)
    return keys, list(extra)


def _gather(words: list[str], option: str, hint: Any) -> None:
    """Repeated values of an option that takes a sequence, as one."""
    if get_origin(hint) is not abc.Sequence:
        return
    values: list[str] = []
    i, first = 0, -1
    while i < len(words):
        word = words[i]
        joined = word.startswith(f"{option}=")
        if joined or (word == option and i + 1 < len(words)):
            value = word.split("=", 1)[1] if joined else words[i + 1]
            del words[i : i + (1 if joined else 2)]
            first = i if first < 0 else first
            values += [v for v in re.split(r"[\s,]+", value.strip("[]() ")) if v]
        else:
            i += 1
    if first >= 0:
        words[first:first] = [option, f"[{','.join(values)}]"]


def _argument_notes(target: Any) -> dict[str, str]:
    """The first line on each argument in the Args section of a docstring."""
    text = inspect.getdoc(target) or ""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE)
    notes: dict[str, str] = {}
    for names, note in re.findall(r"^ {4}(\w[\w, ]*): (.*)$", section.group(1) if section else "", re.MULTILINE):
        notes |= {name.strip(): note.rstrip(";.").replace("%", "%%") for name in names.split(",")}
    return notes


def _load(path: str) -> Any:
    from pyrodgm.runs import load_run

    try:
        return load_run(path)
    except ValueError as error:
        raise _UsageError(str(error)) from error


def _write_samples(out: Path, x: Any, labels: Any, run: Any) -> None:
    import numpy as np

    from pyrodgm.runs import write_atomic

    out.parent.mkdir(parents=True, exist_ok=True)
    flat = x.flatten(1).numpy()
    if out.suffix == ".png":
        from pyrodgm.diagnostics.plots import image_grid, save, scatter

        shape = run.config["shape"]["image_shape"]
        columns = max(1, round(len(x) ** 0.5))
        if shape is None:
            save(scatter(run.data().test, x), out)
        else:
            save(image_grid(x, shape, columns, -(-len(x) // columns)), out)
    elif out.suffix == ".csv":
        rows = flat if labels is None else np.column_stack((flat, labels.numpy()))
        names = [f"x{i}" for i in range(flat.shape[1])] + ([] if labels is None else ["label"])
        head = ",".join(names)
        write_atomic(out, lambda part: np.savetxt(part, rows, "%.7g", ",", header=head, comments=""))
    else:
        arrays = {"x": x.numpy()} | ({} if labels is None else {"y": labels.numpy()})

        def write(part: Path) -> None:
            with part.open("wb") as file:
                np.save(file, x.numpy()) if out.suffix == ".npy" else np.savez_compressed(file, **arrays)

        write_atomic(out, write)


def _score(held_out: dict[str, Any]) -> str:
    if held_out["value"] is None:
        return "no likelihood: this model can only be sampled"
    error = "" if held_out["standard_error"] is None else f" +- {held_out['standard_error']:.3f}"
    bits = "" if held_out["bits_per_dim"] is None else f", {held_out['bits_per_dim']:.3f} bits/dim"
    where = f"{held_out['rows']} {held_out['part']} rows of {held_out['data']}"
    return f"log-likelihood {held_out['value']:.3f}{error} nats/datum ({held_out['kind']}{bits}; {where})"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _close(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]}? " if close else ""


if __name__ == "__main__":
    sys.exit(main())
