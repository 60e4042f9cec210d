"""Energy gaps: their gradients against autograd, the centred ones against the centred machines they belong to."""

import copy

import pytest
import torch
from cases import all_binary, grow
from torch import Tensor

import pyrodgm
from pyrodgm.core import Energy
from pyrodgm.energy import RBM, DeepBoltzmannMachine, GaussianUnits, SoftmaxUnits
from pyrodgm.energy.gap import Offsets
from pyrodgm.energy.twins import TwinRBM
from pyrodgm.objectives import ContrastiveDivergence, MeanFieldContrastive
from pyrodgm.objectives.centring import RunningOffsets
from pyrodgm.tractable import MADE

BUILD = {
    "RBM": lambda: RBM(5, 3),
    "Gaussian RBM": lambda: RBM(5, 3, units=GaussianUnits(5)),
    "softmax RBM": lambda: RBM(6, 3, units=SoftmaxUnits(3)),
    "twins": lambda: TwinRBM(2, 3, 2, 3),
    "DBM of 2": lambda: DeepBoltzmannMachine(4, [3, 2]),
    "DBM of 3": lambda: DeepBoltzmannMachine(3, [2, 4, 2]),
    "DBM of 4": lambda: DeepBoltzmannMachine(3, [2, 4, 2, 3]),
}
every = pytest.mark.parametrize("name", BUILD)


def machine(name: str) -> Energy:
    torch.manual_seed(0)
    return grow(BUILD[name](), 0.7).double()


def draws(model: Energy, name: str) -> tuple[Tensor, tuple, Tensor]:
    """Rows, what else their energy takes, and negatives: any values will do for an identity, so none are special."""
    torch.manual_seed(1)
    v = model.event_shape[0]
    if isinstance(model, DeepBoltzmannMachine):
        mu = [torch.rand(7, size).double() for size in model.sizes[1:]]
        return torch.rand(7, v).double(), (mu,), torch.rand(4, sum(model.sizes[::2])).double()
    return torch.rand(7, v).double(), (), torch.rand(4, v).double()


def plain_gap(model: Energy, x: Tensor, more: tuple, negatives: Tensor) -> Tensor:
    """By the two energies, for autograd."""
    if isinstance(model, DeepBoltzmannMachine):
        return model.joint_energy(x, *more).mean() - model.even_energy(negatives).mean()
    return model.energy(x).mean() - model.energy(negatives).mean()


def closed_gap(model: Energy, x: Tensor, more: tuple, negatives: Tensor, offsets: Offsets | None = None) -> Tensor:
    """By the method under test."""
    gap = model.mean_field_gap if isinstance(model, DeepBoltzmannMachine) else model.energy_gap
    return gap(x, *more, negatives, offsets).value


def layers(model: Energy) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Weights between neighbours, biases from the bottom, copies of each layer."""
    if isinstance(model, DeepBoltzmannMachine):
        return list(model.weights), list(model.biases), [1] * len(model.sizes)
    copies = [model.visible_copies, model.hidden_copies] if isinstance(model, TwinRBM) else [1, 1]
    return [model.weight], [model.visible_bias, model.hidden_bias], copies


def some_offsets(model: Energy) -> tuple[Offsets, list[Tensor]]:
    """Any numbers, as the gap takes them (visible or even, hidden or odd) and layer by layer."""
    generator = torch.Generator().manual_seed(2)
    each = [torch.rand(len(b), generator=generator, dtype=torch.float64) for b in layers(model)[1]]
    return Offsets(torch.cat(each[::2]), torch.cat(each[1::2])), each


def check_gradient(name):
    model = machine(name)
    x, more, negatives = draws(model, name)
    gap = closed_gap(model, x, more, negatives)
    expected = plain_gap(model, x, more, negatives)
    torch.testing.assert_close(gap, expected)
    parameters = list(model.parameters())
    scale = torch.tensor(1.7).double()  # what comes from above is not 1
    found = torch.autograd.grad(scale * gap, parameters)
    for got, want in zip(found, torch.autograd.grad(scale * expected, parameters), strict=True):
        torch.testing.assert_close(got, want)


@every
def test_value_and_gradient_are_those_of_the_energies(name):
    check_gradient(name)


def check_centred_step(name):
    """A plain step of the centred machine moves weights and biases as the centred gradient says.

    The centred machine has the biases b_l' and the energy of the plain one with
    b_l = b_l' - sum over linked layers of copies x W^T (or W) x offsets.
    """
    model, lr = machine(name), 0.3
    x, more, negatives = draws(model, name)
    offsets, means = some_offsets(model)
    weights, biases, copies = layers(model)

    def shift(weights: list[Tensor]) -> list[Tensor]:
        total = [torch.zeros_like(b) for b in biases]
        for i, w in enumerate(weights):
            total[i] = total[i] + copies[i + 1] * means[i + 1] @ w
            total[i + 1] = total[i + 1] + copies[i] * w @ means[i]
        return total

    before = [p.detach().clone() for p in (*weights, *biases)]
    w = [p.clone().requires_grad_() for p in before[: len(weights)]]
    own = [(b + s).requires_grad_() for b, s in zip(before[len(weights) :], shift(before[: len(weights)]), strict=True)]

    # the gap as a function of the centred machine's parameters
    values = [*w, *[b - s for b, s in zip(own, shift(w), strict=True)]]
    names = {id(p): n for n, p in model.named_parameters()}
    state = {names[id(p)]: v for p, v in zip((*weights, *biases), values, strict=True)}
    gap = torch.func.functional_call(_Gap(model), {f"model.{n}": v for n, v in state.items()}, (x, more, negatives))
    gradients = torch.autograd.grad(gap, [*w, *own])
    moved = [p - lr * g for p, g in zip((*w, *own), gradients, strict=True)]
    after = [*moved[: len(w)], *[b - s for b, s in zip(moved[len(w) :], shift(moved[: len(w)]), strict=True)]]

    value = closed_gap(model, x, more, negatives, offsets)
    torch.testing.assert_close(value, plain_gap(model, x, more, negatives))
    for p, old, new, g in zip(
        (*weights, *biases), before, after, torch.autograd.grad(value, [*weights, *biases]), strict=True
    ):
        assert torch.equal(p.detach(), old)
        torch.testing.assert_close(old - lr * g, new)


class _Gap(torch.nn.Module):
    """The gap by the two energies as a module's forward, as ``functional_call`` wants it."""

    def __init__(self, model: Energy) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, more: tuple, negatives: Tensor) -> Tensor:
        return plain_gap(self.model, x, more, negatives)


@every
def test_the_centred_gradient_is_a_step_of_the_centred_machine(name):
    check_centred_step(name)


def test_centred_steps_do_not_care_which_value_is_called_one():
    """Flip some visible and hidden units of rows, negatives and machine: the step flips with them."""
    flip_v, flip_h = torch.tensor([1.0, 0, 1, 0, 1]).double(), torch.tensor([0.0, 1, 1]).double()

    def flipped(model: RBM) -> RBM:
        """p'(v, h) = p(flip v, flip h), up to the normaliser."""
        sign_v, sign_h = 1 - 2 * flip_v, 1 - 2 * flip_h
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.weight.copy_(sign_h.unsqueeze(-1) * model.weight * sign_v)
            other.visible_bias.copy_(sign_v * (model.visible_bias + flip_h @ model.weight))
            other.hidden_bias.copy_(sign_h * (model.hidden_bias + model.weight @ flip_v))
        return other

    def stepped(model: RBM, x: Tensor, negatives: Tensor, offsets: Offsets | None) -> RBM:
        other = copy.deepcopy(model)
        gap = other.energy_gap(x, negatives, offsets).value
        with torch.no_grad():
            for p, g in zip(other.parameters(), torch.autograd.grad(gap, list(other.parameters())), strict=True):
                p.sub_(0.5 * g)
        return other

    model = machine("RBM")
    x, _, negatives = draws(model, "RBM")
    offsets = some_offsets(model)[0]
    turned = Offsets((offsets.visible - flip_v).abs(), (offsets.hidden - flip_h).abs())
    v = all_binary((5,))
    for given, other, same in ((offsets, turned, True), (None, None, False)):
        one = stepped(model, x, negatives, given)
        two = stepped(flipped(model), (x - flip_v).abs(), (negatives - flip_v).abs(), other)
        p, q = one.log_prob(v), two.log_prob((v - flip_v).abs())
        assert torch.allclose(p, q) == same  # plain steps depend on the coding


def test_means_of_the_data():
    model = machine("RBM")
    x, _, negatives = draws(model, "RBM")
    means = model.energy_gap(x, negatives).means
    torch.testing.assert_close(means.visible, x.mean(0))
    torch.testing.assert_close(means.hidden, (x @ model.weight.t() + model.hidden_bias).sigmoid().mean(0).detach())
    assert not means.hidden.requires_grad


@pytest.mark.parametrize("name", ["RBM", "Gaussian RBM", "softmax RBM"])
def test_offsets_start_at_the_means_of_unlinked_units(name):
    model = machine(name)
    with torch.no_grad():
        model.weight.zero_()
    torch.manual_seed(3)
    x = model.start(40_000)
    found = model.units.statistic(x).detach()
    error = found.std(0) / 200
    assert ((found.mean(0) - model.offsets().visible).abs() < 4.5 * error).all()
    torch.testing.assert_close(model.offsets().hidden, model.hidden_bias.detach().sigmoid())


@pytest.mark.parametrize("which", ["RBM", "DBM"])
def test_weight_cost_shrinks_weights_and_no_biases(which):
    lr, cost = 0.1, 0.3
    moved = []
    for weight_cost in (0.0, cost):
        model = machine("RBM" if which == "RBM" else "DBM of 3")
        start = [p.detach().clone() for p in model.parameters()]
        make = ContrastiveDivergence if which == "RBM" else MeanFieldContrastive
        objective = make(k=1, weight_cost=weight_cost).double()
        objective.check(model)
        optimizer = objective.optimizer("model", list(model.parameters()), lr)
        torch.manual_seed(4)
        objective.loss(model, all_binary(model.event_shape)[1::3]).backward()
        optimizer.step()
        moved.append([p.detach().clone() for p in model.parameters()])
    for old, free, costly in zip(start, *moved, strict=True):
        torch.testing.assert_close(free - costly, lr * cost * old if old.dim() > 1 else torch.zeros_like(old))


def mostly_ones(n: int = 600) -> Tensor:
    """Two patterns of eight units and their overlays, with a twentieth of the units flipped, zeros and ones swapped."""
    torch.manual_seed(5)
    parts = torch.tensor([[1.0, 1, 0, 0, 0, 0, 1, 0], [0.0, 0, 0, 1, 0, 1, 0, 0]])
    x = (torch.randint(2, (n, 2)).float() @ parts).clamp(max=1)
    return 1 - torch.where(torch.rand_like(x) < 0.05, 1 - x, x)


def test_a_deep_machine_learns_without_pretraining():
    x = mostly_ones()
    torch.manual_seed(0)
    model = DeepBoltzmannMachine(8, [6, 4])
    model.biases[0].data.copy_(torch.logit(x.mean(0), 0.01))
    before = model.bound(x, method="exact").mean()
    objective = MeanFieldContrastive(k=2, centered=True)
    pyrodgm.fit(model, x, objective, epochs=40, batch_size=50, lr=0.1, progress=False)
    assert model.bound(x, method="exact").mean() > before + 0.5  # which is that of independent units


@pytest.mark.parametrize("make", [ContrastiveDivergence, MeanFieldContrastive])
def test_offsets_follow_the_data_and_are_saved(make):
    model = machine("RBM" if make is ContrastiveDivergence else "DBM of 2")
    objective = make(k=1, centered=True).double()
    objective.check(model)
    start = objective.offsets.current()
    v = model.event_shape[0]
    for _ in range(800):  # 0.99^800 is 3e-4
        objective.loss(model, torch.ones(3, v).double())
    now = objective.offsets.current()
    torch.testing.assert_close(now.visible[:v], torch.ones(v).double(), rtol=0, atol=1e-3)
    assert not torch.equal(start.hidden, now.hidden)
    other = make(k=1, centered=True).double()
    other.load_state_dict(objective.state_dict())
    assert torch.equal(other.offsets.current().visible, now.visible)
    objective.loss(model, torch.zeros(3, v).double())
    assert torch.equal(other.offsets.current().visible, now.visible)  # a copy
    assert torch.equal(now.visible, other.offsets.current().visible)  # what a backward pass holds stays as it was


def test_offsets_of_units_that_never_change_do_not_end_as_denormal_numbers():
    offsets = RunningOffsets()
    offsets.start(Offsets(torch.full((3,), 0.1), torch.full((2,), 0.5)))
    for _ in range(9000):  # 0.99^9000 is below the smallest normal float32, and rounding would stop it at 50 denormals
        offsets.follow(Offsets(torch.zeros(3), torch.zeros(2)))
    for mean in offsets.current():
        assert torch.equal(mean, torch.zeros_like(mean))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="weight_cost >= 0"):
        ContrastiveDivergence(weight_cost=-1.0)
    with pytest.raises(ValueError, match="weight_cost >= 0"):
        MeanFieldContrastive(weight_cost=-1.0)
    with pytest.raises(ValueError, match="without context to centre"):
        ContrastiveDivergence(centered=True).check(RBM(3, 2, context=2))
    with pytest.raises(TypeError, match="two layers"):
        ContrastiveDivergence(centered=True).check(pyrodgm.energy.BoltzmannMachine(3))
    with pytest.raises(TypeError, match="energy model"):
        ContrastiveDivergence(centered=True).check(MADE(3, [4]))
