"""The ten posteriors of ``benchmarks/mcmc.py`` as Pyro programs, in float32; data are drawn or built in, seeded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["MODELS", "Model"]


class Model(NamedTuple):
    """A program with its arguments; ``sites`` are those whose effective sample sizes count, all if empty."""

    program: Callable[..., Any]
    args: tuple[Any, ...]
    sites: tuple[str, ...] = ()


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated_gaussian(factor: Tensor) -> None:
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(len(factor)), scale_tril=factor))


def _gaussian_factor(size: int = 50) -> Tensor:
    """Eigenvalues from 0.01 to 10 along random directions."""
    basis, _ = torch.linalg.qr(_normal(size, size, seed=0))
    return torch.linalg.cholesky(basis * torch.logspace(-2, 1, size) @ basis.T)


def logistic_regression(x: Tensor, y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weight + bias), obs=y)


def _breast_cancer() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = torch.as_tensor(x, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), torch.as_tensor(y, dtype=torch.float32)


def schools_centred(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def schools(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


_SCHOOLS = (
    torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
)


def radon(county: Tensor, floor: Tensor, y: Tensor, counties: int) -> None:
    """Varying intercepts, not centred (Gelman and Hill, 2006, chapter 12)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    between = pyro.sample("between", dist.HalfNormal(1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    within = pyro.sample("within", dist.HalfNormal(1.0))
    with pyro.plate("counties", counties):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("houses", len(y)):
        pyro.sample("y", dist.Normal(mu + between * z[county] + slope * floor, within), obs=y)


def _radon(counties: int = 85, houses: int = 919) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(1)
    county = torch.randint(counties, (houses,), generator=g)
    floor = (torch.rand(houses, generator=g) < 0.17).float()
    level = 1.5 + 0.33 * torch.randn(counties, generator=g)
    return county, floor, level[county] - 0.69 * floor + 0.76 * torch.randn(houses, generator=g), counties


def stochastic_volatility(y: Tensor) -> None:
    """Log volatility as a random walk of scale ``step`` (Hoffman and Gelman, 2014, section 4.2), not centred."""
    step = pyro.sample("step", dist.Exponential(10.0))
    z = pyro.sample("z", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
    with pyro.plate("days", len(y)):
        pyro.sample("y", dist.Normal(0.0, (step * z.cumsum(-1)).exp()), obs=y)


def _returns(days: int = 200) -> Tensor:
    return (0.1 * _normal(days, seed=2).cumsum(0)).exp() * _normal(days, seed=3)


def funnel() -> None:
    """Neal's funnel, not centred."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    z = pyro.sample("z", dist.Normal(torch.zeros(9), 1.0).to_event(1))
    pyro.deterministic("x", (v / 2).exp() * z)


def gp_regression(x: Tensor, y: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    kernel = scale**2 * (-0.5 * ((x.unsqueeze(-1) - x) / length).square()).exp()
    covariance = kernel + (noise**2 + 1e-4) * torch.eye(len(x))
    factor = torch.linalg.cholesky(covariance)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), scale_tril=factor), obs=y)


def _gp(rows: int = 40) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-3, 3, rows)
    return x, (2 * x).sin() + 0.3 * _normal(rows, seed=4)


def mixture(y: Tensor) -> None:
    """A mixture of two Gaussians with its labels summed out; the means are ordered by their prior."""
    weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
    low = pyro.sample("low", dist.Normal(-2.0, 1.0))
    gap = pyro.sample("gap", dist.LogNormal(1.0, 0.5))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(y)):
        label = pyro.sample("label", dist.Bernoulli(weight))
        pyro.sample("y", dist.Normal(low + gap * label, scale), obs=y)


def _two_groups(rows: int = 100) -> Tensor:
    noise = _normal(rows, seed=5)
    return torch.where(torch.arange(rows) < rows // 3, -1.5, 1.5) + 0.7 * noise


def neural_net(x: Tensor, y: Tensor, hidden: int) -> None:
    """One hidden layer, standard normal weights (Neal, 1996)."""
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(x.shape[1], hidden), 1.0).to_event(2))
    b1 = pyro.sample("b1", dist.Normal(torch.zeros(hidden), 1.0).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(hidden), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    f = pyro.deterministic("f", torch.tanh(x @ w1 + b1) @ w2 / hidden**0.5)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(f, noise), obs=y)


def _sine(rows: int = 60) -> tuple[Tensor, Tensor, int]:
    x = torch.linspace(-2, 2, rows).unsqueeze(-1)
    return x, (2 * x.squeeze(-1)).sin() + 0.1 * _normal(rows, seed=6), 8


def item_response(student: Tensor, item: Tensor, y: Tensor, students: int, items: int) -> None:
    """Two-parameter logistic model (Birnbaum, 1968)."""
    with pyro.plate("students", students):
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
    with pyro.plate("items", items):
        difficulty = pyro.sample("difficulty", dist.Normal(0.0, 1.0))
        slope = pyro.sample("slope", dist.LogNormal(0.0, 0.5))
    with pyro.plate("answers", len(y)):
        logits = slope[item] * (ability[student] - difficulty[item])
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def _answers(students: int = 100, items: int = 20) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(7)
    student = torch.arange(students).repeat_interleave(items)
    item = torch.arange(items).repeat(students)
    ability, difficulty = torch.randn(students, generator=g), torch.randn(items, generator=g)
    y = (torch.rand(len(item), generator=g) < (ability[student] - difficulty[item]).sigmoid()).float()
    return student, item, y, students, items


MODELS: dict[str, Callable[[], Model]] = {
    "correlated Gaussian": lambda: Model(correlated_gaussian, (_gaussian_factor(),)),
    "logistic regression": lambda: Model(logistic_regression, _breast_cancer()),
    "eight schools centred": lambda: Model(schools_centred, _SCHOOLS),
    "eight schools": lambda: Model(schools, _SCHOOLS),
    "radon": lambda: Model(radon, _radon()),
    "stochastic volatility": lambda: Model(stochastic_volatility, (_returns(),)),
    "funnel": lambda: Model(funnel, (), ("v", "z")),
    "GP regression": lambda: Model(gp_regression, _gp()),
    "mixture": lambda: Model(mixture, (_two_groups(),)),
    # weights can be permuted: what the net computes cannot
    "neural net": lambda: Model(neural_net, _sine(), ("f", "noise")),
    "item response": lambda: Model(item_response, _answers()),
}
