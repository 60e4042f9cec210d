"""A picture of topics by their words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from pyrodgm.diagnostics.canvas import INK, MODEL, new_figure, set_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["topic_words"]


def topic_words(
    topics: Tensor, vocabulary: Sequence[str], n: int = 10, columns: int = 4, shown: int = 12, title: str = ""
) -> Figure:
    """The n highest words of each topic, as bars of their weight above the topic's mean over all words.

    Args:
        topics: weights of the words of each topic, (K, V), such as ``ProdLDA(...).topics``.
        vocabulary: the V words.
        n: words a topic.
        columns: topics in a line of the picture.
        shown: topics at most.
    Raises: ValueError if the vocabulary has not V words, or n is not in 1 .. V.
    Example:
        >>> import torch
        >>> len(topic_words(torch.randn(3, 6), ["a", "b", "c", "d", "e", "f"], n=4).axes)
        3
    """
    if len(vocabulary) != topics.shape[-1] or not 1 <= n <= len(vocabulary):
        raise ValueError(
            f"expected a vocabulary of {topics.shape[-1]} words and n among 1 .. {topics.shape[-1]}, got "
            f"{len(vocabulary)} words and n={n}"
        )
    weights = topics.detach().cpu().double()
    above, words = (weights - weights.mean(-1, keepdim=True)).topk(n, -1)
    count = min(len(weights), shown)
    lines = -(-count // columns)
    figure = new_figure(1.9 * min(count, columns), lines * (0.35 + 0.17 * n))
    for k in range(count):
        axes = figure.add_subplot(lines, min(count, columns), k + 1)
        axes.barh(range(n), above[k].tolist(), color=MODEL, height=0.7)
        axes.set_yticks(range(n), [vocabulary[i] for i in words[k].tolist()], fontsize=8, color=INK)
        axes.invert_yaxis()
        axes.set_xticks([])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_title(f"topic {k + 1}", fontsize=9, color=INK)
    set_title(figure, title)
    return figure
