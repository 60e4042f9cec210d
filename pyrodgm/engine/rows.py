"""Rows of training data: whatever the user has as tensors of the model's type, with the first bad row named."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrodgm.core import GenerativeModel

__all__ = ["Batch", "as_rows", "as_tensor", "check_rows"]

Batch = tuple[Tensor, Tensor | None]
_SCAN = 65536  # rows looked at in one go when data are checked


def check_rows(
    model: GenerativeModel, x: Tensor, context: Tensor | None, first: int = 0, name: str = "data", order: str = ""
) -> None:
    """Refuse rows (B, *event) that the model cannot have drawn, naming the first bad one.

    Args:
        first: number of the first row, for the message.
        name: of the data, for the message.
        order: how the rows are counted, for the message, where it is not as the data have them.
    Raises: ValueError for a wrong shape, NaN or infinity, or a value outside the model's support.
    """
    try:
        model.check(x, context)
    except (TypeError, ValueError) as error:
        pair = f"; or give {name} as a pair (x, context)" if model.context and context is None else ""
        raise type(error)(f"{name}: {error}{pair}") from None
    if x.dim() != 1 + len(model.event_shape):
        event = ", ".join(map(str, model.event_shape))
        raise ValueError(f"expected {name} of shape (rows, {event}), got {tuple(x.shape)}; reshape it to rows")
    if context is not None and tuple(context.shape) != (len(x), model.context):
        raise ValueError(
            f"expected one context of size {model.context} for each of the {len(x)} rows of {name}, "
            f"got shape {tuple(context.shape)}"
        )
    support = model.support
    for start in range(0, len(x), _SCAN):
        part = x[start : start + _SCAN]
        parts = [(name, part)] + ([] if context is None else [(f"{name}'s context", context[start : start + _SCAN])])
        for label, values in parts:
            bad = ~torch.isfinite(values).flatten(1).all(1)
            if bad.any():
                row = int(bad.nonzero()[0])
                raise ValueError(
                    f"expected finite numbers, got {_first_bad(values[row])} in row {first + start + row} of "
                    f"{label}{order}; drop or impute such rows"
                )
        inside = support.check(part.to(model.device)).reshape(len(part), -1).all(1)
        if not inside.all():
            row = int((~inside).nonzero()[0])
            raise ValueError(
                f"expected values in the model's support {support}, got row {first + start + row} of {name}{order} "
                f"with values in [{part[row].min():.4g}, {part[row].max():.4g}]; transform the data (binarize, scale, "
                "dequantize) or choose another likelihood"
            )


def _first_bad(row: Tensor) -> str:
    flat = row.flatten()
    return str(flat[~torch.isfinite(flat)][0].item())


def as_tensor(values: Any, name: str, like: GenerativeModel) -> Tensor:
    if isinstance(values, Tensor):
        tensor = values.detach()
        if tensor.layout != torch.strided:
            raise TypeError(f"expected {name} as a dense tensor, got a sparse one; use pyrodgm.data.BagOfWords.sparse")
    elif hasattr(values, "tocsr"):  # scipy's, of which numpy would make one object
        raise TypeError(f"expected {name} as a dense array, got a sparse one; use pyrodgm.data.BagOfWords.sparse")
    else:
        if np.ma.is_masked(values):
            raise ValueError(f"expected {name} without masked values; impute them, or drop such rows")
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise ValueError(f"expected {name} as one array, got rows of different lengths; pad or cut them") from error
        if array.dtype.kind not in "fiub":
            raise TypeError(
                f"expected {name} as numbers, got an array of dtype {array.dtype}; encode it first, or .astype(float)"
            )
        native = array.dtype.newbyteorder("=")
        tensor = torch.as_tensor(np.require(array, native, requirements=("C", "W")))  # torch shares no others
    if tensor.is_complex():
        raise TypeError(f"expected {name} as real numbers, got {tensor.dtype}")
    return tensor.to(like.dtype)


def as_rows(model: GenerativeModel, data: Any, context: Any = None, name: str = "data") -> Batch:
    """Arrays or tensors as checked (x, context) of the model's dtype; ``data`` may be the pair itself."""
    if isinstance(data, tuple):
        if len(data) != 2 or context is not None:
            raise ValueError(f"expected {name} as x or as a pair (x, context), got a tuple of {len(data)}")
        data, context = data
    x = as_tensor(data, name, model)
    extra = None if context is None else as_tensor(context, f"{name}'s context", model)
    if x.dim() < 1 or len(x) == 0:
        raise ValueError(f"expected at least one row of {name}, got shape {tuple(x.shape)}")
    check_rows(model, x, extra, name=name)
    return x, extra
