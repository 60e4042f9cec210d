"""MADE with Bernoulli conditionals, beside the peers' masked networks with the cross-entropy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from contenders import Contender, floor, linears
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn
from torch.nn import functional as F

from pyrodgm.tractable import MADE

__all__ = ["made"]

Widths = tuple[int, ...]


def _bernoulli(name: str, net: nn.Module, logits: Callable[[Tensor], Tensor], features: int, n: int) -> Contender:
    """A peer's masked net with the cross-entropy; its sampler is the one such nets allow, D full passes."""
    device = next(net.parameters()).device

    def log_prob(x: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(logits(x), x, reduction="none").sum(-1)

    def sample() -> Tensor:
        x = torch.zeros(n, features, device=device)
        for d in range(features):
            x[:, d] = torch.bernoulli(logits(x)[:, d].sigmoid())
        return x

    return Contender(name, list(net.parameters()), log_prob, sample)


def made_pyrodgm(features: int, hidden: Widths, device: str, n: int) -> Contender:
    model = MADE(features, hidden).to(device)
    return Contender("pyrodgm", list(model.parameters()), model.log_prob, lambda: model.sample(n))


def made_pyro(features: int, hidden: Widths, device: str, n: int) -> Contender:  # it refuses hidden < features
    net = AutoRegressiveNN(features, list(hidden), param_dims=[1], permutation=torch.arange(features)).to(device)
    return _bernoulli("pyro", net, net, features, n)


def made_nflows(features: int, hidden: Widths, device: str, n: int) -> Contender:
    from nflows.transforms import made as peer

    # Its first layer ends in the activation; each block is one layer more, of the same width.
    net = peer.MADE(features, hidden[0], num_blocks=len(hidden) - 1, use_residual_blocks=False)
    return _bernoulli("nflows", net.to(device), net, features, n)


def made_normflows(features: int, hidden: Widths, device: str, n: int) -> Contender:
    from normflows.nets import made as peer

    net = peer.MADE(features, hidden[0], num_blocks=len(hidden) - 1, use_residual_blocks=False).to(device)

    def logits(x: Tensor) -> Tensor:
        """Its own forward has no activation behind the first layer, which would be another network."""
        h = F.relu(net.initial_layer(x))
        for block in net.blocks:
            h = block(h)
        return net.final_layer(h)

    return _bernoulli("normflows", net, logits, features, n)


def made_zuko(features: int, hidden: Widths, device: str, n: int) -> Contender:
    import zuko

    net = zuko.nn.MaskedMLP(torch.ones(features, features).tril(-1).bool(), hidden_features=hidden).to(device)
    return _bernoulli("zuko", net, net, features, n)


def made(
    features: int, batch: int, device: str, hidden: Widths = (500,), n: int = 100
) -> tuple[list[Contender], Tensor]:
    """The contenders, the bare products first, and a batch of bits, (batch, features)."""
    makers = (made_pyrodgm, made_pyro, made_nflows, made_zuko, made_normflows)
    fits = min(hidden) >= features
    contenders = [make(features, hidden, device, n) for make in makers if make is not made_pyro or fits]
    bare = floor([linears(MADE(features, hidden))], batch, n, device)
    return [bare, *contenders], torch.rand(batch, features, device=device).round()
