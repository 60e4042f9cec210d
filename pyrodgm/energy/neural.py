"""Deep energy-based models: any network is an energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyrodgm.core import Tractable
from pyrodgm.energy.tilted import TiltedEnergy
from pyrodgm.kernels.base import Kernel
from pyrodgm.nets.mlp import MLP

__all__ = ["NeuralEnergy"]


class NeuralEnergy(TiltedEnergy):
    r"""Any network f as energy, confined by a base density b.

    .. math:: p(x \mid c) = \frac{b(x) \exp(-f(x, c))}{Z(c)}, \qquad E(x, c) = f(x, c) - \log b(x)

    The source's density is :math:`\exp(-f)` alone, over the bounded box of pixel values. On R^D that has no
    normaliser; the base gives one wherever f falls slower than -log b rises, which a perceptron does under a Gaussian.
    A flow as base makes the network its correction. Objectives: ``ReplayDivergence``, ``DenoisingScoreMatching``,
    ``SlicedScoreMatching``, ``ScoreMatching``, ``NoiseContrastive``, ``ContrastiveDivergence``.

    Args:
        event_shape: of one x; a number D is (D,).
        net: (B, *event) -> (B,) or (B, 1), with a context (B, *event), (B, C) -> the same. Score matching
            differentiates it twice: a net of ReLUs has nothing there, SiLU has.
        context: size C of the conditioning vector, 0 for none.
        base: default N(0, I).
        kernel: default ``MALA(0.3)``.
    Shapes: x (*B, *event), context (*B, C) -> energy (*B,).
    Raises: ValueError if the parts do not fit, or the net gives more than one number a row.
    Source: LeCun et al. (2006), A tutorial on energy-based learning; Du and Mordatch (2019),
        arXiv:1903.08689; the base as in Pang et al. (2020), arXiv:2006.08205.
    Example:
        >>> model = NeuralEnergy.mlp(features=2, hidden=[16])
        >>> log_z, error = model.log_partition("grid")
        >>> model.log_prob(torch.zeros(3, 2)).shape, bool(error < 1e-5)
        (torch.Size([3]), True)
    """

    def __init__(
        self,
        event_shape: int | tuple[int, ...],
        net: nn.Module,
        context: int = 0,
        base: Tractable | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        super().__init__(event_shape, base, kernel, context)
        self.net = net

    @classmethod
    def mlp(
        cls,
        features: int,
        hidden: Sequence[int] = (128, 128),
        context: int = 0,
        base: Tractable | None = None,
        kernel: Kernel | None = None,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> NeuralEnergy:
        """A perceptron of x beside the context; its last layer has no bias, which Z would cancel.

        Args:
            features: D.
            hidden: widths of the hidden layers.
            context: size C of the conditioning vector.
            base, kernel: as above.
            activation: makes one activation module.
        """
        return cls(features, _Perceptron(features + context, 1, hidden, activation), context, base, kernel)

    def tilt(self, x: Tensor, context: Tensor | None) -> Tensor:
        value: Tensor = self.net(x) if context is None else self.net(x, context)
        if value.numel() != len(x):
            raise ValueError(
                f"expected a net that gives one number a row, ({len(x)},), got {tuple(value.shape)}; "
                "let its last layer have one output"
            )
        return value.reshape(len(x))


class _Perceptron(nn.Module):
    """A perceptron of x beside its context, without a last bias: (B, D), (B, C) -> (B, outputs)."""

    def __init__(
        self, inputs: int, outputs: int, hidden: Sequence[int], activation: Callable[[], nn.Module] = nn.SiLU
    ) -> None:
        super().__init__()
        self.net = MLP(inputs, outputs, hidden, activation)
        last: nn.Linear = self.net[-1]  # type: ignore[assignment]
        last.register_parameter("bias", None)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(x if context is None else torch.cat((x, context), -1))
