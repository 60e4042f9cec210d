"""Guides with a factor in their traces, Hierarchical's -log r and what stands for masked sites, in every objective."""

import pytest
import torch
from cases import HIDDEN, assert_means_agree, grow, mean_and_error
from test_bounds import gradients_of
from test_contracts_latent import exact_marginal, linear_vae
from test_learned_priors import masked

from pyrodgm.guides import FullCovariance, Hierarchical, Sites
from pyrodgm.objectives import ELBO, ImportanceWeighted, ReweightedWakeSleep


def hierarchical():
    vae, x = linear_vae(), exact_marginal().sample((6,))
    torch.manual_seed(0)
    vae.guide = grow(Hierarchical(Sites(vae, (x,)), 2, HIDDEN)).double()
    return vae, x, list(vae.guide.of_locals.back.parameters())


def gradient(objective, model, x, parameters):
    torch.manual_seed(3)
    return torch.autograd.grad(objective.loss(model, x), parameters)


@pytest.mark.parametrize(
    ("plain", "without"),
    [
        (ELBO(4, analytic_kl=False), ELBO(4, stl=True)),
        (ImportanceWeighted(4), ImportanceWeighted(4, doubly=True)),
        (ImportanceWeighted(4, 0.5), ImportanceWeighted(4, 0.5, doubly=True)),
    ],
    ids=["stl", "doubly", "doubly, Renyi"],
)
def test_the_reverse_model_has_the_bounds_own_gradient(plain, without):
    """r is no part of the draws' density: on the same noise its gradient is that of the bound, which is not 0."""
    vae, x, reverse = hierarchical()
    expected = gradient(plain, vae, x, reverse)
    assert all(bool((g != 0).any()) for g in expected)
    torch.testing.assert_close(gradient(without, vae, x, reverse), expected)


def test_doubly_reparameterised_with_a_reverse_model():
    vae, x, _ = hierarchical()
    many = x.repeat(20, 1)
    a, b = (gradients_of(ImportanceWeighted(4, doubly=doubly), vae, many, 80) for doubly in (False, True))
    assert_means_agree(*mean_and_error(a), *mean_and_error(b))


def test_weights_of_draws_are_refused_to_a_reverse_model():
    """-share log r falls without end as r goes to 0."""
    vae, x, _ = hierarchical()
    with pytest.raises(TypeError, match="'_reverse_locals' that bounds it; use ELBO"):
        list(ReweightedWakeSleep(4)(vae, x))
    vae.guide = FullCovariance(Sites(vae, (x,)), HIDDEN)
    assert all(bool(loss.isfinite()) for _, loss in ReweightedWakeSleep(4)(vae, x))


def test_masked_sites_of_a_packed_guide_doubly_reparameterised():
    model, x = masked(0.0)
    model.guide = FullCovariance(Sites(model, (x,)), HIDDEN)
    values = []
    for doubly in (False, True):
        torch.manual_seed(1)
        values.append(ImportanceWeighted(4, doubly=doubly).loss(model, x))
    torch.testing.assert_close(*values)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(values[1], list(model.guide.parameters())))
