"""Moving through the latents of a flow or a VAE: interpolation, manifolds of four, attributes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrodgm.core import GenerativeModel, Latent, Tractable, evaluating
from pyrodgm.diagnostics.plots import image_grid
from pyrodgm.distributions.flow import FlowDistribution
from pyrodgm.evaluation.likelihood import given_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["attribute", "decode", "encode", "interpolate", "latent_grid", "manifold", "manipulate"]


def encode(model: GenerativeModel, x: Tensor, context: Tensor | None = None) -> Tensor:
    r"""The latents of x, without gradients: :math:`f^{-1}(x)` of a flow, the mean of q(z | x) of a latent model.

    Args:
        model: a flow (of a :class:`~pyrodgm.latent.Dequantized`, its ``density``), or a Latent with one Gaussian-like
            guide.
        x: (B, *event).
        context: (B, C).
    Shapes: returns (B, *latent).
    Raises: TypeError if the model has no latents, or q(z | x) or p(x | z) no mean in closed form.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> flow, x = RealNVP(2), torch.randn(3, 2)
        >>> torch.allclose(decode(flow, encode(flow, x)), x, atol=1e-5)
        True
    """
    x, context = given_rows(model, x, context)
    with evaluating(model):
        if isinstance(model, Latent):
            return _mean(model.posterior(x, context), "guide")
        for transform in reversed(_flow(model, context).transforms):
            x = transform.inverse_and_ladj(x)[0]
        return x


def decode(model: GenerativeModel, z: Tensor, context: Tensor | None = None) -> Tensor:
    r"""x for latents, without gradients: :math:`f(z)` of a flow, the mean of p(x | z) of a latent model.

    Args, Raises: as :func:`encode`.
    Shapes: z (B, *latent) -> (B, *event).
    """
    _, context = model.check(None, context)
    z, context = z.to(model.device), None if context is None else context.to(model.device)
    with evaluating(model):
        if isinstance(model, Latent):
            decoder: Any = getattr(model, "decode", None)
            if decoder is None:
                raise TypeError(f"expected a latent model with decode(z, context), got {type(model).__name__}")
            return _mean(decoder(z, context), "likelihood")
        for transform in _flow(model, context).transforms:
            z = transform.call_and_ladj(z)[0]
        return z


def _mean(distribution: Any, part: str) -> Tensor:
    try:
        mean: Tensor = distribution.mean
    except NotImplementedError:
        raise TypeError(
            f"expected a {part} with a mean in closed form, got {type(distribution).__name__}, which has none; use "
            "model.reconstruct(x), or average draws"
        ) from None
    return mean


def _flow(model: GenerativeModel, context: Tensor | None) -> FlowDistribution:
    d = model.condition(context) if isinstance(model, Tractable) else None
    if not isinstance(d, FlowDistribution):
        raise TypeError(f"expected a flow or a latent model, got {type(model).__name__}; it has no latents")
    return d


def interpolate(
    model: GenerativeModel,
    start: Tensor,
    end: Tensor,
    steps: int = 8,
    context: Tensor | None = None,
    spherical: bool = True,
) -> Tensor:
    r"""Rows on the way from ``start`` to ``end`` through the latents.

    .. math:: z_t = \frac{\sin((1 - t) \Omega)\, z_0 + \sin(t \Omega)\, z_1}{\sin \Omega}, \quad
        \cos \Omega = \frac{z_0^\top z_1}{\|z_0\| \|z_1\|}

    which keeps the length that N(0, I) latents of many dimensions have; or the straight line,
    :math:`(1 - t) z_0 + t z_1`, whose middle is shorter.

    Args:
        model: a flow or a VAE, as :func:`encode` takes it.
        start, end: (B, *event).
        steps: the ends included.
        context: (B, C).
        spherical: along the great circle, or straight.
    Shapes: returns (B, steps, *event).
    Raises: ValueError if steps < 2.
    Source: Kingma and Dhariwal (2018), arXiv:1807.03039, section 5 (straight); White (2016), arXiv:1609.04468.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> interpolate(RealNVP(2), torch.randn(3, 2), torch.randn(3, 2), steps=5).shape
        torch.Size([3, 5, 2])
    """
    if steps < 2:
        raise ValueError(f"expected steps >= 2, the ends included, got {steps}")
    a, b = encode(model, start, context), encode(model, end, context)
    flat_a, flat_b = a.flatten(1).unsqueeze(1), b.flatten(1).unsqueeze(1)
    t = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)[:, None]
    if spherical:
        cosine = torch.cosine_similarity(flat_a, flat_b, -1).clamp(-1, 1)
        angle = cosine.acos().unsqueeze(-1)
        near = angle.sin().abs() < 1e-4  # the formula's limit is the line
        sine = torch.where(near, 1.0, angle.sin())
        first = torch.where(near, 1 - t, ((1 - t) * angle).sin() / sine)
        second = torch.where(near, t, (t * angle).sin() / sine)
        z = first * flat_a + second * flat_b
    else:
        z = torch.lerp(flat_a, flat_b, t)
    z = z.flatten(0, 1).unflatten(-1, a.shape[1:])
    rows = None if context is None else context.repeat_interleave(steps, 0)
    return decode(model, z, rows).unflatten(0, (-1, steps))


def manifold(model: GenerativeModel, corners: Tensor, steps: int = 8, context: Tensor | None = None) -> Tensor:
    r"""The surface through four rows, from angles :math:`\phi, \phi'` in [0, 2 pi).

    .. math:: z = \cos(\phi) (\cos(\phi') z_1 + \sin(\phi') z_2) + \sin(\phi) (\cos(\phi') z_3 + \sin(\phi') z_4)

    Args:
        model: a flow or a VAE, as :func:`encode` takes it.
        corners: (4, *event).
        steps: angles of each kind.
        context: one vector (C,) for all.
    Shapes: returns (steps, steps, *event); [0, 0] is the first corner.
    Raises: ValueError unless there are four rows.
    Source: Dinh et al. (2017), arXiv:1605.08803, eq. 19.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> manifold(RealNVP(2), torch.randn(4, 2), steps=3).shape
        torch.Size([3, 3, 2])
    """
    if len(corners) != 4 or steps < 1:
        raise ValueError(f"expected 4 rows and steps >= 1, got {len(corners)} rows and {steps}")
    rows = None if context is None else context.expand(4, -1)
    z = encode(model, corners, rows)
    angle = torch.arange(steps, dtype=z.dtype, device=z.device) * (2 * math.pi / steps)
    turn = torch.stack((angle.cos(), angle.sin()), -1)  # (steps, 2)
    weights = torch.einsum("ia,jb->ijab", turn, turn).reshape(steps * steps, 4)
    mixed = torch.einsum("nk,k...->n...", weights, z)
    out = decode(model, mixed, None if context is None else context.expand(len(mixed), -1))
    return out.unflatten(0, (steps, steps))


def attribute(model: GenerativeModel, x: Tensor, has: Tensor, context: Tensor | None = None) -> Tensor:
    """The direction of an attribute: the mean latent of the rows that have it, less that of those that do not.

    Args:
        model: a flow or a VAE, as :func:`encode` takes it.
        x: (B, *event).
        has: (B,), boolean.
        context: (B, C).
    Shapes: returns (*latent).
    Raises: ValueError unless some rows have it and some do not.
    Source: Kingma and Dhariwal (2018), arXiv:1807.03039, section 5.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> attribute(RealNVP(2), torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([False, True]))
        tensor([1., 2.])
    """
    if has.dtype != torch.bool or has.shape != x.shape[:1] or has.all() or not has.any():
        raise ValueError(
            f"expected one boolean a row, both values among them, got {has.dtype} of shape {tuple(has.shape)} with "
            f"{int(has.sum())} of {len(x)} true"
        )
    z = encode(model, x, context)
    return z[has].mean(0) - z[~has].mean(0)


def manipulate(
    model: GenerativeModel, x: Tensor, direction: Tensor, amounts: Sequence[float], context: Tensor | None = None
) -> Tensor:
    r"""Rows with more or less of an attribute: decoded from :math:`z + a \cdot` direction for each amount a.

    Args:
        model: a flow or a VAE, as :func:`encode` takes it.
        x: (B, *event).
        direction: (*latent), of :func:`attribute`.
        amounts: 0 leaves x as it is; Kingma and Dhariwal go from -1 to 1.
        context: (B, C).
    Shapes: returns (B, amounts, *event).
    Source: Kingma and Dhariwal (2018), arXiv:1807.03039, section 5.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> manipulate(RealNVP(2), torch.zeros(1, 2), torch.tensor([1.0, 2.0]), [-1, 0, 1])[0]
        tensor([[-1., -2.],
                [ 0.,  0.],
                [ 1.,  2.]])
    """
    z = encode(model, x, context).unsqueeze(1)
    steps = torch.as_tensor(amounts, dtype=z.dtype, device=z.device).reshape(-1, *[1] * direction.dim())
    moved = (z + steps * direction).flatten(0, 1)
    rows = None if context is None else context.repeat_interleave(len(amounts), 0)
    return decode(model, moved, rows).unflatten(0, (-1, len(amounts)))


def latent_grid(x: Tensor, image_shape: Sequence[int], title: str = "") -> Figure:
    """A picture of what :func:`interpolate`, :func:`manifold` or :func:`manipulate` return: a line of images each.

    Args:
        x: (rows, columns, *event), pixels in [0, 1].
        image_shape: (H, W), or (C, H, W) with C of 1 or 3.
    Example:
        >>> len(latent_grid(torch.rand(3, 8, 64), (8, 8)).axes)
        1
    """
    rows, columns = x.shape[:2]
    return image_grid(x.flatten(0, 1), image_shape, columns, rows, title)
