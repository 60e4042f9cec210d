"""The VampPrior: the guide's own posteriors, averaged over learned pseudo-inputs."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from pyrodgm.core import Tractable
from pyrodgm.distributions.mixture import Aggregate
from pyrodgm.shapes import is_real

__all__ = ["VampPrior"]


class VampPrior(Tractable):
    r"""The variational mixture of posteriors, a prior for a VAE.

    .. math:: p(z \mid c) = \frac1K \sum_k q(z \mid u_k, c)

    with q the guide of the same VAE, whose parameters the two share, and u learned pseudo-inputs.
    Give the same object as guide: ``VAE(prior=VampPrior(q, 500), likelihood=..., guide=q)``. The
    VAE's ``state_dict``, ``deepcopy`` and ``pickle`` keep it one object.

    Args:
        posterior: q over z, whose context is x flattened (and c behind it).
        pseudo_inputs: K.
        context: size C of the conditioning vector, 0 for none.
        support: constraint of one element of x, such as ``constraints.unit_interval``, which the
            pseudo-inputs keep (the paper clips them instead, which has no gradient at the bounds).
    Shapes: z (*B, Z), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError if K < 1 or the posterior's context is not larger than C.
    Source: Tomczak and Welling (2018), arXiv:1705.07120, eq. 9.
    Example:
        >>> import pyro.distributions as dist
        >>> from pyrodgm.latent import VAE
        >>> from pyrodgm.tractable import Parametric
        >>> q = Parametric(dist.Normal, 2, context=6, hidden=[16])
        >>> vae = VAE(VampPrior(q, 5), Parametric(dist.Bernoulli, 6, context=2), q)
        >>> vae.sample(3).shape
        torch.Size([3, 6])
    """

    def __init__(
        self, posterior: Tractable, pseudo_inputs: int = 500, *, context: int = 0, support: Any = constraints.real
    ) -> None:
        super().__init__(tuple(posterior.event_shape), context)
        features = posterior.context - context
        if pseudo_inputs < 1 or features < 1:
            raise ValueError(
                f"expected pseudo_inputs >= 1 and a posterior whose context is x and the context's {context}, got "
                f"{pseudo_inputs} and {posterior.context}"
            )
        self.posterior, self.element = posterior, support
        # Apart from each other, or all components would start and stay equal.
        self.free = nn.Parameter(torch.randn(pseudo_inputs, features))

    @property
    def pseudo_inputs(self) -> Tensor:
        """u, (K, D)."""
        return self.free if is_real(self.element) else biject_to(self.element)(self.free)

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Set the pseudo-inputs to rows of data, (K, *event).

        Raises: ValueError if there are not K rows of D numbers, or all of one value at a bound of the support.
        """
        rows = x.flatten(1).to(self.free)
        if rows.shape != self.free.shape:
            raise ValueError(f"expected rows of shape {tuple(self.free.shape)}, got {tuple(rows.shape)}")
        if not is_real(self.element):
            # A row at the bound of the support, such as a white pixel, has no finite preimage.
            low, high = float(rows.min()), float(rows.max())
            if low == high:
                raise ValueError(f"expected rows of more than one value, got {low} everywhere; pass rows of the data")
            rows = biject_to(self.element).inv((rows - low) * 0.98 + low + 0.01 * (high - low))
        self.free.copy_(rows)

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        _, context = self.check(None, context)
        return Aggregate(self.posterior, self.pseudo_inputs, context)
