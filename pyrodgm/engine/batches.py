"""Training data as batches that are functions of (seed, epoch): tensors, datasets and loaders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler, TensorDataset

from pyrodgm.core import GenerativeModel
from pyrodgm.engine.rows import Batch, as_rows, as_tensor, check_rows
from pyrodgm.files import rows_digest

__all__ = ["Batches", "as_batches", "check_shares"]


def _entropy(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _epoch_order(rows: int, seed: int, epoch: int) -> Tensor:
    """The permutation of one epoch, a function of (seed, epoch) alone."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(_entropy(seed, epoch)))


class Batches(ABC):
    """Batches of rows, epoch by epoch.

    Attributes:
        rows: of the whole data set, over all ranks.
        per_epoch: how many batches.
    """

    rows: int
    per_epoch: int

    def digest(self) -> str | None:
        """A word that tells these rows from others, the same in float32 and float64; None where they are on a disk."""
        return None

    @abstractmethod
    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number ``start`` on; this rank's share of each."""


class _Picks:
    """Which rows go where: batch i of an epoch, shared out among the ranks in equal parts."""

    def __init__(self, rows: int, batch_size: int, rank: int, world: int, even: bool) -> None:
        # A mean over ranks is the mean over rows only if their parts are equal: up to world - 1 rows sit an epoch out.
        self.used = rows // world * world if even else rows
        if self.used == 0:
            raise ValueError(f"expected at least one row of data for each of {world} processes, got {rows}")
        self.rows, self.batch_size, self.rank, self.world = rows, min(batch_size, self.used), rank, world
        self.batches = -(-self.used // self.batch_size)

    def __call__(self, seed: int, epoch: int, start: int) -> Iterator[Tensor]:
        order = _epoch_order(self.rows, seed, epoch)[: self.used]
        for i in range(start, self.batches):
            index = order[i * self.batch_size : (i + 1) * self.batch_size][self.rank :: self.world]
            if len(index):
                yield index


class TensorBatches(Batches):
    """Rows in memory, picked by the epoch's permutation."""

    def __init__(self, x: Tensor, context: Tensor | None, picks: _Picks) -> None:
        self.x, self.context, self.picks = x, context, picks
        self.rows, self.per_epoch = len(x), picks.batches

    def digest(self) -> str:
        return rows_digest(self.x, self.context)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        for index in self.picks(seed, epoch, start):
            index = index.to(self.x.device, non_blocking=True)
            yield self.x.index_select(0, index), None if self.context is None else self.context.index_select(0, index)


class _BatchSampler(Sampler[list[int]]):
    """The index lists that :class:`DatasetBatches` sets before it reads an epoch."""

    def __init__(self) -> None:
        self.indices: Iterable[Tensor] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return (index.tolist() for index in self.indices)


class DatasetBatches(Batches):
    """A map-style dataset, read through a loader in the epoch's order; it is read once at first to be checked."""

    def __init__(self, data: Dataset[Any], model: GenerativeModel, picks: _Picks, name: str) -> None:
        self.model, self.picks, self.name = model, picks, name
        self.rows, self.per_epoch = picks.rows, picks.batches
        self.sampler = _BatchSampler()
        # A loader draws a seed for its workers: from a generator of its own, so that resuming draws nothing twice.
        self.generator = torch.Generator()
        self.loader = DataLoader(data, batch_sampler=self.sampler, generator=self.generator)
        checked = DataLoader(data, batch_size=min(1024, picks.batch_size), generator=torch.Generator())
        _check_all(checked, model, name)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        self.sampler.indices = self.picks(seed, epoch, start)
        self.generator.manual_seed(_entropy(seed, epoch))
        for batch in self.loader:
            yield _pair(batch, self.model, self.name)


class LoaderBatches(Batches):
    """A user's own loader: its batches in its order; it is read once at first to be checked.

    Its random numbers, by torch's generator, its own and its samplers', come from streams that are functions of
    (seed, epoch), so a run resumes exactly whether it shuffles or augments. Ranks share out each batch, unless the
    loader's own sampler is a DistributedSampler.
    """

    def __init__(
        self, loader: DataLoader[Any], model: GenerativeModel, name: str, rank: int, world: int, even: bool
    ) -> None:
        try:
            len(loader)
            whole = len(loader.dataset)  # type: ignore[arg-type]
        except TypeError as error:
            raise TypeError(
                f"expected a DataLoader with a length, got one over {type(loader.dataset).__name__}; "
                "wrap the stream in a map-style Dataset"
            ) from error
        self.loader, self.model, self.name, self.even = loader, model, name, even
        self.rank, self.world = (0, 1) if isinstance(loader.sampler, DistributedSampler) else (rank, world)
        sizes = _check_all(_in_own_stream(loader, 0), model, name, " in its loader's order")
        # What an epoch reads is the data that a batch stands for: a sampler may leave rows out, or repeat them.
        self.rows = whole if isinstance(loader.sampler, DistributedSampler) else sum(sizes)
        self.per_epoch = sum(self._share(size) > 0 for size in sizes)
        if self.per_epoch == 0:
            raise ValueError(
                f"expected a batch with a row for each of {self.world} processes, got {max(sizes)} at most"
            )

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        if hasattr(self.loader.sampler, "set_epoch"):
            self.loader.sampler.set_epoch(epoch)
        number = 0  # of those that give every rank a row, which are the ones that count
        for batch in _in_own_stream(self.loader, _entropy(seed, epoch)):
            x, context = _pair(batch, self.model, self.name)
            part = slice(self.rank, self._share(len(x)), self.world)
            if len(x[part]) == 0:
                continue
            if number >= start:
                yield x[part], None if context is None else context[part]
            number += 1

    def _share(self, rows: int) -> int:
        """How many rows of a batch are shared out."""
        return rows // self.world * self.world if self.even else rows


def _in_own_stream(loader: DataLoader[Any], seed: int) -> Iterator[Any]:
    """The batches of a loader, its random numbers from ``seed``: those between the batches do not see it."""
    outer = torch.default_generator
    own = _generators(loader)
    kept = [generator.get_state() for generator in own]
    batches: Iterator[Any] | None = None
    inner = outer.get_state()
    try:
        while True:
            outside = outer.get_state()
            try:
                if batches is None:
                    for generator in (outer, *own):
                        generator.manual_seed(seed)
                    batches = iter(loader)
                else:
                    outer.set_state(inner)
                batch = next(batches, _END)
                inner = outer.get_state()
            finally:
                outer.set_state(outside)
            if batch is _END:
                return
            yield batch
    finally:
        for generator, state in zip(own, kept, strict=True):
            generator.set_state(state)


_END = object()


def _generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """Those that a loader's order is drawn from, besides torch's own."""
    parts = (loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    found = [getattr(part, "generator", None) for part in parts]
    return [g for g in found if isinstance(g, torch.Generator) and g is not torch.default_generator]


def _check_all(batches: Iterable[Any], model: GenerativeModel, name: str, order: str = "") -> list[int]:
    """Check every batch, counting rows in the order of reading; how many rows each has."""
    sizes: list[int] = []
    with torch.random.fork_rng([]):
        reading = iter(batches)
        while (batch := _next(reading, f"row {sum(sizes)} of {name}{order}")) is not _END:
            x, context = _pair(batch, model, name)
            check_rows(model, x, context, first=sum(sizes), name=name, order=order)
            sizes.append(len(x))
    if sum(sizes) == 0:
        raise ValueError(f"expected at least one row of {name}, got none")
    return sizes


def _next(reading: Iterator[Any], where: str) -> Any:
    """The next batch or ``_END``; of rows of several shapes torch's collation says which, and this from where on."""
    try:
        return next(reading, _END)
    except RuntimeError as error:
        told = str(error).strip().splitlines()[-1]  # behind the traceback of a worker
        if not any(words in told for words in _UNEVEN):
            raise
        raise ValueError(
            f"expected rows of one shape, got several in the batch from {where} on ({told}); pad or cut them"
        ) from error


_UNEVEN = "equal size", "not resizable"  # torch's words for rows that do not stack, the latter in a worker


def _pair(batch: Any, model: GenerativeModel, name: str) -> Batch:
    """(x, context) of a collated batch; what an unconditional model has no use for, such as labels, is dropped."""
    if isinstance(batch, Mapping):
        raise TypeError(
            f"expected the loader of {name} to yield x or (x, context), got a dict of {', '.join(map(str, batch))}; "
            "give it a collate_fn that picks them"
        )
    x, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
    context = as_tensor(rest[0], f"{name}'s context", model) if rest and model.context else None
    return as_tensor(x, name, model), context


def check_shares(batch_size: int, world: int) -> None:
    """Raise ValueError for a batch that so many processes cannot share out in equal parts."""
    if batch_size % world:
        raise ValueError(f"expected batch_size to be a multiple of the {world} devices, got {batch_size}")


def as_batches(
    model: GenerativeModel,
    data: Any,
    context: Any,
    batch_size: int,
    device: torch.device,
    *,
    rank: int = 0,
    world: int = 1,
    even: bool = True,
    name: str = "data",
) -> Batches:
    """Whatever the user has as checked batches: arrays and tensors go to ``device`` whole.

    Args:
        model: whose rows they are.
        data, context: see :func:`pyrodgm.fit`.
        batch_size: rows of a step, over all ranks together.
        device: where tensors are kept.
        rank, world: which share of each batch is this process's.
        even: give every rank equally many rows, as training needs; else leave none out.
        name: of the data, for errors.
    Raises: ValueError or TypeError for bad data, with the first bad row.
    """
    if isinstance(data, (DataLoader, Dataset)) and context is not None:
        raise ValueError(f"expected context=None beside a {type(data).__name__}; let it yield pairs (x, context)")
    if isinstance(data, DataLoader):
        return LoaderBatches(data, model, name, rank, world, even)
    check_shares(batch_size, world)
    if type(data) is TensorDataset:
        tensors = data.tensors
        data, context = tensors[0], tensors[1] if model.context and len(tensors) > 1 else None
    if isinstance(data, Dataset):
        if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
            raise TypeError(f"expected a Dataset with a length and random access, got {type(data).__name__}")
        picks = _Picks(len(data), batch_size, rank, world, even)
        return DatasetBatches(data, model, picks, name)
    x, extra = as_rows(model, data, context, name)
    picks = _Picks(len(x), batch_size, rank, world, even)
    return TensorBatches(x.to(device), None if extra is None else extra.to(device), picks)
