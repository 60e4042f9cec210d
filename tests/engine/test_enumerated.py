"""Discrete sites summed out: energies and gradients against the sum over all their values, one by one."""

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

import pyrodgm
from pyrodgm.engine.batched import BatchedEnergy
from pyrodgm.engine.unconstrained import UnconstrainedProgram
from pyrodgm.kernels import NUTS

D = torch.float64
Y = torch.tensor([0.3, -1.2, 2.1, 0.4, 1.7, -0.6], dtype=D)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=D)


def chain(allowed: Tensor, length: int) -> Callable[[], None]:
    """A hidden Markov chain with some transitions alone."""

    def program() -> None:
        states = len(allowed)
        loc = pyro.sample("loc", dist.Normal(zeros(states), 2.0).to_event(1))
        logits = pyro.sample("logits", dist.Normal(zeros(states, states), 1.0).to_event(2))
        logits = torch.where(allowed, logits, -torch.inf)
        x: Any = 0
        for t in pyro.markov(range(length)):
            x = pyro.sample(f"x{t}", dist.Categorical(logits=logits[x]))
            pyro.sample(f"y{t}", dist.Normal(loc[x], 1.0), obs=Y[t])

    return program


def chains_in_a_plate() -> None:
    """Two sequences, a coin of all of them, and a chain that looks two steps back."""
    loc = pyro.sample("loc", dist.Normal(zeros(), 1.0))
    coin = pyro.sample("coin", dist.Bernoulli(torch.sigmoid(loc)))
    with pyro.plate("sequences", 2, dim=-1):
        x = old = torch.zeros(2, dtype=D)
        for t in pyro.markov(range(3), history=2):
            new = pyro.sample(f"x{t}", dist.Bernoulli(logits=loc + x - 2 * old))
            old, x = x, new
            pyro.sample(f"y{t}", dist.Normal(loc + 2 * x + coin, 1.0), obs=Y[2 * t : 2 * t + 2])


def two_chains() -> None:
    loc = pyro.sample("loc", dist.Normal(zeros(2), 1.0).to_event(1))
    w: Any = 0.0
    x: Any = 0.0
    for t in pyro.markov(range(3)):
        w = pyro.sample(f"w{t}", dist.Bernoulli(logits=loc[0] + w))
        x = pyro.sample(f"x{t}", dist.Bernoulli(logits=loc[1] - x + w))
        pyro.sample(f"y{t}", dist.Normal(2 * w - x, 1.0), obs=Y[t])


def crossed() -> None:
    """A coin of each column, a location of each row."""
    a, b = pyro.plate("a", 2, dim=-2), pyro.plate("b", 3, dim=-1)
    with b:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3, dtype=D)))
    with a:
        loc = pyro.sample("loc", dist.Normal(zeros(), 1.0))
    with a, b:
        pyro.sample("x", dist.Normal(loc + 2 * z, 1.0), obs=Y.reshape(2, 3))


def loops() -> None:
    """A coin of the whole and one of each turn of a loop."""
    mu = pyro.sample("mu", dist.Normal(zeros(), 1.0))
    k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.4, dtype=D)))
    for i in pyro.plate("loop", 3):
        j = pyro.sample(f"j{i}", dist.Categorical(torch.tensor([0.2, 0.5, 0.3], dtype=D)))
        pyro.sample(f"x{i}", dist.Normal(mu + 2 * k - j, 1.0), obs=Y[i])


def nested() -> None:
    """A coin above a plate, one inside, and one inside of that."""
    logits = pyro.sample("logits", dist.Normal(zeros(2), 1.0).to_event(1))
    top = pyro.sample("top", dist.Bernoulli(logits=logits[0]))
    with pyro.plate("outer", 2, dim=-2):
        middle = pyro.sample("middle", dist.Bernoulli(logits=logits[1] + top))
        with pyro.plate("inner", 3, dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=middle - top + zeros(2, 3)))
            pyro.sample("x", dist.Normal(3 * z + middle, 1.0), obs=Y.reshape(2, 3))


ANY = torch.ones(3, 3, dtype=torch.bool)
UPWARD = torch.eye(4).bool() | torch.diag(torch.ones(3), 1).bool()  # in two steps the last state is out of reach
PROGRAMS = {
    "Markov chain": chain(ANY, 5),
    "upward chain": chain(UPWARD, 3),
    "chains in a plate": chains_in_a_plate,
    "two chains": two_chains,
    "crossed plates": crossed,
    "loops": loops,
    "nested plates": nested,
}


def by_brute_force(program: Callable[[], None], energy: UnconstrainedProgram, u: Tensor) -> Tensor:
    """E(u), all supports of continuous sites being real: a run of the program for all the discrete values there are."""
    given = {k: u[s.start : s.stop].reshape(s.shape) for k, s in energy.slots.items()}
    sites = poutine.trace(poutine.condition(program, data=given)).get_trace().nodes
    names, values = [], []
    for name in energy.enumerated:
        shape = sites[name]["value"].shape
        support = sites[name]["fn"].enumerate_support(expand=False).flatten()
        names.append(name)
        values.append([torch.stack(v).reshape(shape) for v in itertools.product(support, repeat=shape.numel())])
    terms = []
    for chosen in itertools.product(*values):
        data = {**given, **dict(zip(names, chosen, strict=True))}
        terms.append(poutine.trace(poutine.condition(program, data=data)).get_trace().log_prob_sum())
    terms = [term for term in terms if term > -math.inf]  # their gradients would be nan
    return -torch.stack(terms).logsumexp(0)


@pytest.mark.parametrize("name", PROGRAMS)
def test_energy_and_gradient_are_the_sum_over_all_values(name: str) -> None:
    program = PROGRAMS[name]
    energy = UnconstrainedProgram(program)
    x = torch.randn(2, energy.size, dtype=D)
    found, gradient = BatchedEnergy(energy, compile=False).energy_and_gradient(x)
    leaf = x.clone().requires_grad_()
    expected = torch.stack([by_brute_force(program, energy, u) for u in leaf])
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), leaf)[0])


@pytest.mark.parametrize("name", ["Markov chain", "crossed plates", "loops"])
def test_energy_is_pyros_own(name: str) -> None:
    program = UnconstrainedProgram(PROGRAMS[name])
    _, potential, _, _ = initialize_model(PROGRAMS[name])
    u = torch.randn(program.size, dtype=D)
    parts = {k: u[s.start : s.stop].reshape(s.shape) for k, s in program.slots.items()}
    torch.testing.assert_close(program(u), potential(parts).reshape(()))


def test_a_compiled_chain() -> None:
    energy = UnconstrainedProgram(PROGRAMS["upward chain"])
    x = torch.randn(3, energy.size, dtype=D)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # inductor's own
        found = BatchedEnergy(energy, compile=True).energy_and_gradient(x)
    for a, b in zip(found, BatchedEnergy(energy, compile=False).eager(x), strict=True):
        torch.testing.assert_close(a, b)


def test_far_from_the_data_nothing_underflows() -> None:
    """In float32 the densities of all states are below the smallest number, and so is the ratio of two of them."""

    def program() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1e3))
        x: Any = 0
        for t in pyro.markov(range(3)):
            x = pyro.sample(f"x{t}", dist.Bernoulli(0.25 + 0.5 * torch.as_tensor(x)))
            pyro.sample(f"y{t}", dist.Normal(loc + 40 * x, 1.0), obs=torch.tensor(0.0))

    u = torch.tensor([[-1000.0]])
    energy, gradient = BatchedEnergy(UnconstrainedProgram(program), compile=False).energy_and_gradient(u)
    # of all paths 1, 1, 1 is nearest to the data: e^(40 (960 + 20)) times nearer than the next
    normals = 3 * (960**2 / 2 + 0.5 * math.log(2 * math.pi)) - math.log(0.25 * 0.75 * 0.75)
    prior = 0.5 + math.log(1e3) + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(energy, torch.tensor([normals + prior]))
    torch.testing.assert_close(gradient, torch.tensor([[-3 * 960.0 - 1e-3]]))


def test_a_chain_posterior() -> None:
    """The mean of a state's location given the data, by quadrature over it and the sum over all paths."""

    def program() -> None:
        loc = pyro.sample("loc", dist.Normal(zeros(), 2.0))
        x: Any = torch.zeros((), dtype=D)
        for t in pyro.markov(range(4)):
            x = pyro.sample(f"x{t}", dist.Bernoulli(0.2 + 0.6 * x))
            pyro.sample(f"y{t}", dist.Normal(loc * x, 0.5), obs=Y[t])

    energy = UnconstrainedProgram(program)
    grid = torch.linspace(-8, 8, 161, dtype=D)
    with torch.no_grad():
        weight = (-torch.stack([by_brute_force(program, energy, u) for u in grid.unsqueeze(-1)])).softmax(0)
    settings = {"chains": 64, "warmup": 80, "draws": 60, "compile": False, "progress": False}
    draws = pyrodgm.mcmc(program, NUTS(), **settings)["loc"]
    error = draws.mean(1).std() / 64**0.5  # of independent chains
    assert abs(draws.mean() - (weight * grid).sum()) < 4.5 * error


def test_deterministic_sites_that_know_no_summed_value_are_kept() -> None:
    def program() -> None:
        mu = pyro.sample("mu", dist.Normal(zeros(), 1.0))
        pyro.deterministic("twice", 2 * mu)
        with pyro.plate("rows", 2):
            coin = pyro.sample("coin", dist.Bernoulli(torch.tensor(0.3, dtype=D)))
            pyro.deterministic("chosen", mu * coin)
            x = pyro.sample("x", dist.Normal(mu + coin, 1.0))
            pyro.deterministic("of a free site", x.square())
            pyro.sample("y", dist.Normal(x, 1.0), obs=Y[:2])

    posterior = pyrodgm.mcmc(program, NUTS(), chains=2, warmup=5, draws=4, compile=False, progress=False)
    assert set(posterior.samples) == {"mu", "x", "twice", "of a free site"}
    torch.testing.assert_close(posterior["twice"], 2 * posterior["mu"])
    torch.testing.assert_close(posterior["of a free site"], posterior["x"].square())


def test_sums_that_are_exponential_are_refused() -> None:
    def program() -> None:
        a, b = pyro.plate("a", 2, dim=-2), pyro.plate("b", 3, dim=-1)
        loc = pyro.sample("loc", dist.Normal(zeros(), 1.0))
        with a:
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3, dtype=D)))
        with b:
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3, dtype=D)))
        with a, b:
            pyro.sample("x", dist.Normal(loc + y * z, 1.0), obs=Y.reshape(2, 3))

    with pytest.raises(ValueError, match="plates that cross"):
        pyrodgm.mcmc(program, NUTS(), chains=2, warmup=2, draws=2, compile=False, progress=False)


def test_a_support_that_depends_on_a_summed_site_is_refused() -> None:
    def program() -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5, dtype=D)))
        pyro.sample("x", dist.Uniform(0.0, 1 + z))

    with pytest.raises(ValueError, match="must not depend on a discrete site"):
        pyrodgm.mcmc(program, NUTS(), chains=2, warmup=2, draws=2, compile=False, progress=False)
