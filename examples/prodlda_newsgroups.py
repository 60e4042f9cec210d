"""ProdLDA on 20 Newsgroups beside scikit-learn's LDA: coherence of 50 topics, held-out perplexity, and the words.

Without a path the newsgroups come from scikit-learn, which downloads them once; --smoke reads, instead of them, the
descriptions of the data sets that scikit-learn bundles.
"""

import argparse

import numpy as np
import torch
from sklearn import datasets
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.feature_extraction.text import CountVectorizer

import pyrodgm
from pyrodgm.data import BagOfWords
from pyrodgm.evaluation import npmi, perplexity, top_words, topic_diversity
from pyrodgm.latent import ProdLDA

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--smoke", action="store_true", help="a few steps only, on bundled text")
parser.add_argument("--path", help="a text file instead, one document a line")
arguments = parser.parse_args()

# Data: counts of the 2000 most frequent words, as a sparse matrix from start to end; a tenth is held out.
if arguments.smoke:
    loaders = (datasets.load_iris, datasets.load_wine, datasets.load_diabetes, datasets.load_breast_cancer)
    documents = [line for loader in loaders for line in loader().DESCR.splitlines() if len(line.split()) > 3]
elif arguments.path:
    with open(arguments.path) as file:
        documents = file.read().splitlines()
else:
    documents = datasets.fetch_20newsgroups(remove=("headers", "footers", "quotes")).data
counter = CountVectorizer(max_features=2000, stop_words="english", min_df=2, token_pattern=r"[a-zA-Z]{3,}")
counts = counter.fit_transform(documents)
counts = counts[counts.sum(1).A1 > 0]
tenth = np.arange(counts.shape[0]) % 10 == 0
train, test = counts[~tenth], counts[tenth]
corpus, held_out = (BagOfWords.sparse(part, counter.get_feature_names_out()) for part in (train, test))
topics = 5 if arguments.smoke else 50

# Training: Adam with a high first momentum, as the paper advises.
torch.manual_seed(0)
model = ProdLDA(corpus.words, topics)
pyrodgm.fit(
    model,
    corpus,
    epochs=2 if arguments.smoke else 100,
    batch_size=200,
    optimizer=lambda p: torch.optim.Adam(p, lr=2e-3, betas=(0.99, 0.999)),
    progress=not arguments.smoke,
)
lda = LatentDirichletAllocation(topics, learning_method="online", max_iter=2 if arguments.smoke else 10, random_state=0)
lda.fit(train)

# Measures; the paper prints an NPMI of 0.24 for ProdLDA and 0.11 for variational LDA, on a reference corpus of its own.
for name, weights, value in (
    ("ProdLDA", model.topics, perplexity(model, held_out)),
    ("LDA", torch.as_tensor(lda.components_), lda.perplexity(test)),
):
    top = weights.topk(25, -1).indices
    coherence, diversity = npmi(top[:, :10], corpus).mean().item(), topic_diversity(top)
    print(f"{name}: NPMI {coherence:.3f}, diversity {diversity:.2f}, held-out perplexity {value:.0f} (a bound)")
for words in top_words(model.top_words(8), corpus.vocabulary)[:10]:
    print("  ", " ".join(words))
