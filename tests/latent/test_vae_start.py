"""What starts from data inside a VAE: actnorms of its prior by the guide's z, of its likelihood by x."""

import pyro.distributions as dist
import pytest
import torch

import pyrodgm
from pyrodgm.bijectors import ActNorm
from pyrodgm.latent import M2, VAE
from pyrodgm.tractable import Flow, Mixture, Parametric, StandardNormal

X = 3.0 + 0.5 * torch.randn(400, 3, generator=torch.Generator().manual_seed(0))


def started_vae() -> VAE:
    torch.manual_seed(1)
    prior = Flow(StandardNormal(2), [ActNorm(2)])
    likelihood = Flow(Parametric(dist.Normal, 3, context=2), [ActNorm(3)])
    return VAE(prior, likelihood, Parametric(dist.Normal, 2, context=3))


def test_actnorms_of_prior_and_likelihood_start():
    vae = started_vae().double()
    x = X.double()
    torch.manual_seed(2)
    vae.initialize(x)
    torch.manual_seed(2)
    z = vae.posterior(x).sample()
    for flow, rows in ((vae.prior, z), (vae.likelihood, x)):
        inside = flow.bijectors[0].condition().inv(rows)
        torch.testing.assert_close(inside.mean(0), torch.zeros_like(inside[0]), rtol=0, atol=1e-9)
        torch.testing.assert_close(inside.var(0, correction=0), torch.ones_like(inside[0]), rtol=0, atol=1e-2)


@pytest.mark.parametrize("known", [False, True])
def test_actnorms_of_an_m2_start(known: bool) -> None:
    """As a VAE's do, by the guide's z and y; with the labels where they are known."""
    torch.manual_seed(1)
    prior = Flow(StandardNormal(2), [ActNorm(2)])
    likelihood = Flow(Parametric(dist.Normal, 3, context=2 + 2), [ActNorm(3, context=2 + 2)])
    model = M2(2, likelihood, torch.nn.Linear(3, 2), Parametric(dist.Normal, 2, context=3 + 2), prior).double()
    x, labels = X.double(), torch.eye(2).double()[torch.arange(400) % 2] * known
    torch.manual_seed(2)
    model.initialize(x, labels)
    torch.manual_seed(2)
    z = model.guide(x, labels)
    for flow, rows in ((model.prior, z), (model.likelihood, x)):
        start = flow.bijectors[0]
        assert bool(start.started)
        torch.testing.assert_close(start.shift, rows.mean(0))
        torch.testing.assert_close(start.log_scale.exp(), rows.std(0, correction=0))


def test_fit_starts_them_once():
    vae = started_vae()
    pyrodgm.fit(vae, X, steps=1, batch_size=400, lr=1e-30, progress=False)
    assert bool(vae.prior.bijectors[0].started)
    assert bool(vae.likelihood.bijectors[0].started)
    state = {k: v.clone() for k, v in vae.state_dict().items()}
    pyrodgm.fit(vae, X + 5.0, steps=1, batch_size=400, lr=1e-30, progress=False)
    torch.testing.assert_close(vae.state_dict(), state, rtol=0, atol=1e-20)


@pytest.mark.parametrize("components", [1, 2])
def test_components_of_a_mixture_start(components: int):
    flows = [Flow(StandardNormal(3), [ActNorm(3)]) for _ in range(components)]
    mixture = Mixture(flows)
    mixture.initialize(X)
    assert all(bool(flow.bijectors[0].started) for flow in flows)
    assert mixture.log_prob(X).mean().item() > StandardNormal(3).log_prob(X).mean().item() + 1.0
