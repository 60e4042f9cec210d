"""VQ-VAE: its bound is one term of the marginal, its gradient the straight-through one, its averages the paper's."""

import copy

import pytest
import torch
from cases import MODELS, all_binary, context_of, ready

import pyrodgm
from pyrodgm.latent import VAE, VQVAE, Codebook
from pyrodgm.latent.codebook import CodePrior
from pyrodgm.objectives import ELBO, VectorQuantization
from pyrodgm.tractable import MADE, CategoricalConditional


def model_and_rows(conditional=False):
    return ready(MODELS["VQVAE"], conditional), all_binary((5,))


def every_code(positions, codes):
    return torch.cartesian_prod(*[torch.arange(codes).double()] * positions)


def log_joint(model, x, context=None):
    """log p(x, z) for every vector of codes, (K^L, B)."""
    codes = every_code(2, 4)
    z = model.codebook.embed(codes).flatten(1)
    rows = []
    for c, embedding in zip(codes, z, strict=True):
        prior = model.code_prior.log_prob(c.expand(len(x), 2), context if model.code_prior.context else None)
        rows.append(prior + model.decode(embedding.expand(len(x), -1), context).log_prob(x))
    return torch.stack(rows)


@pytest.mark.parametrize("conditional", [False, True])
@torch.no_grad()
def test_bound_is_one_term_of_the_marginal(conditional):
    model, x = model_and_rows(conditional)
    context = context_of(conditional, len(x))
    terms = log_joint(model, x, context)
    codes = model.codes(x, context)
    which = (every_code(2, 4).unsqueeze(1) == codes).all(-1).double().argmax(0)  # (B,)
    bound = model.log_weights(x, context, particles=3)
    torch.testing.assert_close(bound, terms.gather(0, which[None]).expand(3, -1))
    assert bool((bound < terms.logsumexp(0)).all())


@torch.no_grad()
def test_prior_sums_to_one_over_embeddings_and_is_nothing_elsewhere():
    model, _ = model_and_rows()
    z = model.codebook.embed(every_code(2, 4)).flatten(1)
    torch.testing.assert_close(model.prior.log_prob(z).logsumexp(0), torch.zeros(()).double())
    assert bool((model.prior.log_prob(z + 0.01) == -torch.inf).all())
    draws = model.prior.sample(50)
    assert bool((draws[:, None] == z).all(-1).any(1).all())


def test_gradient_is_straight_through():
    """The encoder's gradient is that of the decoder at the embeddings, as if quantizing were the identity."""
    model, x = model_and_rows()
    model.train()
    objective = VectorQuantization(commitment=0.0)
    encoder = list(model.guide.encoder.parameters())
    model.codebook.revive_below = 0.0
    book = copy.deepcopy(model.codebook)
    found = torch.autograd.grad(objective.loss(model, x), encoder)
    assert not torch.equal(model.codebook.vectors, book.vectors)  # the averages moved
    vectors = model.guide.encode(x)
    z = model.codebook.embed(model.codebook.nearest(vectors)).flatten(1).requires_grad_()
    (to_z,) = torch.autograd.grad(-model.decode(z).log_prob(x).mean(), z)
    torch.testing.assert_close(found, torch.autograd.grad(vectors.flatten(1), encoder, to_z))


def test_commitment_pulls_vectors_to_their_codes():
    model, x = model_and_rows()  # in eval mode the codebook stands
    loss = VectorQuantization(0.7).loss(model, x) - VectorQuantization(0.0).loss(model, x)
    vectors = model.guide.encode(x)
    distance = torch.cdist(vectors.detach(), model.codebook.vectors).min(-1).values.square().sum(-1).mean()
    torch.testing.assert_close(loss.detach(), 0.7 * distance)
    parameters = list(model.guide.encoder.parameters())
    nearest = model.codebook.embed(model.codebook.nearest(vectors))
    expected = torch.autograd.grad(0.7 * (vectors - nearest).square().sum((1, 2)).mean(), parameters)
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), expected)


def test_averages_are_the_papers():
    """Two updates by hand, eq. 6-8 of the appendix."""
    torch.manual_seed(0)
    book = Codebook(3, 2, decay=0.9, revive_below=0.0).double()
    book.counts += 2.0
    book.sums.copy_(2 * book.vectors)
    counts, sums, vectors = book.counts.clone(), book.sums.clone(), book.vectors.clone()
    for seed in (1, 2):
        v = torch.randn(40, 2, generator=torch.Generator().manual_seed(seed)).double()
        chosen = torch.cdist(v, vectors).argmin(-1)
        for k in range(3):
            counts[k] = 0.9 * counts[k] + 0.1 * (chosen == k).sum()
            sums[k] = 0.9 * sums[k] + 0.1 * v[chosen == k].sum(0)
            vectors[k] = sums[k] / counts[k]
        book.update(v)
        torch.testing.assert_close(book.vectors, vectors)


def test_averages_converge_to_the_means_of_clusters():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]]).double()
    book = Codebook(3, 2, decay=0.95).double()
    for _ in range(500):
        v = (centres.unsqueeze(1) + 0.1 * torch.randn(3, 20, 2)).flatten(0, 1).double()
        book.update(v)
    order = torch.cdist(centres, book.vectors).argmin(-1)
    assert order.unique().numel() == 3
    # about 20 * 39 effective rows a cluster: a standard error of 0.1 / sqrt(780) = 0.004
    torch.testing.assert_close(book.vectors[order], centres, rtol=0, atol=0.02)


def test_dead_codes_take_the_place_of_vectors():
    torch.manual_seed(0)
    v = torch.randn(200, 2) + 50.0  # far away from where the codes start
    alive, left = Codebook(16, 2), Codebook(16, 2, revive_below=0.0)
    for _ in range(300):
        alive.update(v)
        left.update(v)
    assert alive.nearest(v).unique().numel() == 16
    assert left.nearest(v).unique().numel() == 1


def test_usage_counts_codes():
    model, x = model_and_rows()
    codes = model.codes(x).flatten().long()
    perplexity, share = model.usage(x)
    p = torch.bincount(codes, minlength=4) / len(codes)
    assert share == (p > 0).double().mean().item()
    assert perplexity == pytest.approx(torch.distributions.Categorical(p).entropy().exp().item(), rel=1e-5)


def test_two_stages_on_patterns(tmp_path):
    """Four equally likely patterns: reconstruction goes to 0, and the bound with the prior to log 4; resumed, too."""
    patterns = torch.tensor([[1.0, 1, 0, 0, 0, 1], [0, 0, 1, 1, 1, 0], [1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 1, 1]])
    x = patterns.repeat(32, 1)

    def build():
        torch.manual_seed(0)
        return VQVAE.mlp(6, 2, 4, 3, [32], code_prior=MADE(2, [16], conditional=CategoricalConditional(4)))

    options = {"batch_size": 32, "lr": 2e-2, "progress": False}
    model, again = build(), build()
    pyrodgm.fit(model, x, VectorQuantization(), epochs=40, **options)
    for epochs in (20, 40):
        pyrodgm.fit(again, x, VectorQuantization(), epochs=epochs, checkpoint=tmp_path, **options)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key  # the averages, too, go on bit-exactly
    pyrodgm.fit(model.code_prior, model.codes(x), epochs=60, **options)
    bound = model.log_weights(x).mean().item()
    # log 4 is the least that the four patterns cost; what is left is unfinished training
    assert -1.8 < bound < -1.386 + 1e-3


@torch.no_grad()
def test_elbo_is_the_bound():
    model, x = model_and_rows()
    torch.testing.assert_close(ELBO().loss(model, x), -model.log_weights(x).mean())


def test_mistakes_are_named():
    vae = VAE.mlp(5, 2, [4])
    with pytest.raises(TypeError, match="expected a VQVAE or VQVAE2, got VAE"):
        VectorQuantization().check(vae)
    with pytest.raises(ValueError, match="commitment >= 0"):
        VectorQuantization(-1.0)
    with pytest.raises(ValueError, match="decay"):
        Codebook(4, 2, decay=1.0)
    with pytest.raises(ValueError, match="codes >= 2"):
        Codebook(1, 2)
    with pytest.raises(ValueError, match=r"positions \* 3"):
        VQVAE(torch.nn.Linear(5, 6), vae.likelihood, Codebook(4, 3))
    with pytest.raises(ValueError, match="reads the codes off the data"):
        MODELS["VQVAE"].build().guide(n=3)
    assert CodePrior(MADE(2, [4], conditional=CategoricalConditional(4)), Codebook(4, 3)).event_shape == (6,)


def test_the_first_batch_lays_out_codes_apart():
    """As many vectors as codes: each becomes an embedding, which a draw with replacement would miss almost surely."""
    torch.manual_seed(0)
    book, vectors = Codebook(codes=32, size=3), torch.randn(4, 8, 3)
    book.update(vectors)
    assert book.nearest(vectors).unique().numel() == 32
    torch.testing.assert_close(book.embed(book.nearest(vectors)), vectors)


def test_many_vectors_are_compared_in_parts(monkeypatch):
    torch.manual_seed(0)
    book, vectors = Codebook(codes=8, size=3).double(), torch.randn(5, 7, 3).double()
    distances = (vectors.unsqueeze(-2) - book.vectors).square().sum(-1)
    whole = book.nearest(vectors)
    monkeypatch.setattr("pyrodgm.latent.codebook._DISTANCES_AT_ONCE", 16)
    assert torch.equal(book.nearest(vectors), whole)
    assert torch.equal(whole, distances.argmin(-1))


@torch.no_grad()
def test_embeddings_that_are_close_together_are_found_again():
    """1e-4 apart at a distance of 100 from the origin: float32's products round by more than their whole difference."""
    torch.manual_seed(0)
    book = Codebook(codes=8, size=4)
    book.vectors.copy_(50 + 1e-4 * torch.arange(8).unsqueeze(-1))
    prior = CodePrior(MADE(2, [8], conditional=CategoricalConditional(8)), book)
    codes = every_code(2, 8).float()
    z = book.embed(codes).flatten(1)
    assert not torch.equal(book.nearest(book.vectors), torch.arange(8))
    torch.testing.assert_close(prior.log_prob(z), prior.codes.log_prob(codes))
    model = VQVAE(torch.nn.Linear(6, 8), VAE.mlp(6, 8, [8]).likelihood, book, prior.codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert bool(prior.log_prob(z).isfinite().all())
        assert bool(model.log_weights(torch.rand(50, 6).round()).isfinite().all())


def test_nearest_is_in_the_books_precision_under_autocast():
    torch.manual_seed(0)
    book, vectors = Codebook(codes=64, size=3), torch.randn(500, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(book.nearest(vectors), torch.cdist(vectors, book.vectors).argmin(-1))


def test_a_code_that_nothing_chooses_stays_where_it_is():
    """However long: its count and its sums fall by half at each update, below the numbers that there are."""
    book = Codebook(2, 2, decay=0.5, revive_below=0.0)
    start = torch.tensor([[0.1, -0.3], [5.0, 5.0]])
    for buffer, value in ((book.vectors, start), (book.counts, torch.ones(2)), (book.sums, start)):
        buffer.copy_(value)
    for _ in range(200):
        book.update(torch.full((10, 2), 5.0))
        torch.testing.assert_close(book.vectors, start)


def test_the_prior_beside_the_codebook_moves_nothing_else():
    """The gradients of encoder and decoder are those without it; the prior's are of its own log-likelihood."""
    model, x = model_and_rows()
    torch.manual_seed(0)
    alone, both = VectorQuantization(), VectorQuantization(prior=True)
    rest = alone.players(model)["model"]
    prior = list(model.code_prior.parameters())
    model.eval()  # the averages stay where they are
    first = torch.autograd.grad(alone.loss(model, x), rest, materialize_grads=True)
    second = torch.autograd.grad(both.loss(model, x), [*rest, *prior], materialize_grads=True)
    torch.testing.assert_close(second[: len(first)], first)
    own = torch.autograd.grad(-model.code_prior.log_prob(model.codes(x)).mean(), prior)
    torch.testing.assert_close(second[len(first) :], own)
    torch.testing.assert_close(both.held_out(model, x), ELBO().held_out(model, x))
    assert isinstance(pyrodgm.objectives.default_objective(model), VectorQuantization)
