"""Reverse AIS: unbiased for 1 / Z, above log Z in expectation, against enumeration."""

import math

import pytest
import torch
from cases import all_binary, assert_means_agree, grow, mean_and_error
from torch import Tensor

from pyrodgm.core import Energy
from pyrodgm.energy import RBM, BoltzmannMachine
from pyrodgm.energy.linked_units import AnnealedMachine, BoltzmannConditionals

MODELS = {
    "RBM": lambda: RBM(5, 3),
    "BoltzmannMachine": lambda: BoltzmannMachine(5),
    "BoltzmannMachine hidden": lambda: BoltzmannMachine(4, 2),
    "BoltzmannMachine spins": lambda: BoltzmannMachine(4, 2, spins=True),
}


def model_and_draws(name: str, n: int) -> tuple[Energy, Tensor]:
    """A grown model with exact draws by enumeration."""
    torch.manual_seed(0)
    model = grow(MODELS[name](), 0.8).double()
    x = all_binary(model.event_shape)
    x = 2 * x - 1 if name.endswith("spins") else x
    p = (-model.energy(x)).softmax(0).detach()
    return model, x[p.multinomial(n, replacement=True)]


@pytest.mark.parametrize("name", MODELS)
def test_inverse_weights_are_unbiased_for_one_over_z(name: str) -> None:
    model, x = model_and_draws(name, 20_000)
    exact = model.log_partition("exact")[0]
    for temperatures in (2, 10):
        high, error = model.log_partition("reverse", samples=x, temperatures=temperatures, seed=1)
        assert 0 < error < 0.1
        assert_means_agree((exact - high).exp(), error, torch.ones(()).double())


@pytest.mark.parametrize("name", MODELS)
def test_the_two_directions_bracket_log_z(name: str) -> None:
    """With two chains and few temperatures each direction errs to its own side, on average."""
    model, x = model_and_draws(name, 2000)
    exact = model.log_partition("exact")[0]
    low = [model.log_partition("ais", chains=2, temperatures=2, seed=s)[0] for s in range(400)]
    high = [
        model.log_partition("reverse", samples=two, temperatures=2, seed=s)[0] for s, two in enumerate(x[:800].split(2))
    ]
    for estimates, side in ((low, -1), (high, 1)):
        gap, error = mean_and_error(side * (torch.stack(estimates) - exact))
        assert gap > 3 * error  # above 0 by three standard errors: a bound on the other side is 1 in 1000


def test_a_sweep_backwards_is_its_reversal() -> None:
    r"""The joint of (s, T s) is that of (T~ s', s') in equilibrium: f(s) T(s' | s) = f(s') T~(s | s')."""
    torch.manual_seed(0)
    model = grow(BoltzmannMachine(3), 0.9).double()
    target = model.potential()
    path = AnnealedMachine(BoltzmannConditionals(target.weight, target.bias, target.groups, 0.0), target.bias)
    one, s = torch.ones(()).double(), all_binary((3,))
    p = (-model.energy(s)).softmax(0).detach()
    start = s[p.multinomial(40_000, replacement=True)]
    place = torch.tensor([1, 2, 4]).double()

    def joint(first: Tensor, second: Tensor) -> Tensor:
        return torch.nn.functional.one_hot((8 * (first @ place) + second @ place).long(), 64).double()

    forward, backward = joint(start, path.move(start, one)), joint(path.reverse_move(start, one), start)
    assert_means_agree(*mean_and_error(forward), *mean_and_error(backward))
    wrong = joint(path.move(start, one), start)
    gap = (forward.mean(0) - wrong.mean(0)).abs() / (forward.var(0) + wrong.var(0) + 1e-12).sqrt()
    assert gap.max() * math.sqrt(40_000) > 5  # the sweep is not its own reversal, so the test can fail


def test_mistakes_are_named() -> None:
    for model in (RBM(3, 2), BoltzmannMachine(3)):
        with pytest.raises(ValueError, match="samples="):
            model.log_partition("reverse")
        with pytest.raises(ValueError, match="at least 2 samples"):
            model.log_partition("reverse", samples=torch.zeros(1, 3))
        with pytest.raises(ValueError, match="rise from 0 to 1"):
            model.log_partition("reverse", samples=torch.zeros(2, 3), temperatures=torch.tensor([0.0, 0.5]))
