"""Training data as batches that are functions of (seed, epoch): arrays, tensors, datasets and loaders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pyrodgm.core import GenerativeModel

__all__ = ["Batches", "as_batches", "as_rows", "check_rows"]

Batch = tuple[Tensor, Tensor | None]
_SCAN = 65536  # rows looked at in one go when data are checked


def epoch_order(rows: int, seed: int, epoch: int) -> Tensor:
    """The permutation of one epoch, a function of (seed, epoch) alone."""
    entropy = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(entropy >> np.uint64(1)))
    return torch.randperm(rows, generator=generator)


def check_rows(model: GenerativeModel, x: Tensor, context: Tensor | None, first: int = 0, name: str = "data") -> None:
    """Refuse rows that the model cannot have drawn, naming the first bad one.

    Raises: ValueError for a wrong shape, NaN or infinity, or a value outside the model's support.
    """
    model.check(x[:1].to(model.dtype, copy=False), None if context is None else context[:1].to(model.dtype))
    if context is not None and len(context) != len(x):
        raise ValueError(f"expected one context row for each row of {name}, got {len(context)} for {len(x)}")
    support = model.support
    for start in range(0, len(x), _SCAN):
        part = x[start : start + _SCAN]
        parts = [(name, part)] + ([] if context is None else [("context", context[start : start + _SCAN])])
        for label, values in parts:
            bad = ~torch.isfinite(values).flatten(1).all(1)
            if bad.any():
                row = int(bad.nonzero()[0])
                raise ValueError(
                    f"expected finite numbers, got {_first_bad(values[row])} in row {first + start + row} of {label}; "
                    "drop or impute such rows"
                )
        inside = support.check(part.to(model.dtype))
        inside = inside.reshape(len(part), -1).all(1)
        if not inside.all():
            row = int((~inside).nonzero()[0])
            values = part[row].flatten()
            raise ValueError(
                f"expected values in the model's support {support}, got row {first + start + row} of {name} with "
                f"values in [{values.min():.4g}, {values.max():.4g}]; transform the data (binarize, scale, "
                "dequantize) or choose another likelihood"
            )


def _first_bad(row: Tensor) -> str:
    flat = row.flatten()
    return str(flat[~torch.isfinite(flat)][0].item())


def _as_tensor(values: Any, name: str, like: GenerativeModel) -> Tensor:
    if isinstance(values, Tensor):
        tensor = values.detach()
    else:
        array = np.asarray(values)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"expected {name} as numbers, got an array of dtype {array.dtype}; encode it first")
        tensor = torch.as_tensor(array)
    if tensor.is_complex():
        raise TypeError(f"expected {name} as real numbers, got {tensor.dtype}")
    return tensor.to(like.dtype)


def as_rows(model: GenerativeModel, data: Any, context: Any = None, name: str = "data") -> Batch:
    """Arrays or tensors as checked (x, context) of the model's dtype; ``data`` may be the pair itself."""
    if isinstance(data, tuple):
        if len(data) != 2 or context is not None:
            raise ValueError(f"expected {name} as x or as a pair (x, context), got a tuple of {len(data)}")
        data, context = data
    x = _as_tensor(data, name, model)
    extra = None if context is None else _as_tensor(context, "context", model)
    if x.dim() < 1 or len(x) == 0:
        raise ValueError(f"expected at least one row of {name}, got shape {tuple(x.shape)}")
    check_rows(model, x, extra, name=name)
    return x, extra


class Batches(ABC):
    """Batches of rows, epoch by epoch.

    Attributes:
        rows: how many rows one epoch has.
        per_epoch: how many batches.
    """

    rows: int
    per_epoch: int

    @abstractmethod
    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number ``start`` on."""


class TensorBatches(Batches):
    """Rows in memory, picked by the epoch's permutation; each of ``world`` ranks takes its share of every batch."""

    def __init__(self, x: Tensor, context: Tensor | None, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.x, self.context, self.rank, self.world = x, context, rank, world
        self.batch_size = min(batch_size, len(x))
        # With several ranks every batch must split evenly, or the ranks would wait for each other for ever.
        self.rows = len(x) if world == 1 else len(x) // self.batch_size * self.batch_size
        self.per_epoch = -(-self.rows // self.batch_size)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = epoch_order(len(self.x), seed, epoch).to(self.x.device)
        for i in range(start, self.per_epoch):
            index = order[i * self.batch_size : min((i + 1) * self.batch_size, self.rows)][self.rank :: self.world]
            yield self.x[index], None if self.context is None else self.context[index]


class _EpochSampler(Sampler[int]):
    def __init__(self, rows: int) -> None:
        self.rows, self.seed, self.at, self.skip, self.rank, self.world = rows, 0, 0, 0, 0, 1

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.rows, self.seed, self.at)[self.skip :].tolist()[self.rank :: self.world])


class DatasetBatches(Batches):
    """A map-style dataset, read through a loader in the epoch's order."""

    def __init__(self, data: Dataset[Any], model: GenerativeModel, batch_size: int, rank: int, world: int) -> None:
        self.rows = len(data)  # type: ignore[arg-type]
        if self.rows == 0:
            raise ValueError("expected at least one row of data, got an empty dataset")
        self.model, self.sampler, self.batch_size = model, _EpochSampler(self.rows), min(batch_size, self.rows)
        self.sampler.rank, self.sampler.world = rank, world
        self.loader = DataLoader(data, batch_size=max(1, self.batch_size // world), sampler=self.sampler)
        self.per_epoch = self.rows // self.batch_size if world > 1 else -(-self.rows // self.batch_size)
        seen = 0
        for batch in DataLoader(data, batch_size=1024):
            x, context = _pair(batch, model)
            check_rows(model, x, context, first=seen)
            seen += len(x)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        self.sampler.seed, self.sampler.at, self.sampler.skip = seed, epoch, start * self.batch_size
        for _, batch in zip(range(start, self.per_epoch), self.loader, strict=False):
            yield _pair(batch, self.model)


class LoaderBatches(Batches):
    """A user's own loader: its order and its batch size; each batch is checked as it comes."""

    def __init__(self, loader: DataLoader[Any], model: GenerativeModel) -> None:
        try:
            self.per_epoch = len(loader)
            self.rows = len(loader.dataset)  # type: ignore[arg-type]
        except TypeError as error:
            raise TypeError(f"expected a DataLoader with a length, got one over {type(loader.dataset).__name__}; "
                            "wrap the stream in a map-style Dataset") from error
        if self.rows == 0 or self.per_epoch == 0:
            raise ValueError("expected at least one batch of data, got an empty loader")
        self.loader, self.model, self.checked = loader, model, False

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        seen = 0
        for i, batch in enumerate(self.loader):
            x, context = _pair(batch, self.model)
            if not self.checked:
                check_rows(self.model, x, context, first=seen)
            seen += len(x)
            if i >= start:
                yield x, context
        self.checked = True


def _pair(batch: Any, model: GenerativeModel) -> Batch:
    if isinstance(batch, (tuple, list)):
        x, *rest = batch
        context = rest[0] if rest and model.context else None
    else:
        x, context = batch, None
    if context is not None:
        context = _as_tensor(context, "context", model)
    return _as_tensor(x, "data", model), context


def as_batches(
    model: GenerativeModel, data: Any, context: Any, batch_size: int, device: torch.device, rank: int = 0, world: int = 1
) -> Batches:
    """Whatever the user has as checked batches: arrays and tensors go to ``device`` whole."""
    if batch_size < 1:
        raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    if world > 1 and batch_size % world:
        raise ValueError(f"expected batch_size to be a multiple of the {world} devices, got {batch_size}")
    if isinstance(data, DataLoader):
        return LoaderBatches(data, model)
    if isinstance(data, Dataset):
        return DatasetBatches(data, model, batch_size, rank, world)
    x, extra = as_rows(model, data, context)
    return TensorBatches(x.to(device), None if extra is None else extra.to(device), batch_size, rank, world)
