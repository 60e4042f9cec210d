"""Models that can be sampled and not scored."""

from pyrodgm.implicit.gan import GAN

__all__ = ["GAN"]
