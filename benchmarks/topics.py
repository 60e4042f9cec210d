"""Topic models on 20 Newsgroups, 50 topics: coherence (NPMI), diversity and test perplexity, beside scikit-learn's LDA.

Printed NPMI with 50 topics (Srivastava and Sutton, 2017, arXiv:1703.01488, table 1): ProdLDA 0.24, LDA with Gibbs
sampling 0.17, mean-field LDA 0.11, NVDM 0.08; printed perplexity: ProdLDA 1172, NVDM 837. Here co-occurrence is
counted over the documents of the set itself (train and test), so figures compare within a run first of all.
Data: ``<data-dir>/20news_prodlda.npz`` and ``20news_etm.npz``, compressed sparse rows ``<part>_indptr``,
``<part>_indices``, ``<part>_counts`` and ``vocab``.
"""

from __future__ import annotations

import argparse
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

SETS = {"20news_prodlda": ("train", "test"), "20news_etm": ("tr", "ts")}


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


def lda(corpus: BagOfWords, test: BagOfWords, options: argparse.Namespace) -> tuple[Tensor, float]:
    """scikit-learn's online variational LDA: topics and test perplexity."""
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import LatentDirichletAllocation

    def matrix(c: BagOfWords) -> Any:
        return csr_matrix((c.counts.numpy(), c.indices.numpy(), c.indptr.numpy()), shape=(len(c), c.words))

    fitted = LatentDirichletAllocation(
        options.topics, learning_method="online", max_iter=options.lda_epochs, random_state=options.seed
    ).fit(matrix(corpus))
    return torch.as_tensor(fitted.components_), float(fitted.perplexity(matrix(test)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--models", nargs="+", default=["ProdLDA", "NVDM", "ETM", "LDA"])
    parser.add_argument("--topics", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--lda-epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--words", action="store_true", help="print the top words of each topic")
    options = parser.parse_args()
    recipes: dict[str, tuple[Callable[..., Any], float, float]] = {
        "ProdLDA": (ProdLDA, 2e-3, 0.99),
        "NVDM": (NVDM, 1e-3, 0.9),
        "ETM": (ETM, 2e-3, 0.9),
    }
    print("| set | model | NPMI, top 10 | diversity, top 25 | test perplexity | seconds |")
    print("|---|---|---|---|---|---|")
    for name in options.sets:
        corpus, test = load(options.data_dir / f"{name}.npz", SETS[name])
        reference = together([corpus, test])
        for label in options.models:
            torch.manual_seed(options.seed)
            start = time.perf_counter()
            if label == "LDA":
                topics, value = lda(corpus, test, options)
            else:
                build, lr, momentum = recipes[label]
                model = build(corpus.words, options.topics)
                train(model, corpus, options.epochs, lr, momentum, options)
                topics, value = model.topics.cpu(), perplexity(model, test)
            top = topics.topk(25, -1).indices
            coherence, seconds = npmi(top[:, :10], reference).mean().item(), round(time.perf_counter() - start)
            print(f"| {name} | {label} | {coherence:.3f} | {topic_diversity(top):.2f} | {value:.0f} | {seconds} |")
            if options.words and corpus.vocabulary is not None:
                for row in top_words(top[:, :10], corpus.vocabulary):
                    print("  ", " ".join(row), flush=True)


if __name__ == "__main__":
    main()
