"""Random numbers that are a function of a seed, with the caller's own left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["random_state"]


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
