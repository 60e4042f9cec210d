"""Parallel tempering: the joint law stays, separated modes get their weights, the ladder evens out."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import assert_means_agree, mean_and_error
from torch import Tensor

import pyrodgm
from pyrodgm.energy import NeuralEnergy
from pyrodgm.kernels import HMC, NUTS, BlockGibbs, ParallelTempering, RandomWalk
from pyrodgm.kernels.tempering import even_ladder

D = torch.float64
WEIGHT, FAR = 0.3, 10.0


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def modes(x: Tensor) -> Tensor:
    """0.3 N(-10, 1) + 0.7 N(10, 1) in the first of two dimensions, N(0, 1) in the second: 50 nats between them."""
    a, b = x.unbind(-1)
    left = math.log(WEIGHT) - (a + FAR).square() / 2
    right = math.log(1 - WEIGHT) - (a - FAR).square() / 2
    return b.square() / 2 - torch.logaddexp(left, right)


@pytest.mark.parametrize(
    ("kernel", "scaled"),
    [(HMC(1.0, 0.6), True), (HMC(1.0, 0.6), False), (RandomWalk(1.0), True), (NUTS(0.8), True)],
    ids=["HMC", "HMC unscaled", "RandomWalk", "NUTS"],
)
def test_the_joint_law_of_all_replicas_stays(kernel, scaled) -> None:
    """Exact replicas of an asymmetric target, -log p = 2x or -x: each has an asymmetric Laplace law of rate beta."""
    n, betas = 20_000, torch.tensor([1.0, 0.5, 0.2], dtype=D)
    tempering = ParallelTempering(kernel, betas=betas, scaled=scaled)

    def energy(x: Tensor) -> Tensor:
        return torch.where(x > 0, 2 * x, -x).sum(-1)

    right = torch.rand(n, 3, 1, dtype=D, generator=generator(2)) < 1 / 3
    size = -torch.rand(n, 3, 1, dtype=D, generator=generator(3)).log() / betas.unsqueeze(-1)
    x = torch.where(right, size / 2, -size)
    e = energy(x)
    gradient = torch.where(x > 0, 2.0, -1.0).to(D)
    parts = [x, e, gradient][: len(tempering.init(energy, x[:, 0]).memory)]
    state = tempering.init(energy, x[:, 0])._replace(memory=tuple(p[:, 1:] for p in parts))
    noise = generator(4)
    for _ in range(6):
        state, info = tempering.step(state, noise)
    assert 0.05 < info.inner.accept_prob.nanmean() < 0.98
    end = torch.cat((state.positions.unsqueeze(1), state.memory[0]), 1).squeeze(-1)  # (n, R)
    mean = (1 / 6 - 2 / 3) / betas
    square = (1 / 6 + 4 / 3) / betas**2
    assert_means_agree(*mean_and_error(end), mean)
    assert_means_agree(*mean_and_error(end.square()), square)
    assert_means_agree(*mean_and_error((end > 0).double()), torch.full((3,), 1 / 3, dtype=D))
    # the replicas are independent, so products of centred values have mean 0
    centred = end - mean
    assert_means_agree(*mean_and_error(centred[:, :1] * centred[:, 1:]), torch.zeros(2, dtype=D))
    torch.testing.assert_close(state.memory[1].squeeze(-1), energy(state.memory[0]).squeeze(-1))


def test_modes_get_their_weights_where_plain_hmc_stays() -> None:
    chains = 500
    start = torch.zeros(chains, 2, dtype=D)
    start[:, 0] = -FAR  # all of them at the lesser mode
    plain, tempering = HMC(1.0, 0.7), ParallelTempering(HMC(1.5, 0.8), replicas=8, hottest=0.005)
    found = {}
    for name, kernel in (("plain", plain), ("tempered", tempering)):
        noise = generator(5)
        state = kernel.init(modes, start)
        tuner = kernel.tuner(state, 150, noise)
        for _ in range(150):
            before = state
            state, info = tuner.kernel.step(state, noise)
            tuner.update(before, state, info)
        draws = []
        for _ in range(150):
            state, _ = tuner.kernel.step(state, noise)
            draws.append(state.positions)
        found[name] = torch.stack(draws, 1)  # (chains, draws, 2)
    sides = found["plain"][..., 0] < 0
    assert (sides == sides[:, :1]).all()  # nobody crosses
    assert sides.double().mean() > 0.95  # but for a few that the first steps, of untried sizes, threw across
    x = found["tempered"]
    # chains are independent: their means have the Monte Carlo error
    assert_means_agree(*mean_and_error((x[..., 0] < 0).double().mean(1)), torch.tensor(WEIGHT, dtype=D))
    assert_means_agree(*mean_and_error(x[..., 0].mean(1)), torch.tensor((1 - 2 * WEIGHT) * FAR, dtype=D))
    assert_means_agree(*mean_and_error(x[..., 0].square().mean(1)), torch.tensor(FAR**2 + 1, dtype=D))
    assert_means_agree(*mean_and_error(x[..., 1].square().mean(1)), torch.tensor(1.0, dtype=D))
    ladder = tuner.kernel.betas
    assert ladder[0] == 1
    assert ladder[-1] == pytest.approx(0.005)
    assert (ladder.diff() < 0).all()


def warmed(kernel: ParallelTempering, x: torch.Tensor, steps: int, noise: torch.Generator) -> ParallelTempering:
    """The kernel after so many steps of warm-up on a standard normal."""
    state = kernel.init(lambda x: x.square().sum(-1) / 2, x)
    tuner = kernel.tuner(state, steps, noise)
    for _ in range(steps):
        before = state
        state, info = tuner.kernel.step(state, noise)
        tuner.update(before, state, info)
    return tuner.kernel


def test_the_ladder_evens_out() -> None:
    """On exponential energies (rate 1 a dimension) every ratio of temperatures rejects alike: a geometric ladder."""
    uneven = torch.tensor([1.0, 0.95, 0.9, 0.1], dtype=D)
    kernel = ParallelTempering(HMC(1.0, 0.5), betas=uneven)
    noise = generator(6)
    betas = warmed(kernel, torch.randn(400, 2, dtype=D, generator=noise), 260, noise).betas
    ratios = (betas[1:] / betas[:-1]).log()
    # Monte Carlo error of a rejection rate of 0.3 over 400 chains and 64 tries is below a hundredth
    torch.testing.assert_close(ratios, torch.full_like(ratios, math.log(0.1) / 3), rtol=0.1, atol=0)


def test_a_ladder_of_ones_own_stays_if_it_is_told_to() -> None:
    uneven = torch.tensor([1.0, 0.95, 0.9, 0.1], dtype=D)
    for adapt in (True, False):
        kernel, noise = ParallelTempering(HMC(1.0, 0.5), betas=uneven, adapt=adapt), generator(6)
        betas = warmed(kernel, torch.randn(50, 2, dtype=D, generator=noise), 20, noise).betas
        assert torch.equal(betas, uneven) is not adapt


def test_even_ladder_by_hand() -> None:
    betas = torch.tensor([1.0, 0.1, 0.01], dtype=D)
    # all rejection in the first pair: half of it lies half way in log beta
    found = even_ladder(betas, torch.tensor([0.8, 0.0], dtype=D))
    # 0.0005: the room of a pair that never rejects
    assert found[1] == pytest.approx(10**-0.5, rel=0.01)


def test_inside_mcmc_a_run_goes_on_from_its_store(tmp_path) -> None:
    def program() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 10.0))
        left, right = dist.Normal(-8.0, 1.0).log_prob(x), dist.Normal(8.0, 1.0).log_prob(x)
        pyro.factor("evidence", torch.logaddexp(left + math.log(0.3), right + math.log(0.7)) + x.square() / 200)

    kernel = ParallelTempering(HMC(1.5, 0.8), replicas=5, hottest=0.01)
    settings = {"chains": 20, "warmup": 40, "compile": False, "progress": False, "seed": 1}
    whole = pyrodgm.mcmc(program, kernel, draws=150, **settings)
    pyrodgm.mcmc(program, kernel, draws=100, store=tmp_path / "run", **settings)
    resumed = pyrodgm.mcmc(program, kernel, draws=150, store=tmp_path / "run", **settings)
    assert torch.equal(whole["x"], resumed["x"])
    assert whole["x"].shape == (20, 150)
    share = (whole["x"] < 0).double().mean(1)
    assert_means_agree(*mean_and_error(share), torch.tensor(0.3, dtype=D))


def test_mistakes_are_named() -> None:
    for bad in ({"replicas": 1}, {"hottest": 0.0}, {"hottest": 1.0}):
        with pytest.raises(ValueError, match="replicas >= 2 and hottest"):
            ParallelTempering(HMC(), **bad)
    for ladder in ([1.0], [0.5, 0.1], [1.0, 0.0]):
        with pytest.raises(ValueError, match="from 1 down"):
            ParallelTempering(HMC(), betas=ladder)
    with pytest.raises(ValueError, match="fall"):
        ParallelTempering(HMC(), betas=[1.0, 0.2, 0.5])
    kernel = ParallelTempering(HMC())
    with pytest.raises(ValueError, match=r"ParallelTempering\.init"):
        kernel.step(HMC().init(modes, torch.zeros(2, 2)))
    with pytest.raises(TypeError, match="conditionals"):
        ParallelTempering(BlockGibbs()).init(modes, torch.zeros(2, 2))


def test_an_energy_that_fails_by_itself_says_so() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("my own mistake")

    with pytest.raises(RuntimeError, match="my own mistake"):
        ParallelTempering(HMC()).init(broken, torch.zeros(2, 2))


def test_contexts_of_the_chains_are_refused() -> None:
    model = NeuralEnergy.mlp(features=2, context=3, hidden=[8])
    kernel = ParallelTempering(HMC(0.1), replicas=3)
    with pytest.raises(ValueError, match="15 replicas of 5 chains make it fail"):
        kernel.init(model.potential(torch.eye(3)[torch.arange(5) % 3]), torch.zeros(5, 2))
    state = kernel.init(model.potential(torch.eye(3)[0]), torch.zeros(5, 2))
    assert kernel.step(state)[0].positions.shape == (5, 2)
