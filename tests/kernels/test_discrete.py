"""Gibbs with gradients leaves enumerated laws invariant, binary, spin and categorical, and reaches them."""

from typing import Any

import pytest
import torch
from cases import all_binary, assert_means_agree, grow
from torch import Tensor
from torch.nn.functional import one_hot

import pyrodgm
from pyrodgm.energy import RBM, BoltzmannMachine, DeepBoltzmannMachine, SoftmaxUnits
from pyrodgm.kernels import (
    HMC,
    CategoricalGibbsWithGradients,
    GibbsWithGradients,
    Kernel,
    ParallelTempering,
    energy_and_gradient,
)

CHAINS = 40_000
D = torch.float64


def rbm() -> RBM:
    torch.manual_seed(0)
    return grow(RBM(4, 3), 0.9).double().requires_grad_(False)


def ising() -> BoltzmannMachine:
    torch.manual_seed(0)
    return grow(BoltzmannMachine(4, spins=True), 0.6).double().requires_grad_(False)


COUPLING = 0.4 * torch.randn(3, 3, 3, 3, dtype=D, generator=torch.Generator().manual_seed(3))


def potts(x: Tensor) -> Tensor:
    """Three units of three values with every pair linked, and a square: no first-order guess is exact."""
    pairs = torch.einsum("nik,ikjl,njl->n", x, COUPLING, x)
    return pairs + 0.5 * (x[..., 0].sum(-1) - 1) ** 2


def potts_states() -> Tensor:
    return one_hot(torch.cartesian_prod(*[torch.arange(3)] * 3), 3).to(D)


CASES = {
    "rbm": (lambda: rbm().energy, lambda: all_binary((4,)), GibbsWithGradients()),
    "rbm, three flips": (lambda: rbm().energy, lambda: all_binary((4,)), GibbsWithGradients(3)),
    "ising": (lambda: ising().energy, lambda: 2 * all_binary((4,)) - 1, GibbsWithGradients(low=-1.0)),
    "potts": (lambda: potts, potts_states, CategoricalGibbsWithGradients()),
    "potts, flat": (
        lambda: lambda x: potts(x.unflatten(-1, (-1, 3))),
        lambda: potts_states().flatten(1),
        CategoricalGibbsWithGradients(levels=3),
    ),
}


def assert_law(x: Tensor, states: Tensor, p: Tensor) -> None:
    """Frequencies of the states against p, with the binomial error at p."""
    found = (x.flatten(1).unsqueeze(1) == states.flatten(1)).all(-1).double().mean(0)
    p = p.clamp(0, 1)  # a sum of rounded terms may lie just outside
    assert_means_agree(found, (p * (1 - p) / len(x)).sqrt(), p)


@pytest.mark.parametrize("name", CASES)
def test_invariance_by_enumeration(name: str) -> None:
    build, every, kernel = CASES[name]
    energy, states = build(), every()
    p = (-energy(states)).softmax(0)
    generator = torch.Generator().manual_seed(1)
    state = kernel.init(energy, states[p.multinomial(CHAINS, replacement=True, generator=generator)])
    for _ in range(5):
        state, info = kernel.step(state, generator)
    assert 0.2 < info.accept_prob.mean() < 0.999  # so that the correction matters
    assert_law(state.positions, states, p)
    torch.testing.assert_close(state.energy, energy(state.positions))


@pytest.mark.parametrize("name", CASES)
def test_the_transition_is_in_detailed_balance(name: str) -> None:
    """The matrix that the equations give, by enumeration, and what the kernel does from one state."""
    build, every, kernel = CASES[name]
    if kernel.flips > 1:
        kernel = type(kernel)(1)
    energy, states = build(), every()
    n = len(states)
    p = (-energy(states)).softmax(0)
    state = kernel.init(energy, states)
    q = kernel.logits(states, state.gradient).softmax(-1)
    transition = torch.zeros(n, n, dtype=D)
    for move in range(q.shape[1]):
        y, back = kernel.moved(states, torch.full((n,), move))
        to = (y.flatten(1).unsqueeze(1) == states.flatten(1)).all(-1).double().argmax(-1)
        ratio = p[to] * q[to, back] / (p * q[:, move])
        flow = torch.where(q[:, move] > 0, q[:, move] * ratio.clamp(max=1), 0.0)
        transition[torch.arange(n), to] += flow
    transition.diagonal().zero_()
    transition.diagonal().copy_(1 - transition.sum(1))
    torch.testing.assert_close(p.unsqueeze(1) * transition, (p.unsqueeze(1) * transition).T)
    torch.testing.assert_close(p @ transition, p)
    start = int(p.argmin())
    at = kernel.init(energy, states[start].expand(CHAINS, *states.shape[1:]).contiguous())
    after, _ = kernel.step(at, torch.Generator().manual_seed(2))
    assert_law(after.positions, states, transition[start])


@pytest.mark.parametrize("kind", ["binary", "spins", "categorical"])
def test_independent_units_are_picked_by_the_square_root_of_their_gain(kind: str) -> None:
    """Where f is linear a move of weight exp(d / 2) is undone with weight exp(-d / 2): what is left is Z(x) / Z(x')."""
    fields = torch.randn(6, 3, dtype=D, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(3 if kind == "categorical" else 2, (500, 6), generator=generator)
    kernel: Kernel
    if kind == "categorical":
        kernel, start, energy = (
            CategoricalGibbsWithGradients(),
            one_hot(codes, 3).to(D),
            lambda x: -(x * fields).sum((1, 2)),
        )
    else:
        low = -1.0 if kind == "spins" else 0.0
        kernel = GibbsWithGradients(low=low)
        start, energy = low + (1 - low) * codes.to(D), lambda x: -x @ fields[:, 0]

    def total(x: Tensor) -> Tensor:
        """Z: half the gain of every move, by looking where it leads."""
        if kind == "categorical":
            gains = fields - (x * fields).sum(-1, keepdim=True)  # (n, 6, 3)
            return (gains / 2).exp().masked_fill(x == 1, 0.0).sum((1, 2))
        return ((low + 1 - 2 * x) * fields[:, 0] / 2).exp().sum(1)

    state, info = kernel.step(kernel.init(energy, start), generator)
    moved = (state.positions != start).flatten(1).any(-1)
    assert moved.double().mean() > 0.5
    expected = (total(start) / total(state.positions)).clamp(max=1)
    torch.testing.assert_close(info.accept_prob[moved], expected[moved])


def test_it_reaches_the_law_from_one_state() -> None:
    energy, states = rbm().energy, all_binary((4,))
    kernel, generator = GibbsWithGradients(4), torch.Generator().manual_seed(3)
    state = kernel.init(energy, torch.zeros(20_000, 4, dtype=D))
    for _ in range(40):
        state, _ = kernel.step(state, generator)
    assert_law(state.positions, states, (-energy(states)).softmax(0))


MACHINES: dict[str, tuple[Any, Kernel]] = {
    "rbm": (lambda: RBM(4, 3), GibbsWithGradients(2)),
    "softmax units": (lambda: RBM(6, 2, units=SoftmaxUnits(3)), CategoricalGibbsWithGradients(2, levels=3)),
    "spins": (lambda: BoltzmannMachine(4, spins=True), GibbsWithGradients(2, low=-1.0)),
    "hidden units": (lambda: BoltzmannMachine(3, hidden=2), GibbsWithGradients(3)),
    "deep": (lambda: DeepBoltzmannMachine(3, [2, 2]), GibbsWithGradients(3)),
}


def machine(name: str) -> tuple[Any, Tensor, Tensor]:
    """A machine with its kernel, every x, and p(x)."""
    build, kernel = MACHINES[name]
    torch.manual_seed(0)
    model = grow(build(), 0.7).double().requires_grad_(False)
    model.kernel = kernel
    states = all_binary(model.event_shape)
    states = 2 * states - 1 if name == "spins" else states[model.support.check(states)]
    return model, states, (-model.energy(states)).softmax(0)


@pytest.mark.parametrize("name", MACHINES)
def test_machines_take_it_as_their_kernel(name: str) -> None:
    model, states, p = machine(name)
    generator = torch.Generator().manual_seed(1)
    x = states[p.multinomial(CHAINS, replacement=True, generator=generator)]
    moved = model.run_kernel(x, None, 3, generator)
    assert (moved != x).any(-1).double().mean() > 0.3
    assert_law(moved, states, p)
    model.sample_steps = 2
    assert model.support.check(model.sample(5)).all()


def test_tempered_replicas_of_a_machine_keep_their_joint_law() -> None:
    model, states, _ = machine("rbm")
    betas = [1.0, 0.5, 0.1]
    kernel = ParallelTempering(GibbsWithGradients(2), betas=betas, scaled=False)
    generator = torch.Generator().manual_seed(6)
    laws = [(-beta * model.energy(states)).softmax(0) for beta in betas]
    x = torch.stack([states[p.multinomial(CHAINS, replacement=True, generator=generator)] for p in laws], 1)
    energy, gradient = (part.unflatten(0, (CHAINS, 3)) for part in energy_and_gradient(model.energy, x.flatten(0, 1)))
    state = kernel.init(model.potential(), x[:, 0])
    state = state._replace(memory=(x[:, 1:], energy[:, 1:], gradient[:, 1:]))
    for _ in range(4):
        state, info = kernel.step(state, generator)
    assert 0.05 < info.inner.accept_prob.nanmean() < 0.999
    for replica, p in zip((state.positions, *state.memory[0].unbind(1)), laws, strict=True):
        assert_law(replica, states, p)


def test_mcmc_of_machines() -> None:
    model, states, p = machine("rbm")
    settings: dict[str, Any] = {"chains": 4000, "warmup": 30, "draws": 2, "compile": False, "progress": False}
    for kernel in (GibbsWithGradients(2), ParallelTempering(GibbsWithGradients(2), 3, 0.2, scaled=False)):
        assert_law(pyrodgm.mcmc(model, kernel, **settings)["x"][:, -1], states, p)
    with pytest.raises(TypeError, match="expected an energy"):  # units between 0 and 1 are no states
        pyrodgm.mcmc(model, ParallelTempering(HMC()), **settings)


@pytest.mark.parametrize("build", [GibbsWithGradients, CategoricalGibbsWithGradients])
def test_at_least_one_flip(build: type[Kernel]) -> None:
    with pytest.raises(ValueError, match="flips >= 1"):
        build(0)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="low= and high="):
        GibbsWithGradients().init(ising().energy, -torch.ones(2, 4, dtype=D))
    with pytest.raises(ValueError, match="low < high"):
        GibbsWithGradients(low=1.0)
    with pytest.raises(ValueError, match="one-hot"):
        CategoricalGibbsWithGradients().init(potts, torch.zeros(2, 3, 3, dtype=D))
    with pytest.raises(ValueError, match="levels=2"):
        CategoricalGibbsWithGradients(levels=2).init(potts, torch.zeros(2, 3, dtype=D))
    with pytest.raises(TypeError, match="expected an energy"):
        GibbsWithGradients().init(object(), torch.zeros(2, 4, dtype=D))
    groups = machine("softmax units")[0].potential()
    for kernel in (GibbsWithGradients(), CategoricalGibbsWithGradients(), CategoricalGibbsWithGradients(levels=2)):
        with pytest.raises(TypeError, match=r"CategoricalGibbsWithGradients\(levels=3\)"):
            kernel.init(groups, torch.zeros(2, 6, dtype=D))
