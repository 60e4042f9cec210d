"""Our bijectors inside Pyro's own guide and reparameteriser."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import C, grow
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.infer.reparam import NeuTraReparam

from pyrodgm.bijectors import AffineCoupling, Autoregressive, Compose
from pyrodgm.bridges.pyro import PyroTransform

COVARIANCE = torch.tensor([[1.0, 0.9], [0.9, 1.0]])


def program():
    pyro.sample("z", dist.MultivariateNormal(torch.tensor([1.0, -1.0]), COVARIANCE))


def flow(size):
    return PyroTransform(Compose([Autoregressive(size, hidden=[8]), AffineCoupling(size, hidden=[8], flip=True)]))


@pytest.mark.pyro_store
def test_autoguide_learns_and_neutra_samples_the_posterior():
    guide = AutoNormalizingFlow(program, flow)
    svi = SVI(program, guide, pyro.optim.Adam({"lr": 2e-2}), Trace_ELBO(num_particles=32, vectorize_particles=True))
    losses = [svi.step() for _ in range(300)]
    assert sum(losses[-50:]) / 50 < 0.1  # the KL: the program is normalised; a mean-field guide stays at 0.83
    mcmc = MCMC(NUTS(NeuTraReparam(guide).reparam(program), max_tree_depth=4), 200, 60, disable_progbar=True)
    mcmc.run()
    z = guide.transform(mcmc.get_samples()["z_shared_latent"])
    error = 5 / 80**0.5  # of standard deviations 1 at 80 effective draws, fewer than NUTS gives here
    torch.testing.assert_close(z.mean(0), torch.tensor([1.0, -1.0]), rtol=0, atol=error)
    torch.testing.assert_close(z.T.cov(), COVARIANCE, rtol=0, atol=error)


def test_it_says_what_the_bijector_says():
    bijector = grow(Compose([Autoregressive(3), AffineCoupling(3, flip=True)])).double()
    transform, x = PyroTransform(bijector), torch.randn(5, 3, dtype=torch.float64)
    y, ladj = bijector(x)
    torch.testing.assert_close(transform(x), y)
    torch.testing.assert_close(transform.inv(y), x)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), ladj)
    assert {id(p) for p in transform.parameters()} == {id(p) for p in bijector.parameters()}


def test_a_context_is_refused():
    with pytest.raises(ValueError, match="without context"):
        PyroTransform(AffineCoupling(3, context=C))
