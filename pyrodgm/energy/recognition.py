"""Bottom-up sigmoid layers: the recognition network of a deep belief network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pyrodgm.energy.visible_units import draw_bernoulli

if TYPE_CHECKING:
    from pyrodgm.energy.rbm import RBM

__all__ = ["Recognition", "bernoulli_log_prob"]


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """log-probability of zeros and ones with these log-odds, (*B, N) -> (*B,).

    Example:
        >>> bernoulli_log_prob(torch.ones(2), torch.zeros(2)).exp()
        tensor(0.2500)
    """
    return logsigmoid(torch.where(x > 0.5, logits, -logits)).sum(-1)


class Recognition(nn.Module):
    r"""Layers drawn upwards, :math:`q(h \mid x) = \prod_l q(h_l \mid h_{l-1})`, each of independent sigmoid units.

    Args:
        visible: V.
        hidden: sizes of h_1 to h_{L-1}: those of the deep belief network without its last.
    Attributes:
        up: linear maps of q(h_{l+1} | h_l), from l = 0.
    Shapes: x (*B, V) -> [(*B, H_l)].
    Source: Hinton, Osindero and Teh (2006), A fast learning algorithm for deep belief nets.
    Example:
        >>> recognition = Recognition(6, [4, 3])
        >>> h = recognition.draw(torch.ones(5, 6))
        >>> recognition.log_prob(torch.ones(5, 6), h).shape
        torch.Size([5])
    """

    def __init__(self, visible: int, hidden: Sequence[int]) -> None:
        super().__init__()
        sizes = (visible, *hidden)
        self.up = nn.ModuleList([nn.Linear(sizes[i], sizes[i + 1]) for i in range(len(hidden))])

    @classmethod
    def from_stack(cls, stack: Sequence[RBM]) -> Recognition:
        """What pre-trained RBMs, bottom first, say upwards; the last one belongs to the top of the network."""
        model = cls(stack[0].weight.shape[1], [rbm.weight.shape[0] for rbm in stack[:-1]])
        model.to(stack[0].weight)
        for layer, rbm in zip(model.up, stack, strict=False):
            layer.load_state_dict({"weight": rbm.weight, "bias": rbm.hidden_bias})
        return model

    @torch.no_grad()
    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """h ~ q(h | x), bottom first."""
        layers = [x]
        for layer in self.up:
            layers.append(draw_bernoulli(layer(layers[-1]), generator))
        return layers[1:]

    def log_prob(self, x: Tensor, h: Sequence[Tensor]) -> Tensor:
        """log q(h | x) in nats, (*B, V), [(*B, H_l)] -> (*B,)."""
        log_prob = x.new_zeros(())
        for layer, low, high in zip(self.up, (x, *h), h, strict=False):
            log_prob = log_prob + bernoulli_log_prob(high, layer(low))
        return log_prob
