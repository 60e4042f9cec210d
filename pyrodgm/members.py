"""The table of members: every class of models in the library, in one place.

``pyrodgm models`` and ``pyrodgm fit`` read it, and a test compares it with the README's table. A new member is one row.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyrodgm.hints import did_you_mean

__all__ = ["MEMBERS", "Member", "member"]


@dataclass(frozen=True)
class Member:
    """One system.

    Attributes:
        path: its class.
        year: of the source.
        source: authors, and where to read it.
        line: what it is.
        factory: what builds it from plain numbers: "class", or the name of a class method; "" where it is composed of
            objects, in Python.
        data: the values it models: "binary", "real" (continuous), or "any".
        defaults: values for arguments of the factory that have no default of their own.
        objective: what makes its objective from plain numbers (and the model, where it asks for one).
        settings: values for arguments of the objective, where other ones are wanted than its own defaults.
        prepare: method of the model that takes the training rows (N, *event) before the first step.
    """

    path: str
    year: int
    source: str
    line: str
    factory: str = ""
    data: str = "any"
    defaults: tuple[tuple[str, Any], ...] = ()
    objective: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    prepare: str = ""

    @property
    def name(self) -> str:
        """What the command line calls it: its class's name."""
        return self.path.rsplit(".", 1)[-1]

    @property
    def family(self) -> str:
        """Tractable, latent, energy or implicit, in small letters: the folder of its class."""
        return self.path.split(".")[1]

    def build(self) -> Callable[..., Any]:
        """The callable behind ``factory``.

        Raises: ValueError if this member is composed in Python.
        """
        if not self.factory:
            raise ValueError(f"{self.name} is composed of objects: build {self.path} in Python and call pyrodgm.fit")
        found: Callable[..., Any] = _resolve(self.path)
        return found if self.factory == "class" else getattr(found, self.factory)

    def build_objective(self) -> Callable[..., Any] | None:
        """The callable behind ``objective``, or None."""
        found: Callable[..., Any] | None = _resolve(self.objective) if self.objective else None
        return found


_PERSISTENT = (("k", 5), ("persistent", True))  # chains that last have no context, and given labels do not

MEMBERS = (
    Member("pyrodgm.tractable.MADE", year=2015, source="Germain et al., arXiv:1502.03509",
           line="masked autoencoder: one conditional a feature, all from one pass", factory="class"),
    Member("pyrodgm.tractable.RealNVP", year=2017, source="Dinh et al., arXiv:1605.08803",
           line="normalizing flow of affine couplings", factory="class", data="real"),
    Member("pyrodgm.tractable.MAF", year=2017, source="Papamakarios et al., arXiv:1705.07057",
           line="masked autoregressive flow", factory="class", data="real"),
    Member("pyrodgm.tractable.IAF", year=2016, source="Kingma et al., arXiv:1606.04934",
           line="inverse autoregressive flow: fast samples", factory="class", data="real"),
    Member("pyrodgm.tractable.NICE", year=2014, source="Dinh et al., arXiv:1410.8516",
           line="additive couplings and a scale", factory="class", data="real"),
    Member("pyrodgm.tractable.NSF", year=2019, source="Durkan et al., arXiv:1906.04032",
           line="rational-quadratic splines in couplings, or autoregressive", factory="class", data="real"),
    Member("pyrodgm.tractable.FlowPlusPlus", year=2019, source="Ho et al., arXiv:1902.00275",
           line="couplings by mixtures of logistics", factory="class", data="real"),
    Member("pyrodgm.tractable.PlanarFlow", year=2015, source="Rezende and Mohamed, arXiv:1505.05770",
           line="planar maps, with their inverses", factory="class", data="real"),
    Member("pyrodgm.tractable.FFJORD", year=2019, source="Grathwohl et al., arXiv:1810.01367",
           line="continuous flow: any network as velocity", factory="class", data="real"),
    Member("pyrodgm.tractable.Glow", year=2018, source="Kingma and Dhariwal, arXiv:1807.03039",
           line="actnorm, invertible linear map, affine coupling; vectors, and images at several scales",
           factory="class", data="real"),
    Member("pyrodgm.tractable.ImageRealNVP", year=2017, source="Dinh et al., arXiv:1605.08803",
           line="RealNVP over images: checkerboards, channels, several scales"),
    Member("pyrodgm.tractable.ImageFlowPlusPlus", year=2019, source="Ho et al., arXiv:1902.00275",
           line="Flow++ over images: couplings by mixtures of logistics"),
    Member("pyrodgm.tractable.ImageFlow", year=2017, source="Dinh et al., arXiv:1605.08803",
           line="any bijector from images to latents, after the logit of pixels"),
    Member("pyrodgm.tractable.Recurrent", year=2010, source="Mikolov et al., Interspeech",
           line="recurrent language model (LSTM or GRU); decoder of sentence VAEs, with word dropout"),
    Member("pyrodgm.tractable.Resampled", year=2019, source="Bauer and Mnih, arXiv:1810.11428",
           line="a normal with learned acceptance, base of flows", factory="class", data="real"),
    Member("pyrodgm.tractable.Flow", year=2015, source="Rezende and Mohamed, arXiv:1505.05770",
           line="any base density pushed through any bijectors"),
    Member("pyrodgm.tractable.Parametric", year=1922, source="Fisher, maximum likelihood",
           line="any univariate Pyro family over a vector, fitted or given by a network"),
    Member("pyrodgm.tractable.Mixture", year=1977, source="Dempster et al., JRSS B 39(1)",
           line="a mixture of any tractable members, with learned weights"),
    Member("pyrodgm.tractable.Embedded", year=2016, source="Kingma et al., arXiv:1606.04934",
           line="any tractable model whose context a shared network reads"),
    Member("pyrodgm.tractable.KDE", year=1986, source="Silverman, Density Estimation",
           line="kernel density estimator: six kernels, bandwidths by rule, cross-validated or adaptive"),
    Member("pyrodgm.tractable.VampPrior", year=2018, source="Tomczak and Welling, arXiv:1705.07120",
           line="the guide's posteriors at learned pseudo-inputs: a prior for a VAE"),
    Member("pyrodgm.latent.VAE", year=2014, source="Kingma and Welling, arXiv:1312.6114",
           line="variational autoencoder: decoder and amortized guide", factory="mlp",
           objective="pyrodgm.objectives.ELBO"),
    Member("pyrodgm.latent.VQVAE", year=2017, source="van den Oord et al., arXiv:1711.00937",
           line="vector-quantized VAE: discrete codes by a codebook", factory="mlp",
           objective="pyrodgm.objectives.VectorQuantization", settings=(("prior", True),)),
    Member("pyrodgm.latent.VQVAE2", year=2019, source="Razavi et al., arXiv:1906.00446",
           line="vector-quantized VAE of two levels: the bottom's codes given the top's", factory="mlp",
           objective="pyrodgm.objectives.VectorQuantization", settings=(("prior", True),)),
    Member("pyrodgm.latent.M2", year=2014, source="Kingma et al., arXiv:1406.5298",
           line="semi-supervised VAE: a class, known for some rows, and a style"),
    Member("pyrodgm.latent.ProdLDA", year=2017, source="Srivastava and Sutton, arXiv:1703.01488",
           line="topic model: topics as experts, over bags of words"),
    Member("pyrodgm.latent.NVDM", year=2016, source="Miao et al., arXiv:1511.06038",
           line="neural variational document model, over bags of words"),
    Member("pyrodgm.latent.ETM", year=2020, source="Dieng et al., arXiv:1907.04907",
           line="embedded topic model, over bags of words"),
    Member("pyrodgm.latent.Dequantized", year=2019, source="Ho et al., arXiv:1902.00275, section 3.1",
           line="whole numbers by a density: uniform or variational dequantization"),
    Member("pyrodgm.energy.RBM", year=2002, source="Hinton, Neural Computation 14(8)",
           line="restricted Boltzmann machine, block Gibbs and contrastive divergence", factory="class", data="binary",
           defaults=(("hidden", 200),), prepare="set_visible_bias",
           objective="pyrodgm.objectives.ContrastiveDivergence", settings=_PERSISTENT),
    Member("pyrodgm.energy.DeepBeliefNetwork", year=2006, source="Hinton et al., Neural Computation 18(7)",
           line="sigmoid layers under an RBM: greedy stack, then up-down"),
    Member("pyrodgm.energy.DeepBoltzmannMachine", year=2009, source="Salakhutdinov and Hinton, AISTATS",
           line="binary layers linked with the next: greedy stack, then mean field"),
    Member("pyrodgm.energy.BoltzmannMachine", year=1985, source="Ackley et al., Cognitive Science 9",
           line="binary units with any links; exact where small, completes incomplete rows", factory="class",
           data="binary", objective="pyrodgm.objectives.ContrastiveDivergence", settings=_PERSISTENT),
    Member("pyrodgm.energy.NeuralEnergy", year=2019, source="Du and Mordatch, arXiv:1903.08689",
           line="any network as energy on a base density", factory="mlp", data="real",
           objective="pyrodgm.objectives.ReplayDivergence"),
    Member("pyrodgm.energy.JointEnergy", year=2020, source="Grathwohl et al., arXiv:1912.03263",
           line="JEM: a classifier as energy of rows and labels"),
    Member("pyrodgm.implicit.GAN", year=2014, source="Goodfellow et al., arXiv:1406.2661",
           line="generator against a critic; samples only", factory="mlp",
           objective="pyrodgm.objectives.Adversarial.mlp"),
)  # fmt: skip


def member(name: str) -> Member:
    """The member of that name, whatever its case.

    Raises: ValueError for an unknown name, with the closest ones.
    Example:
        >>> member("made").family
        'tractable'
    """
    by_name = {m.name.lower(): m for m in MEMBERS}
    if name.lower() in by_name:
        return by_name[name.lower()]
    hint = did_you_mean(name.lower(), {low: member.name for low, member in by_name.items()}, at_most=3)
    raise ValueError(f"unknown model {name!r}: {hint}expected one of {', '.join(m.name for m in MEMBERS)}")


def _resolve(path: str) -> Any:
    """``package.module.Class.method`` as an object: the longest part that imports, then attributes."""
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # the module exists, and something that it needs does not
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(f"nothing at {path}")
