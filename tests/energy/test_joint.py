"""JEM: p(y | x), p(x) and p(x | y) of one network agree with the joint by quadrature, and all three are learnt."""

import math

import pytest
import torch
from cases import assert_means_agree, grow, mean_and_error
from torch import nn

import pyrodgm
from pyrodgm.energy import JointEnergy
from pyrodgm.kernels import MALA
from pyrodgm.objectives import Adversarial, DenoisingScoreMatching, JointLikelihood, ReplayDivergence
from pyrodgm.tractable import MADE

K = 3
LABELS = torch.eye(K, dtype=torch.float64)


def joint(context=K):
    torch.manual_seed(0)
    return grow(JointEnergy.mlp(2, K, [8], context, None, MALA(0.8), nn.Tanh), 0.6).double()


def check_joint():
    """log p(x, y) = log p(x | y) + log p(y), p(y) = Z_y / Z; and p(y | x) = p(x, y) / p(x), everywhere."""
    model = joint()
    x = 2 * torch.randn(50, 2, dtype=torch.float64)
    log_z = model.marginal().log_partition("grid")[0]
    log_z_y = torch.stack([model.log_partition("grid", context=y)[0] for y in LABELS])
    torch.testing.assert_close(log_z_y.logsumexp(0), log_z)
    # p(x | y) p(y) of every class, (50, K)
    together = torch.stack([model.log_prob(x, y.expand(50, -1)) for y in LABELS], -1) + log_z_y - log_z
    torch.testing.assert_close(together.logsumexp(-1), model.marginal().log_prob(x))
    torch.testing.assert_close(together.log_softmax(-1), model.labels(x).logits)
    torch.testing.assert_close(model.classify(x), model.net(x).softmax(-1))
    assert not model.classify(x).requires_grad


def test_joint():
    check_joint()


def test_samples_of_a_class():
    model = joint()
    model.sample_steps = 60
    axis = torch.linspace(-8, 8, 301, dtype=torch.float64)
    nodes = torch.cartesian_prod(axis, axis)
    torch.manual_seed(1)
    x = model.sample(3000, LABELS)
    for k in range(K):
        with torch.no_grad():
            p = (-model.energy(nodes, LABELS[k])).softmax(0)
        moments = torch.cat((x[:, k], x[:, k].square()), -1)
        assert_means_agree(*mean_and_error(moments), p @ torch.cat((nodes, nodes.square()), -1))


def test_views_share_parameters():
    model = joint().train()
    model.sample_steps = 7
    marginal = model.marginal()
    assert {id(p) for p in marginal.parameters()} == {id(p) for p in model.parameters()}
    assert (marginal.context, marginal.training, marginal.sample_steps) == (0, True, 7)
    assert marginal.conditional().context == K
    assert model.conditional() is model
    assert model.net.training


def check_objective():
    """Its gradient is that of -log p(x, y) when the negatives have arrived, quadrature giving log Z."""
    model = joint().train()
    x = torch.randn(6, 2, dtype=torch.float64)
    y = LABELS[[0, 1, 2, 0, 1, 1]]
    log_joint = -model.energy(x, y) - model.marginal().log_partition("grid")[0]
    exact = torch.autograd.grad(-log_joint.mean(), list(model.parameters()))
    objective = JointLikelihood(ReplayDivergence(k=30, capacity=600, restart=0.5))
    found = []
    for _ in range(40):
        loss = objective.loss(model, x.repeat(100, 1), y.repeat(100, 1))
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    mean, error = mean_and_error(torch.stack(found))
    exact = torch.cat([g.flatten() for g in exact])
    assert error.max() < exact.abs().max() / 10
    assert_means_agree(mean, error, exact)


def test_objective():
    check_objective()


def test_the_score_is_named_by_what_it_is_of_each_model():
    objective = JointLikelihood(ReplayDivergence(k=2, capacity=8))
    names = {K: "cross-entropy", 0: "exact negative log-likelihood"}
    for context in (K, 0, K):
        objective.check(joint(context))
        assert objective.held_out_name == names[context]


def test_unlabelled_rows_take_part_in_the_marginal_alone():
    model = joint()
    x, y = torch.randn(4, 2, dtype=torch.float64), LABELS[[0, 1, 2, 2]]
    objective = JointLikelihood(DenoisingScoreMatching(0.2))

    def loss(model, labels):
        torch.manual_seed(0)
        return objective.loss(model, x, labels)

    alone = loss(model.marginal(), None)
    torch.testing.assert_close(loss(model, torch.zeros_like(y)), alone)
    torch.testing.assert_close(loss(model, y), alone + objective.held_out(model, x, y))
    expected = -(model.labels(x).logits * y).sum(-1).mean()
    torch.testing.assert_close(objective.held_out(model, x, y), expected)


def test_fit_learns_the_classes_and_the_density():
    """Three Gaussians, one a class: the classifier comes near Bayes' and draws of a class land where it is."""
    torch.manual_seed(0)
    centres = 1.5 * torch.tensor([[0.0, 1.0], [-0.9, -0.5], [0.9, -0.5]])
    label = torch.arange(3000) % K
    x = centres[label] + 0.4 * torch.randn(3000, 2)
    y = torch.eye(K)[label]
    model = JointEnergy.mlp(2, K, [32], context=K)
    run = pyrodgm.fit(
        model,
        x,
        JointLikelihood(ReplayDivergence(5, 600)),
        context=y,
        validate=(x, y),
        steps=150,
        lr=1e-2,
        progress=False,
    )
    assert run.history[-1]["held_out"] < 0.3 * math.log(K)
    # the centres are 2.6 apart, and the classes 0.4 wide
    assert ((model.sample(300, torch.eye(K)).mean(0) - centres).norm(dim=-1) < 0.6).all()


def test_mistakes():
    with pytest.raises(ValueError, match="context of 0"):
        JointEnergy.mlp(2, 3, [8], context=2)
    with pytest.raises(ValueError, match="3 outputs a row"):
        JointEnergy(2, nn.Linear(2, 2), 3).logits(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="one player"):
        JointLikelihood(Adversarial.mlp(joint(0), [4]))
    with pytest.raises(TypeError, match="expected a JointEnergy"):
        JointLikelihood().check(MADE(3))
