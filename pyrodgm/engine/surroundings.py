"""What a run borrows from its process and gives back: validation flags, a module's mode, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
from pyro.poutine.messenger import unwrap
from pyro.poutine.reparam_messenger import ReparamHandler
from torch import nn
from torch.distributions import Distribution

from pyrodgm.core import evaluating

__all__ = ["interruptible", "quiet", "validation"]


@contextmanager
def validation(enabled: bool) -> Iterator[None]:
    """Pyro's and torch's argument checks on or off inside the block; each flag is as before after it."""
    of_torch = Distribution._validate_args
    try:
        with pyro.validation_enabled(enabled):
            yield
    finally:
        Distribution.set_default_validate_args(of_torch)  # Pyro's flag may differ from torch's, and it sets both


@contextmanager
def quiet(*programs: Any) -> Iterator[None]:
    """Modules in eval mode without gradients, as they were afterwards; anything else as it is.

    A program is a module too where a poutine wraps one, or where it is a method of one.
    """
    with ExitStack() as stack:
        for program in programs:
            inside = unwrap(program)
            while isinstance(inside, ReparamHandler):
                inside = unwrap(inside.fn)
            owner = getattr(inside, "__self__", inside)
            if isinstance(owner, nn.Module):
                stack.enter_context(evaluating(owner))
        yield


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed; a second press raises KeyboardInterrupt at once.

    Outside the main thread signals are left alone, and the function says False.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def ask(signum: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signum)

    old = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if old is None else old)
