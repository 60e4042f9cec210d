"""Event shapes of bijectors: the size of a vector, or an image's (C, H, W), and the checks of what comes in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.distributions import constraints

__all__ = ["IMAGE", "ImageShape", "check_size", "event_of", "image_shape"]

IMAGE = constraints.independent(constraints.real, 3)
ImageShape = tuple[int, int, int]


def check_size(x: Tensor, size: int, dims: int = 1) -> Tensor:
    """x, if the first of its ``dims`` event dimensions has this size; otherwise broadcasting would make up an answer.

    Raises: ValueError if it has another.
    """
    if x.dim() < dims or x.shape[-dims] != size:
        rest = ", H, W" if dims == 3 else ""
        raise ValueError(
            f"expected x of shape (*, {size}{rest}), got {tuple(x.shape)}; build the bijector for the size of x"
        )
    return x


def event_of(features: int | ImageShape) -> tuple[int, ...]:
    """The event shape of a vector of D features, or of an image.

    Raises: ValueError for anything else, or a size below 1.
    Example:
        >>> event_of(4), event_of((3, 8, 8))
        ((4,), (3, 8, 8))
    """
    event = (features,) if isinstance(features, int) else tuple(features)
    if len(event) not in (1, 3) or min(event) < 1:
        raise ValueError(f"expected features >= 1 or an image's (C, H, W), got {features}")
    return event


def image_shape(features: Sequence[int]) -> ImageShape:
    """(C, H, W) as three numbers.

    Raises: ValueError for anything else, or a size below 1.
    """
    if isinstance(features, int) or len(features) != 3 or min(features) < 1:
        raise ValueError(f"expected an image's (C, H, W), got {features}; pass all three, such as (1, 28, 28)")
    channels, height, width = features
    return channels, height, width
