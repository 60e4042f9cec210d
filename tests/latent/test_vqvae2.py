"""VQ-VAE-2: a prior that sums to one over pairs of codes, a bound by hand, straight-through twice, two codebooks."""

import copy
import math

import pyro.distributions as dist
import pytest
import torch
from cases import assert_means_agree
from torch import nn

import pyrodgm
from pyrodgm.distributions import Codes, DiscretizedLogistic
from pyrodgm.latent import VAE, VQVAE2, Codebook
from pyrodgm.objectives import ELBO, VectorQuantization, default_objective
from pyrodgm.tractable import MADE, CategoricalConditional, Parametric

C = 2  # context
POSITIONS, K, SIZE = (2, 3), 4, 2
PRIORS = {"default": lambda context: (None, None), "MADE": lambda context: mades(context)}


def mades(context=0):
    top = MADE(POSITIONS[0], [16], conditional=CategoricalConditional(K), context=context)
    given = POSITIONS[0] * SIZE + context
    return top, MADE(POSITIONS[1], [16], conditional=CategoricalConditional(K), context=given)


def tiny(priors="MADE", context=0, features=6):
    """Parameters and codebooks large enough that rows differ in codes of both levels, in float64 and eval mode."""
    torch.manual_seed(7)
    model = VQVAE2.mlp(features, POSITIONS, K, SIZE, [16], context, priors=PRIORS[priors](context)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn(p.shape, dtype=p.dtype))
    x = torch.randint(0, 2, (60, features)).double()
    given = torch.randn(60, C).double() if context else None
    with torch.no_grad():  # the first batch lays the codes out among the vectors
        model.guide.levels(x, given, learn=True)
    return model.eval(), x, given


def every(positions, codes=K):
    return torch.cartesian_prod(*[torch.arange(codes).double()] * positions).reshape(-1, positions)


def every_pair():
    """All codes of both levels: (K^5, 2) and (K^5, 3)."""
    top, bottom = every(POSITIONS[0]), every(POSITIONS[1])
    return top.repeat_interleave(len(bottom), 0), bottom.repeat(len(top), 1)


def embedded(model, top, bottom):
    above, below = model.codebooks
    return torch.cat((above.embed(top).flatten(1), below.embed(bottom).flatten(1)), 1)


@torch.no_grad()
def check_the_prior_sums_to_one(priors="MADE", context=0):
    model, _, given = tiny(priors, context)
    top, bottom = every_pair()
    z = embedded(model, top, bottom)
    for c in (None,) if given is None else given[:3]:
        log_prob = model.prior.log_prob(z, None if c is None else c.expand(len(z), C))
        torch.testing.assert_close(log_prob.logsumexp(0), torch.zeros(()).double())
        of_top = model.top_prior.log_prob(top, None if c is None else c.expand(len(z), C))
        below = model.bottom_context(top, None if c is None else c.expand(len(z), C))
        torch.testing.assert_close(log_prob, of_top + model.bottom_prior.log_prob(bottom, below))
    for part in (slice(0, 4), slice(4, 10)):  # beside a code of the top, and of the bottom
        off = z.clone()
        off[:, part] += 0.01
        assert bool((model.prior.condition(None if given is None else given[0]).log_prob(off) == -torch.inf).all())


@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("priors", PRIORS)
def test_the_prior_sums_to_one_over_pairs_of_codes(priors, context):
    check_the_prior_sums_to_one(priors, context)


@pytest.mark.parametrize("context", [0, C])
@torch.no_grad()
def test_draws_have_the_priors_frequencies(context):
    """Of single codes and of pairs of one of the top and one of the bottom, which are dependent."""
    model, _, given = tiny("MADE", context)
    c = None if given is None else given[:1]
    z = model.prior.sample(4000, c).reshape(4000, -1)
    top, bottom = every_pair()
    points = embedded(model, top, bottom)
    p = model.prior.log_prob(points, None if c is None else c.expand(len(points), C)).exp()
    books = model.codebooks
    drawn = [books[0].find(z[:, :4].reshape(-1, 2, SIZE)), books[1].find(z[:, 4:].reshape(-1, 3, SIZE))]
    assert torch.equal(embedded(model, *drawn), z)
    dependent = 0.0
    for i in range(POSITIONS[0]):
        for j in range(POSITIONS[1]):
            pair = (K * top[:, i] + bottom[:, j]).long()
            expected = torch.zeros(K * K).double().index_add_(0, pair, p)
            found = nn.functional.one_hot(K * drawn[0][:, i] + drawn[1][:, j], K * K).double().mean(0)
            often = expected > 1e-3  # a few draws at least, whose number is then about normal
            error = (expected * (1 - expected) / len(z)).sqrt()
            assert_means_agree(found[often], error[often], expected[often])
            table = expected.reshape(K, K)
            dependent += (table - table.sum(1, keepdim=True) * table.sum(0)).abs().sum().item()
    assert dependent > 0.1


@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("priors", PRIORS)
@torch.no_grad()
def test_the_bound_is_the_three_terms(priors, context):
    """log p(x | z) + log p(top) + log p(bottom | top) at the guide's z, which is one term of the exact sum."""
    model, x, given = tiny(priors, context, features=5)
    top, bottom = model.codes(x, given)
    assert len(top.unique(dim=0)) > 2
    assert len(bottom.unique(dim=0)) > 2
    z = embedded(model, top, bottom)
    assert torch.equal(model.posterior(x, given).sample(), z)
    seen = z if given is None else torch.cat((z, given), 1)
    terms = [model.likelihood.log_prob(x, seen), model.top_prior.log_prob(top, given)]
    terms.append(model.bottom_prior.log_prob(bottom, model.bottom_context(top, given)))
    bound = model.log_weights(x, given, particles=2)
    torch.testing.assert_close(bound, sum(terms).expand(2, -1))
    torch.testing.assert_close(ELBO().loss(model, x, given), -sum(terms).mean())
    held_out = VectorQuantization(prior=True).held_out(model, x, given)
    torch.testing.assert_close(held_out, -sum(terms).mean())
    torch.testing.assert_close(VectorQuantization().held_out(model, x, given), -terms[0].mean())
    points = embedded(model, *every_pair())
    rows = slice(0, 4)
    joint = [
        model.prior.log_prob(points, None if given is None else c.expand(len(points), C))
        + model.decode(points, None if given is None else c.expand(len(points), C)).log_prob(row.expand(len(points), 5))
        for row, c in zip(x[rows], x[rows] if given is None else given[rows], strict=True)
    ]
    assert bool((bound[0, rows] < torch.stack(joint).logsumexp(1)).all())


def check_straight_through():
    """The chain rule by hand, where quantizing is the identity: the top's vectors work by way of the bottom's, too."""
    model, x, _ = tiny()
    beta, guide, books = 0.3, model.guide, model.codebooks
    found = torch.autograd.grad(VectorQuantization(beta).loss(model, x), list(guide.parameters()))

    features = guide.features(x)
    above = guide.top(features).unflatten(-1, (-1, SIZE))
    e_top = books[0].embed(books[0].nearest(above)).flatten(1).requires_grad_()
    below = guide.bottom(torch.cat((features, e_top), 1)).unflatten(-1, (-1, SIZE))
    e_bottom = books[1].embed(books[1].nearest(below)).flatten(1).requires_grad_()
    loss = -model.decode(torch.cat((e_top, e_bottom), 1)).log_prob(x).mean()
    to_top, to_bottom = torch.autograd.grad(loss, (e_top, e_bottom))
    to_bottom = to_bottom + 2 * beta * (below.flatten(1) - e_bottom).detach() / len(x)
    more = torch.autograd.grad(below.flatten(1), e_top, to_bottom, retain_graph=True)[0]
    to_top = to_top + more + 2 * beta * (above.flatten(1) - e_top).detach() / len(x)
    assert more.abs().max() > 1e-6
    expected = torch.autograd.grad(
        (above.flatten(1), below.flatten(1)), list(guide.parameters()), (to_top, to_bottom), materialize_grads=True
    )
    torch.testing.assert_close(found, expected)


def test_gradient_is_straight_through_at_both_levels():
    check_straight_through()


def test_the_priors_beside_the_codebooks_move_nothing_else():
    model, x, _ = tiny()
    alone, both = VectorQuantization(), VectorQuantization(prior=True)
    rest, priors = alone.players(model)["model"], list(model.prior.parameters())
    assert {id(p) for p in [*rest, *priors]} == {id(p) for p in model.parameters()}
    assert len(rest) + len(priors) == len(list(model.parameters()))
    first = torch.autograd.grad(alone.loss(model, x), rest)
    second = torch.autograd.grad(both.loss(model, x), [*rest, *priors], allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(second[: len(rest)], first)
    top, bottom = model.codes(x)
    own = model.top_prior.log_prob(top) + model.bottom_prior.log_prob(bottom, model.bottom_context(top))
    expected = torch.autograd.grad(-own.mean(), priors, materialize_grads=True)
    torch.testing.assert_close(second[len(rest) :], expected)
    assert isinstance(default_objective(model), VectorQuantization)
    z = model.guide(x)
    assert z.requires_grad
    log_prob = model.prior.log_prob(z).sum()
    assert torch.autograd.grad(log_prob, z, allow_unused=True) == (None,)  # a probability of codes


def check_both_books_move():
    """In train mode alone; each as if its vectors had been its only batch, the bottom's of the top as it is by then."""
    model, x, _ = tiny()
    before = [copy.deepcopy(book) for book in model.codebooks]
    objective = VectorQuantization()
    objective.loss(model, x)
    for book, old in zip(model.codebooks, before, strict=True):
        assert torch.equal(book.vectors, old.vectors)
        book.revive_below = old.revive_below = 0.0
        book.decay = old.decay = 0.5
    model.train()
    objective.loss(model, x)
    top, bottom = model.guide.levels(x)
    for book, old, level in zip(model.codebooks, before, (top, bottom), strict=True):
        old.update(level.vectors)
        torch.testing.assert_close(book.vectors, old.vectors)


def test_both_books_move_by_their_own_vectors():
    check_both_books_move()


def test_dead_codes_of_both_levels_revive():
    model, x, _ = tiny()
    with torch.no_grad():
        for book in model.codebooks:  # one takes all, the others are far away and little used
            book.vectors[1:] = 1e3 + torch.arange(K - 1).double().unsqueeze(1)
            book.counts.fill_(0.01)
    model.train()
    assert [usage[1] for usage in model.usage(x)] == [1 / K, 1 / K]
    for _ in range(30):
        VectorQuantization().loss(model, x)
    assert [usage[1] for usage in model.usage(x)] == [1.0, 1.0]
    assert all(usage[0] > 2 for usage in model.usage(x))


def test_many_rows_are_encoded_in_batches(monkeypatch):
    model, x, given = tiny("MADE", C)
    whole = model.codes(x, given)
    monkeypatch.setattr("pyrodgm.latent.quantized._NUMBERS_AT_ONCE", 45)  # seven rows of six
    for part, codes in zip(model.codes(x, given), whole, strict=True):
        assert torch.equal(part, codes)
    assert [len(codes) for codes in model.codes(x[:0], given[:0])] == [0, 0]


@torch.no_grad()
def test_bottom_codes_depend_on_the_top():
    """Of the same features: with the top's embeddings changed, the bottom is another, in the guide and in the prior."""
    model, x, _ = tiny()
    top, bottom = model.codes(x)
    features = model.guide.features(x)
    other = model.codebooks[0].embed((top.long() + 1) % K).flatten(1)
    vectors = model.guide.bottom(torch.cat((features, other), 1)).unflatten(-1, (-1, SIZE))
    assert bool((model.codebooks[1].nearest(vectors) != bottom).any())
    scores = model.bottom_prior.log_prob(bottom[:1].expand(K**2, -1), model.bottom_context(every(2)))
    assert scores.std() > 1e-3


def test_two_stages_on_patterns(tmp_path):
    """Four equally likely patterns: the bound comes to log 4, by the two stages of the docstring; resumed, too."""
    patterns = torch.tensor([[1.0, 1, 0, 0, 0, 1], [0, 0, 1, 1, 1, 0], [1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 1, 1]])
    x = patterns.repeat(32, 1)

    def build():
        torch.manual_seed(0)
        return VQVAE2.mlp(6, POSITIONS, K, SIZE, [32], priors=mades())

    options = {"batch_size": 32, "lr": 2e-2, "progress": False}
    model, again = build(), build()
    pyrodgm.fit(model, x, VectorQuantization(), epochs=40, **options)
    for epochs in (20, 40):
        pyrodgm.fit(again, x, VectorQuantization(), epochs=epochs, checkpoint=tmp_path, **options)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key  # the averages, too, go on bit-exactly
    top, bottom = model.codes(x)
    pyrodgm.fit(model.top_prior, top, epochs=60, **options)
    pyrodgm.fit(model.bottom_prior, (bottom, model.bottom_context(top)), epochs=60, **options)
    bound = model.log_weights(x).mean().item()
    # log 4 is the least that the four patterns cost; what is left is unfinished training
    assert -1.8 < bound < -math.log(4) + 1e-3
    draws = model.sample(200)
    assert (draws.unsqueeze(1) == patterns).all(-1).any(1).double().mean() > 0.8


@pytest.mark.parametrize("context", [0, C])
def test_saved_and_loaded(tmp_path, context):
    """The parts that guide, prior and model share are one again."""
    model, x, given = tiny("MADE", context)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = VQVAE2.mlp(6, POSITIONS, K, SIZE, [16], context, priors=mades(context)).double().eval()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for again in (other, copy.deepcopy(model)):
        torch.testing.assert_close(again.log_weights(x, given), model.log_weights(x, given))
        for mine, of_prior in zip(again.guide.books, again.prior.books, strict=True):
            assert mine is of_prior


def test_context_changes_every_part():
    model, x, given = tiny("default", C)
    other = given + 1.0
    assert model.prior.context == C
    z = model.posterior(x, given).sample()
    top, bottom = model.codes(x, given)
    assert any(not torch.equal(a, b) for a, b in zip(model.codes(x, other), (top, bottom), strict=True))
    for score in (
        lambda c: model.decode(z, c).log_prob(x),
        lambda c: model.top_prior.log_prob(top, c),
        lambda c: model.bottom_prior.log_prob(bottom, model.bottom_context(top, c)),
    ):
        assert bool((score(given) - score(other)).abs().max() > 1e-3)
    with pytest.raises(ValueError, match="expected context"):
        model.codes(x)


@torch.no_grad()
def test_priors_may_leave_the_context_out():
    model, x, given = tiny("default", C)
    top, bottom = mades()
    parts = model.guide.features, model.guide.top, model.guide.bottom
    plain = VQVAE2(parts, model.likelihood, model.codebooks, POSITIONS, (top.double(), bottom.double()), C).eval()
    assert plain.prior.context == 0
    codes = plain.codes(x, given)
    torch.testing.assert_close(plain.bottom_context(codes[0], given), plain.bottom_context(codes[0]))
    mixed = VQVAE2(parts, model.likelihood, model.codebooks, POSITIONS, (top, None), C).double().eval()
    assert mixed.prior.context == C
    for again in (plain, mixed):
        assert again.log_weights(x, given, particles=2).isfinite().all()
        assert again.sample(3, given).shape == (3, 60, 6)


# images


SMALL = {"codes": 5, "size": 3, "channels": 8, "blocks": 1}


@pytest.mark.parametrize(
    ("shape", "halvings", "places"),
    [((1, 28, 28), 2, (16, 49)), ((3, 16, 8), 2, (2, 8)), ((2, 5, 7), 1, (4, 12)), ((1, 8, 8), 1, (4, 16))],
)
@pytest.mark.parametrize("context", [0, C])
def test_images_of_any_size(shape, halvings, places, context):
    model = VQVAE2.conv(shape, halvings=halvings, context=context, **SMALL)
    x, given = torch.randint(0, 2, (4, *shape)).float(), torch.randn(4, C) if context else None
    top, bottom = model.codes(x, given)
    assert (top.shape[1], bottom.shape[1]) == places
    assert model.log_weights(x, given, particles=3).shape == (3, 4)
    assert model.reconstruct(x, given).shape == x.shape
    assert model.sample(2, given).shape == ((2, 4, *shape) if context else (2, *shape))
    mask = torch.rand(shape) < 0.5
    assert torch.equal(model.complete(x, mask, given, steps=1)[:, mask], x[:, mask])


FAMILIES = {
    "Bernoulli": (dist.Bernoulli, None, 1),
    "normal": (dist.Normal, None, 2),
    "normal of fixed scale": (dist.Normal, {"scale": 0.1}, 1),
    "logistic of 256 levels": (DiscretizedLogistic, {"levels": 256}, 2),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_pixels(name):
    """With a plane of each parameter for each channel; all train at once."""
    family, fixed, planes = FAMILIES[name]
    torch.manual_seed(0)
    model = VQVAE2.conv((3, 8, 8), family=family, fixed=fixed, halvings=1, **SMALL)
    assert model.likelihood.net.output.channels == 3 * planes
    x = (torch.rand(64, 3, 8, 8) * 255).round() / 255
    x = x.round() if family is dist.Bernoulli else x
    before = model.log_weights(x).mean()
    pyrodgm.fit(model, x, epochs=15, batch_size=16, lr=5e-3, progress=False)
    assert model.log_weights(x).mean() > before


@pytest.mark.parametrize("shape", [(1, 64, 32), (2, 32, 64)])
@torch.no_grad()
def test_a_code_stands_where_its_pixels_are(shape):
    """A pixel moves no vector far from it, and a code no pixel far from it: rows and columns keep their order."""
    torch.manual_seed(0)
    model = VQVAE2.conv(shape, codes=5, size=3, channels=8, blocks=0).double().eval()
    bottom, top = [(shape[1] // n, shape[2] // n) for n in (4, 8)]

    def moved(before, after, spot, reach):
        """Whether some places differ, and none farther than ``reach`` from the spot."""
        places = (before != after).nonzero().double()
        return len(places) > 0 and bool(((places - torch.tensor(spot).double()).abs() <= reach).all())

    x = torch.rand(1, *shape).double()
    z = torch.zeros(1, math.prod(top) + math.prod(bottom), 3).double()
    seen = model.decode(z.flatten(1)).mean[0]
    for row, column in ((0, 0), (bottom[0] - 1, 0), (0, bottom[1] - 1), (bottom[0] // 2, bottom[1] // 2)):
        pixels, code, above = x.clone(), z.clone(), z.clone()
        pixels[..., 4 * row + 1, 4 * column + 1] += 1.0
        vectors = [model.guide.features(v.flatten(1)).reshape(*bottom, -1).sum(-1) for v in (x, pixels)]
        assert moved(*vectors, (row, column), 2)  # two strides and a 3x3 convolution
        code[:, math.prod(top) + row * bottom[1] + column] = 3.0
        drawn = model.decode(code.flatten(1)).mean[0]
        # a 3x3 convolution and two doublings: 4 q - 7, ..., 4 q + 10
        assert moved(seen.sum(0), drawn.sum(0), (4 * row + 1.5, 4 * column + 1.5), 8.5)
        above[:, row // 2 * top[1] + column // 2] = 3.0
        drawn = model.decode(above.flatten(1)).mean[0]
        # the doubling before these: 8 r - 11, ..., 8 r + 18
        assert moved(seen.sum(0), drawn.sum(0), (row // 2 * 8 + 3.5, column // 2 * 8 + 3.5), 14.5)


MISTAKES = {
    "one codebook": (
        lambda: built(codebooks=(Codebook(K, SIZE),)),
        "two codebooks, of the top and of the bottom, got 1",
    ),
    "three levels": (lambda: built(positions=(1, 2, 3)), "two numbers of positions.*got 3"),
    "one prior": (lambda: built(priors=(mades()[0],)), "two priors.*got 1"),
    "two networks": (lambda: built(encoder=[nn.Linear(6, 5), nn.Linear(5, 4)]), "three modules .*got 2"),
    "a likelihood of one level": (
        lambda: built(likelihood=Parametric(dist.Bernoulli, 6, context=4)),
        r"context of 2 \* 2 \+ 3 \* 2 \(the embeddings of both levels\) \+ 0, and positions >= 1, got 4",
    ),
    "no positions": (lambda: built(positions=(5, 0)), "positions >= 1"),
    "codes of the top prior": (lambda: built(priors=(made(2, 5), None)), r"top prior over 2 codes of 0, \.\.\., 3"),
    "positions of the bottom prior": (
        lambda: built(priors=(None, made(2, K, 4))),
        r"bottom prior over 3 codes of 0, \.\.\., 3, got event shape \(2,\)",
    ),
    "a bottom prior that knows no top": (
        lambda: built(priors=(None, made(3, K))),
        r"bottom prior with context=4 \(the top's embeddings\) or 4 .*got 0",
    ),
    "a top prior of a context": (lambda: built(priors=(made(2, K, 1), None)), "top prior with context 0 or 0, got 1"),
    "too few vectors of the top": (
        lambda: built(encoder=[nn.Linear(6, 5), nn.Linear(5, 2), nn.Linear(7, 6)]).codes(torch.ones(1, 6)),
        r"top encoder of 2 \* 2 numbers \(positions by embedding\), got 2",
    ),
    "too many vectors of the bottom": (
        lambda: built(encoder=[nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(9, 8)]).codes(torch.ones(1, 6)),
        r"bottom encoder of 3 \* 2 numbers",
    ),
    "no hidden layer": (lambda: VQVAE2.mlp(6, hidden=[]), "one hidden layer or more, got none"),
    "no image": (lambda: VQVAE2.conv((28, 28)), r"\(C, H, W\) and halvings >= 1, got \(28, 28\)"),
    "no halving": (lambda: VQVAE2.conv((1, 8, 8), halvings=0), "halvings >= 1"),
    "no data": (lambda: VQVAE2.mlp(6).guide(n=3), "reads the codes off the data"),
}


def made(positions, codes, context=0):
    return MADE(positions, [4], conditional=CategoricalConditional(codes), context=context)


def built(**parts):
    return VQVAE2(**{
        "encoder": [nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(9, 6)],
        "likelihood": Parametric(dist.Bernoulli, 6, context=10),
        "codebooks": (Codebook(K, SIZE), Codebook(K, SIZE)),
        "positions": POSITIONS,
    } | parts)  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    attempt, match = MISTAKES[name]
    with pytest.raises(ValueError, match=match):
        attempt()


def test_what_fits_is_taken():
    model = built(priors=(made(2, K), made(3, K, 4)))
    assert model.log_weights(torch.ones(4, 6)).isfinite().all()
    with pytest.raises(TypeError, match="expected a VQVAE or VQVAE2, got VAE"):
        VectorQuantization().check(VAE.mlp(5, 2, [4]))
    VectorQuantization().check(model)


def test_books_of_unlike_sizes():
    """Six codes of three numbers above five of one; a grid of codes as the bottom's event."""
    torch.manual_seed(0)
    bottom = Parametric(Codes, (2, 2), context=6, sizes={"logits": 5})
    model = VQVAE2(
        [nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(11, 4)],
        Parametric(dist.Bernoulli, 6, context=10),
        (Codebook(6, 3), Codebook(5, 1)),
        (2, 4),
        (None, bottom),
    )
    x = torch.randint(0, 2, (30, 6)).float()
    top, codes = model.codes(x)
    assert (top.shape, codes.shape) == ((30, 2), (30, 2, 2))
    pyrodgm.fit(model, x, epochs=3, progress=False)
    assert model.log_weights(x).isfinite().all()
    z = model.prior.sample(7)
    assert z.shape == (7, 10)
    assert model.prior.log_prob(z).isfinite().all()
