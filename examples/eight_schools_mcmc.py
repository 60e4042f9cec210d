"""Eight schools by MCMC: many short chains and a few long ones, arviz's measures, and the posterior by quadrature."""

import argparse
import math

import arviz
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure

import pyrodgm
from pyrodgm.kernels import NUTS, ChEES

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="fewer draws, not compiled")
parser.add_argument("--picture", default="eight_schools_mcmc.png")
arguments = parser.parse_args()

# Data: gains of eight schools and their standard errors (Rubin, 1981).
y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


# The program, as Pyro's users write it; z keeps the funnel of tau and the effects out of the chains' way.
def schools(sigma: torch.Tensor, y: torch.Tensor | None = None) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(sigma)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        effect = pyro.deterministic("effect", mu + tau * z)
        pyro.sample("y", dist.Normal(effect, sigma), obs=y)


# Reference: given tau all else is Gaussian, so one sum over tau is left, at points even in the prior's probability.
angle = (torch.arange(20_000).double() + 0.5) * (math.pi / 2 / 20_000)
tau = 5 * angle.tan()


def given_tau(seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(y | tau) of the seen schools, and E[mu | y, tau]."""
    variance = tau[:, None] ** 2 + sigma[seen].double() ** 2  # (T, schools)
    precision = 1 / 25 + (1 / variance).sum(-1)
    mean = (y[seen] / variance).sum(-1) / precision
    log_det = (2 * math.pi * variance).log().sum(-1) + (25 * precision).log()
    return -0.5 * (log_det + (y[seen] ** 2 / variance).sum(-1) - precision * mean**2), mean


log_likelihood, mean = given_tau(torch.arange(8))
weight = log_likelihood.softmax(0)
effect = (tau**2 * y[0] + sigma[0] ** 2 * mean) / (tau**2 + sigma[0] ** 2)  # of the first school
exact = {"mu": (weight * mean).sum(), "tau": (weight * tau).sum(), "effect[0]": (weight * effect).sum()}
rest = [given_tau(torch.arange(8)[torch.arange(8) != i])[0] for i in range(8)]
left_out = sum(log_likelihood.logsumexp(0) - log_p.logsumexp(0) for log_p in rest)

# Two ways to run it: a trajectory length learned from many chains, and the no-U-turn rule with a few.
short = arguments.smoke
runs = (
    (ChEES(), {"chains": 64, "warmup": 200, "draws": 60 if short else 250}),
    (NUTS(), {"chains": 4, "warmup": 150 if short else 400, "draws": 150 if short else 2000}),
)
options = {"compile": not short, "progress": not short}
for kernel, lengths in runs:
    posterior = pyrodgm.mcmc(schools, kernel, sigma, y, **lengths, **options)
    print(f"{posterior}; smallest E-BFMI {posterior.ebfmi().min():.2f}")
    table = posterior.summary(var_names=["mu", "tau", "effect"], round_to=4)
    for site, value in exact.items():
        row = table.loc[site]
        print(f"  {site}: {row['mean']:.3f} +- {row['mcse_mean']:.3f}, quadrature {value:.3f}; ", end="")
        print(f"R-hat {row['r_hat']:.3f}, effective draws {row['ess_bulk']:.0f}")
    found = arviz.loo(posterior.to_arviz(prior_draws=100))
    print(f"  leave-one-out by arviz {found.elpd_loo:.2f}, by quadrature {left_out:.2f}")

# A picture: the posterior of tau.
figure = Figure(figsize=(6, 3.5), layout="constrained")
axes = figure.subplots()
step = (5 / angle.cos() ** 2) * (math.pi / 2 / len(tau))
axes.plot(tau, weight / step, "k", label="quadrature")
axes.hist(posterior["tau"].flatten().clamp(max=25).numpy(), bins=60, density=True, histtype="step", label="NUTS")
axes.set(xlim=(0, 25), xlabel="tau, the spread between schools", ylabel="posterior density")
axes.legend()
figure.savefig(arguments.picture, dpi=150)
