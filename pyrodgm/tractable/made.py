"""MADE: a masked autoencoder whose outputs are the conditionals of an autoregressive density."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pyro.distributions import TorchDistribution, is_validation_enabled
from torch import Tensor, nn

from pyrodgm.core import Tractable
from pyrodgm.distributions.autoregressive import AutoregressiveDistribution, MixtureOfOrders
from pyrodgm.distributions.conditionals import BernoulliConditional, Conditional
from pyrodgm.nets.masked import MaskedMLP

__all__ = ["MADE"]


class MADE(Tractable):
    r"""Masked autoencoder for distribution estimation.

    .. math:: \log p(x \mid c) = \sum_d \log p(x_d \mid x_{<d}, c)

    with every conditional from one pass of a masked network; sampling uses each weight once.
    With ``masks`` > 1, training meets a random mask at each step, and in eval mode the density is
    the average of the M densities (so a training loss bounds the ensemble's from above).

    Args:
        features: D.
        hidden: widths of the hidden layers.
        conditional: family of one feature: :class:`BernoulliConditional` (default),
            :class:`GaussianMixtureConditional`, or :class:`CategoricalConditional`, whose codes enter the network
            as one-hot blocks.
        context: size C of the conditioning vector, 0 for none.
        order: ``order[d]`` is the rank of feature d; default natural, or random for each of several masks.
        masks: how many sets of masks.
        direct: masked linear connections from inputs to outputs as well.
        activation: makes one activation module, which works unit by unit.
    Shapes: x (*B, D), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError for sizes below 1 or an order that is no permutation.
    Source: Germain et al. (2015), arXiv:1502.03509.
    Example:
        >>> model = MADE(features=6, hidden=[32])
        >>> model.log_prob(model.sample(4)).shape
        torch.Size([4])
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (500,),
        *,
        conditional: Conditional | None = None,
        context: int = 0,
        order: Tensor | None = None,
        masks: int = 1,
        direct: bool = False,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__((features,), context)
        self.conditional = BernoulliConditional() if conditional is None else conditional
        size, categories = self.conditional.size, self.conditional.categories
        self.net = MaskedMLP(
            features,
            size,
            hidden,
            context=context,
            order=order,
            masks=masks,
            direct=direct,
            activation=activation,
            categories=categories,
        )

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        _, context = self.check(None, context)
        masks = self.net.masks
        if masks == 1:
            return AutoregressiveDistribution(self.net, self.conditional, context)
        if self.training:
            mask = torch.randint(masks, (), device=self.device)
            return AutoregressiveDistribution(self.net, self.conditional, context, mask)
        return MixtureOfOrders(
            [AutoregressiveDistribution(self.net, self.conditional, context, m) for m in range(masks)]
        )

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        net = self.net
        if net.masks > 1 or is_validation_enabled():
            return super().log_prob(x, context)
        x, context = self.check(x, context)  # what the distribution would compute, without making one
        return self.conditional.log_prob(net.flat(x, context).to(x.dtype), x)
