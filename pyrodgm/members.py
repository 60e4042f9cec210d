"""The table of members: every class of models in the library, in one place.

``pyrodgm models`` and ``pyrodgm fit`` read it, and a test compares it with the README's table. A new member is one row.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["MEMBERS", "Member", "member"]


@dataclass(frozen=True)
class Member:
    """One system.

    Attributes:
        name: what the command line calls it.
        path: its class.
        family: tractable, latent, energy or implicit.
        year: of the source.
        source: authors, and where to read it.
        line: what it is.
        factory: what builds it from plain numbers; "" where it is composed of objects, in Python.
        data: the values it models: "binary", "real" (continuous), or "any".
        defaults: values for arguments of the factory that have no default of their own.
        objective: what makes its objective from plain numbers (and the model, where it asks for one).
        settings: values for arguments of the objective, where other ones are wanted than its own defaults.
        prepare: method of the model that takes the training rows (N, *event) before the first step.
    """

    name: str
    path: str
    family: str
    year: int
    source: str
    line: str
    factory: str = ""
    data: str = "any"
    defaults: tuple[tuple[str, Any], ...] = ()
    objective: str = ""
    prepare: str = ""
    settings: tuple[tuple[str, Any], ...] = ()

    def build(self) -> Callable[..., Any]:
        """The callable behind ``factory``.

        Raises: ValueError if this member is composed in Python.
        """
        if not self.factory:
            raise ValueError(f"{self.name} is composed of objects: build {self.path} in Python and call pyrodgm.fit")
        found: Callable[..., Any] = _resolve(self.factory)
        return found

    def build_objective(self) -> Callable[..., Any] | None:
        """The callable behind ``objective``, or None."""
        found: Callable[..., Any] | None = _resolve(self.objective) if self.objective else None
        return found


_PERSISTENT = (("k", 5), ("persistent", True))  # chains that last have no context, and given labels do not

MEMBERS = (
    Member("MADE", "pyrodgm.tractable.MADE", "tractable", 2015, "Germain et al., arXiv:1502.03509",
           "masked autoencoder: one conditional a feature, all from one pass", "pyrodgm.tractable.MADE"),
    Member("RealNVP", "pyrodgm.tractable.RealNVP", "tractable", 2017, "Dinh et al., arXiv:1605.08803",
           "normalizing flow of affine couplings", "pyrodgm.tractable.RealNVP", "real"),
    Member("MAF", "pyrodgm.tractable.MAF", "tractable", 2017, "Papamakarios et al., arXiv:1705.07057",
           "masked autoregressive flow", "pyrodgm.tractable.MAF", "real"),
    Member("IAF", "pyrodgm.tractable.IAF", "tractable", 2016, "Kingma et al., arXiv:1606.04934",
           "inverse autoregressive flow: fast samples", "pyrodgm.tractable.IAF", "real"),
    Member("NICE", "pyrodgm.tractable.NICE", "tractable", 2014, "Dinh et al., arXiv:1410.8516",
           "additive couplings and a scale", "pyrodgm.tractable.NICE", "real"),
    Member("NSF", "pyrodgm.tractable.NSF", "tractable", 2019, "Durkan et al., arXiv:1906.04032",
           "rational-quadratic splines in couplings, or autoregressive", "pyrodgm.tractable.NSF", "real"),
    Member("FlowPlusPlus", "pyrodgm.tractable.FlowPlusPlus", "tractable", 2019, "Ho et al., arXiv:1902.00275",
           "couplings by mixtures of logistics", "pyrodgm.tractable.FlowPlusPlus", "real"),
    Member("PlanarFlow", "pyrodgm.tractable.PlanarFlow", "tractable", 2015, "Rezende and Mohamed, arXiv:1505.05770",
           "planar maps, with their inverses", "pyrodgm.tractable.PlanarFlow", "real"),
    Member("FFJORD", "pyrodgm.tractable.FFJORD", "tractable", 2019, "Grathwohl et al., arXiv:1810.01367",
           "continuous flow: any network as velocity", "pyrodgm.tractable.FFJORD", "real"),
    Member("Glow", "pyrodgm.tractable.Glow", "tractable", 2018, "Kingma and Dhariwal, arXiv:1807.03039",
           "actnorm, invertible linear map, affine coupling; vectors, and images at several levels",
           "pyrodgm.tractable.Glow", "real"),
    Member("ImageRealNVP", "pyrodgm.tractable.ImageRealNVP", "tractable", 2017, "Dinh et al., arXiv:1605.08803",
           "RealNVP over images: checkerboards, channels, several scales"),
    Member("ImageFlowPlusPlus", "pyrodgm.tractable.ImageFlowPlusPlus", "tractable", 2019,
           "Ho et al., arXiv:1902.00275", "Flow++ over images: couplings by mixtures of logistics"),
    Member("ImageFlow", "pyrodgm.tractable.ImageFlow", "tractable", 2017, "Dinh et al., arXiv:1605.08803",
           "any bijector from images to latents, after the logit of pixels"),
    Member("Recurrent", "pyrodgm.tractable.Recurrent", "tractable", 2010, "Mikolov et al., Interspeech",
           "recurrent language model (LSTM or GRU); decoder of sentence VAEs, with word dropout"),
    Member("Resampled", "pyrodgm.tractable.Resampled", "tractable", 2019, "Bauer and Mnih, arXiv:1810.11428",
           "a normal with learned acceptance, base of flows", "pyrodgm.tractable.Resampled", "real"),
    Member("Flow", "pyrodgm.tractable.Flow", "tractable", 2015, "Rezende and Mohamed, arXiv:1505.05770",
           "any base density pushed through any bijectors"),
    Member("Parametric", "pyrodgm.tractable.Parametric", "tractable", 1922, "maximum likelihood, Fisher",
           "any univariate Pyro family over a vector, fitted or given by a network"),
    Member("Mixture", "pyrodgm.tractable.Mixture", "tractable", 1977, "Dempster et al., JRSS B 39(1)",
           "a mixture of any tractable members, with learned weights"),
    Member("KDE", "pyrodgm.tractable.KDE", "tractable", 1986, "Silverman, Density Estimation",
           "kernel density estimator: six kernels, bandwidths by rule, cross-validated or adaptive"),
    Member("VampPrior", "pyrodgm.tractable.VampPrior", "tractable", 2018, "Tomczak and Welling, arXiv:1705.07120",
           "the guide's posteriors at learned pseudo-inputs: a prior for a VAE"),
    Member("VAE", "pyrodgm.latent.VAE", "latent", 2014, "Kingma and Welling, arXiv:1312.6114",
           "variational autoencoder: decoder and amortized guide", "pyrodgm.latent.VAE.mlp",
           objective="pyrodgm.objectives.ELBO"),
    Member("VQVAE", "pyrodgm.latent.VQVAE", "latent", 2017, "van den Oord et al., arXiv:1711.00937",
           "vector-quantized VAE: discrete codes by a codebook", "pyrodgm.latent.VQVAE.mlp",
           objective="pyrodgm.objectives.VectorQuantization", settings=(("prior", True),)),
    Member("M2", "pyrodgm.latent.M2", "latent", 2014, "Kingma et al., arXiv:1406.5298",
           "semi-supervised VAE: a class, known for some rows, and a style"),
    Member("ProdLDA", "pyrodgm.latent.ProdLDA", "latent", 2017, "Srivastava and Sutton, arXiv:1703.01488",
           "topic model: topics as experts, over bags of words"),
    Member("NVDM", "pyrodgm.latent.NVDM", "latent", 2016, "Miao et al., arXiv:1511.06038",
           "neural variational document model, over bags of words"),
    Member("ETM", "pyrodgm.latent.ETM", "latent", 2020, "Dieng et al., arXiv:1907.04907",
           "embedded topic model, over bags of words"),
    Member("Dequantized", "pyrodgm.latent.Dequantized", "latent", 2019, "Ho et al., arXiv:1902.00275, section 3.1",
           "whole numbers by a density: uniform or variational dequantization"),
    Member("RBM", "pyrodgm.energy.RBM", "energy", 2002, "Hinton, Neural Computation 14(8)",
           "restricted Boltzmann machine, block Gibbs and contrastive divergence", "pyrodgm.energy.RBM", "binary",
           (("hidden", 200),), "pyrodgm.objectives.ContrastiveDivergence", "set_visible_bias", _PERSISTENT),
    Member("DeepBeliefNetwork", "pyrodgm.energy.DeepBeliefNetwork", "energy", 2006,
           "Hinton et al., Neural Computation 18(7)", "sigmoid layers under an RBM: greedy stack, then up-down"),
    Member("DeepBoltzmannMachine", "pyrodgm.energy.DeepBoltzmannMachine", "energy", 2009,
           "Salakhutdinov and Hinton, AISTATS", "binary layers linked with the next: greedy stack, then mean field"),
    Member("BoltzmannMachine", "pyrodgm.energy.BoltzmannMachine", "energy", 1985, "Ackley et al., Cognitive Science 9",
           "binary units with any links; exact where small, completes incomplete rows",
           "pyrodgm.energy.BoltzmannMachine", "binary", objective="pyrodgm.objectives.ContrastiveDivergence",
           settings=_PERSISTENT),
    Member("NeuralEnergy", "pyrodgm.energy.NeuralEnergy", "energy", 2019, "Du and Mordatch, arXiv:1903.08689",
           "any network as energy on a base density", "pyrodgm.energy.NeuralEnergy.mlp", "real",
           objective="pyrodgm.objectives.ReplayDivergence"),
    Member("JointEnergy", "pyrodgm.energy.JointEnergy", "energy", 2020, "Grathwohl et al., arXiv:1912.03263",
           "JEM: a classifier as energy of rows and labels"),
    Member("GAN", "pyrodgm.implicit.GAN", "implicit", 2014, "Goodfellow et al., arXiv:1406.2661",
           "generator against a critic; samples only", "pyrodgm.implicit.GAN.mlp",
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
    close = [by_name[c].name for c in difflib.get_close_matches(name.lower(), by_name, n=3)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
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
