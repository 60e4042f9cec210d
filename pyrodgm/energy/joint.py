"""A classifier read as an energy model of its inputs (JEM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from pyrodgm.core import Tractable, evaluating
from pyrodgm.energy.neural import _Perceptron
from pyrodgm.energy.tilted import TiltedEnergy
from pyrodgm.kernels.base import Kernel

__all__ = ["JointEnergy"]


class JointEnergy(TiltedEnergy):
    r"""The logits f(x) of a classifier as a joint density of x and its label y, confined by a base density b.

    .. math::
        p(x, y) = \frac{b(x) \exp f(x)_y}{Z}, \quad p(y \mid x) = \mathrm{softmax}(f(x))_y, \quad
        p(x) = \frac{b(x)}{Z} \sum_y \exp f(x)_y, \quad p(x \mid y) = \frac{b(x) \exp f(x)_y}{Z_y}

    With ``context=0`` it is the model of p(x). With ``context=classes`` it is p(x | y): labels come as one-hot
    contexts, so ``fit(model, x, JointLikelihood(), context=y)`` trains all three, ``sample(n, context=y)`` draws
    examples of a class and :meth:`classify` is the classifier. :meth:`marginal` and :meth:`conditional` turn one
    into the other with the same parameters. A context that is no one-hot vector weighs the logits,
    :math:`E = -y^\top f(x) - \log b(x)`.

    Args:
        event_shape: of one x; a number D is (D,).
        net: (B, *event) -> logits (B, K).
        classes: K.
        context: 0 for p(x), K for p(x | y).
        base: default N(0, I); the source has none (its x are pixels in a box).
        kernel: default ``MALA(0.3)``.
    Shapes: x (*B, *event), context (*B, K) -> energy (*B,).
    Raises: ValueError if the sizes do not fit.
    Source: Grathwohl et al. (2020), arXiv:1912.03263.
    Example:
        >>> import torch
        >>> joint = JointEnergy.mlp(features=2, classes=3, hidden=[16], context=3)
        >>> joint.classify(torch.zeros(4, 2)).shape
        torch.Size([4, 3])
        >>> joint.sample(5, context=torch.eye(3)).shape  # five draws of each class
        torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        event_shape: int | tuple[int, ...],
        net: nn.Module,
        classes: int,
        context: int = 0,
        base: Tractable | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        if classes < 1 or context not in (0, classes):
            raise ValueError(
                f"expected classes >= 1 and a context of 0 (p(x)) or {classes} (one-hot labels, p(x | y)), got "
                f"classes={classes} and context={context}"
            )
        if base is not None and base.context:
            raise ValueError(
                f"expected a base without context, got one of {base.context}: p(y | x) is the classifier's alone"
            )
        super().__init__(event_shape, base, kernel, context)
        self.net, self.classes = net, classes

    @classmethod
    def mlp(
        cls,
        features: int,
        classes: int,
        hidden: Sequence[int] = (128, 128),
        context: int = 0,
        base: Tractable | None = None,
        kernel: Kernel | None = None,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> JointEnergy:
        """A perceptron as the classifier, arguments as above; its last layer has no bias, which every Z_y would cancel.

        Args:
            features: D.
            hidden: widths of the hidden layers.
            activation: makes one activation module.
        """
        return cls(features, _Perceptron(features, classes, hidden, activation), classes, context, base, kernel)

    def logits(self, x: Tensor) -> Tensor:
        """f(x), (*B, *event) -> (*B, K)."""
        x = self.check_x(x)
        lead = x.shape[: x.dim() - len(self.event_shape)]
        f: Tensor = self.net(x.reshape(-1, *self.event_shape))
        if f.shape[1:] != (self.classes,):
            raise ValueError(f"expected a net with {self.classes} outputs a row, got {tuple(f.shape[1:])}")
        return f.reshape(*lead, self.classes)

    def labels(self, x: Tensor) -> dist.OneHotCategorical:
        """p(y | x), batch shape (*B), over one-hot labels; ``.probs`` and ``.logits`` are (*B, K)."""
        return dist.OneHotCategorical(logits=self.logits(x))

    def classify(self, x: Tensor) -> Tensor:
        """p(y | x) without gradients, in eval mode: (*B, *event) -> (*B, K), rows of probabilities."""
        with evaluating(self):
            return self.labels(x).probs

    def tilt(self, x: Tensor, context: Tensor | None) -> Tensor:
        f = self.logits(x)
        return -f.logsumexp(-1) if context is None else -(context * f).sum(-1)

    def marginal(self) -> JointEnergy:
        """p(x), with the same parameters."""
        return self._read_as(0)

    def conditional(self) -> JointEnergy:
        """p(x | y), whose context is one-hot labels, with the same parameters."""
        return self._read_as(self.classes)

    def _read_as(self, context: int) -> JointEnergy:
        if context == self.context:
            return self
        other = JointEnergy((*self.event_shape,), self.net, self.classes, context, self.base, self.kernel)
        other.training = self.training  # of this view alone: the parts are shared and have their own
        other.sample_steps, other.negative_steps = self.sample_steps, self.negative_steps
        return other
