"""Tempered transitions leave their target invariant, cross between modes, and take chains with contexts."""

import pytest
import torch
from cases import all_binary, assert_means_agree, contexts, grow, mean_and_error

from pyrodgm.energy import RBM, BoltzmannMachine
from pyrodgm.kernels import TemperedTransitions


@pytest.mark.parametrize("build", [lambda c: RBM(4, 3, c), lambda c: BoltzmannMachine(4, 2, c)])
def test_invariance_under_a_context(build) -> None:
    torch.manual_seed(0)
    model, n = grow(build(2), 0.8).double(), 20_000
    model.kernel = TemperedTransitions(3, 0.2)
    x, context = all_binary((4,)), contexts(1)
    p = model.log_prob(x, context.expand(16, -1)).exp().detach()
    start = x[p.multinomial(n, replacement=True)]
    end = model.run_kernel(start, context.expand(n, -1), 3)
    assert_means_agree(*mean_and_error((end.unsqueeze(1) == x).all(-1).double()), p)


def test_it_crosses_between_modes_that_gibbs_does_not_leave() -> None:
    """Five spins that pull each other: half of the probability lies at each end."""
    torch.manual_seed(0)
    model = BoltzmannMachine(5, spins=True).double()
    with torch.no_grad():
        model.coupling.fill_(1.2)
    start = -torch.ones(2000, 5).double()
    stuck = model.run_kernel(start, None, 30)
    assert (stuck.mean(-1) > 0).double().mean() < 0.1
    model.kernel = TemperedTransitions(20, 0.05)
    crossed = model.run_kernel(start, None, 30)
    assert_means_agree(*mean_and_error((crossed.sum(-1) > 0).double()), torch.tensor(0.5).double())


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="hottest"):
        TemperedTransitions(5, 1.0)
    with pytest.raises(ValueError, match="steps >= 1"):
        TemperedTransitions(0)
    with pytest.raises(TypeError, match=r"path\(\)"):
        TemperedTransitions().init(lambda x: x, torch.zeros(2, 3))
