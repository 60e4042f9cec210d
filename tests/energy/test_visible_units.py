"""RBMs of Gaussian and softmax visibles: against quadrature over v and enumeration of v and h."""

import math

import pytest
import torch
from cases import all_binary, assert_means_agree, grow, mean_and_error
from torch import Tensor

import pyrodgm
from pyrodgm.energy import RBM, BernoulliUnits, GaussianUnits, SoftmaxUnits
from pyrodgm.kernels import TemperedTransitions
from pyrodgm.objectives import ContrastiveDivergence

SIDE = 401
BOX = 14.0  # twelve standard deviations and more beyond every mean below: the tails are under 1e-30


def gaussian(context: int = 0, scale: float = 0.5) -> RBM:
    torch.manual_seed(0)
    return grow(RBM(2, 3, context, GaussianUnits(2)), scale).double()


def softmax(context: int = 0, scale: float = 0.8) -> RBM:
    torch.manual_seed(0)
    return grow(RBM(6, 3, context, SoftmaxUnits(3)), scale).double()


def grid() -> tuple[Tensor, float]:
    """Points of a plane and the log area of each; the trapezoid rule is exact to rounding for smooth densities."""
    line = torch.linspace(-BOX, BOX, SIDE, dtype=torch.float64)
    return torch.cartesian_prod(line, line), 2 * math.log(2 * BOX / (SIDE - 1))


def all_onehot() -> Tensor:
    """Every x of two groups of three levels, (9, 6)."""
    eye = torch.eye(3, dtype=torch.float64)
    return torch.stack([torch.cat((a, b)) for a in eye for b in eye])


def support(name: str) -> tuple[Tensor, float]:
    return grid() if name == "gaussian" else (all_onehot(), 0.0)


BUILD = {"gaussian": gaussian, "softmax": softmax}
every = pytest.mark.parametrize("name", BUILD)
contextual = pytest.mark.parametrize("context", [0, 2])


def one(context: int) -> Tensor | None:
    return torch.tensor([0.7, -1.1]).double() if context else None


@every
@contextual
def test_log_partition_is_the_sum_over_the_support(name: str, context: int) -> None:
    model, (v, log_area) = BUILD[name](context), support(name)
    c = one(context)
    expected = (-model.energy(v, None if c is None else c.expand(len(v), -1))).logsumexp(0) + log_area
    exact, error = model.log_partition("exact", context=c)
    torch.testing.assert_close(exact, expected)
    assert error == 0
    gradients = torch.autograd.grad(exact, list(model.parameters()))
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, want)


@every
@contextual
def test_energy_sums_the_hidden_units_out(name: str, context: int) -> None:
    model, h = BUILD[name](context), all_binary((3,))
    v = support(name)[0][:: 9 if name == "gaussian" else 1]
    c = None if one(context) is None else one(context).expand(len(v), -1)
    joint = model.joint_energy(v.unsqueeze(1), h, None if c is None else c.unsqueeze(1))
    torch.testing.assert_close(model.energy(v, c), -(-joint).logsumexp(-1))


@every
def test_conditionals_match_the_joint_energy(name: str) -> None:
    model, h, n = BUILD[name](), all_binary((3,)), 20_000
    (v, _), generator = support(name), torch.Generator().manual_seed(1)
    given_h = (-model.joint_energy(v, h[5])).softmax(0)  # p(v | h) of every point of the support
    drawn = model.potential().visible_given_hidden(h[5].expand(n, -1), generator)
    assert_means_agree(*mean_and_error(drawn), given_h @ v)
    assert_means_agree(*mean_and_error(drawn.square()), given_h @ v.square())
    given_v = (-model.joint_energy(v[7], h)).softmax(0)
    assert_means_agree(
        *mean_and_error(model.potential().hidden_given_visible(v[7].expand(n, -1), generator)), given_v @ h
    )
    assert_means_agree(*mean_and_error(model.draw_hidden(v[7].expand(n, -1), generator=generator)), given_v @ h)


@every
@contextual
@pytest.mark.parametrize("kernel", ["gibbs", "tempered"])
def test_samples_have_the_moments(name: str, kernel: str, context: int) -> None:
    model, (v, _), c = BUILD[name](context), support(name), one(context)
    model.sample_steps = 40
    if kernel == "tempered":
        model.kernel, model.sample_steps = TemperedTransitions(3, 0.3), 15
    p = (-model.energy(v, None if c is None else c.expand(len(v), -1))).softmax(0)
    torch.manual_seed(1)
    x = model.sample(20_000, c)
    assert bool(model.support.check(x).all())
    moments = [lambda x: x, lambda x: (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(1)]
    for moment in moments:
        assert_means_agree(*mean_and_error(moment(x)), p @ moment(v))


@every
@pytest.mark.parametrize("given", ["model", "data"])
def test_ais_agrees_with_enumeration(name: str, given: str) -> None:
    model = BUILD[name]()
    exact, _ = model.log_partition("exact")
    torch.manual_seed(2)
    model.sample_steps = 40
    rows = model.sample(500)
    data = None if given == "model" else rows
    estimate, error = model.log_partition("ais", chains=400, temperatures=200, data=data, seed=3)
    assert 0 < error < 0.1
    assert abs(estimate - exact) < 4 * error  # 1 in 16,000 by chance, and the seed is fixed
    estimate, error = model.log_partition("reverse", samples=rows, temperatures=200, data=data, seed=3)
    assert 0 < error < 0.1
    assert abs(estimate - exact) < 4 * error


@every
def test_training_finds_the_data(name: str) -> None:
    """Log-likelihoods in closed form: of two clusters, and of two groups of three levels that always agree."""
    torch.manual_seed(3)
    if name == "gaussian":
        x = ((torch.randint(2, (1000, 1)) * 2.0 - 1) * torch.tensor([1.0, -1.0]) + 0.3 * torch.randn(1000, 2)).double()
        model, lr, best = RBM(2, 4, units=GaussianUnits(2)), 0.01, -math.log(2) - math.log(2 * math.pi * math.e * 0.09)
    else:
        x = all_onehot()[torch.randint(3, (1000,)) * 4]
        model, lr, best = RBM(6, 4, units=SoftmaxUnits(3)), 0.2, -math.log(3)
    with torch.no_grad():
        model.weight.normal_(0, 0.3)
    model.double().set_visible_bias(x)
    before = model.log_prob(x).mean()
    pyrodgm.fit(model, x, ContrastiveDivergence(k=5), epochs=20, batch_size=50, lr=lr, progress=False)
    after = model.log_prob(x).mean()
    assert before < best - 1  # so there is something to learn
    assert best - 0.3 < after < best + 0.1  # CD-5's bias below; above, what a thousand rows leave to chance


def test_a_bernoulli_unit_is_a_softmax_of_two() -> None:
    torch.manual_seed(0)
    bernoulli = grow(RBM(4, 3), 0.7).double()
    pair = RBM(8, 3, units=SoftmaxUnits(2)).double()
    with torch.no_grad():
        for name in ("weight", "visible_bias"):  # the second level of a group carries the unit, the first is 0
            value = getattr(bernoulli, name)
            getattr(pair, name).copy_(torch.stack((torch.zeros_like(value), value), -1).flatten(-2))
        pair.hidden_bias.copy_(bernoulli.hidden_bias)
    x = all_binary((4,))
    torch.testing.assert_close(pair.log_prob(torch.stack((1 - x, x), -1).flatten(-2)), bernoulli.log_prob(x))


def test_locations_fit_the_rows() -> None:
    x = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    torch.testing.assert_close(SoftmaxUnits(3).location(x).softmax(-1), torch.tensor([3.0, 2, 1]) / 6)
    torch.testing.assert_close(GaussianUnits(3).location(x), x.mean(0))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="multiple of 3 levels, got 7"):
        RBM(7, 2, units=SoftmaxUnits(3))
    with pytest.raises(ValueError, match=r"use GaussianUnits\(3\)"):
        RBM(3, 2, units=GaussianUnits(2))
    with pytest.raises(ValueError, match="levels >= 2"):
        SoftmaxUnits(1)
    assert not RBM(8, 30, units=SoftmaxUnits(2)).enumerable  # only the hidden layer can be summed state by state
    assert RBM(8, 30, units=BernoulliUnits()).enumerable
