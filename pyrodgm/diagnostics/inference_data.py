"""Draws as arviz wants them, for arviz 0.x and 1.x."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

__all__ = ["arviz", "inference_data", "many_chains"]


def arviz() -> Any:
    """The arviz module.

    Raises: ImportError that names the extra.
    """
    try:
        import arviz as module
    except ImportError as error:
        raise ImportError("diagnostics need arviz: pip install 'pyrodgm[diagnostics]'") from error
    return module


def inference_data(groups: Mapping[str, Mapping[str, Tensor]]) -> Any:
    """Groups of draws as arviz's own container; a "/" in a name, which would be a group of its own, is a ".".

    Args:
        groups: name ("posterior", "sample_stats", "observed_data", ...) -> variable -> tensor (chains, draws, *shape);
            those of "observed_data" have no chains and draws.
    Returns: ``InferenceData`` in arviz 0.x, ``DataTree`` in 1.x.
    Raises: ImportError without arviz.
    Example:
        >>> import torch
        >>> inference_data({"posterior": {"mu": torch.zeros(2, 5)}}).posterior["mu"].shape
        (2, 5)
    """
    module = arviz()
    arrays = {
        k: {name.replace("/", "."): v.detach().cpu().numpy() for name, v in group.items()}
        for k, group in groups.items()
    }
    with many_chains():
        if int(module.__version__.split(".")[0]) >= 1:
            return module.from_dict(arrays)
        return module.from_dict(**arrays)


@contextmanager
def many_chains() -> Iterator[None]:
    """Without arviz's warning that more chains than draws may be a transposed array: here they are meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "More chains", UserWarning)
        yield
