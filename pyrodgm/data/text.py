"""Sentences as rows of numbers of words, and back."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Vocabulary", "read_lines"]


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file (UTF-8, also ``.gz``) that hold something, without the blanks around them.

    Raises: ValueError if the file has no such line.
    """
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        lines = [stripped for line in file if (stripped := line.strip())]
    if not lines:
        raise ValueError(f"{path}: expected lines of text, got none")
    return lines


class Vocabulary:
    """Words and their numbers: 0 ends a sentence, 1 is any word that has no number of its own.

    Args:
        words: the words by number; the first two are what stands for the end and for an unknown word.
    Raises: ValueError if a word occurs twice or there are fewer than three.
    Example:
        >>> vocabulary = Vocabulary.of(["the cat sat", "the dog"], size=4)
        >>> vocabulary.words
        ['</s>', '<unk>', 'the', 'cat']
        >>> x = vocabulary.encode(["the cat", "the dog sat on"], length=3)
        >>> x
        tensor([[2., 3., 0.],
                [2., 1., 1.]])
        >>> vocabulary.decode(x)
        ['the cat', 'the <unk> <unk>']
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._number = {word: i for i, word in enumerate(self.words)}
        if len(self.words) < 3 or len(self._number) != len(self.words):
            raise ValueError(
                f"expected at least three different words (the end, the unknown and one more), got {len(self.words)}, "
                f"{len(self._number)} different"
            )

    @classmethod
    def of(
        cls, lines: Iterable[str], size: int | None = None, *, end: str = "</s>", unknown: str = "<unk>"
    ) -> Vocabulary:
        """The most frequent words of some lines, split at blanks; ties in the order of their first occurrence.

        Args:
            lines: one sentence each.
            size: of the vocabulary, the two special words included; None takes all words.
            end, unknown: how the special words are written; such words in the lines are counted as special.
        """
        counts = Counter(word for line in lines for word in line.split())
        for special in (end, unknown):
            counts.pop(special, None)
        most = counts.most_common(None if size is None else max(0, size - 2))
        return cls([end, unknown, *(word for word, _ in most)])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, lines: Iterable[str], length: int) -> Tensor:
        """The first ``length`` words of each line, (N, T) float32; shorter lines end with 0s.

        A line of T words or more has no end in its row; what a line says behind the word for the end is left out.
        Raises: TypeError for a string instead of several; ValueError for length < 1.
        """
        if isinstance(lines, str):
            raise TypeError("expected an iterable of lines, got one string; put it into a list")
        if length < 1:
            raise ValueError(f"expected length >= 1 tokens, got {length}")
        rows = [[self._number.get(word, 1) for word in line.split()[:length]] for line in lines]
        x = torch.zeros(len(rows), length)
        for row, numbers in zip(x, rows, strict=True):
            until = numbers.index(0) if 0 in numbers else len(numbers)
            row[:until] = torch.tensor(numbers[:until], dtype=x.dtype)
        return x

    def decode(self, x: Tensor) -> list[str]:
        """Rows of numbers (N, T) as text, up to the end."""
        found = []
        for row in x.long().tolist():
            until = row.index(0) if 0 in row else len(row)
            found.append(" ".join(self.words[i] for i in row[:until]))
        return found
