"""A linear-Gaussian VAE on 8x8 digits beside probabilistic PCA, whose fit, posterior and likelihood are exact.

With a linear decoder and noise of one scale the model is probabilistic PCA: Tipping and Bishop (1999) give the best
decoder in closed form, and for any decoder p(x) is Gaussian and

    p(z | x) = N(M^-1 W^T (x - b), noise^2 M^-1),   M = W^T W + noise^2 I.

A guide whose mean is linear in x and whose covariance is one full matrix holds p(z | x) for every decoder. One of
independent normals holds it where the columns of W are orthogonal, to which its bound drives them (Lucas et al., 2019,
arXiv:1911.02469), slowly. Printed for the test digits: log p(x) of the closed-form fit, and for both guides log p(x) of
the trained decoder by its Gaussian, by importance sampling and by the bound, and how far the guide is from p(z | x).
"""

from __future__ import annotations

import argparse
import time

import pyro.distributions as dist
import torch
from latent_tables import learn
from sklearn.decomposition import PCA
from torch import Tensor
from torch.distributions import kl_divergence

from pyrodgm.bijectors import LULinear
from pyrodgm.core import Tractable
from pyrodgm.data import load
from pyrodgm.evaluation import importance_estimate
from pyrodgm.latent import VAE
from pyrodgm.objectives import ELBO
from pyrodgm.tractable import Flow, Parametric, StandardNormal

D = 64


def exact(model: VAE, noise: float, x: Tensor) -> tuple[Tensor, dist.MultivariateNormal]:
    """log p(x) (B,) and p(z | x) of the decoder, in float64."""
    weight, bias = (p.detach().double() for p in model.likelihood.net.parameters())
    precision = weight.T @ weight + noise**2 * torch.eye(weight.shape[1], dtype=torch.float64)  # M
    marginal = dist.LowRankMultivariateNormal(bias, weight, torch.full((D,), noise**2, dtype=torch.float64))
    mean = torch.linalg.solve(precision, weight.T @ (x.double() - bias).T).T
    covariance = noise**2 * torch.linalg.inv(precision)
    return marginal.log_prob(x.double()), dist.MultivariateNormal(mean, covariance)


def moments(model: VAE, x: Tensor) -> dist.MultivariateNormal:
    """The guide's normal for each row, in float64: a normal of unit scale behind a linear map, or a diagonal one."""
    posterior = model.guide.posterior
    if not isinstance(posterior, Flow):
        q = posterior.condition(x).base_dist
        return dist.MultivariateNormal(q.loc.double(), torch.diag_embed(q.scale.double().square()))
    mean = posterior.base.condition(x).mean
    there = posterior.bijectors[0].condition()
    zero = torch.zeros(1, mean.shape[-1])
    root = (there(torch.eye(mean.shape[-1])) - there(zero)).T.double()
    return dist.MultivariateNormal(there(mean).double(), root @ root.T)


def guides(latent: int) -> dict[str, tuple[Tractable, ELBO]]:
    """Guides, each with its bound: without a closed KL, sticking the landing leaves no noise at the posterior."""
    full = Flow(Parametric(dist.Normal, latent, context=D, fixed={"scale": 1.0}), [LULinear(latent)])
    return {
        "full covariance": (full, ELBO(stl=True)),
        "independent normals": (Parametric(dist.Normal, latent, context=D), ELBO()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latent", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--smoke", action="store_true", help="a few steps and rows: does it run?")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.smoke:
        options.steps, options.particles = 20, 25
    digits = load("digits")
    train, test = digits.train, digits.test
    pca = PCA(options.latent).fit(train.double().numpy())
    noise = float(pca.noise_variance_) ** 0.5
    best = pca.score(test.double().numpy())
    print(f"{len(test)} test digits, Z = {options.latent}, noise {noise:.4f}, {options.steps} steps")
    print(f"log p(x) of probabilistic PCA in closed form: {best:.3f}\n")
    print(
        "| guide | log p(x), exact | by particles | largest error | bound | KL to the posterior, mean, largest |",
        end="",
    )
    print(" means | scales | minutes |\n" + "|---" * 9 + "|", flush=True)
    torch.manual_seed(options.seed)
    for name, (guide, objective) in guides(options.latent).items():
        likelihood = Parametric(dist.Normal, D, context=options.latent, fixed={"scale": noise})
        model = VAE(StandardNormal(options.latent), likelihood, guide)
        began = time.process_time()
        learn(model, train, options.steps, options, objective)
        minutes = (time.process_time() - began) / 60
        estimate = importance_estimate(model, test, particles=options.particles)
        with torch.no_grad():
            marginal, posterior = exact(model, noise, test)
            bound = -ELBO(10).held_out(model, test).item()
            q = moments(model, test)
            kl = kl_divergence(q, posterior)
            means = (q.mean - posterior.mean).norm() / posterior.mean.norm()
            scales = (q.variance / posterior.variance).sqrt().sub(1).abs().max()
        sampled = f"{estimate.value:.3f} ± {estimate.sampling_error:.3f} | {(estimate.rows - marginal).abs().max():.3f}"
        apart = f"{kl.mean():.4f}, {kl.max():.4f} | {means:.2%} | {scales:.2%}"
        print(f"| {name} | {marginal.mean():.3f} | {sampled} | {bound:.3f} | {apart} | {minutes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
