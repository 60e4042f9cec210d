"""Contrastive divergence against the exact likelihood gradient; its chains through every kind of copy."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import pyrodgm
from pyrodgm.core import Energy
from pyrodgm.energy import RBM, BoltzmannMachine, DeepBeliefNetwork, DeepBoltzmannMachine, Recognition
from pyrodgm.kernels import MALA
from pyrodgm.objectives import MeanFieldContrastive, Objective, UpDown, weight_groups
from pyrodgm.objectives.contrastive import ContrastiveDivergence
from pyrodgm.tractable import MADE


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def grown(context: int = 0) -> RBM:
    model = RBM(5, 3, context).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.6)
    return model


def rows(n: int) -> Tensor:
    return (torch.rand(n, 5, dtype=torch.float64) < torch.tensor([0.9, 0.2, 0.5, 0.7, 0.1])).double()


def gradient(loss: Tensor, model: RBM) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize(("persistent", "context"), [(False, 0), (False, 2), (True, 0)])
def test_many_steps_give_the_likelihood_gradient(persistent: bool, context: int) -> None:
    model, n = grown(context), 400
    x = rows(n)
    c = torch.eye(2, dtype=torch.float64)[torch.arange(n) % 2] if context else None
    exact = gradient(-model.log_prob(x, c).mean(), model)
    objective = ContrastiveDivergence(k=25, persistent=persistent, chains=n if persistent else None)
    draws = torch.stack([gradient(objective.loss(model, x, c), model) for _ in range(40)])
    error = draws.std(0) / 40**0.5
    assert ((draws.mean(0) - exact).abs() < 4.5 * error).all()
    assert error.max() < exact.abs().max() / 10  # so a gradient of the wrong sign or scale would be seen


def test_few_steps_are_biased_towards_the_data() -> None:
    model, x = grown(), rows(4000)
    few, many = (gradient(ContrastiveDivergence(k).loss(model, x), model).norm() for k in (1, 25))
    assert few < many


def test_negatives_carry_no_gradient_and_chains_go_on() -> None:
    model = grown()
    objective = ContrastiveDivergence(k=3, persistent=True, chains=7)
    assert objective.negatives is None
    objective.loss(model, rows(4)).backward()
    first = objective.negatives
    assert first is not None
    assert first.shape == (7, 5)
    assert not first.requires_grad
    first = first.clone()
    objective.loss(model, rows(4))
    assert not torch.equal(first, objective.negatives)
    assert dict(objective.players(model)).keys() == {"model"}


def test_making_chains_leaves_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    objectives = [ContrastiveDivergence(persistent=True) for _ in range(2)]
    for objective in objectives:
        objective.check(Quadratic())
    assert torch.equal(before, torch.get_rng_state())
    first, second = (dict(objective.named_buffers())["negatives"] for objective in objectives)
    assert torch.equal(first, second)


class Whole(torch.nn.Module):
    """Model and objective in one module, as an engine traces them."""

    def __init__(self, model: Energy, objective: ContrastiveDivergence) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor) -> Tensor:
        return self.objective.loss(self.model, x)


@pytest.mark.parametrize("persistent", [False, True])
def test_the_loss_traces_and_moves_its_chains(persistent: bool) -> None:
    model, x = grown(), rows(6)
    objective = ContrastiveDivergence(persistent=persistent)
    objective.check(model)
    whole = Whole(model, objective)
    names = [name for name, _ in whole.named_buffers()]

    def traced(buffers: list[Tensor], x: Tensor) -> Tensor:
        loss: Tensor = torch.func.functional_call(whole, dict(zip(names, buffers, strict=True)), (x,))
        return loss

    buffers = list(objective.buffers())
    graph = make_fx(traced)([b.clone() for b in buffers], x)
    copies = [b.clone() for b in buffers]
    torch.manual_seed(3)
    by_graph = graph(copies, x)
    torch.manual_seed(3)
    torch.testing.assert_close(by_graph, objective.loss(model, x))
    for got, want in zip(copies, objective.buffers(), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict", "file"])
@pytest.mark.parametrize("used", [False, True])
def test_chains_survive_copies(how: str, used: bool) -> None:
    model, x = grown(), rows(6)
    objective = ContrastiveDivergence(persistent=True)
    if used:
        objective.loss(model, x)
    if how == "deepcopy":
        other = copy.deepcopy(objective)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(objective))
    else:
        state = objective.state_dict()
        if how == "file":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        other = ContrastiveDivergence(persistent=True)
        if not used:  # loading a state without chains forgets those that there are
            other.loss(model, x)
        other.load_state_dict(state)
    losses = []
    for one in (objective, other):
        torch.manual_seed(1)
        one.loss(model, x)
        losses.append(one.loss(model, x))
        assert one.negatives is not None
    assert torch.equal(losses[0], losses[1])
    assert objective.negatives is not other.negatives


def test_training_lowers_the_held_out_score() -> None:
    model, x = RBM(5, 3).double(), rows(500)
    objective = ContrastiveDivergence(persistent=True)
    objective.check(model)
    assert objective.held_out_name == "exact negative log-likelihood"
    before = objective.held_out(model, x)
    torch.testing.assert_close(before, -model.log_prob(x).mean().detach())
    optimizer = objective.optimizer("model", list(model.parameters()), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        objective.loss(model, x).backward()
        optimizer.step()
    p = x.mean(0).clamp(0.01, 0.99)
    independent = -(x * p.log() + (1 - x) * (1 - p).log()).sum(-1).mean()  # the rows were drawn so
    after = objective.held_out(model, x)
    assert after < before - 0.5
    assert after < independent + 0.1


class Quadratic(Energy):
    """N(shift, 1) in two dimensions, whose normaliser we pretend not to know."""

    def __init__(self, context: int = 0) -> None:
        super().__init__((2,), context)
        self.shift = torch.nn.Parameter(torch.zeros(2))
        self.kernel = MALA(0.8)
        self.sample_steps = 30

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        centre = self.shift if context is None else self.shift + context
        return (x - centre).square().sum(-1) / 2

    def start(self, n: int, context: Tensor | None = None) -> Tensor:
        return torch.randn(n, 2)

    def log_partition(self, method: str = "ais", **options: object) -> tuple[Tensor, Tensor]:
        self.estimates = getattr(self, "estimates", 0) + 1
        return torch.tensor(math.log(2 * math.pi), dtype=torch.float64), torch.zeros(())


def test_with_context_and_without_enumeration_the_held_out_score_is_a_distance() -> None:
    model = Quadratic(2)
    objective = ContrastiveDivergence()
    objective.check(model)
    assert objective.held_out_name == "energy distance"
    c = 3 * torch.randn(300, 2)
    near = torch.randn(300, 2) + c
    good, bad = objective.held_out(model, near, c), objective.held_out(model, near + 2, c)
    assert abs(good) < 0.1
    assert bad > good + 0.3
    one = objective.held_out(model, near[:1], c[:1])
    assert one.isfinite()
    objective.check(RBM(3, 2))
    assert objective.held_out_name == "exact negative log-likelihood"


def test_gradient_kernels_make_negatives_too() -> None:
    model = Quadratic()
    x = torch.randn(500, 2) + 2
    (g,) = torch.autograd.grad(ContrastiveDivergence(k=30).loss(model, x), model.shift)
    error = (2 / 500) ** 0.5
    assert ((g + x.mean(0)).abs() < 4.5 * error).all()  # the exact gradient is shift - mean(x), with shift 0


def test_mistakes_are_named() -> None:
    with pytest.raises(TypeError, match="energy model"):
        ContrastiveDivergence().check(MADE(3, [4]))
    with pytest.raises(TypeError, match="energy model"):
        ContrastiveDivergence().loss(MADE(3, [4]), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="persistent=False"):
        ContrastiveDivergence(persistent=True).check(RBM(3, 2, context=2))
    with pytest.raises(ValueError, match="k >= 1"):
        ContrastiveDivergence(0)
    with pytest.raises(ValueError, match="persistent=True"):
        ContrastiveDivergence(chains=5)
    for context in (0, 2):  # the couplings are one vector, whatever else has two dimensions
        with pytest.raises(ValueError, match="couplings are one vector"):
            ContrastiveDivergence(weight_cost=0.1).check(BoltzmannMachine(4, context=context))
    objective = ContrastiveDivergence(persistent=True)
    objective.loss(RBM(3, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="each model"):
        objective.loss(RBM(4, 2), torch.zeros(2, 4))


def test_without_enumeration_the_held_out_score_is_a_likelihood_with_one_estimate_a_state() -> None:
    model = Quadratic()
    objective = ContrastiveDivergence()
    objective.check(model)
    assert objective.held_out_name == "negative log-likelihood by AIS"
    x = torch.randn(40, 2)
    exact = -torch.distributions.Normal(0.0, 1.0).log_prob(x.double()).sum(-1).mean()
    torch.testing.assert_close(objective.held_out(model, x).double(), exact, rtol=1e-5, atol=1e-5)  # float32 energies
    objective.held_out(model, x)
    assert model.estimates == 1
    with torch.no_grad():
        model.shift.add_(1.0)
    objective.held_out(model, x)
    assert model.estimates == 2


def test_chains_begin_at_rows_of_a_trained_model() -> None:
    model, x = grown(), rows(9)
    objective = ContrastiveDivergence(persistent=True)
    objective.begin(x)
    objective.check(model)
    assert torch.equal(dict(objective.named_buffers())["negatives"], x)
    objective.loss(model, rows(4))
    assert objective.negatives is not None
    assert objective.negatives.shape == (9, 5)
    with pytest.raises(ValueError, match="expected persistent=True"):
        ContrastiveDivergence().begin(x)


@pytest.mark.parametrize("which", ["RBM", "DBM", "DBN"])
def test_held_out_log_z_follows_the_optimiser(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused step moves parameters without counting a version; a stale log Z would score another model."""
    objective: Objective
    model: Energy
    x = rows(40).float()
    if which == "RBM":
        model, objective = RBM(5, 3), ContrastiveDivergence(k=1)
        monkeypatch.setattr(RBM, "enumerable", False)  # so that log Z comes from a short AIS
    elif which == "DBM":
        model, objective = DeepBoltzmannMachine(5, [3, 2]), MeanFieldContrastive(k=1, chains=10)
    else:
        model, objective = DeepBeliefNetwork(5, [3, 2]), UpDown(Recognition(5, [3]), k=1, particles=500)
    objective.check(model)
    optimizer = objective.optimizer("model", list(model.parameters()), 1.0)
    assert which == "DBN" or optimizer.defaults["fused"]
    for _ in range(3):
        (_, loss), *_ = objective(model, x)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        score = objective.held_out(model, x)
        exact = -model.log_prob(x).mean()  # type: ignore[operator]
        # AIS: hundredths; the bounds of so small and weak machines: below a tenth
        assert score.item() == pytest.approx(exact.item(), abs=0.15)
    assert (exact - math.log(2) * 5).abs() > 0.3  # the model has moved further than the tolerance
    before = objective.held_out(model, x)
    with torch.no_grad():
        next(p for p in model.parameters() if p.dim() == 1).add_(3.0)
    assert (objective.held_out(model, x) - before).abs() > 0.3


def test_a_weight_cost_is_not_lost_beside_an_optimiser_of_ones_own() -> None:
    def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1)

    objectives: list[tuple[Energy, Objective]] = [
        (RBM(5, 3), ContrastiveDivergence(weight_cost=0.1)),
        (DeepBoltzmannMachine(5, [3, 2]), MeanFieldContrastive(weight_cost=0.1)),
        (DeepBeliefNetwork(5, [3, 2]), UpDown(Recognition(5, [3]), top=ContrastiveDivergence(weight_cost=0.1))),
    ]
    for model, objective in objectives:
        with pytest.raises(ValueError, match=r"weight_cost=0 beside optimizer=.*weight_groups\(ps, 0.1\)"):
            pyrodgm.fit(model, rows(8).float(), objective, steps=1, optimizer=sgd, progress=False)
    runs = []
    for own in (False, True):  # the cure gives what the objective's own optimiser does
        torch.manual_seed(1)
        made = {"optimizer": lambda ps: torch.optim.SGD(weight_groups(ps, 0.1), lr=0.1, momentum=0.5)} if own else {}
        objective = ContrastiveDivergence(weight_cost=0.0 if own else 0.1)
        runs.append(pyrodgm.fit(RBM(5, 3), rows(8).float(), objective, steps=3, lr=0.1, progress=False, **made))
    first, second = (run.model.state_dict()["weight"] for run in runs)
    torch.testing.assert_close(first, second)
