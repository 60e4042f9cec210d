"""MEADS: invariance with fixed settings and with those of the folds, what each fold may see, and what warm-up keeps."""

from typing import Any

import pytest
import torch
from cases import assert_means_agree, mean_and_error
from test_hamiltonian import Banana, Funnel, Gaussian, check_invariance, generator, normal

from pyrodgm.kernels import MEADS, Dense, Diagonal
from pyrodgm.kernels.meads import largest_eigenvalue

KERNELS = {
    "coarse": MEADS(0.9, 0.5, moves=4),
    "one move": MEADS(1.1, 2.0, moves=1),
    "diagonal": MEADS(0.5, 1.0, Diagonal(torch.tensor([0.5, 2.0]).double()), moves=5),
    "folds": MEADS(moves=5),
    "three uneven folds": MEADS(folds=3, moves=5, multiplier=1.0),
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
@pytest.mark.parametrize("target", [Gaussian, Banana, Funnel], ids=lambda target: target.__name__)
def test_targets_stay_invariant(kernel: MEADS, target: Any) -> None:
    if kernel.moves == 1:  # a chain that was refused in each of six moves stands where it was
        kernel = kernel.tuned(0.8, 2.0, kernel.metric)
    check_invariance(kernel, target)


def check_joint_law(kernel: MEADS) -> None:
    """Position, momentum and level are independent after many moves, some refused: N(0, 1), N(0, 1), U(-1, 1)."""
    state = kernel.init(lambda x: x.square().sum(-1) / 2, normal(20_000, 1))
    g = generator()
    for _ in range(8):
        state, _ = kernel.step(state, g)
    x, (p, u) = state.positions.squeeze(-1), (state.memory[0].squeeze(-1), state.memory[1])
    found = torch.stack((x, p, u, x * x, p * p, u * u, x * p, x * u, p * u, x * x * p * p, x * x * u.abs()), -1)
    assert_means_agree(*mean_and_error(found), torch.tensor([0, 0, 0, 1, 1, 1 / 3, 0, 0, 0, 1, 0.5]).double())


def test_momentum_and_level_keep_their_law() -> None:
    check_joint_law(MEADS(1.7, 0.1, moves=3))


def test_momentum_persists() -> None:
    """Without a force it only fades by exp(-damping time), and positions go on in one direction."""
    kernel = MEADS(0.1, 0.5, moves=10)
    state, g = kernel.init(lambda x: 0 * x.sum(-1), torch.zeros(20_000, 1).double()), generator()
    state, _ = kernel.step(state, g)
    before = state.memory[0]
    state, info = kernel.step(state, g)
    expected = torch.tensor(-0.5).double().exp()
    assert_means_agree(*mean_and_error(before * state.memory[0]), expected)
    assert_means_agree(*mean_and_error(state.memory[0].square()), torch.ones(1).double())
    assert (info.accept_prob == 1).all()
    assert (info.steps == 10).all()


def test_no_setting_depends_on_what_it_moves() -> None:
    """The chains of a fold have the step of the fold before; those of the one that stands still move nobody."""
    kernel, g = MEADS(folds=4), generator()
    x, gradient = normal(22, 3), normal(22, 3, seed=1)
    order = torch.randperm(22, generator=g)
    fold = torch.empty(22, dtype=torch.long)
    fold[order] = torch.arange(22) % 4
    plain = kernel.measured(Gaussian.energy, x, gradient, order, 50)[0]
    assert torch.equal(plain.active, fold != 50 % 4)
    for k in range(4):
        mine = (fold == k).unsqueeze(-1)
        other = kernel.measured(
            Gaussian.energy, torch.where(mine, 2 * x, x), torch.where(mine, 5 * gradient, gradient), order, 50
        )[0]
        changed = (other.step != plain.step).any(-1)
        assert torch.equal(changed, fold == (k + 1) % 4)
        # the damping is a fold's own affair, of positions in its own units: those are the same twice as far out
        assert torch.equal((other.keep != plain.keep) & (fold != (k + 1) % 4), torch.zeros_like(changed))


def test_settings_are_those_of_the_formulas() -> None:
    kernel = MEADS(folds=2, multiplier=0.3)
    x, gradient = 3 * normal(12, 4), normal(12, 4, seed=1)
    order = torch.arange(12)
    settings, sizes, dampings = kernel.measured(Gaussian.energy, x, gradient, order, 9999)
    for k in (0, 1):
        mine, left = x[k::2], x[1 - k :: 2]
        scale = left.std(0, correction=0)
        covariance = (gradient[1 - k :: 2] * scale).T @ (gradient[1 - k :: 2] * scale) / 6
        values = torch.linalg.eigvalsh(covariance)
        size = min(1.0, 0.3 / (values.square().sum() / values.sum()).sqrt().item())
        values = torch.linalg.eigvalsh((mine / mine.std(0, correction=0)).T.cov(correction=0))
        damping = (values.sum() / values.square().sum()).sqrt()
        torch.testing.assert_close(settings.step[k::2], (size * scale).expand(6, 4))
        torch.testing.assert_close(settings.keep[k::2], (-size * damping).exp().expand(6))
        torch.testing.assert_close(settings.shift[k::2], ((1 - (-2 * size * damping).exp()) / 2).expand(6))
        torch.testing.assert_close(
            torch.stack((sizes[k], dampings[k])), torch.stack((settings.step.new_tensor(size), damping))
        )
    early = kernel.measured(Gaussian.energy, x, gradient, order, 0)[0]
    torch.testing.assert_close(early.keep, torch.full((12,), -1.0).double().exp())  # damped by 1 / t at least


def test_largest_eigenvalue_weighs_the_eigenvalues_by_themselves() -> None:
    for n, size in ((4, 9), (9, 4)):
        rows = normal(n, size)
        values = torch.linalg.eigvalsh(rows.T @ rows / n)
        torch.testing.assert_close(largest_eigenvalue(rows), values.square().sum() / values.sum())
        both = torch.stack((rows, 2 * rows))
        torch.testing.assert_close(
            largest_eigenvalue(both), torch.stack((largest_eigenvalue(rows), 4 * largest_eigenvalue(rows)))
        )


def test_warm_up_keeps_what_the_folds_found() -> None:
    scales = torch.tensor([0.1, 1.0, 10.0]).double()
    kernel, g = MEADS(), generator()
    state = kernel.init(lambda x: (x / scales).square().sum(-1) / 2, normal(64, 3))
    tuner = kernel.tuner(state, 100, g)
    for _ in range(100):
        before = state
        state, info = tuner.kernel.step(before, g)
        tuner.update(before, state, info)
    kernel = tuner.kernel
    assert kernel.step_size is not None
    assert kernel.damping is not None
    assert kernel.metric.inverse_mass is not None
    # 64 chains x 50 draws: a relative error of sqrt(2 / 300) = 8 % at an effective tenth of them
    assert ((kernel.metric.inverse_mass / scales.square()).log().abs() < 0.4).all()
    # in the folds' own units the Hessian is the identity: 1/2 over the root of about (1 + 3 / 16), and damping alike
    assert 0.35 < kernel.step_size < 0.5
    assert 0.75 < kernel.damping <= 1.01
    moments = []
    for _ in range(40):
        state, info = kernel.step(state, g)
        assert info.accept_prob.mean() > 0.9
        moments.append(state.positions.square() / scales.square())
    assert_means_agree(*mean_and_error(torch.stack(moments).mean(0)), torch.ones(()).double())


def test_chains_that_start_from_one_point_part() -> None:
    kernel, g = MEADS(moves=5), generator()
    state = kernel.init(Gaussian.energy, torch.full((4000, 2), 3.1).double())
    for _ in range(30):
        state, _ = kernel.step(state, g)
    assert_means_agree(*mean_and_error(Gaussian.moments(state.positions)), Gaussian.expected)


def test_mistakes_say_so() -> None:
    for bad, message in (
        (lambda: MEADS(0.1), "together"),
        (lambda: MEADS(0.1, -1.0), "damping > 0"),
        (lambda: MEADS(0.0, 1.0), "step_size > 0"),
        (lambda: MEADS(multiplier=0.0), "multiplier > 0"),
        (lambda: MEADS(folds=1), "folds >= 2"),
        (lambda: MEADS(moves=0), "moves >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()
    with pytest.raises(TypeError, match="Diagonal"):
        MEADS(0.1, 1.0, Dense())  # type: ignore[arg-type]
    kernel = MEADS()
    state = kernel.init(Gaussian.energy, torch.zeros(7, 2).double())
    with pytest.raises(ValueError, match="8 chains at least"):
        kernel.step(state)
    with pytest.raises(ValueError, match="8 chains at least"):
        kernel.tuner(state, 10)
    with pytest.raises(ValueError, match=r"MEADS\.init"):
        kernel.step(state._replace(energy=None))
