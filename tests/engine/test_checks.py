"""What chains refuse before they run: data that no value of the latents explains, devices that differ, plates."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyrodgm
from pyrodgm.engine.unconstrained import UnconstrainedProgram
from pyrodgm.kernels import HMC

D = torch.float64


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def mean() -> Tensor:
    return pyro.sample("mu", dist.Normal(t(0.0)[0], 1.0))


def program(likelihood: Callable[[Tensor], Any], y: Tensor, seen: Tensor | None = None) -> None:
    mu = mean()
    with pyro.plate("rows", len(y)), poutine.mask(mask=torch.tensor(True) if seen is None else seen):
        pyro.sample("y", likelihood(mu), obs=y)


OUTSIDE: dict[str, tuple[Callable[[Tensor], Any], Tensor, str]] = {
    "labels from 1": (
        lambda mu: dist.Bernoulli(logits=mu),
        t(1, 2, 2, 1),
        r"Bernoulli at 'y', got 2.0 at \[1\], 2 such",
    ),
    "negative times": (lambda mu: dist.Exponential(mu.exp()), t(0.3, -1.0), r"Exponential at 'y', got -1.0 at \[1\]"),
    "missing numbers": (
        lambda mu: dist.Normal(mu, 1.0),
        t(0.3, 0.1, math.nan),
        r"Normal at 'y', got nan at \[2\], 1 such",
    ),
    "classes from 1": (
        lambda mu: dist.Categorical(logits=torch.stack((mu, -mu, 0 * mu))),
        torch.tensor([1, 3, 2]),
        r"Categorical at 'y', got 3 at \[1\]",
    ),
    "events": (
        lambda mu: dist.Normal(mu, 1.0).expand([2]).to_event(1),
        t(0.0, 1.0, 2.0, math.inf, 4.0, math.nan).reshape(3, 2),
        r"Normal at 'y', got \[4.0, nan\] at \[2\]",
    ),
    "bounds that stay": (lambda mu: dist.Uniform(t(0.0)[0], t(3.0)[0]), t(1.0, 4.0), r"Uniform at 'y', got 4.0"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_data_outside_their_support_are_refused(name: str) -> None:
    likelihood, y, message = OUTSIDE[name]
    with pytest.raises(ValueError, match=message):
        pyrodgm.mcmc(program, HMC(), likelihood, y, compile=False, progress=False)
    with pytest.raises(ValueError, match=message):
        pyrodgm.smc(program, likelihood, y, progress=False)
    seen = torch.zeros(len(y), dtype=torch.bool)
    UnconstrainedProgram(program, (likelihood, y, seen))  # what a mask leaves out may be anything


def test_bounds_that_follow_the_latents_are_left_to_the_energy() -> None:
    def bounded(y: Tensor) -> None:
        top = pyro.sample("top", dist.Gamma(t(2.0)[0], t(0.1)[0]))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Uniform(t(0.0)[0], top), obs=y)

    energy = UnconstrainedProgram(bounded, (t(3.0, 30.0),))
    with pyro.validation_enabled(False):  # as the chains have it
        assert energy(t(math.log(20.0))).isinf()
        assert energy(t(math.log(40.0))).isfinite()


@pytest.mark.parametrize("shapes", [((4, 1), (4,)), ((4,), (4, 1))])
@pytest.mark.parametrize("plate", [True, False])
def test_data_that_would_meet_all_parameters_are_refused(shapes: Any, plate: bool) -> None:
    """(N, 1) beside (N,) broadcasts to all N^2 pairs."""

    def paired() -> None:
        mu = mean() + torch.zeros(shapes[0], dtype=D)
        with pyro.plate_stack("rows", (4,) if plate else ()):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.zeros(shapes[1], dtype=D))

    with pytest.raises(ValueError, match=r"pairs them to \(4, 4\)"):
        UnconstrainedProgram(paired)


def test_one_observation_of_several_sites_is_no_pairing() -> None:
    def several() -> None:
        mu = pyro.sample("mu", dist.Normal(t(0.0, 0.0), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=t(1.0)[0])
        with pyro.plate("models", 2, dim=-2), pyro.plate("rows", 3, dim=-1):
            pyro.sample("z", dist.Normal(mu.unsqueeze(-1), 1.0), obs=t(1.0, 2.0, 3.0))

    expected = dist.Normal(0.0, 1.0).log_prob(t(0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0)).sum()
    torch.testing.assert_close(-UnconstrainedProgram(several)(t(0.0, 0.0)), expected)


def test_values_on_two_devices_are_refused() -> None:
    def scattered(y: Tensor) -> None:
        mu = mean()
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"'mu' on cpu and 'y' on meta; make its tensors there"):
        pyrodgm.mcmc(scattered, HMC(), torch.zeros(3, device="meta"), compile=False, progress=False)


def test_a_batch_without_a_plate_is_refused_beside_discrete_sites() -> None:
    """Enumeration would take its dimension for the values of z."""

    def loose(declared: bool) -> None:
        z = pyro.sample("z", dist.Categorical(t(0.2, 0.3, 0.5)))
        prior = dist.Normal(torch.zeros(3, dtype=D), 1.0)
        mu = pyro.sample("mu", prior.to_event(1) if declared else prior)
        pyro.sample("x", dist.Normal(mu[z], 1.0), obs=t(0.5)[0])

    with pytest.raises(ValueError, match=r"'mu' of batch shape \(3,\); use .to_event"):
        UnconstrainedProgram(loose, (False,))
    u = t(0.1, -0.4, 0.8)
    each = t(0.2, 0.3, 0.5).log() + dist.Normal(u, 1.0).log_prob(t(0.5))
    expected = each.logsumexp(0) + dist.Normal(0.0, 1.0).log_prob(u).sum()
    torch.testing.assert_close(-UnconstrainedProgram(loose, (True,))(u), expected)


def test_improper_priors_have_the_type_of_the_arguments() -> None:
    def improper(y: Tensor) -> None:
        free = dist.ImproperUniform(dist.constraints.real, (), (2,))
        mu = pyro.sample("mu", free)
        pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y)

    assert UnconstrainedProgram(improper, (t(0.3, 0.2),)).dtype == D
    assert UnconstrainedProgram(improper, (torch.zeros(2),)).dtype == torch.float32
