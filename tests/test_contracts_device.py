"""Every member on a device that is not the CPU: the same numbers, everything stays there, and a loss waits for nothing.

The device is one in software (``pretend_device.py``), so that a tensor born on the CPU and a host that reads a value
show on any machine. ``pytest -m gpu`` runs the engines on a real one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from cases import (
    BIJECTORS,
    GUIDES,
    KERNELS,
    MODELS,
    OBJECTIVES,
    context_of,
    grow,
    ready,
    rows,
    variants,
)
from pretend_device import NAME, PretendDevice, PretendTensor, Wait
from pyro import poutine
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pyrodgm import evaluation
from pyrodgm.bijectors import Continuous, ODESolver
from pyrodgm.core import Tractable
from pyrodgm.objectives import MaximumLikelihood, default_objective

N = 6

# Files that make the host wait by right in scoring and sampling: what shows it, and why. The reads are few beside the
# work that they steer, or a sampler decides by them when to stop.
READS = {
    "nets/incremental.py": ("draw MADE", "a pass feature by feature reads the features' order once, D steps follow"),
    "bijectors/mixture_cdf.py": ("draw FlowPlusPlus", "bisection stops when every element has arrived"),
    "bijectors/ode.py": ("score FFJORD", "an adaptive solver chooses its next step by the error of the last"),
    "distributions/autoregressive.py": (
        "draw MADE masks",
        "the rows that fall to each set of masks are drawn together",
    ),
    "distributions/mixture.py": ("draw Mixture", "each component draws as many rows as fall to it"),
    "distributions/tokens.py": ("draw Recurrent", "sentences are drawn until the last one has ended"),
    "distributions/discretized.py": ("draw Parametric codes | context", "torch's Categorical checks its weights"),
    "tractable/resampled.py": ("draw Resampled", "rejection stops when every row is accepted"),
    "tractable/parametric.py": ("score MAF of a Student's t", "torch's StudentT makes its Chi2 of the number 0.5"),
    "latent/semi_supervised.py": ("draw M2", "torch's Categorical checks its weights"),
    "kernels/discrete.py": ("step GibbsWithGradients", "init checks that the positions are of the two values"),
    "kernels/nuts.py": ("step NUTS", "trees grow until the last chain has turned"),
    "kernels/tempering.py": ("step ParallelTempering", "the ladder of R numbers is copied once a step"),
}
# Objectives and default losses that make the host wait, against contract 4, each with its excuse.
WAITING_LOSSES = {
    "PyroObjective": "Pyro's own objectives read their losses",
    "MAF of a Student's t": READS["tractable/parametric.py"][1],
    "FFJORD": READS["bijectors/ode.py"][1],
    "FFJORD | context": READS["bijectors/ode.py"][1],
    "IAF": READS["nets/incremental.py"][1],
    "IAF | context": READS["nets/incremental.py"][1],
    "M2": "under the plain ELBO the class is drawn by torch's Categorical; SemiSupervised sums over it and waits not",
    "M2 | context": "as M2",
}


def place(wait: Wait) -> str:
    """The innermost file of the package that a wait passed through."""
    inside = [file.rpartition(":")[0] for file in wait.files if "/pyrodgm/" in file]
    return inside[0].rpartition("/pyrodgm/")[2] if inside else wait.files[0]


def to_device(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(NAME).requires_grad_(value.requires_grad)
    return value.to(NAME) if isinstance(value, nn.Module) else value


def compare(run: Callable[..., Any], *arguments: Any) -> list[Wait]:
    """Run on both devices from one seed: the results agree, and those of the device lie on it. Returns its waits."""
    with pyro.validation_enabled(False):  # as in training after its first step; checks read what they check
        torch.manual_seed(0)
        expected = tree_leaves(run(*copy.deepcopy(arguments)))
        with PretendDevice() as device:
            moved = [to_device(a) for a in copy.deepcopy(arguments)]
            torch.manual_seed(0)
            with device.watching() as waits:
                found = tree_leaves(run(*moved))
            assert len(found) == len(expected)
            for a, b in zip(found, expected, strict=True):
                if isinstance(b, Tensor):
                    assert isinstance(a, PretendTensor), f"a result is on {a.device}"
                    torch.testing.assert_close(a.held, b.detach(), equal_nan=True)
                elif isinstance(b, float):
                    assert a == pytest.approx(b, nan_ok=True)
    return waits


def forbid(waits: list[Wait]) -> None:
    """Every wait must have its reason in READS."""
    unknown = sorted({f"{w.operation} in {w.files[0]}, {place(w)}" for w in waits if place(w) not in READS})
    assert not unknown, "\n".join(unknown)


def quick(module: Any) -> Any:
    """Continuous flows take 20 steps where their cases take thousands: only where they are is asked here."""
    for part in module.modules():
        if isinstance(part, Continuous):
            part.solver = ODESolver("dopri5", rtol=1e-3, atol=1e-3)
    return module


def setting(name: str, conditional: bool) -> tuple[Any, Tensor, Tensor | None]:
    case = MODELS[name]
    model = quick(ready(case, conditional))
    return model, rows(case, model, N), context_of(conditional, N, case)


def score(model: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """What the family answers about rows."""
    if model.family == "latent":
        return model.log_weights(x, context, particles=2)
    return getattr(model, {"tractable": "log_prob", "energy": "energy"}[model.family])(x, context)


def draw(model: Any, context: Tensor | None) -> Tensor:
    return model.sample(3, None if context is None else context[0])


@variants(MODELS, lambda case: case.build().family != "implicit")
def test_scores(name: str, conditional: bool) -> None:
    forbid(compare(score, *setting(name, conditional)))


@variants(MODELS)
def test_draws(name: str, conditional: bool) -> None:
    model, _, context = setting(name, conditional)
    forbid(compare(draw, model, context))


def learn(model: Any, objective: Any, x: Tensor, context: Tensor | None) -> list[Any]:
    """Losses of two steps and the gradients of all players, which end up in the parameters."""
    objective.check(model)
    found: list[Any] = []
    for _ in range(2):
        for player, loss in objective(model, x, context, n=2 * N):
            players = {k: list(p) for k, p in objective.players(model).items()}
            if loss.requires_grad:  # a fixed density learns nothing
                loss.backward()
            found += [loss.detach(), [p.grad for p in players[player]]]
    return found


def check_loss(label: str, *arguments: Any) -> None:
    waits = compare(learn, *arguments)
    found = sorted({f"{w.operation} in {w.files[0]}" for w in waits})
    assert bool(found) == (label in WAITING_LOSSES), "\n".join(found) or "it no longer waits: strike it off the list"


@variants(MODELS)
def test_default_losses(name: str, conditional: bool) -> None:
    model, x, context = setting(name, conditional)
    model.train()
    torch.manual_seed(1)
    check_loss(f"{name} | context" if conditional else name, model, default_objective(model).double(), x, context)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses(name: str) -> None:
    case = OBJECTIVES[name]
    model, x, context = setting(case.model, False)
    model.train()
    check_loss(name, model, case.build(model).double(), x, context)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_held_out_scores(name: str) -> None:
    case = OBJECTIVES[name]
    model, x, context = setting(case.model, False)
    compare(lambda m, o, x, c: o.held_out(m, x, c), model, case.build(model).double(), x, context)


def both_ways(bijector: Any, x: Tensor, context: Tensor | None) -> Any:
    y, ladj = bijector.condition(context).call_and_ladj(x)
    back = bijector.condition(context).inverse_and_ladj(y.detach())
    (y.sum() + ladj.sum() + back[0].sum()).backward()
    return y, ladj, back, [p.grad for p in bijector.parameters()]


@variants(BIJECTORS)
def test_bijectors(name: str, conditional: bool) -> None:
    case = BIJECTORS[name]
    x = torch.rand(N, *case.event, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.9 + 0.05
    forbid(compare(both_ways, quick(ready(case, conditional)), x.requires_grad_(), context_of(conditional, N)))


@pytest.mark.parametrize("name", GUIDES)
def test_guides(name: str) -> None:
    case = GUIDES[name]

    def run(model: Any, guide: Any, x: Tensor) -> Tensor:
        trace = poutine.trace(guide).get_trace(x, n=2 * N)
        trace.compute_log_prob()
        return poutine.trace(poutine.replay(model, trace)).get_trace(x).log_prob_sum() - trace.log_prob_sum()

    guide = grow(case.guide()).double()
    # a guide of a program holds the program that it was made for
    model = guide.sites.program if hasattr(guide, "sites") else case.model().double()
    forbid(compare(run, model, guide, torch.ones(4, *model.event_shape).double()))


class Bowl(nn.Module):
    """A Gaussian as a potential."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("precision", torch.tensor([[2.0, 0.8], [0.8, 1.0]]).double())

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * ((x @ self.precision) * x).sum(-1)


def moved_by(kernel: Any, kind: str, tuned: bool) -> Callable[[Any, Tensor], Any]:
    """Four steps, of the kernel itself or of what its tuner makes of it."""

    def run(model: Any, x: Tensor) -> Any:
        targets = {
            "gaussian": lambda: model,
            "binary": lambda: model.energy,
            "categorical": lambda: lambda x: model.energy(x[..., 1]),
        }
        generator = torch.Generator(x.device).manual_seed(1)
        state = kernel.init(targets.get(kind, lambda: model.potential())(), x)
        tuner = kernel.tuner(state, 4, generator) if tuned else None
        found = []
        for _ in range(4):
            before = state
            state, info = (kernel if tuner is None else tuner.kernel).step(before, generator)
            if tuner is not None:
                tuner.update(before, state, info)
            found += [state.positions, state.energy, state.gradient, state.memory, info.accept_prob]
        return found

    return run


def kernel_setting(name: str) -> tuple[Any, Tensor]:
    target = KERNELS[name].target
    x = torch.randn(N, {"gaussian": 2, "boltzmann": 4}.get(target, 5), generator=torch.Generator().manual_seed(4))
    if target == "gaussian":
        return Bowl(), x.double()
    model = setting("BoltzmannMachine" if target == "boltzmann" else "RBM", False)[0].requires_grad_(False)
    x = (x > 0).double()
    return model, nn.functional.one_hot(x.long(), 2).double() if target == "categorical" else x


@pytest.mark.parametrize("name", KERNELS)
def test_steps_of_kernels(name: str) -> None:
    forbid(compare(moved_by(KERNELS[name].build(), KERNELS[name].target, False), *kernel_setting(name)))


@pytest.mark.parametrize("name", KERNELS)
def test_tuners_of_kernels(name: str) -> None:
    """They may read: warm-up runs once."""
    compare(moved_by(KERNELS[name].build(), KERNELS[name].target, True), *kernel_setting(name))


def shown(label: str) -> list[Wait]:
    """The waits of what a label in READS names."""
    what, _, name = label.partition(" ")
    if what == "step":
        return compare(moved_by(KERNELS[name].build(), KERNELS[name].target, False), *kernel_setting(name))
    name, _, conditional = name.partition(" | ")
    model, x, context = setting(name, bool(conditional))
    return compare(score, model, x, context) if what == "score" else compare(draw, model, context)


@pytest.mark.parametrize("file", READS)
def test_the_reads_on_the_list_still_happen(file: str) -> None:
    assert file in map(place, shown(READS[file][0])), "it no longer waits: strike it off the list"


def test_the_losses_on_the_list_exist() -> None:
    names = {*OBJECTIVES, *MODELS, *(f"{name} | context" for name, case in MODELS.items() if case.conditional)}
    assert set(WAITING_LOSSES) <= names


# Measures, whose rows lie on the CPU as data do: case -> what is asked of it.
MEASURES: dict[str, tuple[str, Callable[[Any, Tensor], Any]]] = {
    "log_likelihood": ("RealNVP", evaluation.log_likelihood),
    "log_likelihood of a VAE": ("VAE", lambda m, x: evaluation.log_likelihood(m, x, particles=30)),
    "log_likelihood by enumeration": ("RBM", evaluation.log_likelihood),
    "log_likelihood by AIS": (
        "NeuralEnergy on a base",
        lambda m, x: evaluation.log_likelihood(m, x, chains=20, temperatures=20, seed=0),
    ),
    "importance_estimate": ("VAE", lambda m, x: evaluation.importance_estimate(m, x, particles=30)),
    "latent_use": ("VAE", evaluation.latent_use),
    "active_units": ("VAE of flows", lambda m, x: evaluation.active_units(m, x, particles=5)),
    "latent_calibration": ("VAE", lambda m, x: evaluation.latent_calibration(m, simulations=9, draws=9).ranks),
    "target_estimate": (
        "RealNVP",
        lambda m, x: evaluation.target_estimate(m, lambda x: -x.square().sum(-1), draws=50)[:4],
    ),
    "guide_fit": ("VAE", lambda m, x: evaluation.guide_fit(m, m.guide, x.to(m.device), particles=30)),
    "guide_fit's mean": (
        "VAE",
        lambda m, x: evaluation.guide_fit(m, m.guide, x.to(m.device), particles=30).mean(lambda z: z["z"]),
    ),
    "energy_distance": ("RealNVP", lambda m, x: evaluation.energy_distance(m.sample(9), x.to(m.device))),
    "mmd": ("RealNVP", lambda m, x: evaluation.mmd(m.sample(9), x.to(m.device))),
    "mmd of a width": ("RealNVP", lambda m, x: evaluation.mmd(m.sample(9), x.to(m.device), 0.7)),
    "reconstruct": ("VAE", lambda m, x: m.reconstruct(x.to(m.device))),
    "complete": ("VAE", lambda m, x: m.complete(x.to(m.device), x.to(m.device) > 0, steps=3)),
    "posterior": ("VAE of flows", lambda m, x: m.posterior(x.to(m.device)).rsample()),
    "initialize": ("Glow image", lambda m, x: (m.initialize(x.to(m.device)), m.log_prob(x.to(m.device)))[1]),
    "marginals": (
        "BoltzmannMachine hidden",
        lambda m, x: m.marginals(x.to(m.device), torch.tensor([True, False, True, False]).to(m.device)),
    ),
}
MEASURES |= {
    f"log_partition of {name} by {method}": (
        name,
        lambda m, x, method=method: m.log_partition(
            method,
            **{} if method in ("exact", "quadrature") else {"chains": 9, "temperatures": 9, "seed": 0},
            **{"samples": m.sample(9)} if method == "reverse" else {},
        ),
    )
    for name, methods in {
        "RBM": ("exact", "ais", "reverse"),
        "RBM Gaussian": ("ais",),
        "BoltzmannMachine": ("exact", "ais", "reverse"),
        "DeepBeliefNetwork": ("exact", "ais"),
        "DeepBoltzmannMachine": ("exact", "ais"),
        "NeuralEnergy on a base": ("ais",),
    }.items()
    for method in methods
}


@pytest.mark.parametrize("name", MEASURES)
def test_measures(name: str) -> None:
    """Also of rows that were left on the CPU, where the measure says that it moves them."""
    case, measure = MEASURES[name]
    model, x, _ = setting(case, False)
    held = [x]  # in a list, it stays where it is
    compare(lambda m, rows: measure(m, rows[0]), model, held)


class Planted(Tractable):
    """A density with one defect of those that only a second device shows."""

    def __init__(self, defect: str) -> None:
        super().__init__((2,))
        self.defect, self.loc, self.free = defect, nn.Parameter(torch.ones(2)), torch.zeros(2)
        self.shift = torch.zeros(2) if defect == "attribute" else 0.0

    def condition(self, context: Tensor | None = None) -> Any:
        loc = self.loc + self.shift
        if self.defect == "born":
            loc = torch.cat((loc[:1], torch.zeros(1)))
        elif self.defect == "read" and loc.sum().item() > 1e9:
            raise ValueError("never")
        elif self.defect == "copied":
            loc = loc + torch.tensor([0.0, 1.0], device=loc.device)
        elif self.defect == "generator":
            loc = loc + torch.rand(2, generator=torch.Generator(), device=loc.device)
        elif self.defect == "masked":
            loc = loc + loc[loc > 0].sum()
        return pyro.distributions.Normal(loc, 1.0 if self.defect == "number" else torch.ones_like(loc)).to_event(1)


@pytest.mark.parametrize(
    ("defect", "says"),
    [("attribute", "two devices"), ("born", "two devices"), ("generator", "generator of the device")],
)
def test_a_tensor_of_another_device_shows(defect: str, says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        compare(score, Planted(defect), torch.zeros(3, 2), None)


@pytest.mark.parametrize("defect", ["read", "copied", "masked", "number"])
def test_a_waiting_host_shows(defect: str) -> None:
    waits = compare(learn, Planted(defect), MaximumLikelihood(), torch.zeros(3, 2), None)
    assert any("test_contracts_device.py" in file for file in waits[0].files)


def test_without_a_defect_nothing_shows() -> None:
    assert not compare(learn, Planted("none"), MaximumLikelihood(), torch.zeros(3, 2), None)


def test_manners_of_the_device() -> None:
    """What CUDA takes and refuses, and what it lets the host wait for."""
    with PretendDevice() as device:
        x = torch.arange(6.0, device=NAME).reshape(2, 3)
        y = x.clone()
        assert y.add_(torch.tensor(1.0)) is y  # scalars of the CPU are taken
        assert y.t_().shape == (3, 2)
        assert x[:, 1:].device == y.device == x.new_zeros(2).device == torch.device(NAME, 0)
        torch.where(x > 1, x, torch.zeros((), dtype=x.dtype))
        assert not device.waits
        for run in (
            lambda: x + torch.ones(3),
            lambda: torch.ones(2, 3) * x.sum(),  # a scalar of the device beside a tensor of the CPU
            lambda: torch.ones(()).add_(x.sum()),
            lambda: x @ torch.ones(3),
            lambda: torch.stack((x.sum(), torch.zeros(()))),
        ):
            with pytest.raises(RuntimeError, match="at least two devices"):
                run()
        with pytest.raises(RuntimeError, match="numpy"):
            x.numpy()
        for run in (
            lambda: x.tolist(),
            lambda: bool(x.sum() > 0),
            lambda: x.cpu(),
            lambda: torch.ones(3).to(x),
            lambda: torch.as_tensor(2.0, device=NAME),
            lambda: x[x > 1],
            lambda: x[:, [0, 2]],
            lambda: x.unique(),
            lambda: x.softmax(1).multinomial(1),
            lambda: torch.normal(x, x),
            lambda: torch.linalg.inv(torch.eye(2, device=NAME)),
        ):
            with device.watching() as waits:
                run()
            assert waits
        with device.watching() as waits:
            y[y > 1] = 0.0
            x.index_select(1, torch.arange(2, device=NAME))
        assert not waits
    assert not torch.accelerator.is_available()
    with pytest.raises(RuntimeError, match="has ended"):
        x + 1


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bias", [False, True])
def test_recurrent_cells_of_the_device(kind: Any, bias: bool) -> None:
    """torch has cells for accelerators alone; those of the pretended one have the CPU's gradients."""

    def run(net: nn.Module, x: Tensor) -> list[Any]:
        out = net(x)[0]
        out.square().sum().backward()
        return [out, x.grad, [p.grad for p in net.parameters()]]

    x = torch.randn(2, 5, 3).double().requires_grad_()
    assert not compare(run, kind(3, 4, 2, batch_first=True, bias=bias).double(), x)
