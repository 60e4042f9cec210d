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

__all__ = ["IncrementalPass", "MaskedMLP", "one_hot"]

_CHUNK = 8  # features whose units are pushed to all later ones together


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
        activation: makes one activation module.
        categories: K, where x is made of codes 0, ..., K - 1: each is read as a block of K inputs, of which one is 1;
            0 reads x as numbers.
    Shapes: x (*B, D), context (*B, C) -> (*B, P, D).
    Raises: ValueError for sizes below 1, an order that is no permutation, or one category.
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
        self.activation = activation()
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
            h = _masked(layer._parameters, h, masks[i], blocks[i])
            if i == 0 and self.context:
                h = h + modules["from_context"](context)
            h = activation(h)
        last = len(layers)
        ends = modules["last"]._parameters
        if self.columns and blocks[last] is None:
            out = by_columns(h, ends["weight"] * masks[last], ends["bias"])
        else:
            out = _masked(ends, h, masks[last], blocks[last])
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


def _masked(parameters: dict[str, Any], h: Tensor, mask: Tensor, blocks: Any) -> Tensor:
    if blocks is None:
        return F.linear(h, parameters["weight"] * mask, parameters["bias"])
    return staircase_linear(h, parameters["weight"], parameters["bias"], mask, blocks)


class IncrementalPass:
    r"""One forward pass of a :class:`MaskedMLP`, feature by feature, that uses every weight once.

    The units are sorted by degree, so when feature of rank i is set, exactly the units of degree i
    become computable: a block of rows of each layer. D steps cost one dense pass, where D full
    passes cost D. As in a blocked triangular solve, the units of a chunk of features are added to
    all later ones in one product.

    Args:
        net: the network; ``mask`` picks one of its sets of degrees.
        context: (N, C) or None.
        rows: N.
    """

    @torch.no_grad()
    def __init__(self, net: MaskedMLP, context: Tensor | None, rows: int, mask: int = 0) -> None:
        ranks, *degrees = net._degrees(mask)
        self.features, self.outputs, self.categories = net.features, net.outputs, net.categories
        width = net.categories or 1  # inputs of a feature
        self.order = ranks.argsort()  # self.order[i] is the feature of rank i
        self.order_list = self.order.tolist()
        self.activation = net.activation
        inputs = (self.order[:, None] * width + torch.arange(width, device=ranks.device)).flatten()
        sorts = [inputs, *(d.argsort(stable=True) for d in degrees)]
        last_sort = torch.cat([self.order + p * net.features for p in range(net.outputs)])
        to_last = net.context_to_last if net.layers else net.from_context

        layers = cast(list[nn.Linear], list(net.layers))

        def bias(linear: nn.Linear, from_context: nn.Linear | None, sort: Tensor) -> Tensor:
            value = linear.bias[:, None]  # (H, 1) or, with context, (H, N)
            if from_context is not None and context is not None:
                value = value + from_context.weight @ context.T
            return _sorted(value, sort)

        self.weights = [
            _sorted(_sorted(layer.weight, up), down, 1).contiguous()
            for layer, down, up in zip(layers, sorts[:-1], sorts[1:], strict=True)
        ]
        self.biases = [
            bias(layer, net.from_context if i == 0 else None, sort)
            for i, (layer, sort) in enumerate(zip(layers, sorts[1:], strict=True))
        ]
        split = (net.outputs, net.features)
        last_weight = _sorted(_sorted(net.last.weight, last_sort), sorts[-1], 1)
        self.last_weight = last_weight.unflatten(0, split).transpose(0, 1).contiguous()
        self.last_bias = bias(net.last, to_last, last_sort).unflatten(0, split).transpose(0, 1).contiguous()
        self.direct = (
            None
            if net.direct is None
            else net.direct.weight[last_sort][:, inputs].unflatten(0, split).transpose(0, 1).contiguous()
        )
        # ends[l][i]: how many units of layer l have a degree below i (layer 0 is the input, of ranks below i).
        grid = torch.arange(net.features + 1, device=ranks.device)
        self.ends = [(grid * width).tolist()] + [
            torch.searchsorted(d[s].contiguous(), grid).tolist() for d, s in zip(degrees, sorts[1:], strict=True)
        ]
        like = net.last.weight
        self.units = [like.new_empty(s.numel(), rows) for s in sorts]  # (H, N): a block of units is contiguous
        self.values = like.new_empty(net.features, rows) if self.categories else self.units[0]  # by rank, (D, N)
        # Pre-activations, as far as the finished chunks of features go: (H, N), and (D, P, N) of the outputs.
        self.inputs = [b.expand(-1, rows).clone() for b in self.biases]
        self.out = self.last_bias.expand(-1, -1, rows).clone()
        self.begun = [0] * len(self.ends)  # where the units of the chunk at hand begin
        for level in range(1, len(self.units)):
            self._fill(level, 0, self.ends[level][0], self.ends[level - 1][0])
        self._push(0)

    def _fill(self, level: int, start: int, end: int, below: int) -> None:
        """Compute the units start .. end of a hidden layer, once the first ``below`` units under it are there."""
        if end == start:
            return
        inputs, under = self.inputs[level - 1][start:end], self.begun[level - 1]
        if below > under:
            inputs.addmm_(self.weights[level - 1][start:end, under:below], self.units[level - 1][under:below])
        self.units[level][start:end] = self.activation(inputs)

    def _push(self, features: int) -> None:
        """A chunk has ended: add what its units feed to all that come later, in products of many rows."""
        for level in range(1, len(self.units)):
            under, below = self.begun[level - 1], self.ends[level - 1][features]
            later = self.ends[level][features]
            if below > under and later < len(self.units[level]):
                weight = self.weights[level - 1][later:, under:below]
                self.inputs[level - 1][later:].addmm_(weight, self.units[level - 1][under:below])
        under, seen = self.begun[-1], self.ends[-1][features]
        if seen > under and features < self.features:
            weight = self.last_weight[features:, :, under:seen].flatten(0, 1)
            self.out[features:].flatten(0, 1).addmm_(weight, self.units[-1][under:seen])
        self.begun = [end[features] for end in self.ends]

    def parameters(self, i: int) -> Tensor:
        """The P numbers for the feature of rank i, (P, N), once the ranks below i are set."""
        under, seen = self.begun[-1], self.ends[-1][i]
        out = torch.addmm(self.out[i], self.last_weight[i][:, under:seen], self.units[-1][under:seen])
        if self.direct is None:
            return out
        inputs = self.ends[0][i]
        return out + self.direct[i][:, :inputs] @ self.units[0][:inputs]

    def set(self, i: int, value: Tensor) -> None:
        """Fix the feature of rank i to ``value`` (N,)."""
        self.values[i] = value
        if self.categories:
            self.units[0][self.ends[0][i] : self.ends[0][i + 1]] = one_hot(self.values[i], self.categories).T
        for level in range(1, len(self.units)):
            self._fill(level, self.ends[level][i], self.ends[level][i + 1], self.ends[level - 1][i + 1])
        if (i + 1) % _CHUNK == 0:
            self._push(i + 1)

    def result(self) -> Tensor:
        """The features in their natural order, (N, D)."""
        return self.values[self.order.argsort()].T.contiguous()


def _sorted(values: Tensor, sort: Tensor, dim: int = 0) -> Tensor:
    """values in an order along one dimension, without a copy where they have it already, as degrees mostly do."""
    return values if bool((sort.diff() > 0).all()) else values.index_select(dim, sort)
