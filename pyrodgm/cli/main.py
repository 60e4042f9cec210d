"""The entry point: words to a command, errors to one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import pyrodgm
from pyrodgm.cli import commands
from pyrodgm.cli.demo import demo
from pyrodgm.hints import did_you_mean

__all__ = ["main"]

_COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "models": ("list the models", commands.models),
    "data": ("list the built-in data sets and the files that can be read", commands.data),
    "fit": ("fit a model to data and write a run folder", commands.fit),
    "sample": ("draw from a run into a file", commands.sample),
    "evaluate": ("held-out log-likelihood of a run", commands.evaluate),
    "compare": ("a table, and a page, of several runs", commands.compare),
    "demo": ("fit a model of each family on 8x8 digits and write a page with pictures", demo),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line on stderr.

    Args:
        argv: the words after ``pyrodgm``; default those of the process.
    Returns: 0 if all went well, 1 if the work failed, 2 for a wrong command, 130 if it was interrupted.
    Example:
        >>> main(["data"])  # doctest: +ELLIPSIS
        digits ...
        0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except (ValueError, FileExistsError) as error:  # the library's word for a user's mistake
        return _complain(error, 2)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        told = "interrupted; the same command, without --overwrite, goes on from the last checkpoint"
        return _complain(RuntimeError(told), 130)
    except SystemExit as error:  # --help
        return int(error.code or 0)
    except (TypeError, OSError, ArithmeticError, ImportError, RuntimeError) as error:
        return _complain(error, 1)
    except Exception as error:  # which nobody foresaw: its kind says more than its text, such as 'x' of a KeyError
        return _complain(RuntimeError(f"{type(error).__name__}: {error}"), 1)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        lines = "\n".join(f"  {name:<10}{line}" for name, (line, _) in _COMMANDS.items())
        print(f"usage: pyrodgm COMMAND ...\n\n{lines}\n\npyrodgm COMMAND --help tells more")
        return 0 if words else 2
    command, rest = words[0], words[1:]
    if command in ("-V", "--version"):
        print(pyrodgm.__version__)
        return 0
    if command not in _COMMANDS:
        hint = did_you_mean(command, list(_COMMANDS))
        raise ValueError(f"unknown command {command!r}: {hint}expected one of {', '.join(_COMMANDS)}")
    _COMMANDS[command][1](rest)
    return 0


def _complain(error: BaseException, code: int) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"pyrodgm: error: {text}", file=sys.stderr)
    return code
