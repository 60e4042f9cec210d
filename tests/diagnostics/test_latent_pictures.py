"""Reconstructions, completions, traversals, planes and topics: each column is what it says."""

import pyro.distributions as dist
import pytest
import torch
from cases import grow

from pyrodgm.bijectors import Affine
from pyrodgm.diagnostics import (
    completions,
    decode,
    encode,
    latent_grid,
    plane,
    png,
    reconstructions,
    topic_words,
    traversals,
)
from pyrodgm.latent import VAE, ProdLDA
from pyrodgm.tractable import Flow, StandardNormal


def vae(context=0):
    torch.manual_seed(0)
    return grow(VAE.mlp(6, 2, [8], context, dist.Bernoulli)).double().eval()


def rows(n=4):
    return (torch.rand(n, 6, generator=torch.Generator().manual_seed(1)) > 0.5).double()


def affine():
    """A flow of two features whose latents are known: z = (x - 1) / 2."""
    flow = Flow(StandardNormal(2), [Affine(2)]).double()
    with torch.no_grad():
        flow.bijectors[0].shift.fill_(1.0)
        flow.bijectors[0].log_scale.fill_(2.0).log_()
    return flow


@pytest.mark.parametrize("size", [0, 3])
def test_reconstructions_are_decoded_means(size):
    model, x = vae(size), rows()
    context = torch.randn(4, size).double() if size else None
    found = reconstructions(model, x, context)
    assert torch.equal(found[:, 0], x)
    mean = model.posterior(x, context).mean
    torch.testing.assert_close(found[:, 1], model.decode(mean, context).mean)
    assert png(latent_grid(found, (2, 3))).startswith(b"\x89PNG")


@pytest.mark.parametrize("size", [0, 3])
def test_completions_keep_what_is_seen_and_differ_elsewhere(size):
    model, x = vae(size), rows()
    context = torch.randn(4, size).double() if size else None
    mask = torch.tensor([True, True, False, True, False, False])
    found = completions(model, x, mask, draws=30, context=context, steps=3)
    assert found.shape == (4, 32, 6)
    assert torch.equal(found[:, 0], x)
    assert torch.equal(found[:, 1], torch.where(mask, x, 0.5))
    assert torch.equal(found[:, 2:, mask], x[:, None, mask].expand(4, 30, 3))
    assert bool((found[:, 2:, ~mask].std(1) > 0).any(1).all())


def test_completions_take_the_models_own_steps(monkeypatch):
    """A VQVAE resamples in four rounds where others take a hundred sweeps."""
    model, x, seen = vae(0), rows(), []

    def complete(rows, mask, context, **options):
        seen.append(options)
        return rows

    monkeypatch.setattr(model, "complete", complete)
    completions(model, x, torch.ones(6).bool())
    completions(model, x, torch.ones(6).bool(), steps=7)
    assert seen == [{}, {"steps": 7}]


def test_a_traversal_moves_one_latent_and_leaves_the_others():
    model, x = affine(), torch.tensor([3.0, 5.0]).double()  # z = (1, 2)
    found = traversals(model, x, span=2.0, steps=5)
    z = encode(model, found.flatten(0, 1)).unflatten(0, (2, 5))
    sweep = torch.linspace(-2, 2, 5).double()
    torch.testing.assert_close(z[0], torch.stack((sweep, torch.full((5,), 2.0).double()), -1))
    torch.testing.assert_close(z[1], torch.stack((torch.ones(5).double(), sweep), -1))
    torch.testing.assert_close(traversals(model, x, [1], 2.0, 5), found[1:])
    model, context = vae(3), torch.randn(3).double()
    found = traversals(model, rows(1)[0], steps=4, context=context)
    mean = model.posterior(rows(1), context[None]).mean.repeat(4, 1)
    mean[:, 1] = torch.linspace(-3, 3, 4).double()
    torch.testing.assert_close(found[1], model.decode(mean, context.expand(4, 3)).mean)


def test_a_plane_is_even_by_probability():
    found = encode(affine(), plane(affine(), 4).flatten(0, 1)).unflatten(0, (4, 4))
    u = dist.Normal(0.0, 1.0).cdf(found)
    side = torch.tensor([0.125, 0.375, 0.625, 0.875]).double()
    torch.testing.assert_close(u[..., 0], side.expand(4, 4))
    torch.testing.assert_close(u[..., 1], side.flip(0)[:, None].expand(4, 4))
    model, context = vae(3), torch.randn(3).double()
    middle = decode(model, torch.zeros(1, 2).double(), context[None])[0]
    torch.testing.assert_close(plane(model, 3, context)[1, 1], middle)


def test_topics_show_their_highest_words_in_order():
    model = grow(ProdLDA(7, 2, [8]))
    vocabulary = [f"word {i}" for i in range(7)]
    figure = topic_words(model.topics, vocabulary, n=3)
    for axes, topic in zip(figure.axes, model.top_words(3), strict=True):
        assert [label.get_text() for label in axes.get_yticklabels()] == [vocabulary[i] for i in topic]
        widths = [bar.get_width() for bar in axes.patches]
        assert widths == sorted(widths, reverse=True)
    assert len(topic_words(torch.randn(9, 7), vocabulary, n=4, shown=5).axes) == 5


def test_mistakes_are_named():
    model, x = vae(), rows()
    with pytest.raises(ValueError, match="draws >= 1"):
        completions(model, x, torch.ones(6).bool(), draws=0)
    with pytest.raises(ValueError, match=r"mask to broadcast against x of shape \(4, 6\), got \(5,\)"):
        completions(model, x, torch.ones(5).bool())
    with pytest.raises(TypeError, match=r"use mask\.bool\(\)"):
        completions(model, x, torch.ones(6))
    with pytest.raises(ValueError, match="steps >= 2"):
        traversals(model, x[0], steps=1)
    with pytest.raises(ValueError, match="one row of shape"):
        traversals(model, x)
    with pytest.raises(ValueError, match=r"dimensions among 0 \.\. 1"):
        traversals(model, x[0], [2])
    with pytest.raises(ValueError, match="steps >= 1"):
        plane(model, 0)
    with pytest.raises(ValueError, match="two latents, got 3"):
        plane(VAE.mlp(6, 3, [8]))
    with pytest.raises(ValueError, match="vocabulary of 4 words"):
        topic_words(torch.randn(2, 4), ["a"])
