"""Four guides of your own program: eight schools, partly pooled, with posterior and evidence known by quadrature."""

import argparse
import math

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import Predictive, Trace_ELBO

from pyrodgm.guides import FlowGuide, FullCovariance, Hierarchical, MeanField, Sites

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="eight_schools_guides.png")
arguments = parser.parse_args()
pyro.set_rng_seed(0)

# Data: gains of eight schools and their standard errors (Rubin, 1981).
gain = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
error = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


# A Pyro program as its user writes it: nothing in it is of this library.
def schools(gain: torch.Tensor, error: torch.Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    spread = pyro.sample("spread", dist.HalfNormal(10.0))
    with pyro.plate("schools", len(error)):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
        pyro.sample("gain", dist.Normal(effect, error), obs=gain)


# Reference: effects integrate out in closed form; the two globals on a grid.
means, spreads = torch.linspace(-60, 60, 1201).double(), (torch.arange(1200).double() + 0.5) * 0.05
marginal = dist.Normal(means[:, None, None], (spreads[:, None] ** 2 + error.double() ** 2).sqrt())  # (M, S, 8)
grid = marginal.log_prob(gain.double()).sum(-1) + dist.Normal(0.0, 10.0).log_prob(means)[:, None]
grid = grid + dist.HalfNormal(10.0).log_prob(spreads)
evidence = float(grid.flatten().logsumexp(0) + math.log(0.1 * 0.05))
weight = (grid - grid.flatten().logsumexp(0)).exp()
exact = float((weight.sum(0) * spreads).sum())

# Each school is a row of the plate, and its effect is read off (gain, error) by one network for all schools.
sites = Sites(schools, (gain, error), observed=lambda gain, error: torch.stack((gain, error), -1) / 10)
guides = {
    "mean field": MeanField(sites, [32]),
    "full covariance": FullCovariance(sites, [32]),
    "hierarchical": Hierarchical(sites, hidden=[32]),
    "inverse autoregressive flow": FlowGuide(sites, layers=2, hidden=[32]),
}
steps = 20 if arguments.smoke else 2000
elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
draws = {}
for name, guide in guides.items():
    optimizer = torch.optim.Adam(guide.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / steps)
    for _ in range(steps):
        optimizer.zero_grad()
        elbo.differentiable_loss(schools, guide, gain, error).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        bound = -sum(elbo.loss(schools, guide, gain, error) for _ in range(steps // 10)) / (steps // 10)
        sampler = Predictive(schools, guide=guide, num_samples=steps, return_sites=["spread"])
        draws[name] = sampler(gain, error)["spread"].flatten()
    print(
        f"{name}: bound {bound:.3f} nats, log evidence by quadrature {evidence:.3f}; "
        f"E[spread] {draws[name].mean():.2f}, exact {exact:.2f}"
    )

# A picture: the posterior of the spread between schools, as each guide has it.
figure = Figure(figsize=(6, 3.5), layout="constrained")
axes = figure.subplots()
axes.plot(spreads, weight.sum(0) / 0.05, "k", label="exact")
for name, values in draws.items():
    axes.hist(values.clamp(max=40).numpy(), bins=60, density=True, histtype="step", label=name)
axes.set(xlim=(0, 40), xlabel="spread between schools", ylabel="posterior density")
axes.legend()
figure.savefig(arguments.picture, dpi=150)
