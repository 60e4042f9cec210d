"""The command line: fit, sample, evaluate and compare models without writing a program."""

from pyrodgm.cli.main import main

__all__ = ["main"]
