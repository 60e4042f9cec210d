"""Score matching against closed forms: Gaussians, Hessians, smoothed densities; its three forms against each other."""

import copy
import math

import pytest
import torch
from cases import C, assert_means_agree, contexts, grow, mean_and_error
from test_densities import Gaussian
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyrodgm.energy import NeuralEnergy
from pyrodgm.objectives import DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching

SIGMA = 0.4


def neural(context=0):
    torch.manual_seed(0)
    return grow(NeuralEnergy.mlp(3, [8], context, activation=nn.Tanh), 0.5).double()


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def check_gaussian():
    r"""For E = x' P x / 2 the loss is tr(P S P) / 2 - tr P, S the rows' second moment: least at P = S^-1."""
    torch.manual_seed(0)
    x = torch.randn(50, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64)
    second = x.T @ x / len(x)
    precision = torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 3.0]]).double()
    model = Gaussian(precision)
    expected = (precision @ second @ precision).trace() / 2 - precision.trace()
    torch.testing.assert_close(ScoreMatching().loss(model, x), expected)
    assert gradient(ScoreMatching().loss(model, x), model).norm() > 0.1
    truth = Gaussian(second.inverse())
    # rounding of sums of 50 terms of order |P|
    assert gradient(ScoreMatching().loss(truth, x), truth).norm() < 1e-10


def test_gaussian():
    check_gaussian()


@pytest.mark.parametrize("conditional", [False, True])
def test_exact_trace(conditional):
    """Against the Hessian of each row."""
    model, context = neural(C if conditional else 0), contexts(6) if conditional else None
    x = torch.randn(6, 3, dtype=torch.float64)

    total = 0.0
    for i in range(6):

        def log_p(x, c=None if context is None else context[i]):
            return -model.energy(x, c)

        s = torch.autograd.functional.jacobian(log_p, x[i])
        total = total + torch.autograd.functional.hessian(log_p, x[i]).trace() + s.square().sum() / 2
    torch.testing.assert_close(ScoreMatching().loss(model, x, context), total / 6)


def check_sliced(reduced, rademacher, conditional=False):
    """Its expectation over the directions is the exact loss, and the exact gradient."""
    model, context = neural(C if conditional else 0), contexts(5) if conditional else None
    x = torch.randn(5, 3, dtype=torch.float64)
    exact = ScoreMatching().loss(model, x, context)
    objective = SlicedScoreMatching(200, reduced, rademacher)
    losses = [objective.loss(model, x, context) for _ in range(40)]
    found = torch.stack([torch.cat((loss.detach().reshape(1), gradient(loss, model))) for loss in losses])
    assert_means_agree(*mean_and_error(found), torch.cat((exact.detach().reshape(1), gradient(exact, model))))


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("rademacher", [False, True])
def test_sliced(reduced, rademacher):
    check_sliced(reduced, rademacher)


def test_sliced_of_a_conditional_model():
    check_sliced(True, True, True)


def test_one_dimension_needs_no_slices():
    """There a sign times a sign is 1, so the reduced form has no noise."""
    torch.manual_seed(0)
    model = grow(NeuralEnergy.mlp(1, [8], activation=nn.Tanh), 0.5).double()
    x = torch.randn(5, 1, dtype=torch.float64)
    torch.testing.assert_close(SlicedScoreMatching().loss(model, x), ScoreMatching().loss(model, x))


def check_denoising():
    r"""The gradient is that of :math:`\frac{\sigma^2}2 E |s(y) - \nabla \log p_\sigma(y)|^2`, p_sigma in closed form.

    The rows are two points, so p_sigma is a mixture of two Gaussians, and the expectation a quadrature.
    """
    torch.manual_seed(0)
    model = grow(NeuralEnergy.mlp(1, [8], activation=nn.Tanh), 0.5).double()
    centres = torch.tensor([-0.5, 0.7], dtype=torch.float64)
    y = torch.linspace(-4, 4, 2001, dtype=torch.float64).unsqueeze(-1).requires_grad_()
    log_p = (-(y - centres).square() / (2 * SIGMA**2)).logsumexp(-1) - math.log(2 * SIGMA * math.sqrt(2 * math.pi))
    smoothed = torch.autograd.grad(log_p.sum(), y)[0]
    score = -torch.autograd.grad(model.energy(y).sum(), y, create_graph=True)[0]
    p = (log_p.exp() * (y[1, 0] - y[0, 0])).detach()
    explicit = SIGMA**2 / 2 * ((score - smoothed).square().squeeze(-1) * p).sum()
    x = centres.repeat(2000).unsqueeze(-1)
    found = torch.stack([gradient(DenoisingScoreMatching(SIGMA).loss(model, x), model) for _ in range(50)])
    mean, error = mean_and_error(found)
    exact = gradient(explicit, model)
    assert error.max() < exact.abs().max() / 20
    assert_means_agree(mean, error, exact)


def test_denoising_has_the_score_of_the_smoothed_density():
    check_denoising()


def test_denoising_of_a_gaussian():
    """Rows of N(0, s^2): at precision 1 / (s^2 + sigma^2) the gradient is nothing but noise, at 1 / s^2 it is not."""
    torch.manual_seed(0)
    x = 0.5 * torch.randn(200_000, 1, dtype=torch.float64)

    def found(precision):
        model = Gaussian(torch.tensor([[precision]]).double())
        parts = [gradient(DenoisingScoreMatching(SIGMA).loss(model, part), model) for part in x.split(4000)]
        return mean_and_error(torch.stack(parts))

    mean, error = found(1 / (0.25 + SIGMA**2))
    assert_means_agree(mean, error, torch.zeros(1).double())
    mean, error = found(1 / 0.25)
    assert (mean.abs() > 10 * error).all()


@pytest.mark.parametrize("objective", [ScoreMatching(), SlicedScoreMatching(), DenoisingScoreMatching(0.1)])
def test_held_out_and_tracing(objective):
    """A held-out score needs derivatives where the engine allows none; a trace would lose terms, and is refused."""
    model, x = neural(), torch.randn(4, 3, dtype=torch.float64)
    torch.manual_seed(1)
    with torch.no_grad():
        held_out = objective.held_out(model, x)
    assert not held_out.requires_grad
    torch.manual_seed(1)
    torch.testing.assert_close(held_out, objective.loss(model, x).detach())
    assert not x.requires_grad
    with pytest.raises(NotImplementedError, match="differentiates the energy twice"):
        make_fx(lambda x: copy.deepcopy(objective).loss(model, x))(x)


def test_mistakes():
    with pytest.raises(ValueError, match="projections >= 1"):
        SlicedScoreMatching(0)
    with pytest.raises(ValueError, match="sigma > 0"):
        DenoisingScoreMatching(0.0)
