"""Sequential Monte Carlo: log Z and draws against conjugate evidence, quadrature and closed forms."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import assert_means_agree, mean_and_error
from torch import Tensor

from pyrodgm.energy import RBM, NeuralEnergy
from pyrodgm.engine import smc
from pyrodgm.kernels import (
    HMC,
    MALA,
    MEADS,
    NUTS,
    SGHMC,
    SGLD,
    Kernel,
    ParallelTempering,
    RandomWalk,
    sequential_monte_carlo,
    systematic_resample,
)

D = torch.float64
Y = torch.tensor([0.3, 1.9, 1.1, 2.2, 0.8, -0.7, 1.4], dtype=D)


def t(value: float) -> Tensor:
    return torch.tensor(value, dtype=D)


def conjugate(y: Tensor) -> None:
    precision = pyro.sample("precision", dist.Gamma(t(3.0), t(2.0)))
    mu = pyro.sample("mu", dist.Normal(t(0.5), (1 / (2 * precision)).sqrt()))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, precision.rsqrt()), obs=y)


def conjugate_evidence() -> tuple[float, float, float]:
    """log p(y), E[mu | y], E[precision | y]; Murphy (2007), Conjugate Bayesian analysis, eq. 85-95."""
    n, k0, m0, a0, b0 = len(Y), 2.0, 0.5, 3.0, 2.0
    k, a = k0 + n, a0 + n / 2
    b = b0 + 0.5 * (Y - Y.mean()).square().sum().item() + k0 * n * (Y.mean().item() - m0) ** 2 / (2 * k)
    log_z = math.lgamma(a) - math.lgamma(a0) + a0 * math.log(b0) - a * math.log(b)
    log_z += 0.5 * math.log(k0 / k) - n / 2 * math.log(2 * math.pi)
    return log_z, (k0 * m0 + Y.sum().item()) / k, a / b


def test_conjugate_evidence_and_posterior() -> None:
    found = smc(conjugate, Y, particles=300, runs=8, seed=1)
    log_z, mu, precision = conjugate_evidence()
    assert 0 < found.standard_error < 0.05
    assert abs(found.log_z - log_z) < 4.5 * found.standard_error
    # runs are independent, their means have the Monte Carlo error
    assert_means_agree(*mean_and_error(found.posterior["mu"].mean(1)), t(mu))
    assert_means_agree(*mean_and_error(found.posterior["precision"].mean(1)), t(precision))
    assert found.betas[0][0] == 0
    assert found.betas[0][-1] == 1


@pytest.mark.parametrize(
    ("kernel", "ess", "compile"),
    [(NUTS(), 0.7, False), (MEADS(moves=2), 0.5, False), (MALA(0.3), 0.5, False), (HMC(), 0.5, True)],
    ids=["NUTS", "MEADS", "MALA", "compiled"],
)
def test_other_kernels_shares_and_compiled_energies(kernel: Kernel, ess: float, compile: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # inductor's own
        found = smc(conjugate, Y, kernel=kernel, ess=ess, compile=compile, particles=200, runs=6, seed=3)
    log_z, mu, _ = conjugate_evidence()
    assert 0 < found.standard_error < 0.1
    assert abs(found.log_z - log_z) < 4.5 * found.standard_error
    assert_means_agree(*mean_and_error(found.posterior["mu"].mean(1)), t(mu))


def test_a_higher_share_takes_more_temperatures() -> None:
    few, many = (smc(conjugate, Y, particles=100, runs=2, moves=1, ess=share, seed=4) for share in (0.2, 0.9))
    assert max(len(b) for b in few.betas) < min(len(b) for b in many.betas)


def test_the_seed_decides() -> None:
    first, again, other = (smc(conjugate, Y, particles=20, runs=2, moves=1, seed=s) for s in (1, 1, 2))
    assert first.log_z == again.log_z != other.log_z
    assert torch.equal(first.posterior["mu"], again.posterior["mu"])


def test_enumerated_sites_and_factors() -> None:
    """A coin that chooses between two means, and a factor; the evidence by quadrature over z."""

    def program() -> None:
        z = pyro.sample("z", dist.Normal(t(0.0), 1.0))
        coin = pyro.sample("coin", dist.Bernoulli(t(0.3)))
        pyro.sample("x", dist.Normal(z + 4 * coin, 0.5), obs=t(2.0))
        pyro.factor("evidence", -z.abs())

    z = torch.linspace(-8, 8, 4001, dtype=D)
    left, right = (dist.Normal(z + 4 * c, 0.5).log_prob(t(2.0)) for c in (0, 1))
    joint = dist.Normal(0.0, 1.0).log_prob(z) - z.abs()
    joint = joint + torch.logaddexp(left + math.log(0.7), right + math.log(0.3))
    found = smc(program, particles=300, runs=10, seed=2)
    assert abs(found.log_z - torch.trapezoid(joint.exp(), z).log().item()) < 4.5 * found.standard_error
    assert found.standard_error < 0.1


def reference(x: Tensor) -> Tensor:
    return x.square().sum(-1) / 50


def mixture(x: Tensor) -> Tensor:
    """0.3 N(-4, 0.25) + 0.7 N(4, 0.25) in each of one dimension, times 5: log Z = log 5."""
    left, right = (math.log(w) - 2 * (x.squeeze(-1) - m).square() for w, m in ((0.3, -4), (0.7, 4)))
    return -torch.logaddexp(left, right) + 0.5 * math.log(2 * math.pi / 4) - math.log(5)


@pytest.mark.parametrize("kernel", [HMC(), MALA(0.5), RandomWalk(0.7)], ids=lambda k: type(k).__name__)
def test_two_modes(kernel) -> None:
    generator = torch.Generator().manual_seed(3)
    start = 5 * torch.randn(12, 500, 1, dtype=D, generator=generator)
    z0 = 0.5 * math.log(2 * math.pi * 25)
    found = sequential_monte_carlo(
        reference, mixture, start, kernel, base_log_partition=z0, ess=0.7, generator=generator
    )
    assert 0 < found.standard_error < 0.1
    assert abs(found.log_z - math.log(5)) < 4.5 * found.standard_error
    assert_means_agree(*mean_and_error((found.positions < 0).double().mean((1, 2))), t(0.3))
    assert found.log_zs.shape == (12,)


def test_the_standard_error_is_honest() -> None:
    """Forty estimates of two narrow steps: their spread beside what each says of itself."""
    generator = torch.Generator().manual_seed(4)
    scores = []
    for _ in range(40):
        start = 5 * torch.randn(8, 60, 1, dtype=D, generator=generator)
        found = sequential_monte_carlo(
            reference, lambda x: x.square().sum(-1) / 2, start, RandomWalk(1.0), moves=2, generator=generator
        )
        exact = -math.log(5)  # of Z / Z_0
        scores.append(((found.log_z - exact) / found.standard_error).item())
    # of 40 Student scores with 7 degrees of freedom (sd 1.18): mean within 4.5 standard errors, and a mean square that
    # is 1.4 with an error of 0.44, skewed to the right: errors that are half or twice as large give 5.6 or 0.35
    assert abs(sum(scores) / 40) < 4.5 * 1.18 / math.sqrt(40)
    assert 0.5 < sum(s * s for s in scores) / 40 < 4.8


@pytest.mark.parametrize("ess", [0.3, 0.8])
def test_temperatures_keep_the_share_of_particles_that_is_asked_for(ess: float) -> None:
    """From N(0, 25) to N(0, 1) with particles that stay: each weight is one of exp(-(beta' - beta) (E - E_0))."""

    class Stays(RandomWalk):
        def step(self, state, generator=None):
            return state, super().step(state, generator)[1]

    generator = torch.Generator().manual_seed(7)
    start = 5 * torch.randn(2, 4000, 1, dtype=D, generator=generator)
    found = sequential_monte_carlo(reference, mixture, start, Stays(1.0), ess=ess, moves=1, generator=generator)
    for x, betas in zip(start, found.betas, strict=True):
        assert betas == sorted(set(betas))
        assert betas[-1] == 1
        weights = (-(betas[1] - betas[0]) * (mixture(x) - reference(x))).exp()
        assert weights.sum() ** 2 / weights.square().sum() / len(x) == pytest.approx(ess, abs=1e-6)
    # where it would stay above, the first step is the last
    start = torch.randn(2, 100, 1, dtype=D, generator=generator)
    found = sequential_monte_carlo(reference, lambda x: 1.01 * reference(x), start, Stays(1.0), ess=ess, moves=1)
    assert found.betas == [[0.0, 1.0]] * 2


def test_systematic_resampling_is_unbiased_and_even() -> None:
    generator = torch.Generator().manual_seed(5)
    weights = torch.tensor([0.05, 0.31, 0.24, 0.4], dtype=D)
    counts = torch.stack(
        [torch.bincount(systematic_resample(weights, generator), minlength=4) for _ in range(4000)]
    ).double()
    assert_means_agree(*mean_and_error(counts), 4 * weights)
    assert ((counts >= (4 * weights).floor()) & (counts <= (4 * weights).ceil())).all()


def test_particles_of_no_probability_are_left_out() -> None:
    """A target on half of the reference's support."""
    generator = torch.Generator().manual_seed(6)

    def half(x: Tensor) -> Tensor:
        return torch.where(x.squeeze(-1) > 0, reference(x), math.inf)

    start = 5 * torch.randn(10, 200, 1, dtype=D, generator=generator)
    found = sequential_monte_carlo(reference, half, start, RandomWalk(3.0), generator=generator)
    assert abs(found.log_z - math.log(0.5)) < 4.5 * found.standard_error
    assert (found.positions > 0).all()


def test_an_energy_as_prior_needs_no_normaliser() -> None:
    """Its log Z is in the first particles and in the last alike; here the energy is that of N(0, 1) and a constant."""
    prior = NeuralEnergy.mlp(1, [4]).double().requires_grad_(False).eval()
    prior.sample_steps = 1
    for p, value in zip(prior.net.parameters(), (0.0, 3.0, 1.0), strict=True):
        p.fill_(value)

    def program() -> None:
        z = pyro.sample("z", prior.condition())
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.ones(1, dtype=D))

    found = smc(program, particles=60, runs=6, seed=1, progress=False)
    exact = dist.Normal(0.0, 2**0.5).log_prob(t(1.0)).item()
    assert abs(found.log_z - exact) < 4.5 * found.standard_error


def test_the_posterior_knows_its_kernel_and_device(capfd: pytest.CaptureFixture[str]) -> None:
    found = smc(conjugate, Y, particles=10, runs=2, moves=1, device="cpu", progress=False)
    assert isinstance(found.posterior.kernel, HMC)
    assert found.posterior.device == torch.device("cpu")
    assert capfd.readouterr().err == ""
    smc(conjugate, Y, particles=10, runs=2, moves=1)
    assert "2/2" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (ParallelTempering(HMC(), 2), "for SMC, got ParallelTempering"),
        (SGHMC(0.1), "for SMC, got SGHMC"),
        (SGLD(0.1), "accepts by energies for SMC, got SGLD"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_kernels_that_move_no_particles_rightly_are_refused(kernel: Kernel, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        smc(conjugate, Y, kernel=kernel, particles=5, runs=2, progress=False)


def test_data_that_no_particle_explains_are_refused() -> None:
    def nowhere(x: Tensor) -> Tensor:
        return torch.full(x.shape[:1], math.inf, dtype=D)

    with pytest.raises(ValueError, match="finite energy, got none among 5"):
        sequential_monte_carlo(reference, nowhere, torch.randn(2, 5, 1, dtype=D), HMC())


def test_mistakes_are_named() -> None:
    with pytest.raises(TypeError, match="log_partition"):
        smc(RBM(4, 2), progress=False)
    with pytest.raises(ValueError, match="runs >= 2"):
        smc(conjugate, Y, runs=1)
    with pytest.raises(ValueError, match="two each at least"):
        sequential_monte_carlo(reference, mixture, torch.zeros(5, 1), HMC())
    with pytest.raises(ValueError, match="ess < 1"):
        sequential_monte_carlo(reference, mixture, torch.zeros(2, 5, 1), HMC(), ess=1.0)
