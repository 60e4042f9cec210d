"""Sums of exponentials without the terms that cannot count: the same sums, gradients without denormal numbers."""

import pyro.distributions as dist
import pytest
import torch
from cases import assert_gradients_are_slopes
from torch import nn

from pyrodgm.distributions import mixture
from pyrodgm.distributions.log_sum import log_sum, that_count
from pyrodgm.latent import VAE
from pyrodgm.objectives import ImportanceWeighted, ReweightedWakeSleep
from pyrodgm.tractable import Mixture, Parametric, VampPrior


def far_terms(dtype, scale=80.0):
    return (scale * torch.randn(7, 40, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [0, -1])
def test_values_and_gradients_are_logsumexps(dtype, dim):
    terms = far_terms(dtype)
    found, expected = log_sum(terms, dim), torch.logsumexp(terms, dim)
    assert torch.equal(found, expected)
    of_found, of_expected = (torch.autograd.grad(out.sum(), terms)[0] for out in (found, expected))
    torch.testing.assert_close(of_found, of_expected, rtol=1e-6, atol=1e-21)
    least = torch.finfo(dtype).tiny
    assert not bool(((of_found != 0) & (of_found.abs() < least)).any())
    assert bool(((of_expected != 0) & (of_expected < 1e-22)).any()), "there are terms to leave out"


def test_slopes():
    terms = far_terms(torch.float64, 10.0)
    assert_gradients_are_slopes(lambda: log_sum(terms, -1).sum(), {"the terms": [terms]})


def test_ends():
    inf = torch.inf
    assert log_sum(torch.tensor([-inf, -inf]), 0) == -inf
    assert log_sum(torch.tensor([inf, 0.0]), 0) == inf
    assert log_sum(torch.tensor([torch.nan, 0.0]), 0).isnan()
    assert that_count(torch.tensor([-inf, 3.0]), 0).tolist() == [-inf, 3.0]


def denormal(gradients):
    return sum(int(((g != 0) & (g.abs() < torch.finfo(g.dtype).tiny)).sum()) for g in gradients)


@pytest.mark.parametrize("doubly", [False, True])
def test_importance_weights_that_do_not_count_leave_no_denormal_numbers(doubly):
    torch.manual_seed(0)
    model, x = VAE.mlp(200, 4, [8]), torch.bernoulli(torch.rand(30, 200))
    with torch.no_grad():
        for p in model.likelihood.parameters():
            p.mul_(4)
    gradients = []
    model.likelihood.net.register_forward_hook(lambda *a: a[-1].register_hook(gradients.append) and None)
    ImportanceWeighted(20, doubly=doubly).loss(model, x).backward()
    assert len(gradients) == 1 + doubly  # the guide's are of a pass of their own
    assert denormal(gradients) == 0
    assert all(bool((g == 0).any()) for g in gradients)


def far_apart(n):
    """Means of which some are 12 to 14 standard deviations from 0, where shares are denormal in single precision."""
    return torch.linspace(0, 15, n).unsqueeze(-1) * torch.tensor([0.6, 0.8])


def separate_normals():
    parts = [Parametric(dist.Normal, 2) for _ in range(40)]
    with torch.no_grad():
        for part, mean in zip(parts, far_apart(40), strict=True):
            next(part.parameters()).copy_(torch.stack((mean, torch.zeros(2))).flatten())
    return Mixture(parts)


def separate_pseudo_inputs():
    model = VampPrior(Parametric(dist.Normal, 2, context=2, net=nn.Linear(2, 4)), 40)
    with torch.no_grad():
        model.posterior.net.weight.copy_(torch.eye(4, 2))
        model.posterior.net.bias.zero_()
        next(p for p in model.parameters() if p.shape == (40, 2)).copy_(far_apart(40))
    return model


@pytest.mark.parametrize("build", [separate_normals, separate_pseudo_inputs])
def test_components_far_away_leave_no_denormal_numbers(build, monkeypatch):
    torch.manual_seed(0)
    model = build()
    x, parameters = 0.1 * torch.randn(1, 2), list(model.parameters())

    def gradients():
        found = torch.autograd.grad(model.log_prob(x).sum(), parameters, allow_unused=True)
        return [g for g in found if g is not None]

    assert denormal(gradients()) == 0
    monkeypatch.setattr(mixture, "log_sum", torch.logsumexp)
    assert denormal(gradients()) > 0, "there are some to leave out"


@pytest.mark.parametrize(
    "objective", [ReweightedWakeSleep(4), ImportanceWeighted(4), ImportanceWeighted(4, doubly=True)]
)
def test_an_unlikely_row_counts_beside_a_likely_one(objective):
    """Weights are weighed against those of their own row, of which the largest always counts."""
    torch.manual_seed(0)
    model, x = VAE.mlp(100, 2, [8]), torch.stack((torch.ones(100), torch.zeros(100)))
    with torch.no_grad():
        [m for m in model.likelihood.modules() if isinstance(m, nn.Linear)][-1].bias.fill_(6.0)
    for loss in objective(model, x):
        gradients = torch.autograd.grad(loss[1], list(model.parameters()), allow_unused=True)
        assert loss[1].isfinite()
        assert all(g.isfinite().all() for g in gradients if g is not None)
