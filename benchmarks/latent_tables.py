"""The tables of ``latent.py``: data, networks, and the objectives and printed figures of every row."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset

import pyrodgm
from pyrodgm.bijectors import AffineCoupling, Autoregressive, Bijector, Permutation, Planar
from pyrodgm.core import GenerativeModel
from pyrodgm.guides import SemiAmortized
from pyrodgm.guides.sites import Sites
from pyrodgm.latent import VAE
from pyrodgm.nets import MLP
from pyrodgm.objectives import (
    ELBO,
    CyclicalAnnealing,
    FreeBits,
    ImportanceWeighted,
    InfoVAE,
    LaggingInference,
    LinearAnnealing,
    Objective,
)
from pyrodgm.tractable import Embedded, Flow, Parametric, StandardNormal, VampPrior

__all__ = ["TABLES", "Row", "Table", "learn", "packed_rows"]

D, Z = 784, 50
HIDDEN = [200, 200]
VAMP_LATENT, VAMP_HIDDEN, PSEUDO_INPUTS = 40, 300, 500
PATIENCE = 50  # epochs; as in Tomczak and Welling, whose patience begins after the warm-up


class Row(NamedTuple):
    """One network: its maker, the objective for a number of steps, the printed figure, and where it starts.

    Attributes:
        start: the row of the table with whose parameters it begins, instead of with fresh ones.
    """

    name: str
    build: Callable[[], VAE]
    objective: Callable[[int], Objective]
    printed: float | None = None
    start: str | None = None


class Table(NamedTuple):
    """Rows of one data set; with ``valid`` a run stops early and its best epoch counts.

    Attributes:
        patience: epochs without a better validation score.
    """

    data: Any
    valid: Tensor | None
    test: Tensor
    rows: list[Row]
    patience: int | None = None


class Binarized(Dataset[Tensor]):
    """Grey levels in [0, 1] of which every reading draws the pixels anew."""

    def __init__(self, grey: Tensor) -> None:
        self.grey = grey

    def __len__(self) -> int:
        return len(self.grey)

    def __getitem__(self, i: int) -> Tensor:
        return self.grey[i].bernoulli()

    def __getitems__(self, rows: Sequence[int]) -> Tensor:
        return self.grey[torch.as_tensor(rows)].bernoulli()


def _dynamic_mnist(options: argparse.Namespace) -> tuple[DataLoader[Tensor], Tensor, Tensor]:
    """A loader over the training digits, their mean, and test digits binarized once."""
    with np.load(options.data_dir / "mnist.npz", allow_pickle=False) as packed:
        train, test = (torch.from_numpy(packed[f"{k}_x"].reshape(-1, D) / np.float32(255)) for k in ("train", "test"))
    if options.smoke:
        train, test = train[:400], test[:60]
    loader = DataLoader(Binarized(train), batch_size=options.batch_size, shuffle=True, collate_fn=lambda rows: rows)
    test = torch.bernoulli(test, generator=torch.Generator().manual_seed(0))
    return loader, train.mean(0), test


def packed_rows(file: Path, options: argparse.Namespace, flip: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test rows of a bit-packed set.

    Args:
        flip: exchange 0 and 1.
    """
    with np.load(file, allow_pickle=False) as packed:
        columns = int(packed["d"])
        parts = [np.unpackbits(packed[k], axis=1)[:, :columns].astype(np.float32) for k in ("train", "valid", "test")]
    train, valid, test = (torch.from_numpy(1 - part if flip else part) for part in parts)
    if options.smoke:
        train, valid, test = train[:400], valid[:60], test[:60]
    return train, valid, test


def learn(
    model: GenerativeModel, data: Tensor, steps: int, options: argparse.Namespace, objective: Objective | None = None
) -> pyrodgm.Fit:
    """The fit that latent_codes.py and latent_ppca.py share: a cosine from ``options.lr`` to 0."""
    return pyrodgm.fit(
        model,
        data,
        objective,
        steps=steps,
        batch_size=options.batch_size,
        lr=options.lr,
        lr_schedule=lambda optimizer, total: CosineAnnealingLR(optimizer, total),
        seed=options.seed,
        device="cpu",
        progress=False,
    )


def _fixed_mnist(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    return packed_rows(options.data_dir / "mnist_binarized_fixed.npz", options)


def _bernoulli_decoder(mean: Tensor) -> Parametric:
    """200-200 tanh units; the last bias starts at the pixels' mean, as in Burda et al."""
    decoder = Parametric(dist.Bernoulli, D, context=Z, hidden=HIDDEN, activation=nn.Tanh)
    last = [m for m in decoder.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.bias.copy_(mean.clamp(0.001, 0.999).logit())
    return decoder


def _gaussian_guide(latent: int = Z) -> Parametric:
    return Parametric(dist.Normal, latent, context=D, hidden=HIDDEN, activation=nn.Tanh)


def _flow_guide(layers: int = 8, context: int = 0) -> Flow:
    """The Gaussian of the encoder, moved by couplings whose halves of z (and x, as context) set each other's map."""
    couplings = [AffineCoupling(Z, context=context, hidden=[100], flip=i % 2 == 1) for i in range(layers)]
    return Flow(_gaussian_guide(), couplings)


def _encoded_guide(maps: Sequence[Bijector]) -> Embedded:
    """The Gaussian of an encoder, then maps that read the encoder's last hidden layer too."""
    encoder = nn.Sequential(MLP(D, HIDDEN[-1], HIDDEN[:-1], activation=nn.Tanh), nn.Tanh())
    return Embedded(Flow(Parametric(dist.Normal, Z, context=HIDDEN[-1]), maps), encoder, D)


def _iaf_guide(layers: int = 4) -> Embedded:
    """As in Kingma et al. (2016), arXiv:1606.04934; the order of z is reversed between layers."""
    maps: list[Bijector] = []
    for _ in range(layers):
        maps += [Autoregressive(Z, context=HIDDEN[-1], hidden=[320]), Permutation(torch.arange(Z).flip(0))]
    return _encoded_guide(maps)


def _planar_guide(layers: int = 80) -> Embedded:
    """The paper's own: all numbers of its maps are linear in the encoder's last layer."""
    return _encoded_guide([Planar(Z, context=HIDDEN[-1], hidden=()) for _ in range(layers)])


def iwae(options: argparse.Namespace) -> Table:
    """Burda et al. (2016), arXiv:1509.00519, table 1: one layer of 50, dynamic binarization."""
    loader, mean, test = _dynamic_mnist(options)
    k = options.k

    def plain() -> VAE:
        return VAE(StandardNormal(Z), _bernoulli_decoder(mean), _gaussian_guide())

    def weighted(doubly: bool) -> Callable[[int], Objective]:
        return lambda steps: ImportanceWeighted(k, doubly=doubly)

    rows = [
        Row("VAE", plain, lambda steps: ELBO(), -86.76),
        Row(f"IWAE, K = {k}", plain, weighted(False), -84.78),
        Row(f"IWAE, K = {k}, DReG", plain, weighted(True), -84.78),
        Row("VAE, goes on", plain, lambda steps: ELBO(), -86.76, "VAE"),
        Row(f"IWAE, K = {k}, goes on from the VAE", plain, weighted(False), -84.78, "VAE"),
        Row(f"IWAE, K = {k}, DReG, goes on from the VAE", plain, weighted(True), -84.78, "VAE"),
    ]
    return Table(loader, None, test, rows)


def flow(options: argparse.Namespace) -> Table:
    """Rezende and Mohamed (2015), arXiv:1505.05770, table 2: -89.9 without a flow, -85.1 with 80 planar maps."""
    train, _, test = _fixed_mnist(options)
    mean = train.mean(0)

    def annealed(steps: int) -> Objective:
        return ELBO(analytic_kl=False, beta=LinearAnnealing(max(1, steps // 10), start=0.01))

    def with_guide(guide: Callable[[], Any]) -> Callable[[], VAE]:
        return lambda: VAE(StandardNormal(Z), _bernoulli_decoder(mean), guide())

    rows = [
        Row("Gaussian guide", with_guide(_gaussian_guide), annealed, -89.9),
        Row("flow guide", with_guide(_flow_guide), annealed, -85.1),
        Row("flow guide, every map reads x", with_guide(lambda: _flow_guide(context=D)), annealed, -85.1),
        Row("IAF guide", with_guide(_iaf_guide), annealed, -85.1),
        Row("planar guide", with_guide(_planar_guide), annealed, -85.1),
    ]
    return Table(train, None, test, rows)


def collapse(options: argparse.Namespace) -> Table:
    """The dimensions of z that the plain bound leaves at their prior, 50 being more than it uses, and the remedies.

    A MADE as decoder was tried first: on these digits the plain bound uses all 20 dimensions of z beside it.
    """
    train, _, test = _fixed_mnist(options)
    mean = train.mean(0)

    def build(guide: Callable[[], Any] = _gaussian_guide) -> VAE:
        return VAE(StandardNormal(Z), _bernoulli_decoder(mean), guide())

    def warm_up(steps: int) -> LinearAnnealing:
        return LinearAnnealing(max(1, steps // 10), start=0.01)

    remedies: dict[str, Callable[[int], Objective]] = {
        "plain bound": lambda steps: ELBO(),
        "plain bound, warm-up": lambda steps: ELBO(beta=warm_up(steps)),
        "+ cyclical annealing": lambda steps: ELBO(beta=CyclicalAnnealing(max(1, steps // 4))),
        "+ free bits, 0.25 a dimension": lambda steps: ELBO(free_bits=FreeBits(0.25)),
        "+ free bits, warm-up": lambda steps: ELBO(beta=warm_up(steps), free_bits=FreeBits(0.25)),
        "+ lagging inference, 5 steps": lambda steps: LaggingInference(5),
        "+ InfoVAE (alpha 0.9, lambda 100)": lambda steps: InfoVAE(0.9, 100.0),
    }
    rows = [Row(name, build, objective) for name, objective in remedies.items()]
    with_flow = Row(
        "+ flow guide, warm-up", lambda: build(_flow_guide), lambda steps: ELBO(analytic_kl=False, beta=warm_up(steps))
    )

    def refined() -> VAE:
        model = build()
        model.guide = SemiAmortized(Sites(model, (train[:2],)), steps=3, hidden=HIDDEN)
        return model

    semi_amortized = Row("+ semi-amortized, 3 steps, warm-up", refined, lambda steps: ELBO(beta=warm_up(steps)))
    return Table(train, None, test, [*rows, with_flow, semi_amortized])


class _Gated(nn.Module):
    """A linear map times the sigmoid of another, (*B, inputs) -> (*B, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.both = nn.Linear(inputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.glu(self.both(x))


def _gated(inputs: int, outputs: int) -> nn.Sequential:
    hidden = VAMP_HIDDEN
    return nn.Sequential(_Gated(inputs, hidden), _Gated(hidden, hidden), MLP(hidden, outputs, ()))


class _BoundedScales(nn.Module):
    """Of a mean and a log-scale, the log-scale kept in [-3, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        mean, log_scale = x.chunk(2, -1)
        return torch.cat((mean, nn.functional.hardtanh(log_scale, -3.0, 1.0)), -1)


class _Clipped(VampPrior):
    """Pseudo-inputs that are numbers cut off at 0 and 1, not squashed ones."""

    @property
    def pseudo_inputs(self) -> Tensor:
        return self.free.clamp(0, 1)


def _vamp_rows(train: Tensor, printed: tuple[float, float], options: argparse.Namespace) -> list[Row]:
    """One layer of 40 with two gated layers of 300 on each side, as in the paper; 500 pseudo-inputs.

    ``--authors`` takes choices of their program (github.com/jmtomczak/vae_vampprior) over ours.
    """
    theirs = set(options.authors)

    def build(vamp: bool) -> VAE:
        encoder, decoder = _gated(D, 2 * VAMP_LATENT), _gated(VAMP_LATENT, D)
        for layer in (*encoder.modules(), *decoder.modules()):
            if "start" in theirs and isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
        if "clamp" in theirs:  # log-variances to [-6, 2], probabilities to [1e-5, 1 - 1e-5]
            encoder.append(_BoundedScales())
            decoder.append(nn.Hardtanh(-11.5129, 11.5129))
        guide = Parametric(dist.Normal, VAMP_LATENT, context=D, net=encoder)
        likelihood = Parametric(dist.Bernoulli, D, context=VAMP_LATENT, net=decoder)
        if not vamp:
            return VAE(StandardNormal(VAMP_LATENT), likelihood, guide)
        if "pseudo" in theirs:
            clipped = _Clipped(guide, PSEUDO_INPUTS)
            nn.init.normal_(clipped.free, 0.5, 0.02)
            return VAE(clipped, likelihood, guide)
        prior = VampPrior(guide, min(PSEUDO_INPUTS, len(train)), support=dist.constraints.unit_interval)
        # Starting near one grey came out worse without the other choices of the authors' program.
        prior.start_from(train[torch.randperm(len(train))[: len(prior.free)]])
        return VAE(prior, likelihood, guide)

    def annealed(steps: int) -> Objective:
        return ELBO(analytic_kl=False, beta=LinearAnnealing(options.warm_up * -(-len(train) // options.batch_size)))

    return [
        Row("standard prior", lambda: build(False), annealed, printed[0]),
        Row("VampPrior", lambda: build(True), annealed, printed[1]),
    ]


def vamp_caltech(options: argparse.Namespace) -> Table:
    """Tomczak and Welling (2018), arXiv:1705.07120, table 1; as there, 1 is the silhouette and 0 the background."""
    train, valid, test = packed_rows(options.data_dir / "caltech101_silhouettes.npz", options, flip=True)
    return Table(train, valid, test, _vamp_rows(train, (-123.43, -114.55), options), options.warm_up + PATIENCE)


def vamp_mnist(options: argparse.Namespace) -> Table:
    """The same table, fixed binarization."""
    train, valid, test = _fixed_mnist(options)
    return Table(train, valid, test, _vamp_rows(train, (-88.56, -85.57), options), options.warm_up + PATIENCE)


TABLES: dict[str, Callable[[argparse.Namespace], Table]] = {
    "iwae": iwae,
    "flow": flow,
    "collapse": collapse,
    "vamp-caltech": vamp_caltech,
    "vamp-mnist": vamp_mnist,
}
