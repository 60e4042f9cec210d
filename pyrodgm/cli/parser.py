"""Options from signatures: those of ``fit``, of a member's constructor and of its objective."""

from __future__ import annotations

import argparse
import inspect
import re
from collections import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args, get_origin

import torch

import pyrodgm
from pyrodgm.hints import did_you_mean
from pyrodgm.members import member
from pyrodgm.runs import objective_arguments, plain_arguments

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["FIT_OPTIONS", "add_fit", "add_model", "make_parser", "parse"]

FIT_OPTIONS = (
    "epochs", "steps", "batch_size", "lr", "clip", "device", "precision", "strategy", "devices", "compile",
    "checkpoint_every", "early_stopping", "progress",
)  # fmt: skip
_OF_A_RUN = ("model", "data", "out", "labels", "seed", "overwrite")


def make_parser(command: str, line: str) -> ArgumentParser:
    """A parser for ``pyrodgm COMMAND`` that raises where argparse would exit."""
    try:
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise ImportError('the command line needs jsonargparse: pip install "pyrodgm[cli]"') from error
    return ArgumentParser(prog=f"pyrodgm {command}", description=line, exit_on_error=False)


def parse(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """The chosen values.

    Raises: ValueError of one line for a wrong word, with the closest right one.
    """
    known = [s for action in parser._actions for s in action.option_strings if s.startswith("--") and "+" not in s]
    for word in words:
        option = word.split("=")[0]
        if option.startswith("--") and option.rstrip("+") not in known:
            raise ValueError(f"unknown option {option}: {did_you_mean(option, known)}see {parser.prog} --help")
    try:
        return parser.parse_args(list(words))
    except argparse.ArgumentError as error:
        text = " ".join(re.sub(r"^argument \S+: |Parser key ", "", str(error)).split())
        raise ValueError(f"{_plainly(text)}; see {parser.prog} --help") from error


def _plainly(text: str) -> str:
    """What the parser says of a value that is none of an option's types, without the names of its checks."""
    key = re.match(r'"([\w.]+)"', text)
    value = re.search(r"(?:Given|Got) value: (.*)$", text)
    kinds = [kind for kind in re.findall(r"Expected an? <class '(\w+)'>", text) if kind != "NoneType"]
    if key is None or value is None or not kinds:
        return text
    return f"expected --{key[1]} as {' or '.join(kinds)}, got {value[1]!r}"


def add_fit(parser: ArgumentParser) -> dict[str, Any]:
    """Add the options of :func:`pyrodgm.fit`; returns their defaults."""
    parameters = inspect.signature(pyrodgm.fit, eval_str=True).parameters
    notes = _argument_notes(pyrodgm.fit)
    for name in FIT_OPTIONS:
        p = parameters[name]
        hint = str if p.annotation is Any or torch.device in get_args(p.annotation) else p.annotation
        parser.add_argument(f"--{name}", type=hint, default=p.default, help=notes.get(name, "of pyrodgm.fit"))
    return {name: parameters[name].default for name in FIT_OPTIONS}


def add_model(parser: ArgumentParser, model: str, words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Add the options of a member's constructor and of its objective.

    ``--hidden 500 --hidden 300`` in ``words`` becomes ``--hidden [500,300]``.

    Returns: argument of the constructor -> key (``model.NAME`` where fit has that name), and the
        arguments of the objective, whose keys are ``objective.NAME``.
    """
    which = member(model)
    factory = which.build()
    notes = {"components": "normals in each conditional of real data, default 10"} | _notes_of(factory)
    keys = {}
    for name, p in plain_arguments(which).items():
        keys[name] = f"model.{name}" if name in (*FIT_OPTIONS, *_OF_A_RUN) else name
        default = list(p.default) if isinstance(p.default, tuple) else p.default
        note = notes.get(name, f"of {which.path}")
        parser.add_argument(f"--{keys[name]}", type=p.annotation, default=default, help=note)
        _gather(words, f"--{keys[name]}", p.annotation)
    build = which.build_objective()
    notes = {} if build is None else _notes_of(build)
    extra = objective_arguments(which)
    for name, p in extra.items():
        note = f"{notes.get(name, 'of ' + which.objective)}; default {p.default}"
        parser.add_argument(f"--objective.{name}", type=p.annotation | None, default=None, help=note)
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


def _notes_of(build: Any) -> dict[str, str]:
    """Notes on a class's arguments, or on those of a class method, which may lean on its class's."""
    return _argument_notes(getattr(build, "__self__", build)) | _argument_notes(build)


def _argument_notes(target: Any) -> dict[str, str]:
    """What the Args section of a docstring says of each argument, as one line of plain text."""
    text = inspect.getdoc(target) or ""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE)
    notes: dict[str, str] = {}
    entry = r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)"
    for names, note in re.findall(entry, section.group(1) if section else "", re.MULTILINE):
        line = " ".join(re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"\1", note).replace("``", "").split())
        notes |= {name.strip(): line.rstrip(";.").replace("%", "%%") for name in names.split(",")}
    return notes
