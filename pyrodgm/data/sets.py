"""Data by name: the built-in sets, drawn or bundled with scikit-learn, and any file by its path."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrodgm.data.transforms import dequantize, standardise, threshold
from pyrodgm.hints import did_you_mean

__all__ = ["DataSet", "data_sets", "is_picture", "load", "split_rows"]

_TOY_ROWS = 10_000


@dataclass(frozen=True)
class DataSet:
    """Three parts of one data set, float32 rows.

    Attributes:
        name: how :func:`load` finds it again.
        train, valid, test: (rows, *event).
        labels: class numbers of each part, by "train", "valid", "test"; None where there are none.
        event_shape: shape of one row.
        image_shape: (H, W) or (C, H, W) where a row is a flattened picture, else None.
        binary: whether every value is 0 or 1.
        description: one line.
        levels: L where the rows are whole numbers 0..L-1 dequantized over [0, 1), for bits/dim; else None.
        classes: names of the classes.
        digest: a word that tells a file's training rows and labels from others, before views; None for a built-in set.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    labels: dict[str, Tensor] | None
    event_shape: tuple[int, ...]
    image_shape: tuple[int, ...] | None
    binary: bool
    description: str
    levels: int | None = None
    classes: tuple[str, ...] = ()
    digest: str | None = None

    def part(self, name: str) -> Tensor:
        """The part called "train", "valid" or "test"."""
        if name not in ("train", "valid", "test"):
            raise ValueError(f"expected a part train, valid or test, got {name!r}")
        part: Tensor = getattr(self, name)
        return part

    def context(self, name: str) -> Tensor:
        """One-hot labels of a part, (rows, classes).

        Raises: ValueError if the data has no labels.
        """
        if self.labels is None:
            raise ValueError(f"{self.name} has no labels; train without them")
        return torch.nn.functional.one_hot(self.labels[name], len(self.classes)).float()


def split_rows(rows: int, seed: int) -> dict[str, Tensor]:
    """Row numbers of an 80/10/10 split, a function of (rows, seed) alone.

    Raises: ValueError for fewer than three rows.
    Example:
        >>> [len(part) for part in split_rows(100, seed=0).values()]
        [80, 10, 10]
    """
    if rows < 3:
        raise ValueError(f"expected at least 3 rows to split into train, valid and test, got {rows}")
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    held = max(1, rows // 10)
    cut = rows - 2 * held
    return {"train": order[:cut], "valid": order[cut : cut + held], "test": order[cut + held :]}


def data_sets() -> dict[str, str]:
    """The built-in data sets and a line on each.

    Example:
        >>> "moons" in data_sets()
        True
    """
    return {name: line for name, (line, _) in _BUILT_IN.items()}


def load(name_or_path: str | Path, seed: int = 0) -> DataSet:
    """A built-in data set by name, or a file or folder by path.

    A path may end in views: ``:binary`` (1 where x >= 0.5), ``:dequantized`` (uint8 levels spread over
    [0, 1)), ``:standardised`` (by the training part), ``:28x28`` or ``:3x32x32`` (rows are such pictures, channels
    first).

    Args:
        name_or_path: a key of :func:`data_sets`, or what :func:`pyrodgm.data.files.load_file` reads.
        seed: fixes the split, and the draw of the toys.
    Raises: ValueError for an unknown name, with the closest ones.
    Example:
        >>> load("digits_binary").train.shape
        torch.Size([1439, 64])
    """
    name = str(name_or_path)
    if name in _BUILT_IN:
        line, build = _BUILT_IN[name]
        return replace(build(seed), name=name, description=line)
    path, *views = re.split(r":(?=binary\b|dequantized\b|standardised\b|(?:\d+x)?\d+x\d+\b)", name)
    if Path(path).exists():
        from pyrodgm.data.files import load_file

        data = load_file(path, seed)
        for view in views:
            data = _view(data, view, seed)
        return replace(data, name=":".join([str(Path(path).resolve()), *views]))
    hint = did_you_mean(name, list(_BUILT_IN), at_most=3)
    raise ValueError(f"unknown data {name!r}: {hint}expected a file that exists or one of {', '.join(_BUILT_IN)}")


def _view(data: DataSet, view: str, seed: int) -> DataSet:
    parts: dict[str, Any] = {part: data.part(part) for part in ("train", "valid", "test")}
    if view == "binary":
        parts = {k: threshold(v) for k, v in parts.items()}
        return replace(data, **parts, binary=True, levels=None)
    if view == "standardised":
        change = standardise(parts["train"])
        parts = {k: change(v)[0] for k, v in parts.items()}
        return replace(data, **parts, binary=False, levels=None)
    if view == "dequantized":
        generator = torch.Generator().manual_seed(seed + 1)
        try:
            parts = {k: dequantize((v * 255).round(), 256, generator)[0] for k, v in parts.items()}
        except ValueError as error:
            raise ValueError(f"{data.name}:dequantized wants grey levels in [0, 1]: {error}") from None
        return replace(data, **parts, binary=False, levels=256)
    shape = tuple(int(size) for size in view.split("x"))
    if math.prod(shape) != math.prod(data.event_shape):
        raise ValueError(
            f"expected {math.prod(data.event_shape)} pixels, got {view}; "
            f"{data.name} has rows of shape {data.event_shape}"
        )
    if not is_picture(shape):
        raise ValueError(f"expected pictures of 1 or 3 channels, such as {data.name}:3x32x32, got {view}")
    return replace(data, image_shape=shape)


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether rows of this shape are pictures, (H, W) or (C, H, W)."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def _split(
    x: Tensor,
    seed: int,
    labels: Tensor | None = None,
    classes: tuple[str, ...] = (),
    image_shape: tuple[int, ...] | None = None,
    levels: int | None = None,
) -> DataSet:
    x = x.float()
    index = split_rows(len(x), seed)
    return DataSet(
        name="",
        train=x[index["train"]],
        valid=x[index["valid"]],
        test=x[index["test"]],
        labels=None if labels is None else {part: labels.long()[rows] for part, rows in index.items()},
        event_shape=tuple(x.shape[1:]),
        image_shape=image_shape,
        binary=bool(((x == 0) | (x == 1)).all()),
        description="",
        levels=levels,
        classes=classes,
    )


def _digits(seed: int, change: Callable[[Tensor, torch.Generator], Tensor], levels: int | None = None) -> DataSet:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = change(torch.as_tensor(x).float(), torch.Generator().manual_seed(seed + 1))
    return _split(x, seed, torch.as_tensor(y), tuple(map(str, range(10))), (8, 8), levels)


def _bundled(loader: str) -> Callable[[int], DataSet]:
    def build(seed: int) -> DataSet:
        from sklearn import datasets

        bunch = getattr(datasets, loader)()
        classes = tuple(map(str, bunch.target_names))
        data = _split(torch.as_tensor(bunch.data), seed, torch.as_tensor(bunch.target), classes)
        return _view(data, "standardised", seed)

    return build


def _toy(draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]], classes: int) -> Callable[[int], DataSet]:
    def build(seed: int) -> DataSet:
        x, which = draw(_TOY_ROWS, torch.Generator().manual_seed(seed))
        return _split(x, seed, which, tuple(map(str, range(classes))))

    return build


def _moons(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    which = torch.randint(2, (n,), generator=g)
    angle = math.pi * torch.rand(n, generator=g)
    sign = 1.0 - 2 * which
    x = torch.stack((sign * angle.cos() + which - 0.5, sign * angle.sin() + 0.5 * which - 0.25), -1)
    return 1.5 * x + 0.12 * torch.randn(n, 2, generator=g), which


def _rings(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    which = torch.multinomial(torch.tensor([1.0, 2.0, 3.0]), n, replacement=True, generator=g)
    angle = 2 * math.pi * torch.rand(n, generator=g)
    x = torch.stack((angle.cos(), angle.sin()), -1) * (1.0 + which)[:, None]
    return x + 0.1 * torch.randn(n, 2, generator=g), which


def _pinwheel(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    which = torch.randint(5, (n,), generator=g)
    radius = 1.0 + 0.3 * torch.randn(n, generator=g)
    offset = 0.1 * torch.randn(n, generator=g)
    turn = 2 * math.pi * which / 5 + 0.25 * torch.exp(radius)  # each arm bends with its radius
    x = torch.stack((radius * turn.cos() - offset * turn.sin(), radius * turn.sin() + offset * turn.cos()), -1)
    return 2 * x, which


def _checkerboard(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    column = torch.randint(4, (n,), generator=g)
    row = 2 * torch.randint(2, (n,), generator=g) + column % 2
    cell = torch.stack((column, row), -1)
    return 2 * (cell + torch.rand(n, 2, generator=g)) - 4, 2 * column + row // 2


def _eight_gaussians(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    which = torch.randint(8, (n,), generator=g)
    angle = math.pi * which / 4
    return 3 * torch.stack((angle.cos(), angle.sin()), -1) + 0.3 * torch.randn(n, 2, generator=g), which


_BUILT_IN: dict[str, tuple[str, Callable[[int], DataSet]]] = {
    "digits": ("1797 grey 8x8 handwritten digits, 17 levels scaled to [0, 1]; 10 classes",
               lambda seed: _digits(seed, lambda x, g: x / 16)),
    "digits_binary": ("the 8x8 digits in black and white: 1 where the level (0..16) is at least 8; 10 classes",
                      lambda seed: _digits(seed, lambda x, g: threshold(x, 8.0))),
    "digits_dequantized": ("the 8x8 digits for densities: (level + uniform noise) / 17, in [0, 1); 10 classes",
                           lambda seed: _digits(seed, lambda x, g: dequantize(x, 17, g)[0], levels=17)),
    "breast_cancer": ("569 tumours, 30 measurements, standardised by the training part; 2 classes",
                      _bundled("load_breast_cancer")),
    "wine": ("178 wines, 13 measurements, standardised by the training part; 3 classes", _bundled("load_wine")),
    "moons": ("two half moons in the plane, drawn by code; 2 classes", _toy(_moons, 2)),
    "rings": ("three rings in the plane, drawn by code; 3 classes", _toy(_rings, 3)),
    "pinwheel": ("five bent arms in the plane, drawn by code; 5 classes", _toy(_pinwheel, 5)),
    "checkerboard": ("eight uniform squares in the plane, drawn by code; 8 classes", _toy(_checkerboard, 8)),
    "eight_gaussians": ("eight normals on a circle, drawn by code; 8 classes", _toy(_eight_gaussians, 8)),
}  # fmt: skip
