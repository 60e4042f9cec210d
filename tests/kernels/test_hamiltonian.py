"""HMC, ChEES, NUTS and what tunes them: invariance, reversibility, adaptation against closed forms, planted bugs."""

import itertools
import math
from typing import Any

import pytest
import torch
from cases import assert_means_agree, mean_and_error
from torch import Tensor

from pyrodgm.kernels import HMC, NUTS, ChEES, Dense, Diagonal, Kernel, energy_and_gradient, hamiltonian
from pyrodgm.kernels import nuts as nuts_module
from pyrodgm.kernels.adaptation import DualAveraging, reasonable_step_size, windows
from pyrodgm.kernels.chees import chees_gradient
from pyrodgm.kernels.hamiltonian import halton, leapfrog
from pyrodgm.kernels.metric import Moments

CHAINS = 20_000
KERNELS: dict[str, Kernel] = {
    "HMC": HMC(1.0, 0.5),
    "HMC fixed length": HMC(1.0, 0.5, jitter=False),
    "HMC diagonal": HMC(1.0, 0.5, Diagonal(torch.tensor([0.5, 2.0]).double())),
    "HMC dense": HMC(1.0, 0.4, Dense(torch.tensor([[1.0, 0.6], [0.6, 2.0]]).double())),
    "ChEES": ChEES(2.0, 0.5),
    "NUTS": NUTS(0.5),
    "NUTS dense": NUTS(0.4, Dense(torch.tensor([[1.0, 0.6], [0.6, 2.0]]).double())),
    "NUTS cut short": NUTS(0.2, max_depth=2),
}
every = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


class Banana:
    """x ~ N(0, 1), y | x ~ N(x^2 / 2, 1/4)."""

    @staticmethod
    def energy(z: Tensor) -> Tensor:
        x, y = z.unbind(-1)
        return x.square() / 2 + 2 * (y - x.square() / 2).square()

    @staticmethod
    def exact(n: int) -> Tensor:
        noise = normal(n, 2)
        return torch.stack((noise[:, 0], noise[:, 0].square() / 2 + noise[:, 1] / 2), -1)

    @staticmethod
    def moments(z: Tensor) -> Tensor:
        x, y = z.unbind(-1)
        return torch.stack((x, y, x * x, y * y, x * y, x * x * y), -1)

    expected = torch.tensor([0, 0.5, 1, 1, 0, 1.5]).double()  # E y^2 = E x^4 / 4 + 1/4, E x^2 y = E x^4 / 2


class Gaussian:
    """Correlated, unequal scales."""

    covariance = torch.tensor([[1.0, 0.8], [0.8, 2.0]]).double()
    precision = covariance.inverse()

    @classmethod
    def energy(cls, z: Tensor) -> Tensor:
        return ((z @ cls.precision) * z).sum(-1) / 2

    @classmethod
    def exact(cls, n: int) -> Tensor:
        return normal(n, 2) @ torch.linalg.cholesky(cls.covariance).T

    @staticmethod
    def moments(z: Tensor) -> Tensor:
        x, y = z.unbind(-1)
        return torch.stack((x, y, x * x, y * y, x * y, x**4), -1)

    expected = torch.tensor([0, 0, 1, 2, 0.8, 3]).double()


class Funnel:
    """Neal's funnel, v ~ N(0, 9), in the coordinates w = v / 3 and x exp(-v / 2): back in its own, E x^2 = E e^v."""

    @staticmethod
    def energy(z: Tensor) -> Tensor:
        return z.square().sum(-1) / 2

    @staticmethod
    def exact(n: int) -> Tensor:
        return normal(n, 2)

    @staticmethod
    def moments(z: Tensor) -> Tensor:
        w, x = z.unbind(-1)
        v, x = 3 * w, x * (1.5 * w).exp()
        return torch.stack((v, v * v, x, (x.abs() + 1e-300).log()), -1)

    # E log|N(0, 1)| = -(gamma + log 2) / 2
    expected = torch.tensor([0, 9, 0, -(0.5772156649015329 + math.log(2)) / 2]).double()


def check_invariance(kernel: Kernel, target: Any) -> None:
    """Chains that start in the target are in it after six moves; each chain is independent, so errors are plain."""
    state = kernel.init(target.energy, target.exact(CHAINS))
    start, g = state.positions, generator()
    for _ in range(6):
        state, info = kernel.step(state, g)
        assert info.accept_prob.shape == (CHAINS,)
    assert (state.positions != start).any(-1).double().mean() > 0.9
    energy, gradient = energy_and_gradient(target.energy, state.positions)
    torch.testing.assert_close(state.energy, energy)
    torch.testing.assert_close(state.gradient, gradient)
    found = target.moments(state.positions)
    keep = slice(None) if target is not Funnel else torch.tensor([0, 1, 3])  # x has tails too long for a mean
    assert_means_agree(*mean_and_error(found[:, keep]), target.expected[keep])


@every
@pytest.mark.parametrize("target", [Gaussian, Banana, Funnel], ids=lambda target: target.__name__)
def test_targets_stay_invariant(kernel: Kernel, target: Any) -> None:
    check_invariance(kernel, target)


def test_planted_bugs_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = HMC(1.0, 0.9, jitter=False)
    for name, mutant in (
        ("move", lambda *a, real=None: _without_test(*a)),
        ("move", lambda *a: _half_kicked(*a)),
    ):
        monkeypatch.setattr(f"pyrodgm.kernels.hmc.{name}", mutant)
        with pytest.raises(AssertionError):
            check_invariance(kernel, Banana)
    monkeypatch.undo()
    # trees that choose each leaf alike, whatever its weight
    monkeypatch.setattr(nuts_module.torch, "logaddexp", lambda a, b: torch.maximum(a, b))
    with pytest.raises(AssertionError):
        check_invariance(NUTS(0.5), Banana)


def test_a_test_that_lets_too_many_through_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The square root of the acceptance probability: a bias that only steps which are often refused show."""
    kernel, real = HMC(1.1, 1.1, jitter=False), hamiltonian._metropolis
    check_invariance(kernel, Gaussian)
    monkeypatch.setattr(hamiltonian, "_metropolis", lambda *a: real(*a[:9], a[9].square(), a[10]))
    with pytest.raises(AssertionError):
        check_invariance(kernel, Gaussian)


def _without_test(state: Any, step_size: float, metric: Any, steps: int, g: Any) -> Any:
    from pyrodgm.kernels.base import Info, State
    from pyrodgm.kernels.hamiltonian import leapfrog

    x, potential, _, gradient, moves, _ = state
    x, _, energy, gradient = leapfrog(potential, x, metric.momentum(x, g), gradient, step_size, metric, steps)
    return State(x, potential, energy, gradient, moves + 1), Info(torch.ones_like(energy))


def _half_kicked(state: Any, step_size: float, metric: Any, steps: int, g: Any) -> Any:
    """Momenta of half the variance that the acceptance takes them for."""
    from pyrodgm.kernels.hamiltonian import move

    class Half(Diagonal):
        def momentum(self, positions: Tensor, generator: torch.Generator | None = None) -> Tensor:
            return super().momentum(positions, generator) * math.sqrt(0.5)

    return move(state, step_size, Half(), steps, g)


def test_leapfrog_is_reversible_and_of_second_order() -> None:
    x, p = Banana.exact(50), normal(50, 2, seed=3)
    _, gradient = energy_and_gradient(Banana.energy, x)
    y, q, _, back = leapfrog(Banana.energy, x, p, gradient, 0.1, Diagonal(), 8)
    x2, p2, _, _ = leapfrog(Banana.energy, y, -q, back, 0.1, Diagonal(), 8)
    torch.testing.assert_close(x2, x)
    torch.testing.assert_close(p2, -p)
    errors = []
    for steps in (100, 200):
        y, q, energy, _ = leapfrog(Banana.energy, x, p, gradient, 1 / steps, Diagonal(), steps)
        errors.append((energy + q.square().sum(-1) / 2 - Banana.energy(x) - p.square().sum(-1) / 2).abs().mean())
    assert 3.5 < errors[0] / errors[1] < 4.5  # half the step, a quarter of the error, up to higher orders


@every
def test_one_chain_among_many_and_events_of_any_shape(kernel: Kernel) -> None:
    if isinstance(getattr(kernel, "metric", None), Dense):
        shape: tuple[int, ...] = (2, 1)
    else:
        shape = (1, 2)
    state = kernel.init(lambda x: x.square().sum((-2, -1)) / 2, normal(5, *shape))
    state, info = kernel.step(state, generator())
    assert state.positions.shape == (5, *shape)
    assert state.moves == 1
    assert all(t is None or t.shape == (5,) for t in (info.diverging, info.steps, info.depth, info.energy))


@every
def test_where_the_energy_is_infinite_or_nan_no_chain_goes(kernel: Kernel) -> None:
    for outside in (math.inf, math.nan):
        state = kernel.init(
            lambda x, outside=outside: torch.where((x > 0).all(-1), x.sum(-1), outside), normal(500, 2).abs()
        )
        moved = state.positions
        for _ in range(5):
            state, info = kernel.step(state, generator(2))
            assert not info.accept_prob.isnan().any()
        assert (state.positions > 0).all()
        assert (state.positions != moved).any(-1).double().mean() > 0.2


def test_nuts_has_points_of_its_trajectory_by_their_weight() -> None:
    """Trajectories of at most one doubling: three points, whose probabilities are known in closed form."""
    n, kernel = 200_000, NUTS(1.2, max_depth=1)
    x0 = torch.full((n, 1), 0.7, dtype=torch.float64)
    state = kernel.init(lambda x: x.square().sum(-1) / 2, x0)
    after, info = kernel.step(state, generator(5))
    p = torch.randn(n, 1, generator=generator(5), dtype=torch.float64)
    ends = []
    for sign in (1, -1):
        y, q, energy, _ = leapfrog(state.potential, x0, sign * p, x0, 1.2, Diagonal(), 1)
        ends.append((y, (state.energy + p.square().sum(-1) / 2 - energy - q.square().sum(-1) / 2).clamp(max=0).exp()))
    expected = (ends[0][1] + ends[1][1]) / 2  # a fair coin for the side, then the biased progressive step
    moved = (after.positions != x0).any(-1).double()
    assert_means_agree(*mean_and_error(moved - expected), torch.zeros(()).double())
    at_an_end = torch.minimum((after.positions - ends[0][0]).abs(), (after.positions - ends[1][0]).abs()).squeeze(-1)
    assert (at_an_end[moved.bool()] < 1e-12).all()
    assert (info.steps == 1).all()


def test_nuts_needs_few_steps_where_they_are_long_and_many_where_short() -> None:
    x = normal(300, 2)
    steps = []
    for step_size in (1.0, 0.1):
        kernel = NUTS(step_size)
        _, info = kernel.step(kernel.init(Funnel.energy, x), generator())
        assert (info.steps <= 2**info.depth - 1).all()
        assert (info.depth <= 10).all()
        steps.append(info.steps.double().mean() * step_size)
        assert not info.diverging.any()
    assert 1.5 < steps[0] < 8  # about half a period, 3.1, and less than a whole one
    assert 1.5 < steps[1] < 8


def test_nuts_chains_do_not_see_each_other() -> None:
    """One chain's trajectory is the same among stiff and among loose neighbours, given its noise."""
    kernel = NUTS(0.3)
    stiff = torch.tensor([1.0, 1.0, 400.0]).double()
    loose = torch.tensor([1.0, 1.0, 0.01]).double()
    ends = []
    for scale in (stiff, loose):
        x = normal(3, 2) / scale.sqrt().unsqueeze(-1)
        state = kernel.init(lambda x, s=scale: x.square().sum(-1) * s / 2, x)
        ends.append(kernel.step(state, generator(4))[0].positions[:2])
    # noise is drawn by doubling, as many as the longest trajectory needs: after the first they part only if used
    torch.testing.assert_close(ends[0], ends[1])


def test_diverging_chains_say_so() -> None:
    for kernel in (HMC(1.0, 1.0), NUTS(1.0)):
        state = kernel.init(lambda x: 1e5 * x.square().sum(-1), 1e-3 * normal(50, 2))
        _, info = kernel.step(state, generator())
        assert info.diverging.all()


def test_moments_pool_batches() -> None:
    x = normal(60, 3)
    for dense in (False, True):
        moments = Moments(dense)
        for part in x.split([1, 20, 39]):
            moments.add(part)
        expected = x.T.cov() if dense else x.var(0)
        torch.testing.assert_close(moments.covariance(), expected)
    with pytest.raises(ValueError, match="two rows"):
        Moments().covariance()


@pytest.mark.parametrize("metric", [Diagonal(torch.tensor([0.5, 3.0]).double()), Dense(Gaussian.covariance)])
def test_metrics(metric: Any) -> None:
    p = metric.momentum(torch.zeros(50_000, 2).double(), generator())
    inverse = metric.inverse_mass.diag() if metric.inverse_mass.dim() == 1 else metric.inverse_mass
    outer = (p.unsqueeze(-1) * p.unsqueeze(-2)).flatten(1)
    assert_means_agree(*mean_and_error(outer), inverse.inverse().flatten())
    torch.testing.assert_close(metric.velocity(p), p @ inverse)
    torch.testing.assert_close(metric.weigh(metric.velocity(p)), p)
    torch.testing.assert_close(metric.kinetic(p), (p @ inverse * p).sum(-1) / 2)


def test_dual_averaging_finds_the_step_of_an_acceptance() -> None:
    averaging = DualAveraging(5.0, target=0.8)
    noise = normal(2000)
    for e in noise.tolist():
        averaging.update(min(1.0, max(0.0, math.exp(-averaging.step_size) + 0.1 * e)))
    # the root is -log 0.8 = 0.223; the late iterates have a relative noise of about 0.1 / 0.18 / sqrt(2000)
    assert averaging.average == pytest.approx(-math.log(0.8), rel=0.1)


def test_windows_end_before_the_last_steps() -> None:
    for steps, chains in itertools.product((20, 50, 149, 150, 200, 1000, 3000), (1, 2, 64, 5000)):
        first, ends = windows(steps, chains)
        assert first < ends[0]
        assert ends == sorted(set(ends))
        assert ends[-1] == steps - min(50, steps // 3)
    assert windows(10)[1] == []


def test_halton_is_equidistributed() -> None:
    values = torch.tensor([halton(i) for i in range(1, 1024)])
    torch.testing.assert_close(values.sort().values, torch.arange(1, 1024) / 1024)


@pytest.mark.parametrize(
    ("kernel", "dense"),
    [(HMC(), False), (HMC(), True), (ChEES(), False), (ChEES(), True), (NUTS(), False)],
    ids=["HMC", "HMC dense", "ChEES", "ChEES dense", "NUTS"],
)
def test_warm_up_finds_scales_and_the_target_acceptance(kernel: Any, dense: bool) -> None:
    scales = torch.tensor([0.1, 1.0, 10.0]).double()
    kernel = kernel.tuned(kernel.step_size, Dense() if dense else Diagonal())
    g = generator()
    state = kernel.init(lambda x: (x / scales).square().sum(-1) / 2, normal(64, 3))
    tuner = kernel.tuner(state, 150, g)
    for _ in range(150):
        before = state
        state, info = tuner.kernel.step(before, g)
        tuner.update(before, state, info)
    kernel, accepted = tuner.kernel, 0.0
    for _ in range(30):
        state, info = kernel.step(state, g)
        accepted += info.accept_prob.mean().item() / 30
    mass = kernel.metric.inverse_mass
    variance = mass.diagonal() if dense else mass
    # 64 chains x 50 draws or so: a relative error of sqrt(2 / 500) = 6 % at an effective tenth of them
    assert ((variance / scales.square()).log().abs() < 0.35).all()
    assert kernel.target - 0.1 < accepted < 0.99  # what is asked for: the test below
    assert_means_agree(*mean_and_error((state.positions / scales).square()), torch.ones(()).double())
    if isinstance(kernel, ChEES):
        # the gradient, averaged over (0, T), is zero at tan 2T = 2T, T = 2.25; from the next zero, 3.86, it climbs on
        assert 2.25 / 2 < kernel.length < 3.86


@pytest.mark.parametrize("target", [0.6, 0.9])
@pytest.mark.parametrize("kind", [HMC, ChEES, NUTS])
def test_warm_up_finds_the_acceptance_that_is_asked_for(kind: Any, target: float) -> None:
    """The harmonic mean over the chains, by which the step size is adapted, in the last window and after it."""
    g = generator()
    kernel = kind(target=target)
    state = kernel.init(lambda x: x.square().sum(-1) / 2, normal(64, 20))
    tuner, accepted = kernel.tuner(state, 400, g), []
    for i in range(450):
        before = state
        state, info = tuner.kernel.step(before, g)
        accepted.append(1 / info.accept_prob.clamp(min=1e-2).reciprocal().mean().item())
        if i < 400:
            tuner.update(before, state, info)
    tried, kept = sum(accepted[350:400]) / 50, sum(accepted[400:]) / 50
    # dual averaging holds the mean of 50 steps to log 10 (50 + 10) gamma / 50^1.5 = 0.02 of the target
    assert abs(tried - target) < 0.04
    # the step kept is the mean of those tried, of which the long ones are accepted far less than it: 0.6 gives 0.78
    assert -0.04 < kept - target < 0.2


def test_chees_gradient_is_that_of_the_criterion() -> None:
    """Of a Gaussian the flow is known: x' = x cos t + p sin t; centres are zero by symmetric chains."""
    x, p = normal(2000, 2), normal(2000, 2, seed=1)
    x, p = torch.cat((x, -x)), torch.cat((p, -p))
    log_t = torch.tensor(math.log(0.9), dtype=torch.float64, requires_grad=True)
    t = log_t.exp()
    end = x * t.cos() + p * t.sin()
    criterion = (end.square().sum(-1) - x.square().sum(-1)).square().mean() / 4
    (expected,) = torch.autograd.grad(criterion, log_t)
    momentum = (p * t.cos() - x * t.sin()).detach()
    ones = torch.ones(len(x)).double()
    found = chees_gradient(x, (end.detach(), momentum), ones, t.item(), Diagonal())
    torch.testing.assert_close(found, expected)
    # in other units with the metric that undoes them, the same
    units = torch.tensor([3.0, 0.2]).double()
    scaled = chees_gradient(x * units, (end.detach() * units, momentum / units), ones, t.item(), Diagonal(units**2))
    torch.testing.assert_close(scaled, expected)
    # trajectories that left for infinity, which are never accepted, do not count
    end = torch.cat((end.detach(), torch.full((2, 2), math.inf).double()))
    x, momentum = (
        torch.cat((x, torch.zeros(2, 2).double())),
        torch.cat((momentum, torch.full((2, 2), math.nan).double())),
    )
    found = chees_gradient(x, (end, momentum), torch.cat((ones, torch.zeros(2).double())), t.item(), Diagonal())
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)  # the mean of one row in 2000 moves


def test_reasonable_step_size_crosses_one_half() -> None:
    kernel = HMC()
    for scale in (1e-3, 1.0, 1e3):
        state = kernel.init(lambda x, s=scale: (x / s).square().sum(-1) / 2, scale * normal(200, 5))
        for start in (1e-4, 1e4):
            found = reasonable_step_size(kernel, state, start * scale, Diagonal(), generator())
            assert 0.3 < found / scale < 4


def test_settings_are_checked() -> None:
    for make in (HMC, ChEES, NUTS):
        for bad in (0.0, -1.0, math.nan):
            with pytest.raises(ValueError, match="step_size > 0"):
                make(step_size=bad)
        with pytest.raises(ValueError, match="target inside"):
            make(target=1.0)
    for make in (HMC, ChEES):
        with pytest.raises(ValueError, match="length > 0"):
            make(length=0.0)
        with pytest.raises(ValueError, match="max_steps >= 1"):
            make(max_steps=0)
    with pytest.raises(ValueError, match="max_depth >= 1"):
        NUTS(max_depth=0)
    with pytest.raises(ValueError, match="positive variances"):
        Diagonal(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="positive definite"):
        Dense(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    chees = ChEES()
    with pytest.raises(ValueError, match="two chains"):
        chees.tuner(chees.init(Gaussian.energy, torch.zeros(1, 2).double()), 5)
    with pytest.raises(TypeError, match="expected an energy"):
        NUTS().init(object(), torch.zeros(1, 2))
