"""Kernels: invariance of known targets, detailed balance by enumeration, AIS and Pyro's MCMC against closed forms."""

import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyrodgm.energy import RBM
from pyrodgm.kernels import (
    HMC,
    MALA,
    MEADS,
    NUTS,
    SGHMC,
    SGLD,
    BlockGibbs,
    ChEES,
    Dense,
    Diagonal,
    GibbsWithGradients,
    Kernel,
    LowRank,
    ParallelTempering,
    RandomWalk,
    annealed_importance_sampling,
)

MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
PRECISION = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
COVARIANCE = PRECISION.inverse()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def gaussian(x: Tensor) -> Tensor:
    d = x - MEAN
    return (d @ PRECISION * d).sum(-1) / 2


def laplace(x: Tensor) -> Tensor:
    """Not smooth, not symmetric: a kernel without its correction shows here."""
    return torch.where(x > 0, 2 * x, -x).sum(-1)


def assert_mean(values: Tensor, expected: Tensor | float) -> None:
    """Independent rows against a mean: 4.5 standard errors, 1 in 10^5 by chance."""
    error = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - expected).abs() < 4.5 * error).all(), (values.mean(0), expected, error)


@pytest.mark.parametrize("kernel", [MALA(0.9), RandomWalk(1.0)], ids=["MALA", "RandomWalk"])
def test_gaussian_stays_invariant(kernel: Kernel) -> None:
    generator = torch.Generator().manual_seed(1)
    n = 20_000
    noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    state = kernel.init(gaussian, MEAN + noise @ torch.linalg.cholesky(COVARIANCE).T)
    accepted = torch.zeros(n, dtype=torch.float64)
    for _ in range(15):
        state, info = kernel.step(state, generator)
        accepted += info.accept_prob / 15
    assert 0.3 < accepted.mean() < 0.95  # so that the correction matters
    d = state.positions - MEAN
    assert_mean(d, 0.0)
    assert_mean((d.unsqueeze(-1) * d.unsqueeze(-2)).flatten(1), COVARIANCE.flatten())


@pytest.mark.parametrize("kernel", [MALA(0.7), RandomWalk(0.8)], ids=["MALA", "RandomWalk"])
def test_asymmetric_laplace_stays_invariant(kernel: Kernel) -> None:
    generator = torch.Generator().manual_seed(2)
    n = 20_000
    right = torch.rand(n, 1, dtype=torch.float64, generator=generator) < 1 / 3
    size = -torch.rand(n, 1, dtype=torch.float64, generator=generator).log()
    state = kernel.init(laplace, torch.where(right, size / 2, -size))
    for _ in range(15):
        state, _ = kernel.step(state, generator)
    x = state.positions
    assert_mean((x > 0).double(), 1 / 3)
    assert_mean(x, 1 / 6 - 2 / 3)
    assert_mean(x.square(), 1 / 6 + 4 / 3)


@pytest.mark.parametrize("kernel", [MALA(0.8), RandomWalk(1.2)], ids=["MALA", "RandomWalk"])
def test_far_chains_find_the_target_and_the_state_is_current(kernel: Kernel) -> None:
    generator = torch.Generator().manual_seed(3)
    state = kernel.init(gaussian, torch.full((4000, 2), 4.0, dtype=torch.float64))
    for _ in range(120):
        state, _ = kernel.step(state, generator)
    assert_mean(state.positions, MEAN)
    torch.testing.assert_close(state.energy, gaussian(state.positions))
    if state.gradient is not None:
        torch.testing.assert_close(state.gradient, (state.positions - MEAN) @ PRECISION)


@pytest.mark.parametrize("kernel", [MALA(1.0), RandomWalk(1.0)], ids=["MALA", "RandomWalk"])
def test_one_potential_call_a_step_and_events_of_any_shape(kernel: Kernel) -> None:
    calls = 0

    def potential(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x.square().sum((-2, -1)) / 2

    with torch.no_grad():  # as energy models run them
        state = kernel.init(potential, torch.randn(7, 2, 3))
        for _ in range(5):
            state, info = kernel.step(state)
    assert calls == 6
    assert state.positions.shape == (7, 2, 3)
    assert state.positions.dtype == torch.float32
    assert info.accept_prob.shape == (7,)


@pytest.mark.parametrize("kernel", [MALA(2.0), RandomWalk(2.0)], ids=["MALA", "RandomWalk"])
def test_where_the_energy_is_infinite_or_nan_no_chain_goes(kernel: Kernel) -> None:
    for outside in (math.inf, math.nan):

        def potential(x: Tensor, outside: float = outside) -> Tensor:
            return torch.where((x > 0).all(-1), x.sum(-1), outside)

        state = kernel.init(potential, torch.ones(500, 1, dtype=torch.float64))
        for _ in range(10):
            state, info = kernel.step(state)
            assert not info.accept_prob.isnan().any()
        assert (state.positions > 0).all()
        assert state.positions.std() > 0


def test_mala_accepts_nearly_all_small_steps() -> None:
    kernel = MALA(1e-3)
    _, info = kernel.step(kernel.init(gaussian, torch.randn(100, 2, dtype=torch.float64)))
    assert (1 - info.accept_prob).max() < 1e-6  # the rejections are of the third order in the step size


TWO = torch.tensor([2.0, 0.5], dtype=torch.float64)
MIXED = {
    "HMC": HMC(),
    "HMC diagonal": HMC(metric=Diagonal(TWO)),
    "HMC dense": HMC(metric=Dense(TWO.diag())),
    "HMC low-rank": HMC(metric=LowRank(1, 2.0, TWO, torch.eye(2, dtype=torch.float64)[:1], TWO[:1])),
    "ChEES": ChEES(),
    "NUTS": NUTS(),
    "MEADS": MEADS(),
    "MEADS fixed": MEADS(0.5, 1.0, Diagonal(TWO)),
    "MALA": MALA(0.5),
    "RandomWalk": RandomWalk(0.5),
    "SGLD": SGLD(0.1),
    "SGHMC": SGHMC(0.1),
    "ParallelTempering": ParallelTempering(HMC(), replicas=3),
}


@pytest.mark.parametrize("kernel", MIXED.values(), ids=MIXED.keys())
def test_chains_keep_their_type_where_energies_have_another(kernel: Kernel) -> None:
    """Single positions, double energies, as single latents beside double data: a graph traced once has one type."""
    generator = torch.Generator().manual_seed(4)
    state = kernel.init(lambda x: x.double().square().sum(-1) / 2, torch.randn(16, 2, generator=generator))
    tuner = kernel.tuner(state, 3, generator)
    for _ in range(3):
        before = state
        state, info = tuner.kernel.step(before, generator)
        tuner.update(before, state, info)
    state, _ = tuner.kernel.step(state, generator)
    kept = state.memory[::2] if isinstance(kernel, ParallelTempering) else state.memory  # it has energies between
    for part in (state.positions, state.gradient, *kept):
        assert part is None or part.dtype == torch.float32
    assert state.energy is None or state.energy.dtype == torch.float64


def test_kernels_show_their_settings() -> None:
    shown = "HMC(length=1.571, step_size=0.3, target=0.651, metric=Diagonal(), jitter=True, max_steps=1000)"
    assert repr(HMC(step_size=0.3)) == shown
    assert repr(HMC(metric=Dense(torch.eye(2)))).count("metric=Dense(inverse_mass=tensor(2, 2))") == 1
    assert repr(BlockGibbs()) == "BlockGibbs()"
    tempering = ParallelTempering(GibbsWithGradients(), replicas=4, scaled=False)
    inner = "GibbsWithGradients(flips=1, low=0, high=1)"
    assert repr(tempering) == f"ParallelTempering(betas=tensor(4,), kernel={inner}, adapt=True, scaled=False)"


@pytest.mark.parametrize("kernel", [MALA, RandomWalk])
def test_step_sizes_are_positive(kernel: Callable[[float], Kernel]) -> None:
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="step_size > 0"):
            kernel(bad)


def test_generator_decides_everything() -> None:
    rbm = RBM(6, 4)
    cases: list[tuple[Kernel, Any, Tensor]] = [
        (MALA(0.5), laplace, torch.zeros(9, 2)),
        (RandomWalk(0.5), laplace, torch.zeros(9, 2)),
        (BlockGibbs(), rbm.potential(), torch.zeros(9, 6)),
    ]
    for kernel, potential, x in cases:
        before = torch.get_rng_state()
        draws = [
            kernel.step(kernel.init(potential, x), torch.Generator().manual_seed(s))[0].positions for s in (1, 1, 2)
        ]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
        assert torch.equal(before, torch.get_rng_state())


def tiny_rbm() -> tuple[RBM, Tensor]:
    rbm = RBM(3, 2).double()
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.normal_(0, 1.2)
    return rbm, torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)


def test_gibbs_is_in_detailed_balance() -> None:
    rbm, v = tiny_rbm()
    chains = 40_000
    kernel, generator = BlockGibbs(), torch.Generator().manual_seed(4)
    p = rbm.log_prob(v).exp()
    code = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)  # cartesian_prod counts with the last unit fastest
    # the transition matrix that the conditionals imply, and the one that the kernel shows
    h = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 2)
    joint = -rbm.joint_energy(v.unsqueeze(1), h)  # (8, 4)
    transition = joint.softmax(1) @ joint.softmax(0).T  # sum over h of p(h | v) p(v' | h)
    flow = p.unsqueeze(1) * transition
    torch.testing.assert_close(flow, flow.T)
    for i in range(8):
        state, _ = kernel.step(kernel.init(rbm.potential(), v[i].expand(chains, -1)), generator)
        count = torch.bincount((state.positions @ code).long(), minlength=8)
        error = (transition[i] * (1 - transition[i]) / chains).sqrt()
        assert ((count / chains - transition[i]).abs() < 5 * error).all()


def test_gibbs_wants_conditionals() -> None:
    with pytest.raises(TypeError, match=r"rbm\.potential\(\)"):
        BlockGibbs().init(gaussian, torch.zeros(3, 2))


class GaussianPath:
    """From N(0, 9) to exp(-(x - 1)^2 / 2), geometric, each move an exact draw."""

    base_log_partition = torch.tensor(0.5 * math.log(2 * math.pi * 9), dtype=torch.float64)

    def start(self, chains: int, generator: torch.Generator | None = None) -> Tensor:
        return 3 * torch.randn(chains, 1, dtype=torch.float64, generator=generator)

    def log_density(self, x: Tensor, beta: Tensor) -> Tensor:
        return (-(1 - beta) * x.square() / 18 - beta * (x - 1).square() / 2).squeeze(-1)

    def move(self, x: Tensor, beta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        precision = (1 - beta) / 9 + beta
        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        return beta / precision + noise / precision.sqrt()


@pytest.mark.parametrize("temperatures", [1, 20, torch.linspace(0, 1, 51, dtype=torch.float64) ** 2])
def test_ais_of_a_gaussian(temperatures: int | Tensor) -> None:
    generator = torch.Generator().manual_seed(5)
    estimate = annealed_importance_sampling(GaussianPath(), 4000, temperatures, generator)
    assert abs(estimate.log_z - 0.5 * math.log(2 * math.pi)) < 4 * estimate.standard_error
    assert estimate.log_weights.shape == (4000,)
    weights = estimate.log_weights.exp()
    torch.testing.assert_close(estimate.log_z, weights.mean().log())
    torch.testing.assert_close(estimate.standard_error, weights.std() / weights.mean() / math.sqrt(4000))


def conjugate(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=y.dtype), 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.parametrize(
    ("kernel", "warmup"),
    [(MALA(0.6), 50), (RandomWalk(0.8), 50), (NUTS(), 50), (ChEES(1.2, 0.6), 0), (MEADS(0.5, 1.0), 0)],
    ids=["MALA", "RandomWalk", "NUTS", "ChEES", "MEADS"],
)
def test_pyro_posterior_of_a_conjugate_model(kernel: Kernel, warmup: int) -> None:
    pyro.set_rng_seed(1)
    y = torch.tensor([0.3, 1.9, 1.1, 2.2, 0.8], dtype=torch.float64)
    mcmc = MCMC(kernel.pyro(conjugate), num_samples=600, warmup_steps=warmup, disable_progbar=True)
    mcmc.run(y)
    mu = mcmc.get_samples()["mu"]
    assert mu.dtype == torch.float64
    precision = len(y) + 0.25
    expected, sd = y.sum() / precision, precision**-0.5
    effective = pyro.ops.stats.effective_sample_size(mu.unsqueeze(0))
    assert effective > 60
    assert abs(mu.mean() - expected) < 4.5 * sd / effective.sqrt()
    # of a normal the variance estimate has a relative error of sqrt(2 / n)
    assert abs(mu.var() / sd**2 - 1) < 4.5 * (2 / effective).sqrt()
    assert 0.3 < mcmc.diagnostics()["acceptance rate"]["chain 0"] < 0.99
    assert pickle.loads(pickle.dumps(kernel.pyro(conjugate))).model is conjugate


@pytest.mark.parametrize(("kernel", "message"), [(ChEES(), "two chains at least"), (MEADS(), "8 chains at least")])
def test_pyro_has_one_chain_which_some_kernels_cannot_be_tuned_by(kernel: Kernel, message: str) -> None:
    mcmc = MCMC(kernel.pyro(conjugate), num_samples=2, warmup_steps=2, disable_progbar=True)
    with pytest.raises(ValueError, match=message):
        mcmc.run(torch.zeros(3, dtype=torch.float64))


def test_pyro_returns_constrained_sites_of_mixed_shapes_and_dtypes() -> None:
    pyro.set_rng_seed(2)
    one = torch.tensor(1.0, dtype=torch.float64)

    def model() -> None:
        pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        pyro.sample("a_scale", dist.Gamma(3 * one, one))
        pyro.sample("beta", dist.Beta(2 * one, one).expand([2]).to_event(1))

    kernel = MALA(0.7).pyro(model)
    mcmc = MCMC(kernel, num_samples=400, warmup_steps=50, disable_progbar=True)
    mcmc.run()
    samples = mcmc.get_samples()
    assert samples["weights"].shape == (400, 3)
    assert samples["beta"].shape == (400, 2)
    torch.testing.assert_close(samples["weights"].sum(-1), torch.ones_like(samples["weights"][:, 0]), rtol=0, atol=1e-5)
    for value, expected, sd in ((samples["a_scale"], 3.0, 3**0.5), (samples["beta"][:, 0], 2 / 3, 18**-0.5)):
        effective = pyro.ops.stats.effective_sample_size(value.unsqueeze(0))
        assert abs(value.mean() - expected) < 4.5 * sd / effective.sqrt()


def test_pyro_initial_params_are_kept() -> None:
    y = torch.zeros(3, dtype=torch.float64)
    start = torch.tensor(2.5, dtype=torch.float64)
    for chains in (1, 3):
        initial = {"mu": start if chains == 1 else start + torch.arange(chains)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # more chains than processors: Pyro says that it takes them in turn
            mcmc = MCMC(
                RandomWalk(1e-6).pyro(conjugate),
                num_samples=2,
                warmup_steps=1,
                num_chains=chains,
                initial_params=initial,
                disable_progbar=True,
            )
            mcmc.run(y)
        mu = mcmc.get_samples(group_by_chain=True)["mu"]
        expected = (start + torch.arange(chains)).unsqueeze(-1).expand(chains, 2)
        torch.testing.assert_close(mu, expected, rtol=0, atol=1e-4)


def test_pyro_acceptance_leaves_the_warmup_out() -> None:
    kernel = RandomWalk(0.5).pyro(conjugate)
    kernel.setup(3, torch.zeros(2, dtype=torch.float64))
    params, rates = kernel.initial_params, []
    for _ in range(8):
        before = kernel._accept_sum
        params = kernel.sample(params)
        rates.append(kernel._accept_sum - (0.0 if kernel._steps == 4 else before))
    assert math.isclose(kernel.diagnostics()["acceptance rate"], sum(rates[3:]) / 5)
    assert kernel.logging()["acc. prob"] == f"{sum(rates[3:]) / 5:.3f}"


def test_pyro_programs_without_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="continuous latent site"):
        MALA(0.1).pyro(lambda: pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))).setup(1)


def test_pyros_warmup_tunes_the_kernel() -> None:
    """A step of 0.1 of the prior's scale would take hundreds of draws from one end to the other."""

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(2), torch.tensor([100.0, 10.0])).to_event(1))

    pyro.set_rng_seed(0)
    mcmc = MCMC(HMC(0.1).pyro(model), num_samples=200, warmup_steps=300, disable_progbar=True)
    mcmc.run()
    kernel = HMC(0.1).pyro(model)
    kernel.setup(300)
    params = kernel.initial_params
    for _ in range(300):
        params = kernel.sample(params)
    variances = kernel._tuner.kernel.metric.inverse_mass
    assert 20 < variances.max() / variances.min() < 500  # 100, and 1 untuned
    spread = mcmc.get_samples()["z"].std(0)
    assert bool(((spread / torch.tensor([100.0, 10.0]) - 1).abs() < 0.4).all()), spread


@pytest.mark.parametrize("kernel", [None, GibbsWithGradients(2)], ids=["block Gibbs", "Gibbs with gradients"])
def test_pyro_draws_the_units_of_a_machine(kernel: Kernel | None) -> None:
    pyro.set_rng_seed(0)
    rbm = RBM(3, 2, context=1).double()
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.normal_(0.0, 0.8)
    own, context = rbm.kernel, torch.tensor([0.7], dtype=torch.float64)
    face = (own if kernel is None else kernel).pyro(rbm)
    mcmc = MCMC(face, num_samples=3000, warmup_steps=20, disable_progbar=True)
    mcmc.run(context)
    x = mcmc.get_samples()["x"]
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    p = (-rbm.energy(states, context.expand(8, 1))).softmax(0)
    effective = pyro.ops.stats.effective_sample_size(x.unsqueeze(0))
    error = ((states.square() * p[:, None]).sum(0) - (states * p[:, None]).sum(0).square()).sqrt() / effective.sqrt()
    assert effective.min() > 300
    assert bool(((x.mean(0) - (states * p[:, None]).sum(0)).abs() < 4.5 * error).all())
    assert rbm.kernel is own
    with pytest.raises(TypeError, match="keeps replicas"):
        ParallelTempering(GibbsWithGradients(), scaled=False).pyro(rbm)
