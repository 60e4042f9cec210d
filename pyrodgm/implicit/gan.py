"""The generative adversarial network: a network that turns noise into data."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pyrodgm.core import Implicit, Tractable
from pyrodgm.nets.mlp import MLP
from pyrodgm.shapes import join_context
from pyrodgm.tractable.parametric import StandardNormal

__all__ = ["GAN"]


class GAN(Implicit):
    """x = generator(z, context) with z from a prior; trained by :class:`pyrodgm.objectives.Adversarial`.

    Args:
        generator: module (B, Z + C) -> (B, *event) or anything that reshapes to it.
        event_shape: shape of one x; a number D is (D,).
        prior: density of z; its event is (Z,).
        context: size C of the conditioning vector, 0 for none.
    Shapes: z (B, Z), context (B, C) -> x (B, *event).
    Source: Goodfellow et al. (2014), arXiv:1406.2661; conditional: Mirza and Osindero (2014), arXiv:1411.1784.
    Example:
        >>> GAN.mlp(features=2, latent=4, hidden=[16]).sample(3).shape
        torch.Size([3, 2])
    """

    def __init__(
        self, generator: nn.Module, event_shape: int | tuple[int, ...], prior: Tractable, context: int = 0
    ) -> None:
        super().__init__(event_shape, prior, context)
        self.generator = generator

    @classmethod
    def mlp(
        cls,
        features: int,
        latent: int = 32,
        hidden: Sequence[int] = (256, 256),
        context: int = 0,
        output: nn.Module | None = None,
    ) -> GAN:
        """A generator of one perceptron.

        Args:
            features: D.
            latent: Z.
            hidden: widths of the hidden layers.
            context: size C of the conditioning vector.
            output: what the last layer goes through, such as ``nn.Sigmoid()`` for data in [0, 1].
        """
        net: nn.Module = MLP(latent + context, features, hidden)
        return cls(net if output is None else nn.Sequential(net, output), features, StandardNormal(latent), context)

    def generate(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.generator(join_context(z, context))
        return x.reshape(*z.shape[:-1], *self.event_shape)
