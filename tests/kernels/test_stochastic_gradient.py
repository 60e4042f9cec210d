"""SGLD and SGHMC: the law they leave invariant on a Gaussian model, in closed form, with the gradient's noise."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import assert_means_agree, mean_and_error, sghmc_covariance
from torch import Tensor

import pyrodgm
from pyrodgm.kernels import SGHMC, SGLD, Kernel, Minibatch

D = torch.float64
N, BATCH = 50, 5
Y = torch.randn(N, dtype=D, generator=torch.Generator().manual_seed(0)) + 1.5
PRECISION = N + 1.0  # of x ~ N(0, 1), y ~ N(x, 1)


def posterior(batch_size: int = BATCH) -> Minibatch:
    return Minibatch(lambda x: x.square().sum() / 2, lambda x, y: (y - x).square() / 2, Y, batch_size=batch_size)


def gradient_variance() -> float:
    """Of the minibatch gradient at any x, n rows with replacement: N^2 / n times the variance of a row's."""
    return N**2 / BATCH * Y.var(correction=0).item()


def run(kernel, potential, steps: int, chains: int = 20_000, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = Y.sum() / PRECISION + PRECISION**-0.5 * torch.randn(chains, 1, dtype=D, generator=generator)
    state = kernel.init(potential, start)
    for _ in range(steps):
        state, _ = kernel.step(state, generator)
    return state.positions


def check(x: Tensor, variance: float) -> None:
    mean = Y.sum() / PRECISION
    assert_means_agree(*mean_and_error(x), mean)
    assert_means_agree(*mean_and_error((x - mean).square()), torch.tensor(variance, dtype=D))


def test_the_minibatch_gradient_is_unbiased() -> None:
    x = torch.full((40_000, 1), 0.7, dtype=D)
    found = posterior().noisy_gradient(x, torch.Generator().manual_seed(2))
    assert_means_agree(*mean_and_error(found), PRECISION * 0.7 - Y.sum())
    variance = (found - found.mean()).square()
    assert_means_agree(*mean_and_error(variance), torch.tensor(gradient_variance(), dtype=D))
    whole = posterior()(x[:3])
    torch.testing.assert_close(whole, 0.245 + 0.5 * (Y - 0.7).square().sum().expand(3))


def test_sgld_on_a_gaussian_model() -> None:
    """Its own bias, h = epsilon^2: x' has variance a^2 s + h + h^2 V / 4 with a = 1 - h P / 2."""
    kernel = SGLD(0.1)
    h = kernel.step_size**2
    a = 1 - h * PRECISION / 2
    exact = h / (1 - a**2)
    assert exact == pytest.approx(1 / (PRECISION * (1 - h * PRECISION / 4)))
    check(run(kernel, lambda x: posterior()(x), 60), exact)
    noisy = (h + h**2 / 4 * gradient_variance()) / (1 - a**2)
    assert noisy > 1.5 * exact  # so that the noise matters
    check(run(kernel, posterior(), 60), noisy)


def test_full_data_and_a_step_are_unadjusted_langevin() -> None:
    kernel, potential = SGLD(0.01), lambda x: posterior()(x)
    x = torch.randn(20, 1, dtype=D)
    state, _ = kernel.step(kernel.init(potential, x), torch.Generator().manual_seed(3))
    noise = torch.randn(20, 1, dtype=D, generator=torch.Generator().manual_seed(3))
    gradient = PRECISION * x - Y.sum()
    torch.testing.assert_close(state.positions, x - 0.5e-4 * gradient + 0.01 * noise)


def test_a_small_step_has_the_posterior() -> None:
    check(run(SGLD(0.02), lambda x: posterior()(x), 100, chains=4000), 1 / PRECISION)  # 0.5 % of bias, error 2 %


def test_falling_steps() -> None:
    kernel = SGLD(0.5, decay=0.6, delay=10.0)
    state = kernel.init(lambda x: torch.zeros(len(x), dtype=D) + 0 * x.sum(-1), torch.zeros(20_000, 1, dtype=D))
    generator = torch.Generator().manual_seed(4)
    for _ in range(30):
        state, _ = kernel.step(state, generator)
    expected = sum(0.25 * (1 + t / 10) ** -0.6 for t in range(30))  # the variances of the steps add up
    assert_means_agree(*mean_and_error(state.positions.square()), torch.tensor(expected, dtype=D))


def test_sghmc_on_a_gaussian_model() -> None:
    kernel = SGHMC(0.03, friction=0.3)
    precision = torch.tensor([[PRECISION]], dtype=D)
    check(run(kernel, lambda x: posterior()(x), 120), sghmc_covariance(kernel, precision).item())
    noisy = sghmc_covariance(kernel, precision, gradient_variance()).item()
    assert noisy > 1.5 * sghmc_covariance(kernel, precision).item()
    check(run(kernel, posterior(), 120), noisy)
    # told of the gradient's noise, it adds that much less of its own
    beta = kernel.step_size**2 * gradient_variance() / 2
    corrected = SGHMC(0.03, friction=0.3, noise=beta)
    check(run(corrected, posterior(), 120), sghmc_covariance(kernel, precision).item())


def test_the_bias_of_sghmc_is_of_the_second_order() -> None:
    """The covariance of its docstring, beside the solution of the recursion."""
    precision = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=D)
    for step_size, friction in ((0.5, 0.1), (0.3, 0.6), (0.1, 1.0)):
        biased = precision @ (torch.eye(2, dtype=D) - step_size**2 * precision / (4 - 2 * friction))
        torch.testing.assert_close(sghmc_covariance(SGHMC(step_size, friction), precision), biased.inverse())


def test_a_small_step_of_sghmc_has_the_posterior() -> None:
    kernel = SGHMC(0.005, friction=0.05)
    found = sghmc_covariance(kernel, torch.tensor([[PRECISION]], dtype=D)).item()
    assert found == pytest.approx(1 / PRECISION, rel=0.01)


def test_in_mcmc_the_energy_of_a_program_is_whole() -> None:
    def program(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0, dtype=D), 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    settings = {"warmup": 100, "draws": 1, "chains": 2000, "compile": False, "progress": False}
    x = pyrodgm.mcmc(program, SGLD(0.05), Y, **settings)["x"].reshape(-1, 1)
    check(x, 1 / (PRECISION * (1 - 0.05**2 * PRECISION / 4)))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="step_size > 0"):
        SGLD(0.0)
    with pytest.raises(ValueError, match="friction"):
        SGHMC(0.1, friction=0.0)
    with pytest.raises(ValueError, match="noise in"):
        SGHMC(0.1, friction=0.1, noise=0.2)
    with pytest.raises(ValueError, match="one length"):
        Minibatch(torch.sum, torch.sum, torch.zeros(3), torch.zeros(4), batch_size=1)
    with pytest.raises(ValueError, match="batch_size >= 1"):
        Minibatch(torch.sum, torch.sum, torch.zeros(3), batch_size=0)
    with pytest.raises(ValueError, match=r"SGHMC\.init"):
        SGHMC(0.1).step(SGLD(0.1).init(lambda x: x.sum(-1), torch.zeros(2, 1)))


@pytest.mark.parametrize("kernel", [SGLD(0.1), SGHMC(0.1)], ids=lambda k: type(k).__name__)
def test_steps_keep_no_graph(kernel: Kernel) -> None:
    """Weights of a trained network in the energy want gradients; chains that move by it do not gather them."""
    weight = torch.ones((), requires_grad=True)

    def row(x: Tensor, y: Tensor) -> Tensor:
        return weight * (y - x).square() / 2

    rows = Minibatch(lambda x: weight * x.square().sum() / 2, row, torch.zeros(9), batch_size=3)
    state = kernel.init(rows, torch.zeros(4, 1))
    for _ in range(2):
        state, _ = kernel.step(state)
    assert not state.positions.requires_grad
