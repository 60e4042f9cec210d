"""Topic models: their densities by hand, the Laplace prior by autodiff, sparse data without a dense copy, measures."""

import math

import pytest
import torch
from cases import MODELS, grow, ready, rows
from scipy.sparse import random as random_sparse
from torch.nn import functional as F

import pyrodgm
from pyrodgm.data import BagOfWords
from pyrodgm.evaluation import npmi, perplexity, top_words, topic_diversity
from pyrodgm.latent import ETM, NVDM, ProdLDA
from pyrodgm.latent.topic import DirichletLaplace
from pyrodgm.nets.words import RowNorm


def corpus(documents=30, words=12, density=0.3, seed=0):
    matrix = random_sparse(documents, words, density, random_state=seed, format="csr")
    matrix.data = (1 + 3 * matrix.data).round()
    return matrix, BagOfWords.sparse(matrix)


def test_laplace_prior_is_the_curvature_at_the_mode():
    """In the softmax basis the mode of a Dirichlet is log alpha (centred); the Hessian there, on the plane of sum 0."""
    alpha = torch.tensor([0.7, 1.3, 2.0, 4.0]).double()
    prior = DirichletLaplace(alpha)

    def log_density(z):  # of z's part in the plane: the Jacobian of softmax adds one to each exponent
        return (alpha * z.log_softmax(-1)).sum()

    mode = prior.loc.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(mode), mode)
    torch.testing.assert_close(gradient, torch.zeros(4).double(), rtol=0, atol=1e-12)
    hessian = torch.autograd.functional.hessian(log_density, prior.loc)
    covariance = torch.linalg.pinv(-hessian)  # the plane's
    centre = torch.eye(4).double() - 0.25
    torch.testing.assert_close(covariance, centre @ torch.diag(1 / alpha) @ centre)
    torch.testing.assert_close(prior.condition().variance, covariance.diagonal())


@pytest.mark.parametrize("alpha", [[1.0], [1.0, 0.0], [1.0, torch.inf], [[1.0, 2.0]]], ids=str)
def test_concentrations_that_make_no_prior_are_refused(alpha):
    with pytest.raises(ValueError, match="positive concentrations of at least two topics"):
        DirichletLaplace(torch.tensor(alpha))


def test_whole_concentrations_are_taken_as_numbers():
    whole, real = DirichletLaplace(torch.tensor([1, 3])), DirichletLaplace(torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(whole.condition().base_dist.scale, real.condition().base_dist.scale)


def test_words_of_each_model_by_hand():
    z = torch.randn(5, 2).double()
    product, linear, embedded = (ready(MODELS[name]) for name in ("ProdLDA", "NVDM", "ETM"))
    net = product.likelihood.net
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    logits = (z.softmax(-1) @ net.weights.weight.T - net.norm.running_mean) / (
        net.norm.running_var + net.norm.eps
    ).sqrt()
    corners = 1e3 * torch.eye(2).double()  # theta is all on one topic
    expected = (product.topics + net.norm.offset).log_softmax(-1)
    torch.testing.assert_close(product.decode(corners).log_probs, expected)
    logits = logits + net.norm.offset
    torch.testing.assert_close(product.decode(z).log_probs, logits.log_softmax(-1))
    logits = z @ linear.topics + linear.likelihood.net.weights.bias
    torch.testing.assert_close(linear.decode(z).log_probs, logits.log_softmax(-1))
    torch.testing.assert_close(embedded.decode(z).log_probs.exp(), z.softmax(-1) @ embedded.topics.exp())
    torch.testing.assert_close(embedded.topics.exp().sum(-1), torch.ones(2).double())
    x = torch.tensor([[0.0, 2, 0, 1, 0, 0, 4]]).double()
    torch.testing.assert_close(linear.decode(z).log_prob(x), (x * linear.decode(z).log_probs).sum(-1))


def test_given_embeddings_stay():
    rho = torch.randn(12, 3)
    model = ETM(12, 2, [8], embeddings=rho)
    assert not any(p.shape == rho.shape for p in model.parameters())
    torch.testing.assert_close(model.topics, F.log_softmax((rho @ model.likelihood.net.alpha.weight.T).T, -1).detach())
    with pytest.raises(ValueError, match=r"expected embeddings of shape \(12, E\)"):
        ETM(12, 2, [8], embeddings=rho[:5])


def test_given_embeddings_of_another_precision():
    """Vectors from a file in float64: the model has them in its own floating type, and trains."""
    rho = torch.randn(12, 3).double()
    model = ETM(12, 2, [8], embeddings=rho)
    assert torch.equal(model.likelihood.net.rho, rho.float())
    x = torch.randint(0, 5, (20, 12)).float()
    pyrodgm.fit(model, x, steps=2, progress=False)
    assert model.dtype == model.topics.dtype == torch.float32
    assert torch.equal(ETM(12, 2, [8], embeddings=rho).double().likelihood.net.rho, rho.float().double())


@pytest.mark.parametrize("build", [ProdLDA, NVDM, ETM])
def test_documents_are_as_long_as_asked(build):
    x = build(9, 2, [4], length=17).sample(20)
    assert x.sum(-1).tolist() == [17] * 20


def test_the_concentration_of_a_prodlda_is_that_of_every_topic():
    """(1 - 2 / K) / alpha + 1 / (K alpha): the prior's variances are as 1 / alpha."""
    for alpha in (0.02, 1.0, 5.0):
        prior = ProdLDA(7, 4, [4], concentration=alpha).prior.condition()
        torch.testing.assert_close(prior.variance, torch.full((4,), 0.75 / alpha))
        torch.testing.assert_close(prior.mean, torch.zeros(4))


def test_the_dropout_of_a_prodlda_is_of_its_encoder_and_its_proportions():
    torch.manual_seed(0)
    x, z = torch.randint(0, 5, (20, 7)).float(), torch.randn(20, 2)

    def repeat(model):
        return [torch.equal(*(part() for _ in range(2))) for part in (
            lambda: model.posterior(x).mean, lambda: model.decode(z).log_probs)]  # fmt: skip

    assert repeat(ProdLDA(7, 2, [8], dropout=0.0).train()) == [True, True]
    assert repeat(ProdLDA(7, 2, [8], dropout=0.5).train()) == [False, False]
    assert repeat(ProdLDA(7, 2, [8], dropout=0.5).eval()) == [True, True]


def test_top_words_are_the_highest_in_their_order():
    model = ready(MODELS["NVDM"])
    names = [f"word {i}" for i in range(7)]
    ranked = [sorted(names, key=lambda name, row=row: -row[names.index(name)]) for row in model.topics.tolist()]
    for n in (1, 3, 7):
        assert top_words(model.top_words(n), names) == [row[:n] for row in ranked]


def test_rows_of_the_encoder_by_their_shares():
    model = ready(MODELS["ETM"])
    x = rows(MODELS["ETM"], model, 4)
    q, many = model.posterior(x), model.posterior(3 * x)
    torch.testing.assert_close(q.mean, many.mean)  # a document three times over has the same topics


def test_row_norm_is_over_all_leading_dimensions():
    torch.manual_seed(0)
    norm, x = RowNorm(3).double(), torch.randn(4, 5, 3).double()
    flat = x.reshape(-1, 3)
    torch.testing.assert_close(
        norm(x).reshape(-1, 3), (flat - flat.mean(0)) / (flat.var(0, correction=0) + 1e-3).sqrt()
    )
    assert bool(norm(x[0, :1]).isfinite().all())  # a last batch of one row
    state = norm.running_mean.clone()
    norm(x[0, :1])
    assert torch.equal(norm.running_mean, state)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_sparse_forms_agree():
    matrix, bag = corpus()
    dense = torch.as_tensor(matrix.toarray()).float()
    assert torch.equal(bag.dense(torch.arange(30)), dense)
    assert torch.equal(torch.stack([bag[i] for i in range(30)]), dense)
    assert torch.equal(torch.stack(bag.__getitems__([7, 3, 3])), dense[[7, 3, 3]])
    for other in (dense.to_sparse_csr(), dense.to_sparse_coo()):
        assert torch.equal(BagOfWords.sparse(other).dense(range(30)), dense)
    words = torch.tensor([5, 0, 11])
    assert torch.equal(bag.occurs(words), dense[:, words] > 0)
    assert bag.total == dense.sum().item()


def test_documents_count_from_the_end_as_in_a_list():
    _, bag = corpus()
    assert torch.equal(bag[-1], bag[29])
    assert torch.equal(bag.dense([-30, 3, -2]), bag.dense([0, 3, 28]))
    assert len(list(bag)) == 30
    for wrong in (30, -31):
        with pytest.raises(IndexError, match=rf"in -30 \.\. 29, got {wrong}"):
            bag[wrong]


def test_a_word_that_a_document_names_twice_counts_both_times():
    corpus = BagOfWords([0, 3, 3], [1, 0, 1], [2, 1, 3], words=3)
    assert corpus.dense([0, 1]).tolist() == [[1, 5, 0], [0, 0, 0]]
    assert corpus.total == 6
    assert corpus.occurs(torch.tensor([1, 2])).tolist() == [[True, False], [False, False]]


def test_a_wide_corpus_stays_sparse():
    """50 documents of 3 million words would be 600 MB; what is kept are the words that occur."""
    documents, words = 50, 3_000_000
    indices = torch.randint(words, (documents * 4,))
    bag = BagOfWords(torch.arange(0, documents * 4 + 1, 4), indices, torch.ones(documents * 4), words)
    assert bag.dense([0]).sum() == 4
    assert sum(t.numel() for t in (bag.indptr, bag.indices, bag.counts)) < 1000


class Recorded(BagOfWords):
    """Notes how many documents are made dense at once."""

    def dense(self, index):
        self.__dict__.setdefault("asked", []).append(len(torch.as_tensor(index).reshape(-1)))
        return super().dense(index)


@pytest.mark.parametrize("build", [ProdLDA, NVDM, ETM])
def test_fit_never_asks_for_more_than_a_batch(build):
    """Neither for the checks of the data, nor for the start, the epochs, the held-out score; and it keeps none."""
    read = []
    for epochs in (1, 3):
        bags = documents, held_out = [Recorded.sparse(corpus(n, seed=n)[0]) for n in (60, 20)]
        pyrodgm.fit(build(12, 2, [4, 4]), documents, validate=held_out, epochs=epochs, batch_size=7, progress=False)
        assert max(max(bag.asked) for bag in bags) <= 7
        read.append([sum(bag.asked) for bag in bags])
    (documents_once, held_out_once), thrice = read
    assert thrice == [documents_once + 2 * 60, held_out_once + 2 * 20]  # every epoch reads them anew
    documents.asked.clear()
    perplexity(build(12, 2, [4, 4]), documents, particles=2, batch_size=7)
    assert max(documents.asked) <= 7


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([0, 2], [0], [1], 3), "expected indptr"),
        (([0, 1], [3], [1], 3), "numbers of words in 0 .. 2"),
        (([0, 1], [0], [1], 3, ["a"]), "vocabulary of 3 words"),
    ],
)
def test_arrays_that_do_not_fit(arguments, match):
    with pytest.raises(ValueError, match=match):
        BagOfWords(*arguments)
    with pytest.raises(TypeError, match="sparse"):
        BagOfWords.sparse(torch.eye(3))


def test_npmi_by_counting():
    matrix, bag = corpus(60, 8, 0.5)
    has = matrix.toarray() > 0
    top = torch.tensor([[0, 1, 2], [5, 3, 7]])
    expected = []
    for topic in top.tolist():
        values = []
        for i, a in enumerate(topic):
            for b in topic[i + 1 :]:
                joint = (has[:, a] & has[:, b]).mean()
                pmi = math.log(joint / has[:, a].mean() / has[:, b].mean())
                values.append(pmi / -math.log(joint))
        expected.append(sum(values) / 3)
    assert npmi(top, bag).tolist() == pytest.approx(expected, rel=1e-5)
    assert topic_diversity(top) == 1.0
    with pytest.raises(ValueError, match="n >= 2"):
        npmi(top[:, :1], bag)


def test_npmi_of_words_that_know_nothing_of_each_other_is_near_zero():
    generator = torch.Generator().manual_seed(0)
    dense = (torch.rand(20_000, 4, generator=generator) < 0.3).float()
    found = npmi(torch.tensor([[0, 1], [2, 3]]), BagOfWords.sparse(dense.to_sparse_coo()))
    # pmi has a standard error of about sqrt((1 - p)^2 / p^2 / N) = 0.017, over -log 0.09 = 2.4
    assert bool((found.abs() < 5 * 0.017 / 2.4).all())


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    _, bag = corpus()
    model = NVDM(12, 2, [4])
    for p in model.parameters():
        torch.nn.init.zeros_(p)  # the guide is the prior, the words are uniform
    assert perplexity(model, bag) == pytest.approx(12, rel=1e-5)


@pytest.mark.parametrize("build", [ProdLDA, NVDM, ETM])
def test_two_blocks_of_words_become_two_topics(build):
    """Documents of words 0-5 or 6-11: after training, the perplexity of 12 comes well on its way to 6."""
    torch.manual_seed(0)
    which = torch.arange(200) % 2
    words = torch.randint(6, (200, 80)) + 6 * which.unsqueeze(-1)
    dense = F.one_hot(words, 12).sum(1).float()
    bag = BagOfWords.sparse(dense.to_sparse_coo())
    model = grow(build(12, 2, [16, 16]), 0.05)
    optimizer = lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.95, 0.999))  # noqa: E731
    pyrodgm.fit(model, bag, epochs=100, batch_size=100, optimizer=optimizer, progress=False)
    # ProdLDA's batch norm keeps the logits at a variance of 1: 6 (1 + e^-2) = 6.8 at best; a guide of spread topics
    # comes to half way between that and 12
    assert 6 <= perplexity(model, bag) < 9
    assert sorted(sorted(row) for row in (model.top_words(6) // 6).tolist()) == [[0] * 6, [1] * 6]
