"""What a latent model makes of given rows: reconstructions, and completions of what is missing."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrodgm.core import Latent
from pyrodgm.diagnostics.latent_space import decode, encode
from pyrodgm.evaluation.likelihood import given_rows
from pyrodgm.shapes import observed_part

__all__ = ["completions", "reconstructions"]


def reconstructions(model: Latent, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Each row beside the mean of p(x | z) at the mean of q(z | x); :func:`latent_grid` draws them.

    Args:
        model: a Latent that :func:`encode` and :func:`decode` take; its ``reconstruct`` draws z and x instead.
        x: (B, *event).
        context: (B, C).
    Shapes: returns (B, 2, *event): the rows, and what comes back.
    Raises: TypeError if the model has no latents, or a mean is not known in closed form.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> reconstructions(VAE.mlp(features=6, latent=2, hidden=[8]), torch.ones(3, 6)).shape
        torch.Size([3, 2, 6])
    """
    rows, context = given_rows(model, x, context)
    return torch.stack((rows, decode(model, encode(model, rows, context), context)), 1)


def completions(
    model: Latent,
    x: Tensor,
    mask: Tensor,
    draws: int = 4,
    context: Tensor | None = None,
    *,
    steps: int | None = None,
    blank: float = 0.5,
) -> Tensor:
    """Rows, what is seen of them, and draws of the rest from p(x_missing | x_observed); :func:`latent_grid` draws them.

    Args:
        model: its ``complete`` fills in.
        x: (B, *event).
        mask: True where x is observed, broadcast against x.
        draws: completions of each row, by independent chains.
        context: (B, C).
        steps: of ``complete``, sweeps of a chain or rounds of resampling; default the model's own.
        blank: what stands for the missing part in the second column.
    Shapes: returns (B, 2 + draws, *event).
    Raises: ValueError if draws < 1, or as ``complete``.
    Source: Rezende et al. (2014), arXiv:1401.4082, section 6.4 (the picture); Mattei and Frellsen (2018),
        arXiv:1802.04826, algorithm 2 (the chain).
    Example:
        >>> from pyrodgm.latent import VAE
        >>> vae = VAE.mlp(features=6, latent=2, hidden=[8])
        >>> completions(vae, torch.ones(3, 6), torch.arange(6) < 3, draws=4, steps=2).shape
        torch.Size([3, 6, 6])
    """
    if draws < 1:
        raise ValueError(f"expected draws >= 1, got {draws}")
    x, context = given_rows(model, x, context)
    repeated = None if context is None else context.repeat_interleave(draws, 0)
    seen = observed_part(x, mask)
    options = {} if steps is None else {"steps": steps}
    filled = model.complete(x.repeat_interleave(draws, 0), seen.repeat_interleave(draws, 0), repeated, **options)
    return torch.cat((x[:, None], torch.where(seen, x, blank)[:, None], filled.unflatten(0, (-1, draws))), 1)
