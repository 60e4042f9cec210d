"""The variational autoencoder: a prior, a likelihood and a guide, each any tractable model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrodgm.core import GenerativeModel, Latent, Tractable, data_plate
from pyrodgm.guides.amortized import Amortized
from pyrodgm.shapes import join_context
from pyrodgm.tractable.parametric import Parametric, StandardNormal

__all__ = ["VAE"]


class VAE(Latent):
    r"""Variational autoencoder: :math:`p(z \mid c)\, p(x \mid z, c)` with a guide :math:`q(z \mid x, c)`.

    The three parts are ordinary members, so composition alone makes the variants: a flow as prior
    or guide, MADE as decoder, any Pyro family as likelihood.

    Args:
        prior: density of z, event shape (Z,); its context is 0 or C.
        likelihood: density of x given z (and c): its context is Z + C.
        guide: a Tractable over z whose context is x flattened (and c), or any guide module with a site "z".
        context: size C of the conditioning vector, 0 for none.
    Shapes: x (B, *event), context (B, C), z (B, Z).
    Raises: ValueError if the sizes of the parts do not fit each other; TypeError if a part is no model or module.
    Source: Kingma and Welling (2014), arXiv:1312.6114; conditional: Sohn et al. (2015).
    Example:
        >>> import torch
        >>> from pyrodgm.tractable import MADE, RealNVP
        >>> vae = VAE(
        ...     prior=RealNVP(features=2),
        ...     likelihood=MADE(features=6, hidden=[16], context=2),
        ...     guide=RealNVP(features=2, context=6),
        ... )
        >>> vae.log_weights(vae.sample(3), particles=5).shape
        torch.Size([5, 3])
    """

    def __init__(self, prior: Tractable, likelihood: Tractable, guide: Tractable | nn.Module, context: int = 0) -> None:
        for name, part in (("prior", prior), ("likelihood", likelihood)):
            if not isinstance(part, GenerativeModel):
                raise TypeError(f"expected {name} as a model, such as a Tractable, got {type(part).__name__}")
        if not isinstance(guide, nn.Module):
            raise TypeError(f"expected guide as a Tractable over z or a module, got {type(guide).__name__}")
        super().__init__(tuple(likelihood.event_shape), context)
        if len(prior.event_shape) != 1 or prior.context not in (0, context):
            raise ValueError(
                f"expected a prior over vectors with context 0 or {context}, got event shape "
                f"{tuple(prior.event_shape)} and context {prior.context}"
            )
        latent = prior.event_shape[0]
        if likelihood.context != latent + context:
            raise ValueError(
                f"expected a likelihood with context={latent + context} (the latent's {latent} and the context's "
                f"{context}), got {likelihood.context}"
            )
        if isinstance(guide, Tractable):
            wants = likelihood.event_shape.numel() + context
            if guide.event_shape != prior.event_shape or guide.context != wants:
                raise ValueError(
                    f"expected a guide over {tuple(prior.event_shape)} with context={wants} (x and the context), "
                    f"got {tuple(guide.event_shape)} with context={guide.context}"
                )
            guide = Amortized(guide)
        self.prior, self.likelihood = prior, likelihood
        self.guide = guide

    @classmethod
    def mlp(
        cls,
        features: int,
        latent: int = 20,
        hidden: Sequence[int] = (400,),
        context: int = 0,
        family: type[TorchDistribution] = dist.Bernoulli,
        prior: Tractable | None = None,
    ) -> VAE:
        """A VAE of perceptrons: Gaussian guide, likelihood of independent features of ``family``.

        Args:
            features: D.
            latent: Z.
            hidden: widths of the encoder's hidden layers; the decoder has them reversed.
            context: size C of the conditioning vector.
            family: univariate Pyro family of one feature.
            prior: default N(0, I).
        """
        return cls(
            prior=StandardNormal(latent) if prior is None else prior,
            likelihood=Parametric(family, features, context=latent + context, hidden=tuple(reversed(hidden))),
            guide=Parametric(dist.Normal, latent, context=features + context, hidden=hidden),
            context=context,
        )

    def decode(self, z: Tensor, context: Tensor | None = None) -> TorchDistribution:
        """p(x | z, context) for latents (*B, Z)."""
        return self.likelihood.condition(join_context(z, context))

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        x, context = self.check(x, context)
        with data_plate(x, context, n):
            z = pyro.sample("z", self.prior.condition(context if self.prior.context else None))
            return pyro.sample("x", self.decode(z, context), obs=x)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        x, context = self.check(x, context)
        with poutine.block():
            z: Any = poutine.trace(self.guide).get_trace(x, context).nodes["z"]["value"]
        self.prior.initialize(z, context if self.prior.context else None)
        self.likelihood.initialize(x, join_context(z, context))

    @property
    def support(self) -> object:
        return self.likelihood.support
