"""Sweeps of the latents: one dimension at a time, or the whole plane of a two-dimensional latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrodgm.core import GenerativeModel
from pyrodgm.diagnostics.latent_space import decode, encode

__all__ = ["plane", "traversals"]


def traversals(
    model: GenerativeModel,
    x: Tensor,
    dimensions: Sequence[int] | None = None,
    span: float = 3.0,
    steps: int = 8,
    context: Tensor | None = None,
) -> Tensor:
    r"""What each latent dimension does: :math:`z_d` from -span to span, the others at what x has.

    Args:
        model: a flow or a VAE over vectors of latents, as :func:`encode` takes it.
        x: one row (*event).
        dimensions: which, in order (such as the active ones first); None for all.
        span: how far to go, > 0, in units of the latent.
        steps: the ends included.
        context: one vector (C,).
    Shapes: returns (dimensions, steps, *event); :func:`latent_grid` draws a line for each dimension.
    Raises: ValueError if steps < 2, span <= 0, x is not one row, or there is no such dimension.
    Source: Higgins et al. (2017), beta-VAE, figures 1-3.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> traversals(RealNVP(2), torch.zeros(2), steps=5).shape
        torch.Size([2, 5, 2])
    """
    if steps < 2 or not span > 0:
        raise ValueError(f"expected steps >= 2, the ends included, and span > 0, got {steps} and {span}")
    if tuple(x.shape) != tuple(model.event_shape):
        raise ValueError(f"expected one row of shape {tuple(model.event_shape)}, got {tuple(x.shape)}")
    z = encode(model, x.unsqueeze(0), None if context is None else context.unsqueeze(0)).flatten()
    chosen = list(range(len(z)) if dimensions is None else dimensions)
    if not chosen or not all(0 <= d < len(z) for d in chosen):
        raise ValueError(f"expected dimensions among 0 .. {len(z) - 1}, got {chosen}")
    swept = z.repeat(len(chosen), steps, 1)
    values = torch.linspace(-span, span, steps, dtype=z.dtype, device=z.device)
    for line, d in enumerate(chosen):
        swept[line, :, d] = values
    rows = None if context is None else context.expand(len(chosen) * steps, -1)
    return decode(model, swept.flatten(0, 1), rows).unflatten(0, (len(chosen), steps))


def plane(model: GenerativeModel, steps: int = 12, context: Tensor | None = None) -> Tensor:
    r"""The plane of a two-dimensional N(0, I) latent, evenly by probability.

    .. math:: z_{ij} = \bigl( \Phi^{-1}(u_j), \Phi^{-1}(1 - u_i) \bigr), \quad u_i = \frac{i + 1/2}{n}

    Args:
        model: a flow or a VAE with two latents, as :func:`encode` takes it.
        steps: n, of each axis.
        context: one vector (C,) for all.
    Shapes: returns (steps, steps, *event), z_1 to the right and z_2 upwards.
    Raises: ValueError if steps < 1 or the latents are not two.
    Source: Kingma and Welling (2014), arXiv:1312.6114, appendix A, figure 4.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> plane(VAE.mlp(features=6, latent=2, hidden=[8]), steps=3).shape
        torch.Size([3, 3, 6])
    """
    if steps < 1:
        raise ValueError(f"expected steps >= 1, got {steps}")
    prior = getattr(model, "prior", model)
    if prior.event_shape.numel() != 2:
        raise ValueError(f"expected a model with two latents, got {prior.event_shape.numel()}; see traversals")
    u = (torch.arange(steps, dtype=model.dtype, device=model.device) + 0.5) / steps
    side = torch.special.ndtri(u)
    z = torch.stack(torch.meshgrid(side, side.flip(0), indexing="xy"), -1).flatten(0, 1)  # (steps^2, 2)
    return decode(model, z, None if context is None else context.expand(len(z), -1)).unflatten(0, (steps, steps))
