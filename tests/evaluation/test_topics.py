"""Perplexity: particles in parts weigh as they do at once."""

import math

import pytest
import torch

from pyrodgm.data import BagOfWords
from pyrodgm.evaluation import likelihood, perplexity
from pyrodgm.latent import NVDM


def test_particles_come_in_parts_and_count_alike(monkeypatch):
    corpus = BagOfWords([0, 2, 3], [0, 2, 1], [3, 1, 1], words=4)  # five words in two documents
    model, seen = NVDM(words=4, topics=2), []

    def weights(x, context=None, *, particles):
        """log 1, log 2, ... in turn, whatever the document."""
        first = sum(seen) + 1
        seen.append(particles)
        return torch.arange(first, first + particles).log().unsqueeze(-1).expand(-1, len(x))

    monkeypatch.setattr(model, "log_weights", weights)
    monkeypatch.setattr(likelihood, "_ELEMENTS_AT_ONCE", 3 * 2 * 512)  # 512: what a row counts at least
    found = perplexity(model, corpus, particles=10)
    assert seen == [3, 3, 3, 1]
    assert found == pytest.approx(math.exp(-2 * math.log(5.5) / 5))  # 5.5: the mean of 1 to 10


def test_no_particle_is_refused():
    with pytest.raises(ValueError, match="particles >= 1"):
        perplexity(NVDM(words=4, topics=2), BagOfWords([0, 1], [0], [1], words=4), particles=0)
