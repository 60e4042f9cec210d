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
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform

from pyrodgm.bijectors import (
    ActNorm,
    AdditiveCoupling,
    Affine,
    AffineCoupling,
    Autoregressive,
    BatchNorm,
    Bijector,
    CircularSpline,
    Compose,
    Continuous,
    Coupling,
    CubicSpline,
    Elementwise,
    Fixed,
    Householder,
    Hutchinson,
    HutchPlusPlus,
    Inverse,
    LeakyReLU,
    LinearSpline,
    LULinear,
    MaskedCoupling,
    MixtureLogisticCDF,
    MultiScale,
    ODESolver,
    Permutation,
    Pixels,
    Planar,
    QRLinear,
    QuadraticSpline,
    Radial,
    RationalQuadraticSpline,
    ScaleShift,
    Shift,
    Sigmoid,
    Softplus,
    Split,
    Squeeze,
    Tanh,
    Trace,
    Univariate,
    checkerboard,
)
from pyrodgm.core import GenerativeModel
from pyrodgm.distributions import Codes, DiscretizedLogistic
from pyrodgm.energy import (
    RBM,
    BoltzmannMachine,
    DeepBeliefNetwork,
    DeepBoltzmannMachine,
    GaussianUnits,
    JointEnergy,
    NeuralEnergy,
    Recognition,
    SoftmaxUnits,
    VisibleUnits,
)
from pyrodgm.energy.twins import TwinRBM
from pyrodgm.guides import (
    Amortized,
    Contrast,
    Corrupted,
    EmptyGuide,
    FlowGuide,
    FullCovariance,
    Hierarchical,
    ImplicitGuide,
    Local,
    MaskingNoise,
    MeanField,
    PackedGuide,
    SemiAmortized,
    Sites,
)
from pyrodgm.implicit import GAN
from pyrodgm.kernels import (
    HMC,
    MALA,
    MEADS,
    NUTS,
    SGHMC,
    SGLD,
    BlockGibbs,
    CategoricalGibbsWithGradients,
    ChEES,
    Dense,
    GibbsSweep,
    GibbsWithGradients,
    Kernel,
    LowRank,
    ParallelTempering,
    RandomWalk,
    TemperedTransitions,
)
from pyrodgm.latent import ETM, M2, NVDM, VAE, VQVAE, VQVAE2, Dequantized, ProdLDA
from pyrodgm.nets import MLP, RecurrentNet, SkipMLP, TokenEncoder
from pyrodgm.objectives import (
    ELBO,
    Adversarial,
    AdversarialAutoencoder,
    AdversarialVariationalBayes,
    BetaTCVAE,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    Distillation,
    FreeBits,
    ImportanceWeighted,
    InfoVAE,
    JointLikelihood,
    LaggingInference,
    LinearAnnealing,
    MaximumLikelihood,
    MeanFieldContrastive,
    Minimax,
    NoiseContrastive,
    Objective,
    PyroObjective,
    ReplayDivergence,
    ReverseKL,
    ReweightedWakeSleep,
    ScoreMatching,
    SemiSupervised,
    SlicedScoreMatching,
    UpDown,
    VariationalEM,
    VectorQuantization,
    WakeSleep,
)
from pyrodgm.tractable import (
    FFJORD,
    IAF,
    KDE,
    MADE,
    MAF,
    NICE,
    NSF,
    CategoricalConditional,
    Embedded,
    Flow,
    FlowPlusPlus,
    GaussianMixtureConditional,
    Glow,
    ImageFlow,
    ImageFlowPlusPlus,
    ImageRealNVP,
    Mixture,
    Parametric,
    PlanarFlow,
    RealNVP,
    Recurrent,
    Resampled,
    StandardNormal,
    VampPrior,
)

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
        sequential: scoring goes step by step, in an order (of features, of times) that is read from a tensor.
        counts: the rows are whole numbers >= 0.
        levels: the rows are one-hot groups of so many numbers.
        deterministic: claim: its guide is a point mass, so all importance weights of a row are one number.
        latents: claim: the latent sites of a model of the latent family.
        labels: its context is one-hot labels, all zeros where a label is unknown.
        ended: binary rows in which everything after the first 0 is 0.
    """

    build: Callable[[], Any]
    conditional: Callable[[], Any] | None
    binary: bool = False
    reparameterised: bool = False
    sequential: bool = False
    deterministic: bool = False
    counts: bool = False
    levels: int = 0
    latents: tuple[str, ...] = ("z",)
    labels: bool = False
    ended: bool = False


@dataclass(frozen=True)
class BijectorCase:
    """A bijector of ``features`` features, or of a whole event shape; claims as in :class:`ModelCase`, measured by the
    Jacobian. ``to`` is the event shape of y where it is another one.
    """

    build: Callable[[], Bijector]
    conditional: Callable[[], Bijector] | None
    features: int | tuple[int, ...]
    triangular: bool = False
    volume_preserving: bool = False
    to: tuple[int, ...] | None = None

    @property
    def event(self) -> tuple[int, ...]:
        """The event shape of x."""
        return (self.features,) if isinstance(self.features, int) else self.features

    @property
    def image(self) -> tuple[int, ...]:
        """The event shape of y."""
        return self.event if self.to is None else self.to


@dataclass(frozen=True)
class GuideCase:
    """A guide beside the model whose latent sites it samples."""

    model: Callable[[], GenerativeModel]
    guide: Callable[[], nn.Module]


@dataclass(frozen=True)
class ObjectiveCase:
    """An objective for one model; ``models`` names the case in MODELS that it trains, ``players`` who moves.

    ``rowwise`` is the claim that copies of the rows leave the loss where it is; a statistic of pairs of rows moves.
    ``general``: it takes every model of its family.
    """

    build: Callable[[GenerativeModel], Objective]
    model: str
    players: tuple[str, ...] = ("model",)
    rowwise: bool = True
    general: bool = True


@dataclass(frozen=True)
class KernelCase:
    """A kernel and its kind of target: "gaussian" (moves by energies), "rbm" or "boltzmann" (by conditionals),
    "binary" or "categorical" (moves by the gradient of an energy of discrete units).

    settle: steps until what it remembers beside its positions has the joint law that it leaves invariant.
    covariance: of the law that it leaves invariant on a Gaussian of given precision, if that is not the Gaussian.
    """

    build: Callable[[], Kernel]
    target: str
    settle: int = 0
    covariance: Callable[[Tensor], Tensor] = torch.inverse


def _made(context: int = 0, **options: Any) -> MADE:
    return MADE(5, **{"hidden": HIDDEN, **options}, context=context)


def _mixture(context: int = 0) -> MADE:
    return MADE(2, HIDDEN, conditional=GaussianMixtureConditional(3), context=context, activation=nn.Tanh)


def _resampled(context: int = 0) -> Resampled:
    return Resampled(2, hidden=HIDDEN, context=context, tries=5, points=1024)


def _nsf(context: int = 0, autoregressive: bool = False) -> NSF:
    return NSF(2, 2, hidden=HIDDEN, context=context, bins=4, autoregressive=autoregressive, mix=True)


def _flow(context: int = 0) -> Flow:
    mix = Permutation(torch.tensor([2, 0, 1]))
    return Flow(
        StandardNormal(3),
        [Affine(3), AffineCoupling(3, context=context, hidden=HIDDEN), mix, AdditiveCoupling(3, hidden=HIDDEN)],
    )


def _inverse_flow(context: int = 0) -> Flow:
    return Flow(
        Parametric(dist.Normal, 2, context=context),
        [Inverse(AffineCoupling(2, context=context, hidden=HIDDEN)), Inverse(Affine(2))],
    )


def _flow_vae(context: int = 0) -> VAE:
    return VAE(
        prior=RealNVP(2, 2, hidden=HIDDEN, context=context),
        likelihood=Parametric(dist.Normal, 3, context=2 + context, hidden=HIDDEN),
        guide=RealNVP(2, 2, hidden=HIDDEN, context=3 + context),
        context=context,
    )


def _made_vae(context: int = 0) -> VAE:
    return VAE(
        prior=StandardNormal(2),
        likelihood=MADE(5, HIDDEN, context=2 + context),
        guide=Parametric(dist.Normal, 2, context=5 + context, hidden=HIDDEN),
        context=context,
    )


def _embedded_vae(context: int = 0) -> VAE:
    return VAE(
        prior=StandardNormal(2),
        likelihood=Embedded(MADE(5, HIDDEN, context=3), nn.Linear(2 + context, 3), 2 + context),
        guide=Embedded(IAF(2, 2, hidden=HIDDEN, context=4), MLP(5 + context, 4, HIDDEN), 5 + context),
        context=context,
    )


def _mixed(context: int = 0) -> Mixture:
    gate = nn.Linear(context, 3) if context else None
    members = [
        StandardNormal(2),
        Parametric(dist.Laplace, 2, context=context, hidden=HIDDEN),
        RealNVP(2, 2, hidden=HIDDEN, context=context),
    ]
    return Mixture(members, gate)


def _binary_mixture(context: int = 0) -> Mixture:
    return Mixture([_made(context), Parametric(dist.Bernoulli, 5)])


def _kde(kernel: str = "gaussian", **options: Any) -> KDE:
    return KDE(torch.randn(30, 2), kernel, **options)


def _vamp(context: int = 0) -> VampPrior:
    return VampPrior(Parametric(dist.Normal, 2, context=3 + context, hidden=HIDDEN), 4, context=context)


def _prior_vae(prior: str, context: int = 0) -> VAE:
    """A VAE of Bernoulli features with the prior of that name."""
    guide = Parametric(dist.Normal, 2, context=5 + context, hidden=HIDDEN)
    priors = {
        "made": lambda: _mixture(context),
        "mixture": lambda: _mixed(context),
        "vamp": lambda: VampPrior(guide, 4, context=context, support=constraints.unit_interval),
    }
    return VAE(priors[prior](), Parametric(dist.Bernoulli, 5, context=2 + context, hidden=HIDDEN), guide, context)


def _autoencoder(context: int = 0) -> VAE:
    """A denoising autoencoder: a guide of fixed scale that reads corrupted rows."""
    guide = Amortized(Parametric(dist.Normal, 2, context=5 + context, hidden=HIDDEN, fixed={"scale": 0.3}))
    likelihood = Parametric(dist.Bernoulli, 5, context=2 + context, hidden=HIDDEN)
    return VAE(StandardNormal(2), likelihood, Corrupted(guide, MaskingNoise(0.3)), context)


def _skip_vae(context: int = 0) -> VAE:
    likelihood = Parametric(dist.Bernoulli, 5, context=2 + context, net=SkipMLP(2 + context, 5, [8, 8]))
    return VAE(StandardNormal(2), likelihood, Parametric(dist.Normal, 2, context=5 + context, hidden=HIDDEN), context)


def _recurrent(context: int = 0, end: int | None = 0, gru: bool = False) -> Recurrent:
    """Sequences of four tokens 0 and 1; a GRU has two layers and the context in its logits."""
    net = RecurrentNet(2, [5, 6], 3, context, nn.GRU, skip=bool(context)) if gru else None
    return Recurrent(4, 2, hidden=[6], embedding=3, context=context, end=end, net=net)


def _sentence_vae(context: int = 0) -> VAE:
    """Without an end, so that every binary row is in its support."""
    encoder = TokenEncoder(4, 2, 4, [6], 3, None, context)
    guide = Parametric(dist.Normal, 2, context=4 + context, net=encoder)
    return VAE(StandardNormal(2), _recurrent(2 + context, None), guide, context)


def _levels(family: str, context: int = 0) -> Parametric:
    """Two features of two levels in a family that has as many as one likes."""
    if family == "logistic":
        return Parametric(DiscretizedLogistic, 2, context=context, fixed={"levels": 2})
    return Parametric(Codes, 2, context=context, sizes={"logits": 2})


def _vqvae(context: int = 0) -> VQVAE:
    prior = MADE(2, HIDDEN, conditional=CategoricalConditional(4), context=context)
    return VQVAE.mlp(5, 2, 4, 1, HIDDEN, context, code_prior=prior)


def _vqvae2(context: int = 0) -> VQVAE2:
    return VQVAE2.mlp(5, (1, 1), 4, 1, HIDDEN, context)


def _image_vqvae2(context: int = 0) -> VQVAE2:
    """Four pixels, and one place at each level."""
    sizes: Any = {"codes": 3, "size": 1, "channels": 8, "blocks": 1, "halvings": 1}
    return VQVAE2.conv((1, 2, 2), context=context, **sizes)


def _rbm(context: int = 0, visible: int = 5, units: VisibleUnits | None = None) -> RBM:
    rbm = RBM(visible, 3, context, units)
    rbm.sample_steps = 30  # five weakly bound units mix in a few sweeps
    return rbm


def _boltzmann(hidden: int = 0, context: int = 0) -> BoltzmannMachine:
    machine = BoltzmannMachine(4, hidden, context)
    machine.sample_steps = 30
    return machine


def _neural(context: int = 0, base: bool = False) -> NeuralEnergy:
    density = Parametric(dist.Normal, 2, context=context, hidden=HIDDEN, activation=nn.Tanh) if base else None
    energy = NeuralEnergy.mlp(2, HIDDEN, context, density)
    energy.sample_steps = 5  # no contract asks that the chains have arrived
    return energy


def _joint(context: int = 0) -> JointEnergy:
    energy = JointEnergy.mlp(2, C, HIDDEN, context)
    energy.sample_steps = 5
    return energy


def _deep(kind: Callable[..., Any], context: int = 0, hidden: Iterable[int] = (3, 2)) -> Any:
    model = kind(4, list(hidden), context)
    model.sample_steps = 30
    return model


def _twins() -> TwinRBM:
    twins = TwinRBM(2, 3, 2, 2)
    twins.sample_steps = 30
    return twins


def _ffjord(context: int = 0) -> FFJORD:
    return FFJORD(3, 1, hidden=[6], context=context, solver=ODESolver("dopri8", rtol=1e-8, atol=1e-8))


def _image_flow(context: int = 0) -> ImageFlow:
    return ImageFlow(
        (2, 1, 2),
        Coupling((2, 1, 2), None, context=context, hidden=[4]),
        base=Parametric(dist.Normal, (2, 1, 2)),
        alpha=None,
    )


def _image_realnvp(context: int = 0) -> ImageRealNVP:
    return ImageRealNVP((1, 2, 2), scales=1, channels=4, blocks=1, context=context, alpha=None, bound=0.5)


def _image_flow_plus_plus(context: int = 0) -> ImageFlowPlusPlus:
    return ImageFlowPlusPlus((1, 2, 2), 1, scales=1, channels=4, blocks=1, context=context, alpha=None)


def _dequantized(context: int = 0, variational: bool = False) -> Dequantized:
    def flow(context: int) -> Flow:
        return Flow(StandardNormal(2), [AffineCoupling(2, context=context, hidden=HIDDEN), Elementwise(2, Sigmoid())])

    return Dequantized(flow(context), 2, flow(2 + context) if variational else None)


ORDER = torch.tensor([2, 0, 4, 1, 3])
_DEEP = {"hidden": [12, 12], "direct": True, "order": ORDER}

MODELS: dict[str, ModelCase] = {
    "MADE": ModelCase(_made, lambda: _made(C), binary=True),
    "MADE deep": ModelCase(lambda: _made(**_DEEP), lambda: _made(C, **_DEEP), binary=True),
    "MADE linear": ModelCase(lambda: _made(hidden=[]), lambda: _made(C, hidden=[]), binary=True),
    "MADE masks": ModelCase(lambda: _made(hidden=[12, 12], masks=3), lambda: _made(C, masks=3), binary=True),
    "MADE mixture": ModelCase(_mixture, lambda: _mixture(C)),
    "RealNVP": ModelCase(
        lambda: RealNVP(2, 4, hidden=HIDDEN), lambda: RealNVP(2, 4, hidden=HIDDEN, context=C), reparameterised=True
    ),
    "MAF": ModelCase(
        lambda: MAF(2, 2, hidden=HIDDEN), lambda: MAF(2, 2, hidden=HIDDEN, context=C), reparameterised=True
    ),
    "IAF": ModelCase(
        lambda: IAF(2, 2, hidden=HIDDEN),
        lambda: IAF(2, 2, hidden=HIDDEN, context=C),
        reparameterised=True,
        sequential=True,
    ),
    "FFJORD": ModelCase(_ffjord, lambda: _ffjord(C), reparameterised=True, sequential=True),
    "NICE": ModelCase(
        lambda: NICE(2, 4, hidden=HIDDEN), lambda: NICE(2, 4, hidden=HIDDEN, context=C), reparameterised=True
    ),
    "NSF": ModelCase(_nsf, lambda: _nsf(C), reparameterised=True),
    "NSF autoregressive": ModelCase(
        lambda: _nsf(autoregressive=True), lambda: _nsf(C, autoregressive=True), reparameterised=True
    ),
    "FlowPlusPlus": ModelCase(
        lambda: FlowPlusPlus(2, 2, hidden=HIDDEN, components=3),
        lambda: FlowPlusPlus(2, 2, hidden=HIDDEN, context=C, components=3),
        reparameterised=True,
    ),
    "PlanarFlow": ModelCase(
        lambda: PlanarFlow(2, 4), lambda: PlanarFlow(2, 4, hidden=HIDDEN, context=C), reparameterised=True
    ),
    "Glow": ModelCase(
        lambda: Glow(2, 2, scales=1, hidden=HIDDEN),
        lambda: Glow(2, 2, scales=1, hidden=HIDDEN, context=C),
        reparameterised=True,
    ),
    "Glow image": ModelCase(
        lambda: Glow((1, 2, 2), 1, scales=1, hidden=[3], alpha=None),
        lambda: Glow((1, 2, 2), 1, scales=1, hidden=[3], context=C, alpha=None),
        reparameterised=True,
    ),
    "ImageFlow": ModelCase(_image_flow, lambda: _image_flow(C), reparameterised=True),
    "ImageRealNVP": ModelCase(_image_realnvp, lambda: _image_realnvp(C), reparameterised=True),
    "ImageFlowPlusPlus": ModelCase(_image_flow_plus_plus, lambda: _image_flow_plus_plus(C), reparameterised=True),
    "Flow": ModelCase(_flow, lambda: _flow(C), reparameterised=True),
    "Flow inverse": ModelCase(_inverse_flow, lambda: _inverse_flow(C), reparameterised=True),
    "Resampled": ModelCase(_resampled, lambda: _resampled(C)),
    "RealNVP of a resampled base": ModelCase(lambda: RealNVP(2, 2, hidden=HIDDEN, base=_resampled()), None),
    "MAF of a Student's t": ModelCase(
        lambda: MAF(2, 2, hidden=HIDDEN, base=Parametric(dist.StudentT, 2, fixed={"df": 4.0})),
        None,
        reparameterised=True,
    ),
    "RealNVP of a learned mixture": ModelCase(
        lambda: RealNVP(2, 2, hidden=HIDDEN, base=Mixture([Parametric(dist.Normal, 2) for _ in range(2)])), None
    ),
    "Flow of a flow": ModelCase(
        lambda: MAF(2, 1, hidden=HIDDEN, base=RealNVP(2, 2, hidden=HIDDEN)), None, reparameterised=True
    ),
    "Parametric normal": ModelCase(
        lambda: Parametric(dist.Normal, 2),
        lambda: Parametric(dist.Normal, 2, context=C, hidden=HIDDEN),
        reparameterised=True,
    ),
    "Parametric Bernoulli": ModelCase(
        lambda: Parametric(dist.Bernoulli, (2, 2)),
        lambda: Parametric(dist.Bernoulli, (2, 2), context=C, hidden=HIDDEN),
        binary=True,
    ),
    "StandardNormal": ModelCase(lambda: StandardNormal(2), None, reparameterised=True),
    "MADE categorical": ModelCase(
        lambda: MADE(4, HIDDEN, conditional=CategoricalConditional(2)),
        lambda: MADE(4, HIDDEN, conditional=CategoricalConditional(2), context=C),
        binary=True,
    ),
    "Parametric logistic": ModelCase(lambda: _levels("logistic"), lambda: _levels("logistic", C), binary=True),
    "Parametric codes": ModelCase(lambda: _levels("codes"), lambda: _levels("codes", C), binary=True),
    "Recurrent": ModelCase(_recurrent, lambda: _recurrent(C), binary=True, ended=True),
    "Recurrent GRU": ModelCase(lambda: _recurrent(0, None, True), lambda: _recurrent(C, None, True), binary=True),
    "Mixture": ModelCase(_mixed, lambda: _mixed(C)),
    "Mixture binary": ModelCase(_binary_mixture, lambda: _binary_mixture(C), binary=True),
    "KDE": ModelCase(_kde, None, reparameterised=True),
    "KDE adaptive": ModelCase(lambda: _kde("exponential", adaptive=True), None, reparameterised=True),
    "RealNVP of a KDE": ModelCase(lambda: RealNVP(2, 2, hidden=HIDDEN, base=_kde()), None, reparameterised=True),
    "VampPrior": ModelCase(_vamp, lambda: _vamp(C)),
    "VAE": ModelCase(lambda: VAE.mlp(5, 2, HIDDEN), lambda: VAE.mlp(5, 2, HIDDEN, C), binary=True),
    "VAE of flows": ModelCase(_flow_vae, lambda: _flow_vae(C)),
    "VAE of MADE": ModelCase(_made_vae, lambda: _made_vae(C), binary=True),
    "VAE of embeddings": ModelCase(_embedded_vae, lambda: _embedded_vae(C), binary=True),
    "VAE, autoencoding": ModelCase(_autoencoder, lambda: _autoencoder(C), binary=True),
    "VAE skipping": ModelCase(_skip_vae, lambda: _skip_vae(C), binary=True),
    "VAE of sentences": ModelCase(_sentence_vae, lambda: _sentence_vae(C), binary=True),
    "VAE with MADE prior": ModelCase(lambda: _prior_vae("made"), lambda: _prior_vae("made", C), binary=True),
    "VAE with mixture prior": ModelCase(lambda: _prior_vae("mixture"), lambda: _prior_vae("mixture", C), binary=True),
    "VAE with VampPrior": ModelCase(lambda: _prior_vae("vamp"), lambda: _prior_vae("vamp", C), binary=True),
    "VQVAE": ModelCase(_vqvae, lambda: _vqvae(C), binary=True, deterministic=True),
    "VQVAE2": ModelCase(_vqvae2, lambda: _vqvae2(C), binary=True, deterministic=True),
    "VQVAE2 of images": ModelCase(_image_vqvae2, lambda: _image_vqvae2(C), binary=True, deterministic=True),
    "Dequantized": ModelCase(_dequantized, lambda: _dequantized(C), binary=True),
    "Dequantized variational": ModelCase(lambda: _dequantized(0, True), lambda: _dequantized(C, True), binary=True),
    "M2": ModelCase(
        lambda: M2.mlp(5, C, 2, HIDDEN, labelled=False),
        lambda: M2.mlp(5, C, 2, HIDDEN),
        binary=True,
        latents=("y", "z"),
        labels=True,
    ),
    "ProdLDA": ModelCase(lambda: ProdLDA(7, 2, HIDDEN), None, counts=True),
    "NVDM": ModelCase(lambda: NVDM(7, 2, HIDDEN), None, counts=True),
    "ETM": ModelCase(lambda: ETM(7, 2, HIDDEN, 4), None, counts=True),
    "RBM": ModelCase(_rbm, lambda: _rbm(C), binary=True),
    "RBM Gaussian": ModelCase(lambda: _rbm(0, 2, GaussianUnits(2)), lambda: _rbm(C, 2, GaussianUnits(2))),
    "RBM softmax": ModelCase(lambda: _rbm(0, 6, SoftmaxUnits(3)), lambda: _rbm(C, 6, SoftmaxUnits(3)), levels=3),
    "TwinRBM": ModelCase(_twins, None, binary=True),
    "DeepBeliefNetwork": ModelCase(lambda: _deep(DeepBeliefNetwork), lambda: _deep(DeepBeliefNetwork, C), binary=True),
    "DeepBeliefNetwork of three": ModelCase(
        lambda: _deep(DeepBeliefNetwork, 0, [2, 3, 2]), lambda: _deep(DeepBeliefNetwork, C, [2, 3, 2]), binary=True
    ),
    "DeepBoltzmannMachine": ModelCase(
        lambda: _deep(DeepBoltzmannMachine), lambda: _deep(DeepBoltzmannMachine, C), binary=True
    ),
    "DeepBoltzmannMachine of three": ModelCase(
        lambda: _deep(DeepBoltzmannMachine, 0, [2, 3, 2]),
        lambda: _deep(DeepBoltzmannMachine, C, [2, 3, 2]),
        binary=True,
    ),
    "BoltzmannMachine": ModelCase(_boltzmann, lambda: _boltzmann(0, C), binary=True),
    "BoltzmannMachine hidden": ModelCase(lambda: _boltzmann(2), lambda: _boltzmann(2, C), binary=True),
    "NeuralEnergy": ModelCase(_neural, lambda: _neural(C)),
    "NeuralEnergy on a base": ModelCase(lambda: _neural(0, True), lambda: _neural(C, True)),
    "JointEnergy": ModelCase(_joint, lambda: _joint(C)),
    "GAN": ModelCase(lambda: GAN.mlp(2, 2, HIDDEN), lambda: GAN.mlp(2, 2, HIDDEN, C)),
}

BIJECTORS: dict[str, BijectorCase] = {
    "AffineCoupling": BijectorCase(
        lambda: AffineCoupling(4, hidden=HIDDEN),
        lambda: AffineCoupling(4, context=C, hidden=HIDDEN),
        4,
        triangular=True,
    ),
    "AffineCoupling flipped": BijectorCase(
        lambda: AffineCoupling(4, hidden=HIDDEN, flip=True),
        lambda: AffineCoupling(4, context=C, hidden=HIDDEN, flip=True),
        4,
    ),
    "AffineCoupling odd": BijectorCase(
        lambda: AffineCoupling(5, hidden=HIDDEN, split=1),
        lambda: AffineCoupling(5, context=C, hidden=HIDDEN, split=1),
        5,
        triangular=True,
    ),
    "AffineCoupling odd flipped": BijectorCase(
        lambda: AffineCoupling(5, hidden=HIDDEN, split=1, flip=True),
        lambda: AffineCoupling(5, context=C, hidden=HIDDEN, split=1, flip=True),
        5,
    ),
    "AdditiveCoupling": BijectorCase(
        lambda: AdditiveCoupling(4, hidden=HIDDEN),
        lambda: AdditiveCoupling(4, context=C, hidden=HIDDEN),
        4,
        triangular=True,
        volume_preserving=True,
    ),
    "AdditiveCoupling flipped": BijectorCase(
        lambda: AdditiveCoupling(3, hidden=HIDDEN, flip=True),
        lambda: AdditiveCoupling(3, context=C, hidden=HIDDEN, flip=True),
        3,
        volume_preserving=True,
    ),
    "Permutation": BijectorCase(lambda: Permutation(torch.tensor([2, 0, 1])), None, 3, volume_preserving=True),
    "Affine": BijectorCase(lambda: Affine(3), lambda: Affine(3, context=C, hidden=HIDDEN), 3, triangular=True),
    "ActNorm": BijectorCase(lambda: ActNorm(3), lambda: ActNorm(3, context=C, hidden=HIDDEN), 3, triangular=True),
    "BatchNorm": BijectorCase(lambda: BatchNorm(3), lambda: BatchNorm(3, context=C, hidden=HIDDEN), 3, triangular=True),
    "Compose": BijectorCase(
        lambda: Compose([AffineCoupling(4, hidden=HIDDEN), Affine(4), AdditiveCoupling(4, hidden=HIDDEN, flip=True)]),
        lambda: Compose(
            [
                AffineCoupling(4, context=C, hidden=HIDDEN),
                Affine(4),
                AdditiveCoupling(4, context=C, hidden=HIDDEN, flip=True),
            ]
        ),
        4,
    ),
    "Inverse": BijectorCase(
        lambda: Inverse(AffineCoupling(4, hidden=HIDDEN, flip=True)),
        lambda: Inverse(AffineCoupling(4, context=C, hidden=HIDDEN, flip=True)),
        4,
    ),
}


def _autoregressive(univariate: Callable[[], Univariate] | None, **options: Any) -> BijectorCase:
    """An autoregressive bijector of three features in the natural order."""

    def build(context: int = 0) -> Autoregressive:
        made = None if univariate is None else univariate()
        return Autoregressive(3, made, context=context, **{"hidden": HIDDEN, **options})

    preserving = univariate is Shift
    return BijectorCase(build, lambda: build(C), 3, triangular="order" not in options, volume_preserving=preserving)


def _coupling(univariate: Callable[[], Univariate], flip: bool = False) -> BijectorCase:
    def build(context: int = 0) -> Coupling:
        return Coupling(4, univariate(), context=context, hidden=HIDDEN, flip=flip)

    return BijectorCase(build, lambda: build(C), 4, triangular=not flip)


BIJECTORS |= {
    "Coupling rational-quadratic": _coupling(RationalQuadraticSpline),
    "Coupling quadratic flipped": _coupling(QuadraticSpline, flip=True),
    "Coupling linear spline": _coupling(LinearSpline),
    "Coupling mixture CDF": _coupling(MixtureLogisticCDF),
    "Coupling cubic": _coupling(CubicSpline),
    "Coupling circular": _coupling(CircularSpline),
    "Autoregressive": _autoregressive(None),
    "Autoregressive deep": _autoregressive(None, hidden=[12, 8], order=torch.tensor([2, 0, 1])),
    "Autoregressive linear": _autoregressive(None, hidden=[]),
    "Autoregressive rational-quadratic": _autoregressive(RationalQuadraticSpline),
    "Autoregressive cubic": _autoregressive(CubicSpline),
    "Autoregressive circular": _autoregressive(CircularSpline),
    "Autoregressive quadratic": _autoregressive(QuadraticSpline),
    "Autoregressive linear spline": _autoregressive(LinearSpline),
    "Autoregressive mixture CDF": _autoregressive(MixtureLogisticCDF),
    "Autoregressive shift": _autoregressive(Shift),
    "Planar": BijectorCase(lambda: Planar(3), lambda: Planar(3, context=C, hidden=HIDDEN), 3),
    "Radial": BijectorCase(lambda: Radial(3), lambda: Radial(3, context=C, hidden=HIDDEN), 3),
    "LULinear": BijectorCase(
        lambda: LULinear(4, order=torch.tensor([2, 0, 3, 1])),
        lambda: LULinear(4, order=torch.tensor([2, 0, 3, 1]), context=C, hidden=HIDDEN),
        4,
    ),
    "Householder": BijectorCase(
        lambda: Householder(4),
        lambda: Householder(4, reflections=3, context=C, hidden=HIDDEN),
        4,
        volume_preserving=True,
    ),
    "QRLinear": BijectorCase(
        lambda: QRLinear(4),
        lambda: QRLinear(4, reflections=3, context=C, hidden=HIDDEN),
        4,
    ),
    "Fixed": BijectorCase(lambda: Fixed(AffineTransform(0.3, 1.7)), None, 3, triangular=True),
}

BIJECTORS |= {
    "Elementwise": BijectorCase(
        lambda: Elementwise(3, RationalQuadraticSpline()),
        lambda: Elementwise(3, RationalQuadraticSpline(), context=C, hidden=HIDDEN),
        3,
        triangular=True,
    ),
    "Elementwise affine": BijectorCase(
        lambda: Elementwise(3, ScaleShift()),
        lambda: Elementwise(3, ScaleShift(), context=C, hidden=HIDDEN),
        3,
        triangular=True,
    ),
    "Elementwise leaky": BijectorCase(lambda: Elementwise(3, LeakyReLU()), None, 3, triangular=True),
}


def _activation(univariate: Callable[[], Univariate]) -> BijectorCase:
    return BijectorCase(
        lambda: Elementwise(3, univariate()),
        lambda: Elementwise(3, univariate(), context=C, hidden=HIDDEN),
        3,
        triangular=True,
    )


BIJECTORS |= {
    "Elementwise sigmoid": _activation(Sigmoid),
    "Elementwise tanh": _activation(Tanh),
    "Elementwise softplus": _activation(Softplus),
}

# Tolerances that ask for the dtype's precision, as the round trips do.
_PRECISE = ODESolver("dopri8", rtol=1e-13, atol=1e-13)

BIJECTORS |= {
    "Continuous": BijectorCase(
        lambda: Continuous(3, hidden=HIDDEN, solver=_PRECISE),
        lambda: Continuous(3, context=C, hidden=HIDDEN, solver=_PRECISE),
        3,
    ),
}

# Noisy traces of continuous flows, which take them in training; the bijectors above are built with the exact one.
TRACES: dict[str, Trace] = {
    "Hutchinson gaussian": Hutchinson(4, rademacher=False),
    "Hutchinson signs": Hutchinson(4),
    "HutchPlusPlus gaussian": HutchPlusPlus(6, rademacher=False),
    "HutchPlusPlus signs": HutchPlusPlus(6),
}

IMAGE = (2, 2, 2)
_BOARD = checkerboard(IMAGE)
_MASK = torch.tensor([True, False, True])


def _multi_scale(context: int = 0) -> Compose:
    """Two scales, from images to latents."""

    def squeezed(shape: tuple[int, int, int]) -> list[Bijector]:
        return [ActNorm(shape), LULinear(shape, rotation=True), Coupling(shape, None, context=context, hidden=[6])]

    return MultiScale(
        (1, 4, 4), 2, squeezed, lambda shape: [MaskedCoupling(checkerboard(shape), None, context=context, hidden=[6])]
    )


BIJECTORS |= {
    "Coupling image": BijectorCase(
        lambda: Coupling(IMAGE, None, hidden=[6]),
        lambda: Coupling(IMAGE, None, context=C, hidden=[6]),
        IMAGE,
        triangular=True,
    ),
    "Coupling image odd flipped": BijectorCase(
        lambda: Coupling((3, 2, 2), MixtureLogisticCDF(2), hidden=[6], flip=True),
        lambda: Coupling((3, 2, 2), MixtureLogisticCDF(2), context=C, hidden=[6], flip=True),
        (3, 2, 2),
    ),
    "ActNorm image": BijectorCase(
        lambda: ActNorm(IMAGE), lambda: ActNorm(IMAGE, context=C, hidden=[6]), IMAGE, triangular=True
    ),
    "BatchNorm image": BijectorCase(
        lambda: BatchNorm(IMAGE), lambda: BatchNorm(IMAGE, context=C, hidden=[6]), IMAGE, triangular=True
    ),
    "LULinear rotation": BijectorCase(
        lambda: LULinear(4, rotation=True), lambda: LULinear(4, rotation=True, context=C, hidden=HIDDEN), 4
    ),
    "LULinear image": BijectorCase(
        lambda: LULinear((3, 2, 2), order=torch.tensor([2, 0, 1])),
        lambda: LULinear((3, 2, 2), order=torch.tensor([2, 0, 1]), context=C, hidden=[6]),
        (3, 2, 2),
    ),
    "Permutation image": BijectorCase(
        lambda: Permutation(torch.tensor([2, 0, 1]), 3), None, (3, 2, 2), volume_preserving=True
    ),
    "Squeeze": BijectorCase(lambda: Squeeze((2, 4, 2)), None, (2, 4, 2), volume_preserving=True, to=(8, 2, 1)),
    "MaskedCoupling": BijectorCase(
        lambda: MaskedCoupling(_MASK, RationalQuadraticSpline(4), hidden=HIDDEN),
        lambda: MaskedCoupling(_MASK, RationalQuadraticSpline(4), context=C, hidden=HIDDEN),
        3,
    ),
    "MaskedCoupling image": BijectorCase(
        lambda: MaskedCoupling(_BOARD, None, hidden=[6]),
        lambda: MaskedCoupling(_BOARD, None, context=C, hidden=[6]),
        IMAGE,
    ),
    "Split": BijectorCase(
        lambda: Split((3, 2, 2), Coupling(IMAGE, None, hidden=[6])),
        lambda: Split((3, 2, 2), Coupling(IMAGE, None, context=C, hidden=[6])),
        (3, 2, 2),
        triangular=True,
    ),
    "Pixels": BijectorCase(Pixels, None, IMAGE, triangular=True),
    "MultiScale": BijectorCase(_multi_scale, lambda: _multi_scale(C), (1, 4, 4)),
}


def _clusters() -> M2:
    return M2.mlp(5, C, 2, HIDDEN, labelled=False)


def _seeded(build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


GUIDES: dict[str, GuideCase] = {
    "UniformDequantization": GuideCase(_dequantized, lambda: _dequantized().guide),
    "VariationalDequantization": GuideCase(_dequantized, lambda: _dequantized(variational=True).guide),
    "EmptyGuide": GuideCase(_made, EmptyGuide),
    "Amortized Gaussian": GuideCase(
        lambda: VAE.mlp(5, 2, HIDDEN), lambda: Amortized(Parametric(dist.Normal, 2, context=5, hidden=HIDDEN))
    ),
    "Amortized flow": GuideCase(
        lambda: VAE.mlp(5, 2, HIDDEN), lambda: Amortized(RealNVP(2, 2, hidden=HIDDEN, context=5))
    ),
    "Corrupted": GuideCase(_autoencoder, lambda: _autoencoder().guide),
    "Local": GuideCase(lambda: VAE.mlp(5, 2, HIDDEN), lambda: Local(VAE.mlp(5, 2, HIDDEN), torch.ones(4, 5))),
    "ClassAndStyle": GuideCase(_clusters, lambda: _clusters().guide),
    "NearestCode": GuideCase(lambda: _seeded(_vqvae), lambda: _seeded(_vqvae).guide),  # of one codebook
    "NearestCodePair": GuideCase(lambda: _seeded(_vqvae2), lambda: _seeded(_vqvae2).guide),
}


def _of_program(guide: Callable[[Sites], nn.Module]) -> GuideCase:
    """A guide of any program, here of one of ours."""

    def build() -> nn.Module:
        return guide(Sites(VAE.mlp(5, 2, HIDDEN).double(), (torch.ones(4, 5).double(),)))

    return GuideCase(lambda: VAE.mlp(5, 2, HIDDEN), build)


def _scored(guide: ImplicitGuide) -> nn.Module:
    """A guide without a density beside the critic that estimates it."""
    return Contrast(guide, HIDDEN).scored(guide)


GUIDES |= {
    "MeanField": _of_program(lambda sites: MeanField(sites, HIDDEN)),
    "PackedGuide": _of_program(
        lambda sites: PackedGuide(sites, None, Parametric(dist.Normal, 2, context=5, hidden=HIDDEN))
    ),
    "FullCovariance": _of_program(lambda sites: FullCovariance(sites, HIDDEN)),
    "FlowGuide": _of_program(lambda sites: FlowGuide(sites, layers=2, hidden=HIDDEN)),
    "Hierarchical": _of_program(lambda sites: Hierarchical(sites, 2, HIDDEN)),
    "SemiAmortized": _of_program(lambda sites: SemiAmortized(sites, 2, hidden=HIDDEN)),
    "ImplicitGuide scored": _of_program(lambda sites: _scored(ImplicitGuide(sites, hidden=HIDDEN))),
}


def _minimax(model: GenerativeModel) -> Adversarial:
    return Adversarial.mlp(model, HIDDEN, Minimax())


OBJECTIVES: dict[str, ObjectiveCase] = {
    "MaximumLikelihood": ObjectiveCase(lambda m: MaximumLikelihood(), "RealNVP"),
    "ELBO": ObjectiveCase(lambda m: ELBO(), "VAE"),
    "ELBO of particles": ObjectiveCase(lambda m: ELBO(particles=3, analytic_kl=False), "VAE of flows"),
    "ELBO tempered": ObjectiveCase(lambda m: ELBO(beta=4.0, free_bits=FreeBits(0.1)), "VAE"),
    "ELBO annealed": ObjectiveCase(lambda m: ELBO(beta=LinearAnnealing(5, start=2.0, end=2.0)), "VAE of flows"),
    "ELBO landing": ObjectiveCase(lambda m: ELBO(stl=True), "VAE of flows"),
    "InfoVAE": ObjectiveCase(lambda m: InfoVAE(alpha=0.5), "VAE of flows", rowwise=False),
    "BetaTCVAE": ObjectiveCase(lambda m: BetaTCVAE(6.0), "VAE"),
    "WakeSleep": ObjectiveCase(lambda m: WakeSleep(), "VAE", ("model", "guide")),
    "ReweightedWakeSleep": ObjectiveCase(lambda m: ReweightedWakeSleep(5, insomnia=0.5), "VAE", ("model", "guide")),
    "VariationalEM": ObjectiveCase(lambda m: VariationalEM(steps=2), "VAE"),
    "VariationalEM amortized": ObjectiveCase(
        lambda m: VariationalEM(steps=2, amortized=True), "VAE of MADE", ("guide", "model")
    ),
    "LaggingInference": ObjectiveCase(lambda m: LaggingInference(2), "VAE", ("guide", "model")),
    "AdversarialAutoencoder": ObjectiveCase(
        lambda m: AdversarialAutoencoder.mlp(m, HIDDEN), "VAE", ("model", "critic", "guide")
    ),
    "AdversarialVariationalBayes": ObjectiveCase(
        lambda m: AdversarialVariationalBayes.mlp(m, HIDDEN), "VAE", ("critic", "model")
    ),
    "ReverseKL": ObjectiveCase(lambda m: ReverseKL(lambda x: -0.5 * x.square().sum(-1), particles=2), "RealNVP"),
    "Distillation": ObjectiveCase(lambda m: Distillation(MAF(2, 2, hidden=HIDDEN)), "IAF"),
    "PyroObjective": ObjectiveCase(lambda m: PyroObjective(Trace_ELBO()), "VAE"),
    "ImportanceWeighted": ObjectiveCase(lambda m: ImportanceWeighted(5), "VAE"),
    "ImportanceWeighted doubly": ObjectiveCase(lambda m: ImportanceWeighted(5, doubly=True), "VAE of flows"),
    "ImportanceWeighted Renyi": ObjectiveCase(lambda m: ImportanceWeighted(5, alpha=0.5), "VAE of MADE"),
    "VectorQuantization": ObjectiveCase(lambda m: VectorQuantization(), "VQVAE", general=False),
    "VectorQuantization of levels": ObjectiveCase(lambda m: VectorQuantization(prior=True), "VQVAE2", general=False),
    "SemiSupervised": ObjectiveCase(lambda m: SemiSupervised(5.0), "M2", general=False),
    "ContrastiveDivergence": ObjectiveCase(lambda m: ContrastiveDivergence(k=2), "RBM"),
    "Persistent contrastive": ObjectiveCase(lambda m: ContrastiveDivergence(persistent=True, chains=8), "RBM"),
    "Centred contrastive": ObjectiveCase(lambda m: ContrastiveDivergence(weight_cost=0.1, centered=True), "RBM"),
    "ReplayDivergence": ObjectiveCase(lambda m: ReplayDivergence(2, 100, 0.2, 0.1), "NeuralEnergy"),
    "ScoreMatching": ObjectiveCase(lambda m: ScoreMatching(), "NeuralEnergy", general=False),
    "SlicedScoreMatching": ObjectiveCase(lambda m: SlicedScoreMatching(2), "NeuralEnergy", general=False),
    "SlicedScoreMatching plain": ObjectiveCase(
        lambda m: SlicedScoreMatching(reduced=False, rademacher=False), "NeuralEnergy on a base", general=False
    ),
    "DenoisingScoreMatching": ObjectiveCase(lambda m: DenoisingScoreMatching(0.3), "NeuralEnergy", general=False),
    "NoiseContrastive": ObjectiveCase(lambda m: NoiseContrastive(StandardNormal(2), 3), "NeuralEnergy", general=False),
    "JointLikelihood": ObjectiveCase(lambda m: JointLikelihood(ReplayDivergence(2, 100)), "JointEnergy", general=False),
    "UpDown": ObjectiveCase(
        lambda m: UpDown(Recognition(4, [3]), k=2), "DeepBeliefNetwork", ("model", "recognition"), general=False
    ),
    "MeanFieldContrastive": ObjectiveCase(
        lambda m: MeanFieldContrastive(chains=8), "DeepBoltzmannMachine", general=False
    ),
    "MeanFieldContrastive centred": ObjectiveCase(
        lambda m: MeanFieldContrastive(chains=8, centered=True), "DeepBoltzmannMachine", general=False
    ),
    "Adversarial": ObjectiveCase(lambda m: Adversarial.mlp(m, HIDDEN), "GAN", ("critic", "generator")),
    "Adversarial minimax": ObjectiveCase(_minimax, "GAN", ("critic", "generator")),
}


def sgld_covariance(kernel: SGLD, precision: Tensor) -> Tensor:
    """Stationary covariance of unadjusted Langevin steps, (P (I - h P / 4))^-1."""
    return (precision - kernel.step_size**2 / 4 * precision @ precision).inverse()


def sghmc_covariance(kernel: SGHMC, precision: Tensor, gradient_variance: float = 0.0) -> Tensor:
    """Of x in the stationary law of SGHMC's linear recursion: S = A S A' + Q, solved as a linear system."""
    eye, eta = torch.eye(len(precision), dtype=precision.dtype), kernel.step_size**2
    # v' = (1 - alpha) v - eta P (x + v): its gradient is at the new x
    lower = torch.cat((-eta * precision, (1 - kernel.friction) * eye - eta * precision), 1)
    a = torch.cat((torch.cat((eye, eye), 1), lower))
    q = torch.zeros_like(a)
    n = len(precision)
    q[n:, n:] = (2 * (kernel.friction - kernel.noise) * eta + eta**2 * gradient_variance) * eye
    size = a.numel()
    flat = torch.linalg.solve(torch.eye(size, dtype=a.dtype) - torch.kron(a, a), q.flatten())
    return flat.reshape(a.shape)[:n, :n]


KERNELS: dict[str, KernelCase] = {
    "MALA": KernelCase(lambda: MALA(0.9), "gaussian"),
    "RandomWalk": KernelCase(lambda: RandomWalk(1.0), "gaussian"),
    "BlockGibbs": KernelCase(BlockGibbs, "rbm"),
    "GibbsSweep": KernelCase(GibbsSweep, "boltzmann"),
    "TemperedTransitions": KernelCase(lambda: TemperedTransitions(3, 0.3), "rbm"),
    "TemperedTransitions machine": KernelCase(lambda: TemperedTransitions(3, 0.3), "boltzmann"),
    "HMC": KernelCase(lambda: HMC(step_size=0.6), "gaussian"),
    "HMC dense": KernelCase(lambda: HMC(1.0, 0.6, Dense()), "gaussian"),
    "HMC low-rank": KernelCase(lambda: HMC(1.0, 0.6, LowRank(1)), "gaussian"),
    "ChEES": KernelCase(lambda: ChEES(2.0, 0.7), "gaussian"),
    "MEADS": KernelCase(lambda: MEADS(1.0, 0.7, folds=2, moves=2), "gaussian"),
    "MEADS of folds": KernelCase(lambda: MEADS(folds=2, moves=3), "gaussian"),
    "NUTS": KernelCase(lambda: NUTS(0.7), "gaussian"),
    "GibbsWithGradients": KernelCase(lambda: GibbsWithGradients(2), "binary"),
    "CategoricalGibbsWithGradients": KernelCase(lambda: CategoricalGibbsWithGradients(2), "categorical"),
    "SGLD": KernelCase(lambda: SGLD(0.7), "gaussian", covariance=lambda p: sgld_covariance(SGLD(0.7), p)),
    "SGHMC": KernelCase(
        lambda: SGHMC(0.5, 0.6), "gaussian", settle=30, covariance=lambda p: sghmc_covariance(SGHMC(0.5, 0.6), p)
    ),
    "ParallelTempering": KernelCase(lambda: ParallelTempering(HMC(1.5, 0.6), 3, 0.3), "gaussian", settle=30),
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


def contexts(n: int, seed: int = 7, *, labels: bool = False) -> Tensor:
    """(n, C) in float64; with ``labels`` an unknown row and a one-hot one of each class in turn."""
    if labels:
        return torch.eye(C + 1, C, dtype=torch.float64)[torch.arange(n) % (C + 1) - 1]
    return torch.randn(n, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context_of(conditional: bool, n: int, case: ModelCase | None = None) -> Tensor | None:
    return contexts(n, labels=case is not None and case.labels) if conditional else None


def rows(case: ModelCase, model: GenerativeModel, n: int, seed: int = 8) -> Tensor:
    """Plausible rows (n, *event) in float64."""
    noise = torch.randn(n, *model.event_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if case.counts:
        return (3 * noise.abs()).floor()
    if case.levels:
        groups = noise.unflatten(-1, (-1, case.levels))
        return (groups == groups.amax(-1, keepdim=True)).double().flatten(-2)
    if case.ended:
        return (noise > 0).double().cummin(-1).values
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


def assert_gradients_are_slopes(compute: Callable[[], Tensor], leaves: dict[str, list[Tensor]]) -> None:
    """The gradient of a number in each group of leaves, along a random unit vector, is a difference of its values.

    The values are found where gradients are off, so whatever takes a shorter way there is held to the longer one.
    """
    everything = [leaf.requires_grad_() for group in leaves.values() for leaf in group]
    gradients = iter(torch.autograd.grad(compute(), everything, materialize_grads=True))
    generator, step = torch.Generator().manual_seed(5), 3e-6

    @torch.no_grad()
    def value(group: list[Tensor], directions: list[Tensor], size: float) -> Tensor:
        for leaf, v in zip(group, directions, strict=True):
            leaf.add_(size * v)
        found = compute()
        for leaf, v in zip(group, directions, strict=True):
            leaf.sub_(size * v)
        return found

    for kind, group in leaves.items():
        directions = [torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in group]
        length = torch.stack([v.square().sum() for v in directions]).sum().sqrt()
        directions = [v / length for v in directions]
        along = torch.stack([(next(gradients) * v).sum() for v in directions]).sum()
        slope = (value(group, directions, step) - value(group, directions, -step)) / (2 * step)
        # central differences: an error of the step squared, and the values' roundings over the step
        torch.testing.assert_close(slope, along, rtol=1e-5, atol=1e-5, msg=lambda m, k=kind: f"of {k}: {m}")


def assert_gradients_agree(found: Tensor, exact: Tensor) -> None:
    """Means of repeated gradients, (R, P), against the exact ones, (P,), with errors far below what they measure."""
    mean, error = mean_and_error(found)
    assert error.max() < exact.abs().max() / 20, f"{error.max() / exact.abs().max()} of the largest: a term can hide"
    assert_means_agree(mean, error, exact)


def assert_errors_are_the_spread(estimates: Iterable[tuple[Tensor, Tensor]], exact: Tensor) -> None:
    """Sixty or more estimates with their standard errors vary as these say: one wrong by a factor of two is seen."""
    scores = torch.stack([(value - exact) / error for value, error in estimates]).detach()
    assert len(scores) >= 60
    assert 0.7 < scores.std() < 1.4  # the sd of 60 unit normals has a standard error of 0.09
    assert scores.mean().abs() < 0.75  # 0.13 its standard error, and the bias of a logarithm is about half an error


def pairs(x: Tensor) -> Tensor:
    """Products of every two numbers of a row, each with itself among them: (*B, D) -> (*B, D^2)."""
    return (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
