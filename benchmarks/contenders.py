"""What the flow benchmarks share: one contender of one library, and the bare matrix products of its networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pyrodgm.tractable import Flow

__all__ = [
    "BOUND",
    "Contender",
    "Net",
    "floor",
    "linears",
    "nflows_contender",
    "ours",
    "reverse_kl",
    "zuko_contender",
    "zuko_splines",
]

BOUND = 3.0  # of the splines, in every library


@dataclass
class Contender:
    """What is timed of one library.

    Attributes:
        log_prob: (B, D) -> (B,).
        sample: draws, timed without gradients.
        draw: reparameterised draws and their log-probabilities, with gradients: ((n, D), (n,)).
    """

    name: str
    parameters: list[nn.Parameter]
    log_prob: Callable[[Tensor], Tensor]  # (B, D) -> (B,)
    sample: Callable[[], Any] | None = None
    draw: Callable[[], tuple[Tensor, Tensor]] | None = None


def floor(
    nets: Iterable[Sequence[nn.Module]], batch: int, n: int, device: str, sizes: Sequence[Sequence[int]] | None = None
) -> Contender:
    """Linear layers in a row, several rows; all inputs but the last row's want gradients, as a chain does.

    ``sizes`` are the shapes of one input of each row, where it is not a vector (convolutions).
    """
    nets = [[copy.deepcopy(m).to(device) for m in net] for net in nets]
    sizes = [[net[0].in_features] for net in nets] if sizes is None else sizes
    inputs = [torch.randn(max(batch, n), *size, device=device) for size in sizes]
    parameters = [p for net in nets for m in net for p in m.parameters()]

    class Products(torch.autograd.Function):
        """The network's outputs with given gradients, so that no loss is computed."""

        @staticmethod
        def forward(ctx: Any, *outputs: Tensor) -> Tensor:
            return outputs[0].new_zeros(())

        @staticmethod
        def backward(ctx: Any, _: Tensor) -> tuple[Tensor, ...]:
            return tuple(grads)

    def outputs(rows: int = batch) -> list[Tensor]:
        result = []
        for i, (net, h) in enumerate(zip(nets, inputs, strict=True)):
            h = h[:rows].detach().requires_grad_(i < len(nets) - 1)
            for layer in net:
                h = layer(h)
            result.append(h)
        return result

    with torch.no_grad():
        grads = [torch.randn_like(out) for out in outputs()]

    def draw() -> tuple[Tensor, Tensor]:
        total = Products.apply(*outputs())
        return total, total

    return Contender("floor", parameters, lambda x: Products.apply(*outputs()), lambda: outputs(n), draw)


def ours(flow: Flow, batch: int, n: int) -> Contender:
    """A flow of pyrodgm."""
    return Contender(
        "pyrodgm",
        list(flow.parameters()),
        flow.log_prob,
        lambda: flow.sample(n),
        lambda: flow.condition().rsample_and_log_prob((batch,)),
    )


def nflows_contender(flow: Any, batch: int, n: int) -> Contender:
    """A flow of nflows."""
    return Contender(
        "nflows",
        list(flow.parameters()),
        flow.log_prob,
        lambda: flow.sample(n),
        lambda: flow.sample_and_log_prob(batch),
    )


def zuko_contender(flow: Any, batch: int, n: int) -> Contender:
    """A flow of zuko."""
    return Contender(
        "zuko",
        list(flow.parameters()),
        lambda x: flow().log_prob(x),
        lambda: flow().sample((n,)),
        lambda: flow().rsample_and_log_prob((batch,)),
    )


def zuko_splines(bins: int) -> dict[str, Any]:
    """zuko's options for rational-quadratic splines; none for affine maps."""
    import zuko

    if not bins:
        return {}
    return {
        "univariate": partial(zuko.transforms.MonotonicRQSTransform, bound=BOUND),
        "shapes": [(bins,), (bins,), (bins - 1,)],
    }


def linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


class Net(nn.Sequential):
    """The same perceptron for every peer that takes a module; a context argument is accepted and ignored."""

    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int]) -> None:
        sizes = [inputs, *hidden, outputs]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        super().__init__(*layers[:-1])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x)


def reverse_kl(draw: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
    """The loss of fitting a flow to N(0, I) by its own draws."""
    x, log_prob = draw()
    return (log_prob + 0.5 * x.square().sum(-1)).mean()
