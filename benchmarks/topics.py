"""Topic models on 20 Newsgroups, 50 topics: coherence (NPMI), diversity and test perplexity, beside scikit-learn's LDA.

"test perplexity" is that of whole documents by each model's own variational bound. "completion" is the perplexity of a
document's second half under the topic proportions (the posterior's mean) read from its first half, as Dieng et al.
(2020, arXiv:1907.04907) report; it asks for no bound, so it compares ETM with LDA. Their paper shows figures of it
as pictures only. ETM-PWE is ETM with embeddings fitted beforehand, here from co-occurrence in the training documents.

Printed NPMI with 50 topics (Srivastava and Sutton, 2017, arXiv:1703.01488, table 1): ProdLDA 0.24, LDA with Gibbs
sampling 0.17, mean-field LDA 0.11, NVDM 0.08; printed perplexity: ProdLDA 1172, NVDM 837. Here co-occurrence is
counted over the documents of the set itself (train and test), so figures compare within a run first of all.
Data: ``<data-dir>/20news_prodlda.npz`` and ``20news_etm.npz``, compressed sparse rows ``<part>_indptr``,
``<part>_indices``, ``<part>_counts`` and ``vocab``; the latter has the halves of the test documents as parts.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyrodgm
from pyrodgm.data import BagOfWords
from pyrodgm.evaluation import npmi, perplexity, top_words, topic_diversity
from pyrodgm.latent import ETM, NVDM, ProdLDA

SETS = {"20news_prodlda": ("train", "test"), "20news_etm": ("tr", "ts", "ts_h1", "ts_h2")}


def load(path: Path, parts: tuple[str, ...]) -> list[BagOfWords]:
    with np.load(path, allow_pickle=False) as z:
        vocabulary = [str(w) for w in z["vocab"]]
        return [
            BagOfWords(z[f"{p}_indptr"], z[f"{p}_indices"], z[f"{p}_counts"], len(vocabulary), vocabulary)
            for p in parts
        ]


def together(parts: list[BagOfWords]) -> BagOfWords:
    """The documents of several parts, for counting co-occurrence."""
    ends = np.cumsum([0, *(int(p.indptr[-1]) for p in parts)])
    indptr = torch.cat([torch.zeros(1, dtype=torch.long), *(p.indptr[1:] + int(e) for p, e in zip(parts, ends))])  # noqa: B905
    return BagOfWords(
        indptr, torch.cat([p.indices for p in parts]), torch.cat([p.counts for p in parts]), parts[0].words
    )


def train(model: Any, corpus: BagOfWords, epochs: int, lr: float, momentum: float, options: argparse.Namespace) -> None:
    pyrodgm.fit(
        model,
        corpus,
        epochs=epochs,
        batch_size=200,
        optimizer=lambda p: torch.optim.Adam(p, lr=lr, betas=(momentum, 0.999), fused=True),
        seed=options.seed,
        device=options.device,
        progress=False,
    )


def prefitted(corpus: BagOfWords, size: int = 300) -> Tensor:
    """Embeddings of the words (V, E), of unit variance, from co-occurrence in the training documents alone.

    The leading singular vectors of the positive pointwise mutual information, which is what skip-gram factorises in
    other words (Levy and Goldberg, 2014); they stand for the pre-fitted embeddings of the ETM paper.
    """
    present = torch.cat([corpus.dense(rows).clamp(max=1) for rows in torch.arange(len(corpus)).split(2000)])
    joint = present.T @ present / len(corpus)
    alone = joint.diagonal().clamp(min=1 / len(corpus))
    information = (joint / alone / alone.unsqueeze(-1)).clamp(min=1).log()
    left, values, _ = torch.linalg.svd(information)
    found = left[:, :size] * values[:size].sqrt()
    return found / found.std()


def completion(log_probs: Callable[[Tensor], Tensor], halves: list[BagOfWords]) -> float | None:
    """Perplexity of the second halves' words, ``log_probs`` (B, V) being made of the first halves' counts (B, V)."""
    if not halves:
        return None
    first, second = halves
    total = 0.0
    with torch.no_grad():
        for rows in torch.arange(len(first)).split(500):
            total += float((second.dense(rows) * log_probs(first.dense(rows)).cpu()).double().sum())
    return math.exp(-total / second.total)


def guess(model: Any) -> Callable[[Tensor], Tensor]:
    """A topic model's words at the mean of its guide."""
    model.eval()
    return lambda counts: model.decode(model.posterior(counts.to(model.device)).mean).log_probs


def lda(
    corpus: BagOfWords, test: BagOfWords, halves: list[BagOfWords], options: argparse.Namespace
) -> tuple[Tensor, float, float | None]:
    """scikit-learn's online variational LDA: topics, test perplexity and that of completed documents."""
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import LatentDirichletAllocation

    def matrix(c: BagOfWords) -> Any:
        return csr_matrix((c.counts.numpy(), c.indices.numpy(), c.indptr.numpy()), shape=(len(c), c.words))

    fitted = LatentDirichletAllocation(
        options.topics, learning_method="online", max_iter=options.lda_epochs, random_state=options.seed
    ).fit(matrix(corpus))
    topics = torch.as_tensor(fitted.components_)
    words = topics / topics.sum(-1, keepdim=True)

    def log_probs(counts: Tensor) -> Tensor:
        return (torch.as_tensor(fitted.transform(counts.numpy())) @ words).log()

    return topics, float(fitted.perplexity(matrix(test))), completion(log_probs, halves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--models", nargs="+", default=["ProdLDA", "NVDM", "ETM", "ETM-PWE", "LDA"])
    parser.add_argument("--topics", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=None, help="instead of each model's own number")
    parser.add_argument("--lda-epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--words", action="store_true", help="print the top words of each topic")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # model, epochs, learning rate, first momentum
    recipes: dict[str, tuple[Callable[..., Any], int, float, float]] = {
        "ProdLDA": (ProdLDA, 25, 2e-3, 0.99),
        "NVDM": (NVDM, 40, 1e-3, 0.9),
        "ETM": (ETM, 40, 5e-3, 0.9),
        "ETM-PWE": (lambda words, topics: ETM(words, topics, embeddings=prefitted(corpus)), 40, 5e-3, 0.9),
    }
    print("| set | model | epochs | NPMI, top 10 | diversity, top 25 | test perplexity | completion | seconds |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.sets:
        corpus, test, *halves = load(options.data_dir / f"{name}.npz", SETS[name])
        reference = together([corpus, test])
        for label in options.models:
            torch.manual_seed(options.seed)
            start = time.perf_counter()
            if label == "LDA":
                epochs = options.lda_epochs
                topics, value, completed = lda(corpus, test, halves, options)
            else:
                build, epochs, lr, momentum = recipes[label]
                epochs = epochs if options.epochs is None else options.epochs
                model = build(corpus.words, options.topics).to(options.device)
                train(model, corpus, epochs, lr, momentum, options)
                topics, value = model.topics.cpu(), perplexity(model, test)
                completed = completion(guess(model), halves)
            seconds = round(time.perf_counter() - start)
            top = topics.topk(25, -1).indices
            coherence = npmi(top[:, :10], reference).mean().item()
            cells = f"{coherence:.3f} | {topic_diversity(top):.2f} | {value:.0f}"
            last = "-" if completed is None else f"{completed:.0f}"
            print(f"| {name} | {label} | {epochs} | {cells} | {last} | {seconds} |", flush=True)
            if options.words and corpus.vocabulary is not None:
                for row in top_words(top[:, :10], corpus.vocabulary):
                    print("  ", " ".join(row), flush=True)


if __name__ == "__main__":
    main()
