"""Contenders in processes of their own, each beside its own floor, in turns.

Six libraries in one process leave its heap in pieces, and steps take up to a tenth longer there than in a process that
trains one model, as a user's does.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from timing import once

__all__ = ["in_turns", "within"]

TURN = 0.05  # seconds that a process runs before the next one does

Calls = tuple[Callable[[], Any], Callable[[], Any]]  # the floor and the contender


def _serve(line: Connection, make: Callable[..., Calls], arguments: tuple[Any, ...], device: str) -> None:
    calls = make(*arguments)
    while line.recv():
        calls[0]()  # or whoever comes first would pay for waking up
        pairs, end = [], time.perf_counter() + TURN
        while not pairs or time.perf_counter() < end:
            pair = [0.0, 0.0]
            for i in random.sample((0, 1), 2):
                pair[i] = once(calls[i], device)
            pairs.append(pair)
        line.send(pairs)


def _answer(line: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    line.send(function(*arguments))


def within(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a module's function returns in a process of its own; None if it takes longer or takes its process down."""
    start = multiprocessing.get_context("spawn")
    ours, theirs = start.Pipe()
    process = start.Process(target=_answer, args=(theirs, function, arguments), daemon=True)
    process.start()
    theirs.close()  # or nobody would hear that it is gone
    try:
        return ours.recv() if ours.poll(seconds) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


def in_turns(
    make: Callable[..., Calls], jobs: dict[str, tuple[Any, ...]], repeats: int, warmup: int, device: str = "cpu"
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds of each contender and of the floor beside it, by name.

    Args:
        make: a function of a module, called in the new process with what ``jobs`` holds for a name.
    """
    start = multiprocessing.get_context("spawn")
    lines, processes = {}, []
    for name, arguments in jobs.items():
        lines[name], theirs = start.Pipe()
        processes.append(start.Process(target=_serve, args=(theirs, make, arguments, device), daemon=True))
        processes[-1].start()
        theirs.close()  # or nobody would hear that it is gone
    times: dict[str, list[float]] = {name: [] for name in jobs}
    floors: dict[str, list[float]] = {name: [] for name in jobs}
    names, order = list(jobs), random.Random(0)
    for i in range(warmup + repeats):
        order.shuffle(names)
        for name in [name for name in names if name in lines]:
            try:
                lines[name].send(True)
                pairs = lines[name].recv()
            except (EOFError, OSError):  # a library that takes its process down
                lines.pop(name)
                continue
            if i >= warmup:
                floors[name] += [pair[0] for pair in pairs]
                times[name] += [pair[1] for pair in pairs]
    for line in lines.values():
        line.send(False)
    for process in processes:
        process.join()
    return times, floors
