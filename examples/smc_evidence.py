"""Evidence by sequential Monte Carlo: which degree has the polynomial? Beside the exact evidence of each degree."""

import argparse

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure

import pyrodgm

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="fewer particles")
parser.add_argument("--picture", default="smc_evidence.png")
arguments = parser.parse_args()
particles, runs = (100, 4) if arguments.smoke else (1000, 8)
progress = not arguments.smoke

# Data: forty points of a cubic with noise.
torch.manual_seed(1)
N, NOISE = 40, 0.2
t = torch.linspace(-1, 1, N)
y = 2 * t**3 - 1.5 * t + 0.2 + NOISE * torch.randn(N)


def polynomial(features: torch.Tensor, y: torch.Tensor) -> None:
    weights = pyro.sample("weights", dist.Normal(torch.zeros(features.shape[-1]), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(features @ weights, NOISE), obs=y)


# The weights are Gaussian and the model linear in them, so log p(y) is a Gaussian's density, and known.
degrees = range(6)
found, exact = [], []
for degree in degrees:
    features = t[:, None] ** torch.arange(degree + 1)
    covariance = features.double() @ features.double().T + NOISE**2 * torch.eye(N).double()
    exact.append(dist.MultivariateNormal(torch.zeros(N).double(), covariance).log_prob(y.double()).item())
    found.append(pyrodgm.smc(polynomial, features, y, particles=particles, runs=runs, progress=progress))
    log_z, error = found[-1].log_z, found[-1].standard_error
    print(f"degree {degree}: log evidence {log_z:.3f} +- {error:.3f} nats, exact {exact[-1]:.3f}")
    # Precision of the posterior, and its mean: the particles know them too.
    precision = features.T @ features / NOISE**2 + torch.eye(degree + 1)
    mean = torch.linalg.solve(precision, features.T @ y / NOISE**2)
    by_run = found[-1].posterior["weights"][..., -1].mean(1)
    standard_error = by_run.std() / runs**0.5
    print(f"  its last weight {by_run.mean():.3f} +- {standard_error:.3f}, exact {mean[-1]:.3f}")
probability = torch.tensor([each.log_z for each in found]).softmax(0)
print("p(degree | y):", ", ".join(f"{p:.3f}" for p in probability.tolist()))
print("        exact:", ", ".join(f"{p:.3f}" for p in torch.tensor(exact).softmax(0).tolist()))

# A picture: the evidence, and curves of the best degree.
figure = Figure(figsize=(8, 3.2), layout="constrained")
left, right = figure.subplots(1, 2)
left.plot(degrees, exact, "k.-", label="exact")
log_zs, errors = [each.log_z for each in found], [2 * each.standard_error for each in found]
left.errorbar(degrees, log_zs, errors, fmt="o", mfc="none", label="SMC")
left.set(xlabel="degree", ylabel="log evidence (nats)")
left.legend()
best = int(probability.argmax())
curves = found[best].posterior["weights"].flatten(0, 1)[:50] @ (t[:, None] ** torch.arange(best + 1)).T
right.plot(t, curves.T, color="tab:blue", alpha=0.1)
right.plot(t, y, "k.")
right.set(xlabel="t", ylabel="y", title=f"degree {best}")
figure.savefig(arguments.picture, dpi=150)
