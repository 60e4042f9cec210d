"""Our bijectors inside Pyro's own guide and reparameteriser."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import BIJECTORS, C, contexts, grow, ready
from nflows.transforms import MaskedAffineAutoregressiveTransform
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.infer.reparam import NeuTraReparam

from pyrodgm.bijectors import AffineCoupling, Autoregressive, Compose
from pyrodgm.bridges.nflows import NflowsBijector
from pyrodgm.bridges.pyro import PyroTransform

from pyrodgm.bridges.zuko import ZukoBijector  # isort: skip
from zuko.flows import MaskedAutoregressiveTransform  # isort: skip

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


@pytest.mark.parametrize("name", BIJECTORS)
def test_every_bijector_in_a_transformed_distribution(name):
    """Of its event shape, which torch asks the transform for."""
    case = BIJECTORS[name]
    bijector = ready(case)
    base = dist.Normal(torch.zeros(case.event, dtype=torch.float64), 1.0).to_event(len(case.event))
    d = dist.TransformedDistribution(base, [PyroTransform(bijector)])
    assert d.event_shape == case.image
    x = d.sample((6,))
    z, ladj = bijector.inv(x)
    torch.testing.assert_close(d.log_prob(x), base.log_prob(z) + ladj)


@pytest.mark.pyro_store
@pytest.mark.parametrize("name", [name for name, case in BIJECTORS.items() if len(case.event) == len(case.image) == 1])
def test_every_bijector_of_vectors_in_autoguide_and_neutra(name):
    """NeuTra's density at u is the program's at f(u) with the ladj of f; the guide's loss has gradients."""
    case = BIJECTORS[name]
    bijector = ready(case)
    target = dist.Normal(torch.ones(case.event, dtype=torch.float64), 2.0).to_event(1)

    def program():
        pyro.sample("z", target)

    guide = AutoNormalizingFlow(program, lambda size: PyroTransform(bijector))
    loss = Trace_ELBO().differentiable_loss(program, guide)
    wanted = list(bijector.parameters())
    if wanted:
        assert any(g is not None and g.abs().max() > 0 for g in torch.autograd.grad(loss, wanted, allow_unused=True))
    u = torch.randn(case.event, dtype=torch.float64)
    warped = poutine.condition(NeuTraReparam(guide).reparam(program), {"z_shared_latent": u})
    y, ladj = bijector(u)
    found = poutine.trace(warped).get_trace().log_prob_sum()
    torch.testing.assert_close(found, target.log_prob(y) + ladj)


@pytest.mark.parametrize("library", ["nflows", "zuko"])
def test_others_bijectors_in_pyro(library):
    """Through both bridges: a conditional one as it stands, one without context by ``PyroTransform``."""

    def made(context):
        if library == "nflows":
            return NflowsBijector(MaskedAffineAutoregressiveTransform(3, 8, context or None), context)
        return ZukoBijector(MaskedAutoregressiveTransform(3, context, hidden_features=(8,)), context)

    base, c = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1), contexts(6)
    bijector = grow(made(C)).double()
    d = dist.ConditionalTransformedDistribution(base.expand([6]), [bijector]).condition(c)
    x = d.sample()
    z, ladj = bijector.inv(x, c)
    torch.testing.assert_close(d.log_prob(x), base.log_prob(z) + ladj)
    bijector = grow(made(0)).double()
    d = dist.TransformedDistribution(base, [PyroTransform(bijector)])
    z, ladj = bijector.inv(x)
    torch.testing.assert_close(d.log_prob(x), base.log_prob(z) + ladj)
