"""Interleaved timings of named callables, as multiples of a floor: what every benchmark here shares."""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["arguments", "hardware", "interleave", "once", "step", "table"]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every timing takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=60, help="timed rounds; each runs every contender once")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="add pyrodgm under torch.compile")
    return parser


def hardware(options: argparse.Namespace) -> str:
    """One line that says what the figures below it were measured on; also sets the number of threads."""
    torch.set_num_threads(options.threads)
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    return f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {name}, {options.threads} threads"


def once(call: Callable[[], Any], device: str = "cpu") -> float:
    """Milliseconds of one call."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return 1e3 * (time.perf_counter() - start)


def interleave(
    contenders: dict[str, Callable[[], Any]], repeats: int = 60, warmup: int = 5, device: str = "cpu"
) -> dict[str, list[float]]:
    """Milliseconds of each call. Every round runs all contenders, so a busy moment of the machine hits them alike."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names, order = list(contenders), random.Random(0)
    for i in range(warmup + repeats):
        order.shuffle(names)  # nobody always follows the same neighbour, whose memory and caches it would inherit
        for name in names:
            took = once(contenders[name], device)
            if i >= warmup:
                times[name].append(took)
    return times


def step(loss: Callable[[], torch.Tensor], parameters: Any, lr: float = 1e-4) -> Callable[[], None]:
    """A training step: forward, backward, fused Adam."""
    optimizer = torch.optim.Adam(list(parameters), lr=lr, fused=True)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return run


def table(
    title: str,
    times: dict[str, list[float]],
    floor: str | dict[str, list[float]],
    notes: dict[str, Any] | None = None,
) -> str:
    """Markdown: medians, their ratio to the floor's, and the median of the ratios round by round (steadier).

    Args:
        floor: whose times are the floor, or the floor's times beside each name's.
    """
    floors = dict.fromkeys(times, times[floor]) if isinstance(floor, str) else floor
    lines = [f"\n**{title}**\n", "| contender | ms | x floor | x floor, paired | |", "|---|---|---|---|---|"]
    for name, values in times.items():
        paired = statistics.median(a / b for a, b in zip(values, floors[name], strict=True))
        median = statistics.median(values)
        note = (notes or {}).get(name, "")
        ratio = median / statistics.median(floors[name])
        lines.append(f"| {name} | {median:.3g} | {ratio:.2f} | {paired:.2f} | {note} |")
    return "\n".join(lines)
