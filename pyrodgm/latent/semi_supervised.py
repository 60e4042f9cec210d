"""The semi-supervised VAE M2: a class and a style, the class known for some rows only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from pyrodgm.core import Latent, Tractable, data_plate, evaluating
from pyrodgm.distributions.factors import kl_or_draw
from pyrodgm.distributions.mixture import MixtureDistribution
from pyrodgm.nets.mlp import MLP
from pyrodgm.shapes import join_context
from pyrodgm.tractable.parametric import Parametric, StandardNormal

__all__ = ["M2", "ClassAndStyle", "label_distribution"]

# Nats between a known label and the rest: their probability is exactly 0 in every dtype, and 0 * -1e4 is 0 where
# 0 * -inf would be nan in Pyro's enumeration.
_CERTAIN = 1e4


def label_distribution(logits: Tensor, labels: Tensor | None) -> dist.OneHotCategorical:
    """The distribution of y: that of the logits where the label is unknown, all mass on the label where it is known.

    Args:
        logits: (*B, K) in nats up to a constant.
        labels: (*B, K), one-hot, or all zeros where unknown; None where all are.
    Shapes: returns batch shape (*B,), event shape (K,).
    Example:
        >>> label_distribution(torch.zeros(2), torch.tensor([[0.0, 1.0], [0.0, 0.0]])).probs
        tensor([[0.0000, 1.0000],
                [0.5000, 0.5000]])
    """
    return dist.OneHotCategorical(logits=logits if labels is None else logits + _CERTAIN * labels)


class ClassAndStyle(nn.Module):
    """The guide q(y | x) q(z | x, y): a classifier where the label is unknown, and the style given the class.

    Args:
        classifier: (B, D) -> (B, K), logits.
        style: density of z given x flattened and y.
    Shapes: x (B, *event), labels (B, K) -> y (B, K), z (B, Z); returns z.
    Source: Kingma et al. (2014), arXiv:1406.5298, eq. 4.
    Example:
        >>> guide = ClassAndStyle(MLP(6, 3), Parametric(dist.Normal, 2, context=6 + 3))
        >>> guide(torch.zeros(5, 6)).shape
        torch.Size([5, 2])
    """

    def __init__(self, classifier: nn.Module, style: Tractable) -> None:
        super().__init__()
        self.classifier, self.style = classifier, style

    def labels(self, x: Tensor, context: Tensor | None = None) -> dist.OneHotCategorical:
        """q(y | x), certain where the label is given."""
        return label_distribution(self.classifier(x.flatten(1)).to(x.dtype), context)

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        if x is None:
            raise ValueError("expected x: the guide reads q(y, z | x) off the data; call the model to draw from it")
        with data_plate(x, context, n):
            y = pyro.sample("y", self.labels(x, context))
            return pyro.sample("z", self.style.condition(join_context(x.flatten(1), y)))


class M2(Latent):
    r"""Semi-supervised VAE: :math:`p(y)\, p(z)\, p(x \mid y, z)` with a guide :math:`q(y \mid x)\, q(z \mid x, y)`.

    The context of a row is its label, one-hot, or all zeros where the label is unknown, so partly labelled data
    are ``fit(model, (x, labels), SemiSupervised(alpha))``. A row of zeros has y latent, and the bounds are on
    log p(x); a label makes y certain, and they are on log p(x | y). The plain ELBO and ``log_weights`` draw y;
    :meth:`bounds` sums over it.

    Args:
        classes: K.
        likelihood: density of x given z and y, its context Z + K.
        classifier: any module (B, D) -> (B, K), the logits of q(y | x), of x flattened.
        style: density q(z | x, y), its context D + K.
        prior: density of z, context 0, or K where the style depends on the class; default N(0, I).
        labelled: False for a model that never sees a label and takes no context: classes are clusters.
    Shapes: x (B, *event), labels (B, K), y (B, K) one-hot, z (B, Z).
    Raises: ValueError if the sizes of the parts do not fit each other, or classes < 2; under Pyro's validation
        (the first step of ``fit``), also if a label is neither one-hot nor all zeros.
    Source: Kingma et al. (2014), arXiv:1406.5298, eq. 2 and 4; p(y) is learned.
    Example:
        >>> model = M2.mlp(features=6, classes=3, latent=2, hidden=[8])
        >>> labels = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> model.log_weights(torch.ones(2, 6), labels, particles=5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        classes: int,
        likelihood: Tractable,
        classifier: nn.Module,
        style: Tractable,
        prior: Tractable | None = None,
        labelled: bool = True,
    ) -> None:
        if classes < 2:
            raise ValueError(f"expected classes >= 2, got {classes}; a VAE has none")
        super().__init__(tuple(likelihood.event_shape), classes if labelled else 0)
        prior = StandardNormal(tuple(style.event_shape)) if prior is None else prior
        if len(prior.event_shape) != 1 or prior.event_shape != style.event_shape or prior.context not in (0, classes):
            raise ValueError(
                f"expected a prior over {tuple(style.event_shape)} with context 0 or {classes}, got event shape "
                f"{tuple(prior.event_shape)} and context {prior.context}"
            )
        for name, part, wants in (
            ("likelihood", likelihood, prior.event_shape[0] + classes),
            ("style", style, likelihood.event_shape.numel() + classes),
        ):
            if part.context != wants:
                raise ValueError(f"expected a {name} with context={wants}, {classes} of it for y, got {part.context}")
        self.classes = classes
        self.prior, self.likelihood = prior, likelihood
        self.class_logits = nn.Parameter(torch.zeros(classes))
        self.guide: ClassAndStyle = ClassAndStyle(classifier, style)

    @classmethod
    def mlp(
        cls,
        features: int,
        classes: int,
        latent: int = 20,
        hidden: Sequence[int] = (400,),
        family: type[TorchDistribution] = dist.Bernoulli,
        labelled: bool = True,
    ) -> M2:
        """An M2 of perceptrons: Gaussian style, likelihood of independent features of ``family``.

        Args:
            features: D.
            classes: K.
            latent: Z.
            hidden: widths of the hidden layers of the classifier and the encoder; the decoder has them reversed.
            family: univariate Pyro family of one feature.
            labelled: whether rows come with labels, known or not.
        """
        return cls(
            classes,
            Parametric(family, features, context=latent + classes, hidden=tuple(reversed(hidden))),
            MLP(features, classes, hidden),
            Parametric(dist.Normal, latent, context=features + classes, hidden=hidden),
            labelled=labelled,
        )

    @overload
    def check(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]: ...

    @overload
    def check(self, x: None, context: Tensor | None) -> tuple[None, Tensor | None]: ...

    def check(self, x: Tensor | None, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        x, context = super().check(x, context)
        if context is not None and is_validation_enabled():
            good = ((context == 0) | (context == 1)).all(-1) & (context.sum(-1) <= 1)
            if not good.all():
                row = int((~good).flatten().nonzero()[0])
                raise ValueError(
                    f"expected labels one-hot, or all zeros where unknown, got {context.flatten(0, -2)[row].tolist()} "
                    f"in row {row}"
                )
        return x, context

    @property
    def support(self) -> object:
        return self.likelihood.support

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        x, context = self.check(x, context)
        with data_plate(x, context, n):
            y = pyro.sample("y", label_distribution(self.class_logits, context))
            z = pyro.sample("z", self._prior(y))
            return pyro.sample("x", self.likelihood.condition(join_context(z, y)), obs=x)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        x, context = self.check(x, context)
        with poutine.block():
            drawn: Any = poutine.trace(self.guide).get_trace(x, context).nodes
        y, z = drawn["y"]["value"], drawn["z"]["value"]
        self.prior.initialize(z, y if self.prior.context else None)
        self.likelihood.initialize(x, join_context(z, y))

    def _prior(self, y: Tensor) -> TorchDistribution:
        return self.prior.condition(y if self.prior.context else None)

    def classify(self, x: Tensor) -> Tensor:
        """q(y | x) without gradients, in eval mode: (B, *event) -> (B, K), rows of probabilities."""
        x = self.check_x(x)
        with evaluating(self):
            return self.guide.labels(x).probs

    def posterior(self, x: Tensor, context: Tensor | None = None) -> TorchDistribution:
        r"""q(z | x) with y summed out, :math:`\sum_y q(y \mid x)\, q(z \mid x, y)`, batch shape (B,)."""
        x, context = self.check(x, context)
        flat = x.flatten(1)
        parts = [self.guide.style.condition(join_context(flat, y)) for y in self._every_label()]
        return MixtureDistribution(self.guide.labels(x, context).logits, parts, (len(x),))

    def decode(self, z: Tensor, context: Tensor | None = None) -> TorchDistribution:
        r"""p(x | z) with y summed out where it is unknown, :math:`\sum_y p(y \mid z)\, p(x \mid z, y)`; z (*B, Z)."""
        _, context = self.check(None, context)
        logits = label_distribution(self.class_logits, context).logits
        if self.prior.context:  # z tells of y
            logits = logits + torch.stack([self._prior(y).log_prob(z) for y in self._every_label()], -1)
        parts = [self.likelihood.condition(join_context(z, y)) for y in self._every_label()]
        return MixtureDistribution(logits, parts)

    def bounds(self, x: Tensor, context: Tensor | None = None, *, particles: int = 1) -> Tensor:
        r"""Lower bounds on log p(x | label), or on log p(x) where the label is unknown; y is summed over, z drawn.

        .. math:: \mathcal U(x) = \sum_y q(y \mid x) \bigl( \mathcal L(x, y) - \log q(y \mid x) \bigr), \quad
            \mathcal L(x, y) = \log p(y) + \mathbb E_{q(z \mid x, y)} [\log p(x \mid y, z)] - \mathrm{KL}_z

        with KL(q(z | x, y) || p(z)) in closed form where there is one.

        Args:
            x: (B, *event).
            context: (B, K), one-hot labels, all zeros where unknown.
            particles: draws of z for each class.
        Shapes: returns (B,), in nats.
        Raises: TypeError where gradients are asked for and the style has no reparameterised draws; ValueError for
            particles < 1.
        Source: Kingma et al. (2014), arXiv:1406.5298, eq. 6 (less log p(y)) and 7.
        """
        x, context = self.check_rows(x, context)
        if particles < 1:
            raise ValueError(f"expected particles >= 1, got {particles}")
        y = self._every_label().unsqueeze(1).expand(-1, len(x), -1)  # (K, B, K)
        flat = x.flatten(1).expand(self.classes, -1, -1)
        q = self.guide.style.condition(join_context(flat, y))
        if not q.has_rsample and torch.is_grad_enabled():
            raise TypeError(
                f"expected a style with rsample, got {type(self.guide.style).__name__}; use objectives.ELBO"
            )
        p = self._prior(y)
        draw = torch.Size((particles,))
        z = q.rsample(draw) if q.has_rsample else q.sample(draw)  # (particles, K, B, Z)
        likelihood = self.likelihood.condition(join_context(z, y.expand(*draw, *y.shape))).log_prob(x)
        given_class = (likelihood - kl_or_draw(q, p, z)).mean(0).T  # (K, B) -> (B, K)
        guess = self.guide.labels(x, context)
        of_class = label_distribution(self.class_logits, context).logits
        return (guess.probs * (given_class + of_class - guess.logits)).sum(-1)

    def _every_label(self) -> Tensor:
        """The K one-hot labels, (K, K)."""
        return torch.eye(self.classes, dtype=self.dtype, device=self.device)
