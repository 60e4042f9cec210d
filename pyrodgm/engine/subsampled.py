"""Programs whose plates read some of their rows: which rows, and an energy whose gradient comes from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrodgm.engine.batched import BatchedEnergy

if TYPE_CHECKING:
    from pyrodgm.engine.unconstrained import UnconstrainedProgram

__all__ = ["GivenRows", "ReadRows", "Rows", "SubsampledEnergy", "subsampled_plates", "subsets"]

_SHUFFLED = 8000  # numbers that are drawn and sorted in about the time of one pass of Floyd's loop


class Rows(NamedTuple):
    """How much a plate reads.

    Attributes:
        size: N, all its rows.
        read: n < N, those of one run.
    """

    size: int
    read: int

    def blocks(self) -> Iterator[tuple[Tensor, int]]:
        """Blocks of n rows that cover all N, (n,), each with how many of its first rows an earlier one had."""
        for start in range(0, self.size, self.read):
            first = min(start, self.size - self.read)
            yield torch.arange(first, first + self.read), start - first


class ReadRows(Messenger):
    """Plates read these rows instead of their own.

    Args:
        rows: name of the plate -> (n,), or the numbers of a loop.
    """

    def __init__(self, rows: Mapping[str, Tensor | list[int]]) -> None:
        super().__init__()
        self.rows = rows

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["name"] in self.rows:
            msg["value"], msg["done"] = self.rows[msg["name"]], True


class GivenRows(Messenger):
    """Notes the plates whose rows the program fixes itself, by ``subsample=``."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set[str]()

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["value"] is not None:
            self.names.add(msg["name"])


def subsampled_plates(trace: Any) -> dict[str, Rows]:
    """The plates of a trace that read fewer rows than they have."""
    sites = {k: s for k, s in trace.nodes.items() if s["type"] == "sample" and site_is_subsample(s)}
    found = {k: Rows(s["fn"].size, len(s["value"])) for k, s in sites.items()}
    return {k: rows for k, rows in found.items() if rows.read < rows.size}


def subsets(rows: Rows, chains: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """n different rows for each chain, every set of them as likely as any other: (chains, n) of integers.

    Source: Bentley and Floyd (1987), Programming pearls: a sample of brilliance, CACM 30 (where n is far below N).
    Example:
        >>> subsets(Rows(10, 3), 5, None, torch.device("cpu")).shape
        torch.Size([5, 3])
    """
    size, count = rows
    if chains * size <= _SHUFFLED * count:
        return torch.rand(chains, size, generator=generator, device=device).topk(count, sorted=False).indices
    u = torch.rand(chains, count, generator=generator, device=device, dtype=torch.float64)
    last = torch.arange(size - count, size, device=device)
    drawn = (u * (last + 1)).long()  # the i-th is uniform up to last[i]
    for i in range(1, count):
        seen = (drawn[:, :i] == drawn[:, i : i + 1]).any(-1)
        drawn[:, i] = torch.where(seen, last[i], drawn[:, i])
    return drawn


class SubsampledEnergy:
    r"""The energy of a program with subsampled plates: an unbiased estimate of its gradient, from fresh rows each time.

    .. math::
        \nabla \tilde E(u) = -\nabla \log p(z(u)) - \frac{N}{n} \sum_{i \in S} \nabla \log p(x_i \mid z(u)) - \dots

    S is uniform among the sets of n rows, for every chain its own, drawn from the kernel's generator. The energy itself
    is not there, since it would take all rows at every step.

    Args:
        program: with subsampled plates.
        compile: compile the graph.
    Raises: ValueError if a kernel asks for the energy.
    Source: Welling and Teh (2011), Bayesian learning via stochastic gradient Langevin dynamics, ICML.
    """

    def __init__(self, program: UnconstrainedProgram, compile: bool) -> None:
        self.program = program
        self._batched = BatchedEnergy(program, compile)

    def noisy_gradient(self, positions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(chains, D) -> (chains, D)."""
        rows = [subsets(r, len(positions), generator, positions.device) for r in self.program.subsampled.values()]
        return self._batched.energy_and_gradient(positions, *rows)[1]

    def eager(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The estimates of energy and gradient from the first rows, by which starts are judged."""
        first = [torch.arange(r.read, device=positions.device) for r in self.program.subsampled.values()]
        return self._batched.eager(positions, *[rows.expand(len(positions), -1) for rows in first])

    def __call__(self, positions: Tensor) -> NoReturn:
        raise self.program.needs_all_rows()

    def energy_and_gradient(self, positions: Tensor) -> NoReturn:
        raise self.program.needs_all_rows()
