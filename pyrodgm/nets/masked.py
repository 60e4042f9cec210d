"""Masked networks: output i sees the inputs before i in an order, and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrodgm.nets.mlp import by_columns
from pyrodgm.nets.staircase import blocks_of, staircase_linear

__all__ = ["MaskedMLP", "one_hot"]


class MaskedMLP(nn.Module):
    r"""A perceptron whose output for feature d depends on the features before d in an order.

    Feature d has the rank :math:`r_d`; a hidden unit of degree m sees the inputs of rank
    :math:`\le m` and the units below of degree :math:`\le m`; the outputs of feature d see the
    units of degree :math:`< r_d`. The degrees are the only state: masks are made from them, so a
    weight that the mask hides never acts, whatever its (finite) value. The context reaches everything.

    Args:
        features: D.
        outputs: numbers P for each feature.
        hidden: widths of the hidden layers.
        context: size C of the conditioning vector, 0 for none.
        order: ``order[d]`` is the rank of feature d; default the natural order.
        masks: how many sets of degrees M. The first is evenly spread in ``order``; with M > 1 all
            are random, in random orders unless ``order`` is given.
        direct: add masked linear connections from the inputs to the outputs.
        activation: makes one activation module, which works unit by unit.
        categories: K, where x is made of codes 0, ..., K - 1: each is read as a block of K inputs, of which one is 1;
            0 reads x as numbers.
    Shapes: x (*B, D), context (*B, C) -> (*B, P, D).
    Raises: ValueError for sizes below 1, an order that is no permutation, one category, or an activation that mixes
        units.
    Source: Germain et al. (2015), arXiv:1502.03509, eq. 8-12 and section 4.2.
    Example:
        >>> MaskedMLP(5, 2, [16])(torch.zeros(3, 5)).shape
        torch.Size([3, 2, 5])
    """

    columns = False  # whether the outputs are laid out as those of MLP(columns=True)

    def __init__(
        self,
        features: int,
        outputs: int,
        hidden: Sequence[int],
        *,
        context: int = 0,
        order: Tensor | None = None,
        masks: int = 1,
        direct: bool = False,
        activation: Callable[[], nn.Module] = nn.ReLU,
        categories: int = 0,
    ) -> None:
        super().__init__()
        if features < 1 or outputs < 1 or masks < 1 or min(hidden, default=1) < 1:
            raise ValueError(
                f"expected positive sizes, got features={features}, outputs={outputs}, hidden={list(hidden)}, "
                f"masks={masks}"
            )
        if order is not None and sorted(torch.as_tensor(order).tolist()) != list(range(features)):
            raise ValueError(f"expected order to be a permutation of 0..{features - 1}, got {order}")
        if categories < 0 or categories == 1:
            raise ValueError(f"expected categories >= 2, or 0 for x of numbers, got {categories}")
        self.features, self.outputs, self.context, self.masks = features, outputs, context, masks
        self.categories = categories
        sizes = [features * (categories or 1), *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.last = nn.Linear(sizes[-1], outputs * features)
        self.direct = nn.Linear(sizes[0], outputs * features, bias=False) if direct and hidden else None
        first = sizes[1] if hidden else outputs * features
        self.from_context = nn.Linear(context, first, bias=False) if context else None
        self.context_to_last = nn.Linear(context, outputs * features, bias=False) if context and hidden else None
        self.activation = _elementwise(activation(), hidden)
        if categories:
            self._start_from_codes()
        self._set_degrees(hidden, order)
        self._set_masks()

    @torch.no_grad()
    def _start_from_codes(self) -> None:
        """One of each block's K inputs is 1, so the weights start as those of D inputs do, not of D K."""
        readers: list[nn.Module] = [self.layers[0] if len(self.layers) else self.last]
        for module in readers if self.direct is None else [*readers, self.direct]:
            for parameter in module.parameters():
                parameter.mul_(self.categories**0.5)

    def _set_degrees(self, hidden: Sequence[int], order: Tensor | None) -> None:
        """Ranks (M, D) and, for each hidden layer, degrees (M, H), as buffers that travel with the weights."""
        features, masks = self.features, self.masks
        natural = torch.arange(features) if order is None else torch.as_tensor(order)
        shuffle = masks > 1 and order is None
        ranks = torch.stack([torch.randperm(features) if shuffle else natural for _ in range(masks)])
        self.register_buffer("ranks", ranks)
        lowest, highest = (-1 if self.context else 0), max(features - 2, 0)
        least = torch.full((masks,), lowest)
        for i, width in enumerate(hidden):
            if masks == 1:
                degrees = (lowest + torch.arange(width) * (highest - lowest + 1) // width)[None]
            else:
                # A unit below the least degree of the layer before it would see nothing (Germain et al., section 4.2).
                degrees = torch.stack([torch.randint(int(low), highest + 1, (width,)) for low in least])
                least = degrees.min(1).values
            self.register_buffer(f"degrees{i}", degrees)

    def _set_masks(self) -> None:
        """One set of masks is kept, as numbers: multiplying costs a third of comparing and choosing at each step."""
        self.plans: dict[int, Any] = {}  # of passes feature by feature, which make them when they need them
        masks = self._make_masks(0) if self.masks == 1 else []
        for i, mask in enumerate(masks):
            self.register_buffer(f"mask{i}", mask, persistent=False)
        self.kept = [f"mask{i}" for i in range(len(masks))]
        runs = [1] * len(self.layers) + [self.outputs] * 2  # the last rows climb the stairs once for each output
        self.blocks = [blocks_of(mask, run) for mask, run in zip(masks, runs, strict=False)]

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._set_masks()

    def _degrees(self, mask: int | Tensor) -> list[Tensor]:
        """The ranks of the inputs and the degrees of each hidden layer under one mask."""
        stacks = [self.ranks, *(getattr(self, f"degrees{i}") for i in range(len(self.layers)))]
        if isinstance(mask, Tensor):
            return [s.index_select(0, mask.reshape(1))[0] for s in stacks]
        return [s[mask] for s in stacks]

    def _make_masks(self, mask: int | Tensor) -> list[Tensor]:
        """1 where a weight acts, else 0: of the hidden layers, the last layer, then the direct connections."""
        ranks, *above = self._degrees(mask)
        degrees = [ranks.repeat_interleave(self.categories or 1), *above]
        last = ranks.repeat(self.outputs)[:, None]
        masks = [up[:, None] >= down for down, up in pairwise(degrees)] + [last > degrees[-1]]
        if self.direct is not None:
            masks.append(last > degrees[0])
        return [m.to(self.last.weight.dtype) for m in masks]

    def forward(self, x: Tensor, context: Tensor | None = None, mask: int | Tensor = 0) -> Tensor:
        return self.flat(x, context, mask).unflatten(-1, (self.outputs, self.features))  # (*B, P * D) -> (*B, P, D)

    def flat(self, x: Tensor, context: Tensor | None = None, mask: int | Tensor = 0) -> Tensor:
        """The outputs before they are given a dimension of their own: (*B, D), (*B, C) -> (*B, P * D)."""
        # A step of a small network takes as long as a hundred such lines: they ask the modules for little.
        modules, buffers = cast(dict[str, Any], self._modules), self._buffers
        masks: Any = [buffers[name] for name in self.kept] or self._make_masks(mask)
        if self.categories:
            x = one_hot(x, self.categories).flatten(-2)  # (*B, D) -> (*B, D * K)
        blocks, activation, h = self.blocks or [None] * len(masks), modules["activation"], x
        if type(activation) is nn.ReLU:
            activation = F.relu_  # what it changes is the fresh output of a linear map
        layers = modules["layers"]._modules.values()
        for i, layer in enumerate(layers):
            h = _masked(layer, h, masks[i], blocks[i])
            if i == 0 and self.context:
                h = h + modules["from_context"](context)
            h = activation(h)
        last = len(layers)
        out = _masked(modules["last"], h, masks[last], blocks[last], self.columns)
        direct = modules.get("direct")
        if direct is not None:
            out = out + F.linear(x, direct.weight * masks[-1])
        if self.context:
            out = out + modules["context_to_last" if last else "from_context"](context)
        return out


def one_hot(codes: Tensor, categories: int) -> Tensor:
    """Codes as vectors of which one number is 1, of their own floating type: (*B,) -> (*B, K).

    Example:
        >>> one_hot(torch.tensor([0.0, 2.0]), 3)
        tensor([[1., 0., 0.],
                [0., 0., 1.]])
    """
    # torch's own checks the codes by reading them, for which an accelerator has to wait
    return (codes.unsqueeze(-1) == torch.arange(categories, dtype=codes.dtype, device=codes.device)).to(codes.dtype)


@torch.no_grad()
def _elementwise(activation: nn.Module, widths: Sequence[int]) -> nn.Module:
    """The activation, if it is one function of every unit, and without its work in place.

    Raises: ValueError if it mixes units, as layer norm does, past which every output would see every input, or treats
        them unlike, which the sequential way, with its units in another order, could not follow.
    """
    for part in activation.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]  # the sequential way still needs what comes in
    was = activation.training
    activation.eval()
    for width in set(widths):
        probe = torch.linspace(-2, 2, 2 * width).view(2, width)
        try:
            alone = probe.is_meta or torch.allclose(activation(probe), activation(probe.view(-1, 1)).view(2, width))
        except (RuntimeError, ValueError):  # it wants a row of all units
            alone = False
        if not alone:
            raise ValueError(
                f"expected an activation that is the same function of every unit (a mask cannot hold another), got "
                f"{activation}; leave norms and softmax out of masked networks"
            )
    activation.train(was)
    return activation


def _masked(layer: Any, h: Tensor, mask: Tensor, blocks: Any, columns: bool = False) -> Tensor:
    own = layer._parameters
    try:
        weight, bias = own["weight"], own["bias"]
    except KeyError:  # a parametrization computes one of them
        weight, bias = layer.weight, layer.bias
    if blocks is not None:
        return staircase_linear(h, weight, bias, mask, blocks)
    return by_columns(h, weight * mask, bias) if columns else F.linear(h, weight * mask, bias)
