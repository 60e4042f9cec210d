"""Every member, how to build it and what it claims. READ FIRST: one line here gives a member every contract test.

A case has two builders, one without and one with a context of size ``C``. Tests take their models from
:func:`ready`, which seeds, grows (so that nothing is tested only at its first, often zero, values) and
casts to float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform

from pyrodgm.bijectors import (
    AdditiveCoupling,
    Affine,
    AffineCoupling,
    Autoregressive,
    Bijector,
    Compose,
    Fixed,
    Householder,
    Inverse,
    LinearSpline,
    LULinear,
    MixtureLogisticCDF,
    Permutation,
    Planar,
    QuadraticSpline,
    Radial,
    RationalQuadraticSpline,
    Univariate,
)
from pyrodgm.core import GenerativeModel
from pyrodgm.energy import RBM
from pyrodgm.guides import Amortized, EmptyGuide
from pyrodgm.implicit import GAN
from pyrodgm.kernels import MALA, BlockGibbs, Kernel, RandomWalk
from pyrodgm.latent import VAE
from pyrodgm.objectives import (
    ELBO,
    Adversarial,
    ContrastiveDivergence,
    ImportanceWeighted,
    MaximumLikelihood,
    Minimax,
    Objective,
    PyroObjective,
)
from pyrodgm.tractable import IAF, MADE, MAF, Flow, GaussianMixtureConditional, Parametric, RealNVP, StandardNormal

C = 2  # context size of every conditional variant
HIDDEN = [12]


@dataclass(frozen=True)
class ModelCase:
    """A model.

    Attributes:
        build: makes it without context.
        conditional: makes it with ``context=C``; None where the class has no such form.
        binary: claim: the support is {0, 1}^D with few D, so sums over it are exact.
        reparameterised: claim: draws of its distribution carry gradients.
        sequential: scoring goes feature by feature, in an order that is read from a tensor.
    """

    build: Callable[[], Any]
    conditional: Callable[[], Any] | None
    binary: bool = False
    reparameterised: bool = False
    sequential: bool = False


@dataclass(frozen=True)
class BijectorCase:
    """A bijector of ``features`` features; claims as in :class:`ModelCase`, measured by the Jacobian."""

    build: Callable[[], Bijector]
    conditional: Callable[[], Bijector] | None
    features: int
    triangular: bool = False
    volume_preserving: bool = False


@dataclass(frozen=True)
class GuideCase:
    """A guide beside the model whose latent sites it samples."""

    model: Callable[[], GenerativeModel]
    guide: Callable[[], nn.Module]


@dataclass(frozen=True)
class ObjectiveCase:
    """An objective for one model; ``models`` names the case in MODELS that it trains, ``players`` who moves."""

    build: Callable[[GenerativeModel], Objective]
    model: str
    players: tuple[str, ...] = ("model",)


@dataclass(frozen=True)
class KernelCase:
    """A kernel and its kind of target: "gaussian" (moves by energies) or "rbm" (by conditionals)."""

    build: Callable[[], Kernel]
    target: str


def _made(context: int = 0, **options: Any) -> MADE:
    return MADE(5, **{"hidden": HIDDEN, **options}, context=context)


def _mixture(context: int = 0) -> MADE:
    return MADE(2, HIDDEN, GaussianMixtureConditional(3), context, activation=nn.Tanh)


def _flow(context: int = 0) -> Flow:
    mix = Permutation(torch.tensor([2, 0, 1]))
    return Flow(StandardNormal(3), [Affine(3), AffineCoupling(3, context, HIDDEN), mix, AdditiveCoupling(3, 0, HIDDEN)])


def _inverse_flow(context: int = 0) -> Flow:
    return Flow(Parametric(dist.Normal, 2, context), [Inverse(AffineCoupling(2, context, HIDDEN)), Inverse(Affine(2))])


def _flow_vae(context: int = 0) -> VAE:
    return VAE(
        prior=RealNVP(2, 2, HIDDEN, context),
        likelihood=Parametric(dist.Normal, 3, 2 + context, HIDDEN),
        guide=RealNVP(2, 2, HIDDEN, 3 + context),
        context=context,
    )


def _made_vae(context: int = 0) -> VAE:
    return VAE(
        prior=StandardNormal(2),
        likelihood=MADE(5, HIDDEN, context=2 + context),
        guide=Parametric(dist.Normal, 2, 5 + context, HIDDEN),
        context=context,
    )


def _rbm(context: int = 0) -> RBM:
    rbm = RBM(5, 3, context)
    rbm.sample_steps = 30  # five weakly bound units mix in a few sweeps
    return rbm


ORDER = torch.tensor([2, 0, 4, 1, 3])
_DEEP = {"hidden": [12, 12], "direct": True, "order": ORDER}

MODELS: dict[str, ModelCase] = {
    "MADE": ModelCase(_made, lambda: _made(C), binary=True),
    "MADE deep": ModelCase(lambda: _made(**_DEEP), lambda: _made(C, **_DEEP), binary=True),
    "MADE linear": ModelCase(lambda: _made(hidden=[]), lambda: _made(C, hidden=[]), binary=True),
    "MADE masks": ModelCase(lambda: _made(hidden=[12, 12], masks=3), lambda: _made(C, masks=3), binary=True),
    "MADE mixture": ModelCase(_mixture, lambda: _mixture(C)),
    "RealNVP": ModelCase(lambda: RealNVP(2, 4, HIDDEN), lambda: RealNVP(2, 4, HIDDEN, C), reparameterised=True),
    "MAF": ModelCase(lambda: MAF(2, 2, HIDDEN), lambda: MAF(2, 2, HIDDEN, C), reparameterised=True),
    "IAF": ModelCase(lambda: IAF(2, 2, HIDDEN), lambda: IAF(2, 2, HIDDEN, C), reparameterised=True, sequential=True),
    "Flow": ModelCase(_flow, lambda: _flow(C), reparameterised=True),
    "Flow inverse": ModelCase(_inverse_flow, lambda: _inverse_flow(C), reparameterised=True),
    "Parametric normal": ModelCase(
        lambda: Parametric(dist.Normal, 2), lambda: Parametric(dist.Normal, 2, C, HIDDEN), reparameterised=True
    ),
    "Parametric Bernoulli": ModelCase(
        lambda: Parametric(dist.Bernoulli, (2, 2)), lambda: Parametric(dist.Bernoulli, (2, 2), C, HIDDEN), binary=True
    ),
    "StandardNormal": ModelCase(lambda: StandardNormal(2), None, reparameterised=True),
    "VAE": ModelCase(lambda: VAE.mlp(5, 2, HIDDEN), lambda: VAE.mlp(5, 2, HIDDEN, C), binary=True),
    "VAE of flows": ModelCase(_flow_vae, lambda: _flow_vae(C)),
    "VAE of MADE": ModelCase(_made_vae, lambda: _made_vae(C), binary=True),
    "RBM": ModelCase(_rbm, lambda: _rbm(C), binary=True),
    "GAN": ModelCase(lambda: GAN.mlp(2, 2, HIDDEN), lambda: GAN.mlp(2, 2, HIDDEN, C)),
}

BIJECTORS: dict[str, BijectorCase] = {
    "AffineCoupling": BijectorCase(
        lambda: AffineCoupling(4, 0, HIDDEN), lambda: AffineCoupling(4, C, HIDDEN), 4, triangular=True
    ),
    "AffineCoupling flipped": BijectorCase(
        lambda: AffineCoupling(4, 0, HIDDEN, flip=True), lambda: AffineCoupling(4, C, HIDDEN, flip=True), 4
    ),
    "AffineCoupling odd": BijectorCase(
        lambda: AffineCoupling(5, 0, HIDDEN, split=1), lambda: AffineCoupling(5, C, HIDDEN, split=1), 5, triangular=True
    ),
    "AffineCoupling odd flipped": BijectorCase(
        lambda: AffineCoupling(5, 0, HIDDEN, split=1, flip=True),
        lambda: AffineCoupling(5, C, HIDDEN, split=1, flip=True),
        5,
    ),
    "AdditiveCoupling": BijectorCase(
        lambda: AdditiveCoupling(4, 0, HIDDEN),
        lambda: AdditiveCoupling(4, C, HIDDEN),
        4,
        triangular=True,
        volume_preserving=True,
    ),
    "AdditiveCoupling flipped": BijectorCase(
        lambda: AdditiveCoupling(3, 0, HIDDEN, flip=True),
        lambda: AdditiveCoupling(3, C, HIDDEN, flip=True),
        3,
        volume_preserving=True,
    ),
    "Permutation": BijectorCase(lambda: Permutation(torch.tensor([2, 0, 1])), None, 3, volume_preserving=True),
    "Affine": BijectorCase(lambda: Affine(3), None, 3, triangular=True),
    "Compose": BijectorCase(
        lambda: Compose([AffineCoupling(4, 0, HIDDEN), Affine(4), AdditiveCoupling(4, 0, HIDDEN, flip=True)]),
        lambda: Compose([AffineCoupling(4, C, HIDDEN), Affine(4), AdditiveCoupling(4, C, HIDDEN, flip=True)]),
        4,
    ),
    "Inverse": BijectorCase(
        lambda: Inverse(AffineCoupling(4, 0, HIDDEN, flip=True)),
        lambda: Inverse(AffineCoupling(4, C, HIDDEN, flip=True)),
        4,
    ),
}


def _autoregressive(univariate: Callable[[], Univariate] | None, **options: Any) -> BijectorCase:
    """An autoregressive bijector of three features in the natural order."""

    def build(context: int = 0) -> Autoregressive:
        return Autoregressive(3, None if univariate is None else univariate(), context, **{"hidden": HIDDEN, **options})

    return BijectorCase(build, lambda: build(C), 3, triangular="order" not in options)


BIJECTORS |= {
    "Autoregressive": _autoregressive(None),
    "Autoregressive deep": _autoregressive(None, hidden=[12, 8], order=torch.tensor([2, 0, 1])),
    "Autoregressive linear": _autoregressive(None, hidden=[]),
    "Autoregressive rational-quadratic": _autoregressive(RationalQuadraticSpline),
    "Autoregressive quadratic": _autoregressive(QuadraticSpline),
    "Autoregressive linear spline": _autoregressive(LinearSpline),
    "Autoregressive mixture CDF": _autoregressive(MixtureLogisticCDF),
    "Planar": BijectorCase(lambda: Planar(3), lambda: Planar(3, C, HIDDEN), 3),
    "Radial": BijectorCase(lambda: Radial(3), lambda: Radial(3, C, HIDDEN), 3),
    "LULinear": BijectorCase(lambda: LULinear(4, torch.tensor([2, 0, 3, 1])), None, 4),
    "Householder": BijectorCase(lambda: Householder(4), None, 4, volume_preserving=True),
    "Fixed": BijectorCase(lambda: Fixed(AffineTransform(0.3, 1.7)), None, 3, triangular=True),
}

GUIDES: dict[str, GuideCase] = {
    "EmptyGuide": GuideCase(_made, EmptyGuide),
    "Amortized Gaussian": GuideCase(
        lambda: VAE.mlp(5, 2, HIDDEN), lambda: Amortized(Parametric(dist.Normal, 2, 5, HIDDEN))
    ),
    "Amortized flow": GuideCase(lambda: VAE.mlp(5, 2, HIDDEN), lambda: Amortized(RealNVP(2, 2, HIDDEN, 5))),
}


def _minimax(model: GenerativeModel) -> Adversarial:
    return Adversarial.mlp(model, HIDDEN, Minimax())


OBJECTIVES: dict[str, ObjectiveCase] = {
    "MaximumLikelihood": ObjectiveCase(lambda m: MaximumLikelihood(), "RealNVP"),
    "ELBO": ObjectiveCase(lambda m: ELBO(), "VAE"),
    "ELBO of particles": ObjectiveCase(lambda m: ELBO(particles=3, analytic_kl=False), "VAE of flows"),
    "PyroObjective": ObjectiveCase(lambda m: PyroObjective(Trace_ELBO()), "VAE"),
    "ImportanceWeighted": ObjectiveCase(lambda m: ImportanceWeighted(5), "VAE"),
    "ImportanceWeighted Renyi": ObjectiveCase(lambda m: ImportanceWeighted(5, alpha=0.5), "VAE of MADE"),
    "ContrastiveDivergence": ObjectiveCase(lambda m: ContrastiveDivergence(k=2), "RBM"),
    "Persistent contrastive": ObjectiveCase(lambda m: ContrastiveDivergence(persistent=True, chains=8), "RBM"),
    "Adversarial": ObjectiveCase(lambda m: Adversarial.mlp(m, HIDDEN), "GAN", ("critic", "generator")),
    "Adversarial minimax": ObjectiveCase(_minimax, "GAN", ("critic", "generator")),
}

KERNELS: dict[str, KernelCase] = {
    "MALA": KernelCase(lambda: MALA(0.9), "gaussian"),
    "RandomWalk": KernelCase(lambda: RandomWalk(1.0), "gaussian"),
    "BlockGibbs": KernelCase(BlockGibbs, "rbm"),
}


def grow(module: nn.Module, scale: float = 0.4, seed: int = 0) -> nn.Module:
    """Add seeded noise to every parameter, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))
    return module


def ready(case: ModelCase | BijectorCase, conditional: bool = False, seed: int = 0) -> Any:
    """The case's module, seeded, grown, in float64 and eval mode."""
    torch.manual_seed(seed)
    build = case.conditional if conditional else case.build
    assert build is not None
    return grow(build(), seed=seed).double().eval()


def variants(cases: dict[str, Any], choose: Callable[[Any], bool] = lambda case: True) -> Any:
    """``pytest.mark.parametrize`` over (name, conditional) of the cases that ``choose`` takes."""
    params = [
        pytest.param(name, conditional, id=f"{name}{' | context' if conditional else ''}")
        for name, case in cases.items()
        if choose(case)
        for conditional in (False, True)
        if not conditional or case.conditional is not None
    ]
    return pytest.mark.parametrize(("name", "conditional"), params)


def of_family(family: str) -> Callable[[ModelCase], bool]:
    """A choice for :func:`variants`."""
    return lambda case: case.build().family == family


def contexts(n: int, seed: int = 7) -> Tensor:
    """(n, C) in float64."""
    return torch.randn(n, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context_of(conditional: bool, n: int) -> Tensor | None:
    return contexts(n) if conditional else None


def rows(case: ModelCase, model: GenerativeModel, n: int, seed: int = 8) -> Tensor:
    """Plausible rows (n, *event) in float64."""
    noise = torch.randn(n, *model.event_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise > 0).double() if case.binary else noise


def all_binary(event_shape: Iterable[int]) -> Tensor:
    """Every x of {0, 1}^event, (2^D, *event), in float64."""
    shape = tuple(event_shape)
    codes = torch.arange(2 ** math.prod(shape)).unsqueeze(-1)
    return (codes >> torch.arange(math.prod(shape))).bitwise_and(1).double().unflatten(-1, shape)


def assert_means_agree(a: Tensor, a_error: Tensor | float, b: Tensor, b_error: Tensor | float = 0.0) -> None:
    """Two estimates within 5 joint standard errors (1 in 2 million by chance, and the tests are seeded)."""
    error = (torch.as_tensor(a_error) ** 2 + torch.as_tensor(b_error) ** 2).sqrt()
    gap = (a - b).abs()
    # 1e-9: rounding of means of features that do not vary
    assert bool((gap <= 5 * error + 1e-9).all()), f"{a} and {b} differ by {gap / error} standard errors"


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the first dimension and its standard error."""
    return values.mean(0), values.std(0) / math.sqrt(len(values))
