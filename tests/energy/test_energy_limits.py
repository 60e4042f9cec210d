"""What energy models refuse, and big tables in parts."""

import pytest
import torch

from pyrodgm.energy import RBM, BoltzmannMachine, DeepBoltzmannMachine, JointEnergy, NeuralEnergy, dbm
from pyrodgm.engine import fit_stack
from pyrodgm.kernels import HMC, SGHMC, ParallelTempering
from pyrodgm.objectives import ContrastiveDivergence
from pyrodgm.tractable import RealNVP


@pytest.mark.parametrize("kernel", [ParallelTempering(HMC(step_size=0.3), replicas=3), SGHMC(0.1)])
def test_kernels_with_a_memory_make_no_negatives(kernel):
    """Their first steps after a new start do not leave the law alone: hot replicas are lost, velocities start at 0."""
    model = NeuralEnergy.mlp(3, hidden=[4])
    model.kernel = kernel
    with pytest.raises(TypeError, match=r"for negatives, got (ParallelTempering|SGHMC), which keeps"):
        ContrastiveDivergence(1, persistent=False).check(model)
    with pytest.raises(TypeError, match="for AIS"):
        model.log_partition("ais", chains=2, temperatures=3)
    with pytest.raises(TypeError, match="for negatives"):
        model.condition().log_prob(torch.zeros(2, 3))
    model.eval()
    assert model.condition().log_prob(torch.zeros(2, 3)).isfinite().all()


def test_a_weight_cost_that_would_decay_nothing_is_refused():
    ContrastiveDivergence(1, weight_cost=0.1).check(RBM(4, 3))
    with pytest.raises(ValueError, match="couplings are one vector"):
        ContrastiveDivergence(1, weight_cost=0.1).check(BoltzmannMachine(4))


@pytest.mark.parametrize("build", [lambda: RBM(4, 3, context=2), lambda: BoltzmannMachine(4, context=2)])
def test_the_exact_log_prob_has_the_gradient_of_its_context(build):
    torch.manual_seed(0)
    model, states = build().double(), torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    context = torch.randn(1, 2).double().expand(16, 2).clone().requires_grad_()  # one law, so log p is a softmax
    got = torch.autograd.grad(model.log_prob(states, context)[3], context)[0]
    want = torch.autograd.grad((-model.energy(states, context)).log_softmax(0)[3], context)[0]
    assert want.abs().max() > 0.01
    torch.testing.assert_close(got.sum(0), want.sum(0))


def test_a_context_with_a_gradient_has_no_constant_log_z():
    rbm, x = RBM(4, 3, context=2), torch.ones(5, 4)
    context = torch.randn(5, 2, requires_grad=True)
    assert rbm.condition(context).log_prob(x).shape == (5,)  # in training its negatives know the context
    rbm.eval()
    with pytest.raises(TypeError, match="expected a fixed context"):
        rbm.condition(context).log_prob(x)
    assert rbm.condition(context.detach()).log_prob(x).shape == (5,)


@pytest.mark.parametrize("units", [4, 22])
def test_masks_of_other_types_are_refused(units):
    mask = torch.ones(units, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"use mask\.bool\(\)"):
        BoltzmannMachine(units).complete(torch.ones(2, units), mask)


def test_a_classifiers_base_knows_no_labels():
    with pytest.raises(ValueError, match="expected a base without context, got one of 3"):
        JointEnergy.mlp(2, classes=3, hidden=[4], context=3, base=RealNVP(2, layers=1, context=3))


def test_a_state_of_other_links_is_refused():
    chain = torch.zeros(4, 4, dtype=torch.bool)
    chain[0, 1] = chain[1, 2] = chain[2, 3] = True
    star = torch.zeros(4, 4, dtype=torch.bool)
    star[0, 1:] = True
    one, other = (BoltzmannMachine(4, links=links | links.t()) for links in (chain, star))
    with pytest.raises(ValueError, match="build it with links= as saved"):
        other.load_state_dict(one.state_dict())
    one.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})


def test_hidden_draws_in_parts_are_those_of_each_row_alone(monkeypatch):
    torch.manual_seed(0)
    model, x = DeepBoltzmannMachine(4, [3, 2], context=2), (torch.rand(11, 4) > 0.5).float()
    context = torch.randn(11, 2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    monkeypatch.setattr(dbm, "_NUMBERS_AT_ONCE", 40)
    drawn = torch.stack([model.draw_even(x, context) for _ in range(400)])  # (400, 11, 6)
    torch.testing.assert_close(drawn[..., :4], x.expand(400, -1, -1))
    monkeypatch.setattr(dbm, "_NUMBERS_AT_ONCE", 2**22)
    alone = torch.stack([model.draw_even(x[i].expand(400, -1), context[i].expand(400, -1)) for i in range(11)], 1)
    error = ((drawn.var(0) + alone.var(0)) / 400).sqrt()
    assert ((drawn.mean(0) - alone.mean(0)).abs() <= 5 * error + 1e-9).all()
    assert (alone.mean(0).std(0)[4:] > 0.1).all(), "the rows can be told apart"
    assert model.draw_even(x[:0], context[:0]).shape == (0, 6)


def test_only_twins_have_copies_of_their_rows():
    with pytest.raises(ValueError, match="expected machine 1 of 3 visible units, got 6"):
        fit_stack([RBM(4, 3), RBM(6, 2)], torch.ones(8, 4), epochs=1, progress=False)
