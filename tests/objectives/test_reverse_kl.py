"""Reverse KL and distillation: closed forms, a normaliser by quadrature, a student that stands in for its teacher."""

import copy
import math

import pytest
import torch
from cases import HIDDEN, C, grow

import pyrodgm
from pyrodgm.core import Energy
from pyrodgm.evaluation import target_estimate
from pyrodgm.objectives import Distillation, MaximumLikelihood, ReverseKL
from pyrodgm.tractable import IAF, MADE, MAF, Parametric, RealNVP


def banana(x):
    """A curved unnormalised density: N(0, 1) times N(x0^2 / 2, 1/4), times 3."""
    return math.log(3) - 0.5 * x[..., 0].square() - 2 * (x[..., 1] - 0.5 * x[..., 0].square()).square()


BANANA_LOG_Z = math.log(3) + math.log(2 * math.pi) + math.log(0.5)


class Banana(Energy):
    def __init__(self):
        super().__init__((2,))
        self.weight = torch.nn.Parameter(torch.ones(1))

    def energy(self, x, context=None):
        return -self.weight * banana(x)


def test_at_the_target_the_loss_is_minus_log_z_without_noise():
    flow = RealNVP(2, 2, hidden=HIDDEN).double()  # the identity at first
    loss = ReverseKL(lambda x: -0.5 * x.square().sum(-1), 3).loss(flow, torch.zeros(5, 2))
    torch.testing.assert_close(loss, torch.tensor(-math.log(2 * math.pi), dtype=torch.float64))


def check_the_loss_is_the_kl_of_two_normals():
    import pyro.distributions as dist

    q = grow(Parametric(dist.Normal, 2)).double()
    normal = q.condition().base_dist
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum() - math.log(
        2 * math.pi
    )
    objective = ReverseKL(lambda x: -0.5 * x.square().sum(-1), 1000)
    losses = torch.stack([objective.loss(q, torch.zeros(1, 2)).detach() for _ in range(50)])
    assert abs(losses.mean() - expected) < 5 * losses.std() / 50**0.5


def test_the_loss_is_the_kl_of_two_normals():
    check_the_loss_is_the_kl_of_two_normals()


@pytest.mark.parametrize("target", [banana, Banana()], ids=["function", "energy"])
def test_a_flow_fitted_to_a_curved_target(target):
    torch.manual_seed(0)
    flow = RealNVP(2, 4, hidden=[32])
    run = pyrodgm.fit(flow, None, ReverseKL(target), steps=600, lr=5e-3, batch_size=256, progress=False)
    found = target_estimate(flow, target, 20_000)
    assert found.effective > 0.8 * 20_000
    assert found.khat < 0.7
    assert abs(found.log_z - BANANA_LOG_Z) < 5 * found.standard_error
    # E[x1] = E[x0^2 / 2] = 1/2; 5 standard errors of a mean over the effective draws
    error = found.mean(lambda x: x[:, 1].square()).sqrt() / found.effective**0.5
    assert abs(found.mean(lambda x: x[:, 1]) - 0.5) < 5 * error
    assert found.resample(7).shape == (7, 2)
    assert run.history[-1]["loss"] > -BANANA_LOG_Z  # KL >= 0
    if isinstance(target, Energy):
        assert target.weight.grad is None


@pytest.mark.parametrize("context", [0, C])
def test_an_iaf_learns_a_maf(context):
    torch.manual_seed(0)
    teacher = grow(MAF(2, 2, hidden=[16], context=context), 0.2)
    student = IAF(2, 4, hidden=[32], context=context)
    contexts = torch.randn(2000, C) if context else None
    objective = Distillation(teacher)
    pyrodgm.fit(student, None, objective, context=contexts, steps=500, lr=5e-3, batch_size=256, progress=False)
    one = contexts[0] if context else None
    found = target_estimate(student, teacher.log_prob, 5000, one)
    assert found.effective > 0.9 * 5000
    assert abs(found.log_z) < 5 * found.standard_error  # both are normalised
    assert all(p.grad is None for p in teacher.parameters())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in objective.parameters()}


@pytest.mark.parametrize("frozen", [1.0, 0.5])
def test_a_frozen_sequential_teacher_is_no_obstacle(frozen):
    """Scoring by an IAF solves feature by feature; its weights may want no gradients, or some of them."""
    torch.manual_seed(0)
    teacher, student = grow(IAF(3, hidden=[8])).double(), RealNVP(3).double()
    parameters = list(teacher.parameters())
    for p in parameters[: int(frozen * len(parameters))]:
        p.requires_grad_(False)
    x = torch.randn(20, 3).double()
    free = copy.deepcopy(teacher).requires_grad_()
    expected = torch.autograd.grad(free.log_prob(x).sum(), list(free.parameters()))
    if frozen < 1:
        kept = [p for p in parameters if p.requires_grad]
        found = torch.autograd.grad(teacher.log_prob(x).sum(), kept)
        torch.testing.assert_close(found, expected[-len(kept) :])
    loss = Distillation(teacher).loss(student, x)
    assert all(
        g.isfinite().all() for g in torch.autograd.grad(loss, list(student.parameters()), materialize_grads=True)
    )


def test_refusals():
    with pytest.raises(TypeError, match="carry gradients"):
        ReverseKL(banana).check(MADE(2))
    with pytest.raises(ValueError, match="teacher's"):
        Distillation(MAF(2)).check(IAF(3))
    with pytest.raises(ValueError, match="learns from rows"):
        pyrodgm.fit(RealNVP(2), None, MaximumLikelihood(), progress=False)
    with pytest.raises(ValueError, match="at least 25"):
        target_estimate(RealNVP(2), banana, 3)


def test_the_target_stays_in_eval_mode():
    """fit calls train() on an objective, and with it on what the objective holds."""
    objective = ReverseKL(Banana()).train()
    assert objective.training
    assert not objective.target.training
