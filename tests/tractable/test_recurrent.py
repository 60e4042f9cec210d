"""Recurrent language models: sums over all sentences, recurrences by hand, what an end and a withheld word do."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from cases import assert_means_agree, contexts, grow
from pyro import poutine
from torch import nn

import pyrodgm
from pyrodgm.core import evaluating
from pyrodgm.distributions import TokenSequences, tokens
from pyrodgm.evaluation import importance_estimate, mutual_information
from pyrodgm.latent import VAE
from pyrodgm.nets import RecurrentNet, TokenEncoder
from pyrodgm.objectives import ELBO
from pyrodgm.tractable import Parametric, Recurrent, StandardNormal

V, T, C = 3, 4, 2


def model(end=0, context=0, cell=nn.LSTM, hidden=(5,), skip=False, word_dropout=0.0, seed=0):
    torch.manual_seed(seed)
    net = RecurrentNet(V, hidden, 4, context, cell, skip=skip)
    built = Recurrent(T, V, context=context, end=end, word_dropout=word_dropout, net=net)
    return grow(built, 0.6, seed).double().eval()


def all_rows():
    """Every row of {0 .. V - 1}^T."""
    return torch.tensor(list(itertools.product(range(V), repeat=T))).double()


def sentences(end):
    """The rows that are sentences, found by reading them one by one."""

    def fits(row):
        if end is None or end not in row:
            return True
        return all(token == end for token in row[row.index(end) :])

    return torch.tensor([row for row in itertools.product(range(V), repeat=T) if fits(row)]).double()


@pytest.mark.parametrize("end", [None, 0, 1, 2])
@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
@torch.no_grad()
def test_the_sentences_sum_to_one(end, context, cell):
    lm = model(end, context, cell, hidden=(5, 4), skip=bool(context))
    d = lm.condition(contexts(1)[0] if context else None)
    x = sentences(end)
    # all sentences of k < T words, and all beginnings of T words
    assert len(x) == (V**T if end is None else sum((V - 1) ** k for k in range(T)) + (V - 1) ** T)
    torch.testing.assert_close(d.log_prob(x).logsumexp(0), torch.zeros(()).double())
    inside = d.support.check(all_rows())
    assert torch.equal(all_rows()[inside], x)
    if end is not None:
        with pytest.raises(ValueError, match="Sentences"):
            d.log_prob(all_rows())
        unchecked = TokenSequences(lm.net, T, end, d.context, validate_args=False)
        assert torch.equal(unchecked.log_prob(all_rows()).isfinite(), inside)


def test_support_refuses_what_is_no_whole_number_of_a_word():
    support = model().support
    rows = torch.tensor([[1.0, 2, 0, 0], [1, 2.5, 0, 0], [1, 3, 0, 0], [-1, 2, 0, 0]])
    assert support.check(rows).tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match="row 1 of data"):
        pyrodgm.fit(Recurrent(4, 3, hidden=[4]), torch.tensor([[1.0, 2, 0, 0], [1, 0, 2, 0]]), steps=1, progress=False)


@pytest.mark.parametrize("end", [None, 1])
@torch.no_grad()
def test_samples_have_the_frequencies_of_the_sum(end):
    lm = model(end, C, hidden=(5, 4))
    torch.manual_seed(1)
    d = lm.condition(contexts(2)).expand((3, 2))
    x, states = d.sample((4000,)), sentences(end)
    assert x.shape == (4000, 3, 2, T)
    for i, context in enumerate(contexts(2)):
        found = (x[:, :, i].reshape(-1, 1, T) == states).all(-1).double()
        assert bool((found.sum(-1) == 1).all())
        p = lm.log_prob(states, context.expand(len(states), C)).exp()
        assert_means_agree(found.mean(0), (p * (1 - p) / len(found)).sqrt(), p)


@torch.no_grad()
def test_lstm_by_hand():
    """Gates, states and logits written out, the context in the initial states, at every step and in the logits."""
    lm, x, c = model(None, C, skip=True), all_rows()[::7], contexts(1)
    net = lm.net
    cell = net.layers[0]
    start = c @ net.start.weight.T + net.start.bias
    h, memory = start.tanh().expand(len(x), -1), start.expand(len(x), -1)
    beside, total = c.expand(len(x), -1), 0.0
    previous = torch.full((len(x),), V)
    for t in range(T):
        inputs = torch.cat((net.embed.weight[previous], beside), -1)
        gates = inputs @ cell.weight_ih_l0.T + cell.bias_ih_l0 + h @ cell.weight_hh_l0.T + cell.bias_hh_l0
        i, f, g, o = gates.chunk(4, -1)
        memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
        h = o.sigmoid() * memory.tanh()
        logits = torch.cat((h, beside), -1) @ net.out.weight.T + net.out.bias
        previous = x[:, t].long()
        total = total + logits.log_softmax(-1).gather(-1, previous.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(lm.log_prob(x, beside), total)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
@torch.no_grad()
def test_a_step_at_a_time_is_the_whole_pass(cell):
    net, c = model(0, C, cell, hidden=(5, 4), skip=True).net, contexts(6)
    previous = torch.randint(V + 1, (6, T))
    whole, _ = net(previous, c)
    states = None
    for t in range(T):
        step, states = net(previous[:, t : t + 1], c, states)
        torch.testing.assert_close(step, whole[:, t : t + 1])


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
@torch.no_grad()
def test_states_begin_in_pieces_of_their_own(cell):
    """As cuDNN wants them; `tests/test_gpu.py` asks it."""
    states = model(0, C, cell, hidden=(5, 4)).net._begin(contexts(6))
    assert all(state.is_contiguous() for begin in states for state in (begin if cell is nn.LSTM else [begin]))


@torch.no_grad()
def test_a_word_acts_on_what_follows_it_alone():
    net = model(0, hidden=(5, 4)).net
    previous = torch.randint(V, (1, T))
    for t in range(T):
        other = previous.clone()
        other[:, t] = (other[:, t] + 1) % V
        moved = (net(previous)[0] != net(other)[0]).any(-1)[0]
        assert moved.tolist() == [s >= t for s in range(T)]


@torch.no_grad()
def test_word_dropout():
    """For every draw of what is withheld p sums to one; with all withheld no word acts on another; not in eval mode."""
    lm, x = model(0, word_dropout=0.5), sentences(0)
    exact = lm.log_prob(x)
    assert torch.equal(exact, model(0).log_prob(x))
    lm.train()
    seen = set()
    for seed in range(20):
        scores = []
        for row in x:  # a row alone, so each has the same draw
            torch.manual_seed(seed)
            scores.append(lm.log_prob(row))
        torch.testing.assert_close(torch.stack(scores).logsumexp(0), torch.zeros(()).double())
        seen.add(round(scores[-1].item(), 9))
    assert len(seen) > 4
    everything = model(None, word_dropout=1.0).train()
    places, _ = everything.net(torch.full((1, T), V))
    by_place = everything.net.out(places).log_softmax(-1)[0]  # (T, V)
    expected = by_place.gather(1, all_rows().long().T).sum(0)
    torch.testing.assert_close(everything.log_prob(all_rows()), expected)


@pytest.mark.parametrize("context", [0, C])
def test_parts_of_the_vocabulary_and_of_the_rows(context, monkeypatch):
    """Scores, gradients and shapes of draws do not depend on how much is held at one time."""
    lm, x = model(0, context), sentences(0)
    c = contexts(len(x)) if context else None

    def results():
        with torch.no_grad():
            alone = lm.log_prob(x, c)
        scored = lm.log_prob(x, c)
        return alone, scored, torch.autograd.grad(scored.square().sum(), list(lm.parameters()))

    whole = results()
    monkeypatch.setattr(tokens, "_LOGITS_AT_ONCE", 5 * V)
    torch.testing.assert_close(results(), whole)
    draws = lm.condition(c).sample((2,))
    assert draws.shape == ((2, len(x), T) if context else (2, T))
    assert bool(lm.support.check(draws).all())


def test_a_large_vocabulary_keeps_no_logits():
    """64 x 40 places of 10,000 words are 26 million logits; what the graph keeps is a small part of that."""
    lm = Recurrent(length=40, vocabulary=10_000, hidden=[8], embedding=8)
    x = torch.randint(1, 10_000, (64, 40)).float()
    known = {p.untyped_storage().data_ptr() for p in lm.parameters()}
    kept = {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = -lm.log_prob(x).mean()
    assert sum(kept.values()) < 64 * 40 * 10_000 / 10
    loss.backward()
    assert bool(lm.net.out.weight.grad.isfinite().all())


@torch.no_grad()
def test_the_encoder_reads_to_the_end():
    torch.manual_seed(0)
    c = contexts(5)
    short, long = (TokenEncoder(length, V, 4, [6, 5], 3, context=C).double() for length in (T, T + 3))
    long.load_state_dict(short.state_dict())
    x = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [2, 1, 0, 0], [2, 2, 1, 0], [1, 2, 1, 2]]).double()
    read = short(torch.cat((x, c), -1))
    padded = torch.cat((x, torch.zeros(5, 3).double(), c), -1)
    # all but the row that had no end: it has one in the longer form
    torch.testing.assert_close(read[:4], long(padded)[:4])
    assert not torch.allclose(read[4], long(padded)[4])
    for row, beside, found in zip(x, c, read, strict=True):
        words = int((row != 0).sum())
        h = short.embed(row[: words + 1].long()).unsqueeze(0)
        for layer in short.layers:
            h, _ = layer(h)
        torch.testing.assert_close(found, short.out(torch.cat((h[0, -1], beside))))
    assert short(torch.cat((x, c), -1).reshape(5, 1, -1)).shape == (5, 1, 4)
    everything = TokenEncoder(T, V, 4, [6], 3, end=None).double()
    assert len(everything(x).unique(dim=0)) == 5


@torch.no_grad()
def test_an_encoder_of_gru_cells_by_hand():
    """The gates r and u and the candidate state n of each step, written out."""
    torch.manual_seed(0)
    encoder, x = TokenEncoder(T, V, 4, [6], 3, end=None, cell=nn.GRU).double(), all_rows()[::7]
    cell, h = encoder.layers[0], torch.zeros(1, 6).double()
    for token in x.long().T:
        inputs = encoder.embed.weight[token] @ cell.weight_ih_l0.T + cell.bias_ih_l0
        of_state = h @ cell.weight_hh_l0.T + cell.bias_hh_l0
        (r, u, n), (to_r, to_u, to_n) = inputs.chunk(3, -1), of_state.chunk(3, -1)
        u = (u + to_u).sigmoid()
        h = (1 - u) * (n + (r + to_r).sigmoid() * to_n).tanh() + u * h
    torch.testing.assert_close(encoder(x), encoder.out(h))


def sentence_vae(word_dropout=0.0):
    reader = TokenEncoder(T, V, 2, [12], 6)
    decoder = Recurrent(T, V, hidden=[12], embedding=6, context=1, word_dropout=word_dropout)
    return VAE(StandardNormal(1), decoder, Parametric(dist.Normal, 1, context=T, net=reader))


@torch.no_grad()
def test_a_sentence_vae_against_quadrature():
    """log p(x) = log of the integral over z of p(z) p(x | z); its sum over all sentences is one."""
    torch.manual_seed(0)
    vae, x = grow(sentence_vae(), 0.4).double().eval(), sentences(0)
    z = torch.linspace(-8, 8, 401, dtype=torch.float64).reshape(-1, 1)
    joint = vae.prior.log_prob(z).unsqueeze(-1) + vae.decode(z.unsqueeze(1)).log_prob(x)  # (401, sentences)
    exact = joint.logsumexp(0) + math.log(16 / 400)
    # the trapezium rule of an analytic integrand that is 0 at both ends
    torch.testing.assert_close(exact.logsumexp(0), torch.zeros(()).double(), rtol=0, atol=1e-10)
    found = importance_estimate(vae, x, particles=4000)
    assert_means_agree(found.rows.mean(), found.sampling_error, exact.mean())


def test_a_language_model_and_a_sentence_vae_learn():
    """Two sentences: the language model comes to log 2 a sentence. With words withheld its latent tells which it is."""
    x = torch.tensor([[1.0, 2, 1, 0], [2, 2, 0, 0]]).repeat(32, 1)
    lm = Recurrent(T, V, hidden=[12], embedding=6)
    pyrodgm.fit(lm, x, epochs=150, batch_size=64, lr=0.02, progress=False)
    assert -lm.log_prob(x).mean().item() == pytest.approx(math.log(2), abs=0.02)
    vae = sentence_vae(word_dropout=1.0)
    pyrodgm.fit(vae, x, ELBO(), epochs=300, batch_size=64, lr=0.02, progress=False)
    assert mutual_information(vae, x) > 0.5  # of log 2 = 0.69 nats
    vae.train()
    with torch.no_grad(), poutine.block():
        trace = poutine.trace(vae.guide).get_trace(x)
        scores = vae.decode(trace.nodes["z"]["value"]).log_prob(x)
    assert scores.exp().mean() > 0.8


def test_dropout_is_for_training():
    net = RecurrentNet(V, [5, 4], 4, dropout=0.5)
    lm, x = Recurrent(T, V, net=net), sentences(0)
    assert not torch.equal(lm.log_prob(x.float()), lm.log_prob(x.float()))
    with evaluating(lm):
        assert torch.equal(lm.log_prob(x.float()), lm.log_prob(x.float()))


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Recurrent(4, 3, end=3), "end in 0 .. 2"),
        (lambda: Recurrent(4, 3, word_dropout=1.5), r"word_dropout in \[0, 1\]"),
        (lambda: Recurrent(4, 3, net=RecurrentNet(4)), "net with vocabulary=3 and context=0, got 4 and 0"),
        (lambda: Recurrent(4, 3, context=2, net=RecurrentNet(3)), "context=2"),
        (lambda: Recurrent(0, 3), "positive sizes"),
        (lambda: RecurrentNet(1), "vocabulary >= 2"),
        (lambda: RecurrentNet(3, hidden=[]), "at least one layer"),
    ],
)
def test_mistakes_are_named(build, match):
    with pytest.raises(ValueError, match=match):
        build()
