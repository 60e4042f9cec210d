"""Programs that the library has no part in, in the idiom of Pyro's users; each with its data."""

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.cevae import Model as CEVAEModel
from pyro.nn import PyroSample
from torch import nn


class SSVAE(nn.Module):
    """A semi-supervised VAE: the class y is observed in some calls and latent in others (Kingma et al., 2014)."""

    def __init__(self, features=6, classes=3, latent=2):
        super().__init__()
        self.classes, self.latent = classes, latent
        self.decoder = nn.Sequential(nn.Linear(latent + classes, 16), nn.Tanh(), nn.Linear(16, features))

    def forward(self, x, y=None):
        with pyro.plate("data", len(x)):
            prior = dist.OneHotCategorical(x.new_full((self.classes,), 1 / self.classes))
            y = pyro.sample("y", prior, obs=y)
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            lead = torch.broadcast_shapes(y.shape[:-1], z.shape[:-1])
            logits = self.decoder(torch.cat((z.expand(*lead, -1), y.expand(*lead, -1)), -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


class DeepMarkov(nn.Module):
    """A deep Markov model over padded sequences: sites in a loop, masked beyond each one's length (Krishnan, 2017)."""

    def __init__(self, features=3, latent=2):
        super().__init__()
        self.latent = latent
        self.transition, self.emission = nn.Linear(latent, latent), nn.Linear(latent, features)

    def forward(self, x, lengths, size):
        with pyro.plate("sequences", size, subsample=x):
            z = x.new_zeros(len(x), self.latent)
            for t in range(x.shape[1]):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(torch.tanh(self.transition(z)), 0.5).to_event(1))
                    logits = self.emission(z)
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=logits).to_event(1), obs=x[:, t])


def hierarchical_regression(x, group, y=None, groups=4, size=None):
    """Regression with a coefficient a group, correlated through an LKJ prior, and positive and simplex globals."""
    dims = x.shape[-1]
    mean = pyro.sample("mean", dist.Normal(x.new_zeros(dims), 2.0).to_event(1))
    spread = pyro.sample("spread", dist.HalfNormal(x.new_ones(dims)).to_event(1))
    corr = pyro.sample("corr", dist.LKJCholesky(dims, x.new_tensor(2.0)))
    noise = pyro.sample("noise", dist.Gamma(x.new_tensor(2.0), 4.0))
    mix = pyro.sample("mix", dist.Dirichlet(x.new_ones(dims)))
    with pyro.plate("groups", groups):
        slope = pyro.sample("slope", dist.MultivariateNormal(mean, scale_tril=spread.unsqueeze(-1) * corr))
    with pyro.plate("rows", size or len(x), subsample=y):
        loc = (slope[..., group, :] * x).sum(-1) + (mix * x).sum(-1)
        return pyro.sample("y", dist.Normal(loc, noise), obs=y)


def cevae():
    """The model of pyro.contrib.cevae, (program, args, kwargs): x, t and y observed, scaled to 100 rows."""
    config = {"feature_dim": 4, "latent_dim": 3, "hidden_dim": 8, "num_layers": 2, "outcome_dist": "normal"}
    x = torch.randn(12, 4)
    return CEVAEModel(config), (x, torch.bernoulli(torch.full((12,), 0.5)), x.sum(-1)), {"size": 100}


def lda(counts, topics=3, size=None):
    """Latent Dirichlet allocation (Blei et al., 2003) with the words summed out: counts (documents, words)."""
    words = counts.shape[-1]
    with pyro.plate("topics", topics):
        beta = pyro.sample("beta", dist.Dirichlet(counts.new_full((words,), 0.5)))
    with pyro.plate("documents", size or len(counts), subsample=counts):
        theta = pyro.sample("theta", dist.Dirichlet(counts.new_full((topics,), 0.5)))
        mixed = (theta.unsqueeze(-2) @ beta).squeeze(-2)  # (documents, topics) @ (topics, words)
        # documents differ in length, which the density does not read
        pyro.sample("counts", dist.Multinomial(probs=mixed, validate_args=False), obs=counts)


def gaussian_process():
    """GP regression of pyro.contrib.gp with priors on the kernel's hyperparameters and on the noise."""
    x = torch.linspace(0, 3, 12)
    kernel = gp.kernels.RBF(input_dim=1)
    kernel.variance = PyroSample(dist.LogNormal(0.0, 1.0))
    kernel.lengthscale = PyroSample(dist.Gamma(2.0, 2.0))
    model = gp.models.GPRegression(x, torch.sin(2 * x) + 0.1 * torch.randn(12), kernel)
    model.noise = PyroSample(dist.LogNormal(-2.0, 1.0))
    return model.model, (), {}


def ssvae():
    return SSVAE(), (torch.bernoulli(torch.full((12, 6), 0.5)),), {}


def deep_markov():
    lengths = torch.tensor([4, 2, 3, 4, 1, 4])
    return DeepMarkov(), (torch.bernoulli(torch.full((6, 4, 3), 0.5)), lengths, 60), {}


def regression():
    x, group = torch.randn(24, 2), torch.arange(24) % 4
    y = (x * torch.tensor([1.0, -1.0])).sum(-1) + 0.3 * torch.randn(24)
    return hierarchical_regression, (x, group, y), {}


def topics():
    """Documents of the first half of the words or of the second."""
    words = torch.randint(4, (16, 30)) + 4 * (torch.arange(16) % 2).unsqueeze(-1)
    return lda, (torch.nn.functional.one_hot(words, 8).sum(1).float(),), {"size": 160}


PROGRAMS = {
    "cevae": cevae,
    "gaussian process": gaussian_process,
    "ssvae": ssvae,
    "deep markov": deep_markov,
    "hierarchical regression": regression,
    "lda": topics,
}
