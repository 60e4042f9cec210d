"""What a run borrows from its process and gives back: random state, validation flags, Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch.distributions import Distribution

__all__ = ["interruptible", "random_state", "validation"]


@contextmanager
def random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Random numbers from ``seed`` on the CPU and ``device`` inside the block; the state before is back after it."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if on_cuda else []):
        # torch.manual_seed would seed every other device too, which nobody puts back
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


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
