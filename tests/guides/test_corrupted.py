"""The denoising guide: its bound is one, and it corrupts in training only; skipping nets see their input everywhere."""

import pickle

import pyro.distributions as dist
import pytest
import torch
from cases import all_binary, assert_means_agree, mean_and_error
from torch import nn

from pyrodgm.guides import Amortized, Corrupted, GaussianNoise, MaskingNoise
from pyrodgm.latent import VAE
from pyrodgm.nets import SkipMLP
from pyrodgm.tractable import Parametric


def binary_vae(corruption):
    """Two binary latents, so p(x) is a sum of four terms."""
    torch.manual_seed(0)
    guide = Amortized(Parametric(dist.Bernoulli, 2, context=3, hidden=[8]))
    likelihood = Parametric(dist.Bernoulli, 3, context=2, hidden=[8])
    return VAE(Parametric(dist.Bernoulli, 2), likelihood, Corrupted(guide, corruption)).double()


@torch.no_grad()
def test_weights_are_unbiased_whatever_is_read():
    """E[p(x, z) / q(z | x~)] over corruption and guide is p(x), so the ELBO is a bound."""
    vae, x = binary_vae(MaskingNoise(0.5)).train(), all_binary((3,))
    z = all_binary((2,)).unsqueeze(1).expand(-1, len(x), -1)
    exact = (vae.prior.log_prob(z) + vae.decode(z).log_prob(x)).logsumexp(0)
    parts = torch.stack([vae.log_weights(x, particles=20).exp().mean(0) for _ in range(400)])
    assert_means_agree(*mean_and_error(parts), exact.exp())
    elbo = torch.stack([vae.log_weights(x, particles=20).mean(0) for _ in range(100)])
    mean, error = mean_and_error(elbo)
    assert bool((mean < exact + 5 * error).all())


def test_corruption_is_for_training_only():
    vae, x = binary_vae(GaussianNoise(1.0)), torch.ones(4, 3).double()
    vae.eval()
    assert torch.equal(vae.posterior(x).base_dist.logits, vae.posterior(x).base_dist.logits)
    vae.train()
    assert not torch.equal(vae.posterior(x).base_dist.logits, vae.posterior(x).base_dist.logits)
    assert isinstance(pickle.loads(pickle.dumps(vae)).guide.corruption, GaussianNoise)


def test_noises_have_their_moments():
    x = torch.full((40_000, 1), 2.0).double()
    masked, noisy = MaskingNoise(0.3)(x), GaussianNoise(0.5)(x)
    assert set(masked.unique().tolist()) == {0.0, 2.0}
    assert_means_agree(*mean_and_error(masked), torch.tensor([1.4]).double())
    assert_means_agree(*mean_and_error(noisy), torch.tensor([2.0]).double())
    assert_means_agree(*mean_and_error((noisy - 2).square()), torch.tensor([0.25]).double())
    with pytest.raises(ValueError, match="0 <= p < 1"):
        MaskingNoise(1.0)
    with pytest.raises(ValueError, match="scale >= 0"):
        GaussianNoise(-1.0)


def test_the_fixed_scale_autoencoder_is_a_penalised_reconstruction():
    """Its ELBO: reconstruction at code + noise, less |code|^2 / 2, less a constant of the scale."""
    from pyrodgm.objectives import ELBO
    from pyrodgm.tractable import StandardNormal

    torch.manual_seed(0)
    encoder, scale = nn.Linear(3, 2), 0.2
    guide = Parametric(dist.Normal, 2, context=3, net=encoder, fixed={"scale": scale})
    vae, x = VAE(StandardNormal(2), Parametric(dist.Bernoulli, 3, context=2), guide).double(), all_binary((3,))
    torch.manual_seed(1)
    loss = ELBO().loss(vae, x)
    torch.manual_seed(1)
    code = encoder(x)
    z = dist.Normal(code, scale).rsample()
    kl = 0.5 * (code.square() + scale**2 - 1).sum(-1) - 2 * torch.tensor(scale).double().log()
    torch.testing.assert_close(loss, (kl - vae.decode(z).log_prob(x)).mean())


def test_skipping_net_by_hand_and_through_a_dead_layer():
    torch.manual_seed(0)
    net, z = SkipMLP(2, 3, [5, 4], nn.Tanh).double(), torch.randn(6, 2).double()
    a, b, c = net.layers
    h = torch.cat((torch.tanh(a(z)), z), -1)
    h = torch.cat((torch.tanh(b(h)), z), -1)
    torch.testing.assert_close(net(z), c(h))
    with torch.no_grad():
        b.weight.zero_()  # nothing passes the middle layer, and the output still depends on z
    assert bool((net(z).std(0) > 0).all())
    with pytest.raises(ValueError, match="use MLP"):
        SkipMLP(2, 3, [])
