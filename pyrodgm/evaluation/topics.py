"""Measures of topics: perplexity, coherence, diversity, and the words to read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyrodgm.core import Latent, evaluating
from pyrodgm.data.words import BagOfWords
from pyrodgm.evaluation.likelihood import weights_in_parts

__all__ = ["npmi", "perplexity", "top_words", "topic_diversity"]


def npmi(top: Tensor, corpus: BagOfWords) -> Tensor:
    r"""Coherence of topics: normalised pointwise mutual information, a mean over the pairs of a topic's top words.

    .. math:: \frac{\log \frac{p(i, j)}{p(i)\, p(j)}}{-\log p(i, j)} \in [-1, 1]

    with p(i, j) the share of the corpus's documents that have both words; -1 where none has.

    Args:
        top: numbers of the top words, (K, n), n >= 2.
        corpus: where co-occurrence is counted.
    Shapes: returns (K,).
    Raises: ValueError if there are fewer than two words a topic.
    Source: Bouma (2009); Lau et al. (2014), over whole documents.
    Example:
        >>> corpus = BagOfWords([0, 2, 4, 5], [0, 1, 0, 1, 2], [1, 1, 1, 1, 1], words=3)
        >>> npmi(torch.tensor([[0, 1], [0, 2]]), corpus)
        tensor([ 1., -1.])
    """
    if top.dim() != 2 or top.shape[1] < 2:
        raise ValueError(f"expected top words of shape (topics, n >= 2), got {tuple(top.shape)}")
    words, place = top.cpu().unique(return_inverse=True)  # place (K, n)
    occurs = corpus.occurs(words).double()
    joint = occurs.T @ occurs / len(corpus)  # (W, W)
    alone = joint.diagonal()
    information = joint.log() - alone.log().unsqueeze(-1) - alone.log()
    value = torch.where(joint >= 1, torch.ones_like(joint), information / -joint.log())
    value = torch.where(joint > 0, value, -torch.ones_like(joint))
    i, j = torch.triu_indices(top.shape[1], top.shape[1], 1)
    return value[place[:, i], place[:, j]].mean(-1).float()


def topic_diversity(top: Tensor) -> float:
    """The share of different words among all topics' top words (25 each, by custom): (K, n) -> in (0, 1].

    Source: Dieng et al. (2020), arXiv:1907.04907, section 5.
    Example:
        >>> topic_diversity(torch.tensor([[0, 1], [0, 2]]))
        0.75
    """
    return len(top.unique()) / top.numel()


def perplexity(model: Latent, corpus: BagOfWords, *, particles: int = 1, batch_size: int = 256) -> float:
    r"""Perplexity a word, :math:`\exp(-\sum_d \hat L_d / \sum_d N_d)`, an upper bound in expectation.

    Args:
        model: a topic model.
        corpus: held-out documents.
        particles: of the bound on log p(d) (the ELBO's sample with 1, as papers have it).
        batch_size: documents at once; particles are split too, so memory stays bounded.
    Raises: ValueError for particles < 1.
    Example:
        >>> from pyrodgm.latent import NVDM
        >>> corpus = BagOfWords([0, 2, 3], [0, 2, 1], [3, 1, 1], words=4)
        >>> 1 < perplexity(NVDM(words=4, topics=2), corpus)
        True
    """
    if particles < 1:
        raise ValueError(f"expected particles >= 1, got {particles}")
    total = 0.0
    with evaluating(model):
        for rows in torch.arange(len(corpus)).split(batch_size):
            x = corpus.dense(rows).to(model.device, model.dtype)
            parts = [weights.logsumexp(0) for weights in weights_in_parts(model, x, None, particles)]
            total += float((torch.stack(parts).logsumexp(0) - math.log(particles)).double().sum())
    return math.exp(-total / corpus.total)


def top_words(top: Tensor, vocabulary: Sequence[str]) -> list[list[str]]:
    """The words behind their numbers (K, n).

    Example:
        >>> top_words(torch.tensor([[2, 0]]), ["a", "b", "c"])
        [['c', 'a']]
    """
    return [[vocabulary[i] for i in row] for row in top.tolist()]
