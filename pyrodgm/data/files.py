"""Data from a file or a folder: arrays, tables, pictures, text."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrodgm.data.sets import DataSet, is_picture, split_rows
from pyrodgm.files import rows_digest

__all__ = ["load_file"]

_PARTS = ("train", "valid", "test")
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
_LABEL_COLUMNS = ("label", "class")
_WINDOW = 32
_MOST_WINDOWS = 20_000


def load_file(path: str | Path, seed: int = 0) -> DataSet:
    """A data set from a path, by its ending.

    ===================  ====================================================================
    ``.npz``             one array, or ``x`` with ``y``, or ``train``, ``valid``, ``test`` (also ``train_x`` or
                         ``x_train``) with ``train_y`` or ``y_train``, ...; bit-packed rows where ``d`` gives
                         the columns
    ``.npy``             one array
    ``.csv, .parquet``   numbers; a column ``label`` or ``class`` becomes the labels
    a folder             pictures of one size; sub-folders are the classes
    ``.txt, .txt.gz``    windows of 32 characters, each one-hot over the characters that occur
    ===================  ====================================================================

    uint8 values above 1 are grey levels and are divided by 255; arrays of more than two dimensions are
    pictures, (rows, H, W) or (rows, C, H, W). Without a split in the file the rows are split 80/10/10 by the seed;
    without a ``valid`` a tenth of ``train`` is set apart.

    Raises: ValueError where the file is of the wrong kind or holds NaN, the first such row named.
    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/a.npy", np.random.rand(50, 3))
        ...     load_file(f"{folder}/a.npy").train.shape
        torch.Size([40, 3])
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist; give the path of a file or folder")
    ending = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    readers = {".npz": _npz, ".npy": _npy, ".csv": _table, ".parquet": _table, ".txt": _text, ".txt.gz": _text}
    if path.is_dir():
        return _pictures(path, seed)
    if ending.lower() not in readers:
        raise ValueError(
            f"{path}: expected one of {', '.join(readers)} or a folder of pictures, "
            f"got {ending or 'no ending'!r}; save the rows by numpy.save"
        )
    return readers[ending.lower()](path, seed)


def _npy(path: Path, seed: int) -> DataSet:
    try:
        return _one(path, np.load(path, allow_pickle=False), None, seed)
    except (ValueError, OSError, EOFError) as error:
        raise _told(path, error) from None


def _npz(path: Path, seed: int) -> DataSet:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:  # numpy leaves a damaged one open
            everything = {key: stored[key] for key in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _told(path, error) from None
    labels_of = {"y", *(key for part in _PARTS for key in (f"{part}_y", f"y_{part}"))}
    arrays = {k: a for k, a in everything.items() if a.dtype.kind in "biuf" or k in labels_of}
    d = int(arrays.pop("d")) if "d" in arrays and arrays["d"].ndim == 0 else None

    def rows(key: str) -> np.ndarray[Any, Any] | None:
        found = next((arrays[k] for k in (key, f"{key}_x", f"x_{key}") if k in arrays), None)
        return found if found is None or d is None else np.unpackbits(found, axis=1)[:, :d]

    if (train := rows("train")) is not None:
        parts = {part: array for part in _PARTS if (array := rows(part)) is not None}
        labels = {part: arrays[k] for part in parts for k in (f"{part}_y", f"y_{part}") if k in arrays}
        for part, y in labels.items():
            if y.shape[:1] != (len(parts[part]),):
                raise ValueError(
                    f"{path}: expected one label a row, got labels of shape {y.shape} for the {len(parts[part])} rows "
                    f"of {part}"
                )
        missing = [part for part in ("valid", "test") if part not in parts]
        if missing:
            index = {part: i.numpy() for part, i in split_rows(len(train), seed).items()}
            where = {"train": np.concatenate([index[p] for p in _PARTS if p not in missing])}
            where |= {p: index[p] for p in missing}
            parts |= {p: train[i] for p, i in where.items()}
            if "train" in labels:
                labels |= {p: labels["train"][i] for p, i in where.items()}
        return _assemble(path, parts, labels if len(labels) == 3 else None)
    if "x" in arrays:
        return _one(path, rows("x"), arrays.get("y"), seed)  # type: ignore[arg-type]
    if len(arrays) == 1:
        key = next(iter(arrays))
        return _one(path, rows(key), None, seed)  # type: ignore[arg-type]
    raise ValueError(
        f"{path}: expected one array, x (and y), or train, valid, test; got {', '.join(arrays) or 'none'}; rename them"
    )


def _table(path: Path, seed: int) -> DataSet:
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError('reading tables needs pandas: pip install "pyrodgm[data]"') from error
    try:
        if path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path)
        else:
            first = [str(cell) for cell in pd.read_csv(path, header=None, nrows=1, dtype=str).fillna("").iloc[0]]
            numbered = len(first) > 1 and first == [str(i) for i in range(len(first))]  # names that pandas makes
            row = all(not cell or _is_number(cell) for cell in first) and not numbered
            table = pd.read_csv(path, header=None if row else 0)
            if not row and not first[0] and table.iloc[:, 0].tolist() == list(range(len(table))):
                table = table.iloc[:, 1:]  # an index that pandas wrote
    except ImportError as error:
        raise ImportError('reading parquet needs pyarrow: pip install "pyrodgm[data]"') from error
    except (ValueError, OSError) as error:
        raise _told(path, error) from None
    label = next((c for c in table.columns if str(c).lower() in _LABEL_COLUMNS), None)
    names = None if label is None else table.pop(label)
    if names is not None and names.isna().any():
        without = np.flatnonzero(names.isna())
        raise ValueError(
            f"{path}: row {without[0]} has no {label} ({len(without)} such rows); drop them or give them one (NA, "
            "None, null and nan count as none)"
        )
    for column in table.columns:
        if not pd.api.types.is_numeric_dtype(table[column]) and not pd.api.types.is_bool_dtype(table[column]):
            text = next((v for v in table[column] if not _is_number(str(v))), table[column].iloc[0])
            raise ValueError(
                f"{path}: column {str(column)!r} holds text such as {text!r}; drop it, "
                "write it as numbers, or name it 'label'"
            )
    x = table.to_numpy(dtype=np.float64, na_value=np.nan)
    return _one(path, x, None if names is None else names.astype(str).to_numpy(), seed, list(map(str, table.columns)))


def _pictures(path: Path, seed: int) -> DataSet:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('reading pictures needs pillow: pip install "pyrodgm[data]"') from error
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in _PICTURES)
    if not files:
        raise ValueError(
            f"{path}: no pictures ({', '.join(sorted(_PICTURES))}) in this folder; give the folder that holds them"
        )
    grey, arrays = True, []
    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode[0] in "IF":  # whose numbers above 255 the conversion would cut
                    raise ValueError(
                        f"{file}: more than 8 bits a channel (mode {image.mode}); save the pictures as 8-bit files, or "
                        "the numbers as an array, by numpy.save"
                    )
                grey = grey and image.mode in ("1", "L", "LA")
                arrays.append(np.asarray(image.convert("RGB")))
        except (OSError, Image.DecompressionBombError) as error:
            raise _told(file, error) from None
        if arrays[-1].shape != arrays[0].shape:
            got, first = arrays[-1].shape, arrays[0].shape
            raise ValueError(
                f"{file}: {got[1]}x{got[0]} pixels where {files[0].name} has {first[1]}x{first[0]}; "
                "resize the pictures to one size"
            )
    stack = np.stack(arrays)  # (rows, H, W, 3)
    x = stack[..., 0] if grey else stack.transpose(0, 3, 1, 2)
    nested = all(file.parent != path for file in files)
    labels = np.array([file.relative_to(path).parts[0] for file in files]) if nested else None
    return _one(path, x, labels, seed)


def _text(path: Path, seed: int) -> DataSet:
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as file:
            text = file.read(_WINDOW * _MOST_WINDOWS)
            more = bool(file.read(1))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise _told(path, error) from None
    characters = sorted(set(text))
    if len(text) < 3 * _WINDOW:
        raise ValueError(f"{path}: expected at least {3 * _WINDOW} characters, got {len(text)}; use a longer text")
    if len(characters) > 256:
        raise ValueError(
            f"{path}: {len(characters)} different characters, more than 256; write it in fewer, as by lower()"
        )
    where = {c: i for i, c in enumerate(characters)}
    ids = torch.tensor([where[c] for c in text[: len(text) // _WINDOW * _WINDOW]]).reshape(-1, _WINDOW)
    x = torch.nn.functional.one_hot(ids, len(characters)).flatten(1)  # (rows, window * characters)
    data = _one(path, x.numpy().astype(np.uint8), None, seed)
    return replace(data, description=f"{data.description}; its first {len(text):,} characters") if more else data


def _one(
    path: Path, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any] | None, seed: int, names: list[str] | None = None
) -> DataSet:
    if y is not None and len(y) != len(x):
        raise ValueError(f"{path}: expected one label a row, got {len(y)} for {len(x)} rows")
    _refuse(path, "", x, names)
    try:
        index = {part: i.numpy() for part, i in split_rows(len(x), seed).items()}
    except ValueError as error:
        raise _told(path, error) from None
    labels = None if y is None else {part: y[i] for part, i in index.items()}
    return _assemble(path, {part: x[i] for part, i in index.items()}, labels)


def _assemble(path: Path, parts: dict[str, Any], labels: dict[str, Any] | None) -> DataSet:
    for name, array in parts.items():
        _refuse(path, f" of {name}", array, None)
    shape = parts["train"].shape[1:]
    if len(shape) == 3 and shape[0] not in (1, 3) and shape[2] in (1, 3):
        raise ValueError(
            f"{path}: expected pictures as (rows, C, H, W), got rows of shape {tuple(map(int, shape))}; use "
            "x.transpose(0, 3, 1, 2)"
        )
    if any(array.shape[1:] != shape for array in parts.values()):
        raise ValueError(f"{path}: expected parts with rows of one shape, got {[a.shape[1:] for a in parts.values()]}")
    grey = parts["train"].dtype == np.uint8 and max(int(a.max(initial=0)) for a in parts.values()) > 1
    tensors: dict[str, Tensor] = {}
    for name, array in parts.items():
        native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))  # torch takes no other order of bytes
        x = torch.as_tensor(native).to(torch.float32).flatten(1)
        tensors[name] = x / 255 if grey else x
    binary = all(bool(((x == 0) | (x == 1)).all()) for x in tensors.values())
    classes: tuple[str, ...] = ()
    ids: dict[str, Tensor] | None = None
    if labels is not None:
        for part, array in parts.items():
            if labels[part].size != len(array):
                raise ValueError(
                    f"{path}: expected one label a row, got labels of shape {labels[part].shape} for the {len(array)} "
                    f"rows of {part}; of one-hot rows take y.argmax(1)"
                )
        found = np.unique(np.concatenate([labels[part].reshape(-1) for part in _PARTS]))
        whole = found.dtype.kind in "biuUSO" or bool(np.all(found == np.floor(found)))
        if whole and len(found) <= 1000:
            if found.dtype.kind in "USO" and all(_is_number(str(c)) for c in found):
                found = np.array(sorted(found, key=lambda c: float(str(c))))  # 2 before 10
            classes = tuple(str(c) for c in found)
            number = {c: i for i, c in enumerate(classes)}
            # parts may have types of their own, and 1 and 1.0 are one class
            ids = {p: torch.tensor([number[str(c)] for c in labels[p].reshape(-1).astype(found.dtype)]) for p in _PARTS}
    rows = " / ".join(f"{len(tensors[part])}" for part in _PARTS)
    line = f"{path.name}: {rows} rows of shape {tuple(map(int, shape))}" + (", grey levels / 255" if grey else "")
    line += f"; {len(classes)} classes" if classes else ""
    return DataSet(
        name=str(path), train=tensors["train"], valid=tensors["valid"], test=tensors["test"], labels=ids,
        event_shape=tuple(tensors["train"].shape[1:]),
        image_shape=tuple(map(int, shape)) if is_picture(shape) else None, binary=binary, description=line,
        classes=classes, digest=rows_digest(tensors["train"], None if ids is None else ids["train"]),
    )  # fmt: skip


def _refuse(path: Path, part: str, x: np.ndarray[Any, Any], names: list[str] | None) -> None:
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{path}: expected numbers, got {x.dtype}; convert them by astype(float)")
    if x.ndim < 2:
        raise ValueError(
            f"{path}: expected rows of features, got an array of shape {x.shape}; use x[:, None] for one feature"
        )
    if x.dtype.kind == "f":
        bad = ~np.isfinite(x.reshape(len(x), -1))
        rows = np.flatnonzero(bad.any(1))
        if len(rows):
            column = int(np.flatnonzero(bad[rows[0]])[0])
            name = f"column {names[column]!r}" if names else f"feature {column}"
            raise ValueError(
                f"{path}: row {rows[0]}{part} is NaN or infinite in {name} ({len(rows)} such rows); "
                "drop these rows or fill them in"
            )


def _told(path: Path, error: Exception) -> ValueError:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(line if str(path) in line else f"{path}: not readable as {path.suffix or 'a file'}: {line}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
