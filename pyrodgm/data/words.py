"""Bags of words: a sparse corpus whose batches alone become dense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["BagOfWords"]


class BagOfWords(Dataset[Tensor]):
    """Documents as counts of words in compressed sparse rows; only the rows asked for become dense.

    ``pyrodgm.fit`` takes it as data. It never holds a dense copy of the corpus.

    Args:
        indptr: (N + 1,), where each document starts in the other two.
        indices: (nonzeros,), numbers of words.
        counts: (nonzeros,), how often.
        words: V.
        vocabulary: the V words, where they are known.
    Shapes: row i is (V,) float32.
    Raises: ValueError if the three arrays do not fit each other, or a number of a word is not in 0 .. V - 1.
    Example:
        >>> corpus = BagOfWords([0, 2, 3], [0, 2, 1], [3, 1, 1], words=4)
        >>> len(corpus), corpus[0]
        (2, tensor([3., 0., 1., 0.]))
    """

    def __init__(
        self, indptr: Any, indices: Any, counts: Any, words: int, vocabulary: Sequence[str] | None = None
    ) -> None:
        self.indptr, self.indices = (torch.as_tensor(np.asarray(v).astype(np.int64)) for v in (indptr, indices))
        self.counts = torch.as_tensor(np.asarray(counts).astype(np.float32))
        if self.indptr[0] != 0 or self.indptr[-1] != len(self.indices) or len(self.indices) != len(self.counts):
            raise ValueError(
                f"expected indptr from 0 to the {len(self.indices)} indices and as many counts, got indptr from "
                f"{int(self.indptr[0])} to {int(self.indptr[-1])} and {len(self.counts)} counts"
            )
        if len(self.indices) and not (int(self.indices.min()) >= 0 and int(self.indices.max()) < words):
            raise ValueError(f"expected numbers of words in 0 .. {words - 1}, got up to {int(self.indices.max())}")
        if vocabulary is not None and len(vocabulary) != words:
            raise ValueError(f"expected a vocabulary of {words} words, got {len(vocabulary)}")
        self.words = words
        self.vocabulary = None if vocabulary is None else [str(w) for w in vocabulary]

    @classmethod
    def sparse(cls, matrix: Any, vocabulary: Sequence[str] | None = None) -> BagOfWords:
        """From a scipy sparse matrix or array, or a sparse torch tensor (CSR or COO), of shape (N, V).

        Example:
            >>> BagOfWords.sparse(torch.eye(3).to_sparse())[2]
            tensor([0., 0., 1.])
        """
        if isinstance(matrix, Tensor):
            if matrix.layout == torch.sparse_coo:
                matrix = matrix.coalesce()
                row, column = matrix.indices()
                indptr = torch.cat((row.new_zeros(1), torch.bincount(row, minlength=len(matrix)).cumsum(0)))
                return cls(indptr, column, matrix.values(), matrix.shape[1], vocabulary)
            if matrix.layout != torch.sparse_csr:
                raise TypeError(f"expected a sparse tensor, CSR or COO, got one of layout {matrix.layout}")
            parts = matrix.crow_indices(), matrix.col_indices(), matrix.values()
            return cls(*parts, matrix.shape[1], vocabulary)
        if not hasattr(matrix, "tocsr"):
            raise TypeError(f"expected a scipy sparse matrix or a sparse tensor, got {type(matrix).__name__}")
        rows = matrix.tocsr()
        return cls(rows.indptr, rows.indices, rows.data, rows.shape[1], vocabulary)

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, index: int) -> Tensor:
        return self.dense([index])[0]

    def __getitems__(self, index: list[int]) -> list[Tensor]:
        # torch's loader asks for a whole batch by this name
        return list(self.dense(index).unbind(0))

    def dense(self, index: Sequence[int] | Tensor) -> Tensor:
        """Some documents as counts, (rows, V) float32; negative numbers count from the last one.

        Raises: IndexError for a document that there is not.
        """
        index, documents = torch.as_tensor(index), len(self)
        wrong = (index < -documents) | (index >= documents)
        if bool(wrong.any()):
            raise IndexError(
                f"expected numbers of documents in {-documents} .. {documents - 1}, got {int(index[wrong][0])}"
            )
        index = torch.where(index < 0, index + documents, index)
        start, size = self.indptr[index], self.indptr[index + 1] - self.indptr[index]
        row = torch.repeat_interleave(torch.arange(len(index)), size)
        before = torch.repeat_interleave(size.cumsum(0) - size, size)
        where = torch.repeat_interleave(start, size) + torch.arange(len(row)) - before
        out = torch.zeros(len(index), self.words)
        out.index_put_((row, self.indices[where]), self.counts[where], accumulate=True)
        return out

    def occurs(self, words: Tensor) -> Tensor:
        """Which documents have each of some words, (N, W) booleans."""
        place = torch.full((self.words,), -1)
        place[words] = torch.arange(len(words))
        row = torch.repeat_interleave(torch.arange(len(self)), self.indptr.diff())
        column = place[self.indices]
        found = (column >= 0) & (self.counts > 0)
        out = torch.zeros(len(self), len(words), dtype=torch.bool)
        out[row[found], column[found]] = True
        return out

    @property
    def total(self) -> float:
        """Words of the corpus, each as often as it occurs."""
        return float(self.counts.double().sum())
