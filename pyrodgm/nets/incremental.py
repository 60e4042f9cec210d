"""One pass through a masked network, feature by feature, with every weight used once."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pyrodgm.nets.masked import MaskedMLP, one_hot

__all__ = ["IncrementalPass", "in_order"]

_Sort = Tensor | None  # the places of values in an order that they take; None where they are in it already

_LEAST, _MOST, _UNITS = 4, 32, 128  # a chunk is of so many features, or of the units of one layer


class _Plan:
    """What a pass takes from the degrees alone; the network keeps it as it keeps its masks."""

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, net: MaskedMLP, mask: int) -> None:
        ranks, *degrees = net._degrees(mask)
        width = net.categories or 1  # inputs of a feature
        order = ranks.argsort()  # order[i] is the feature of rank i
        self.device = ranks.device
        inputs = (order[:, None] * width + torch.arange(width, device=ranks.device)).flatten()
        sorts = [inputs, *(d.argsort(stable=True) for d in degrees)]
        self.features, self.back_to_features = _sort(order), _sort(ranks)
        self.sorts, self.naturally = [_sort(s) for s in sorts], [_sort(s.argsort()) for s in sorts]
        self.last = _sort(torch.cat([order + p * net.features for p in range(net.outputs)]))
        # ends[l][i]: how many units of layer l have a degree below i (layer 0 is the input, of ranks below i).
        grid = torch.arange(net.features + 1, device=ranks.device)
        self.ends = [(grid * width).tolist()] + [
            torch.searchsorted(d[s].contiguous(), grid).tolist() for d, s in zip(degrees, sorts[1:], strict=True)
        ]
        units = max(1, *(end[-1] for end in self.ends)) // net.features  # that a step sets
        self.chunk = min(max(_UNITS // max(units, 1), _LEAST), _MOST)


def _sort(places: Tensor) -> _Sort:
    return None if bool((places.diff() > 0).all()) else places


def _plan(net: MaskedMLP, mask: int) -> _Plan:
    plan = net.plans.get(mask)
    if plan is None or plan.device != net.get_buffer("ranks").device:
        plan = net.plans[mask] = _Plan(net, mask)
    return cast(_Plan, plan)


class IncrementalPass:
    r"""One forward pass of a :class:`MaskedMLP`, feature by feature, that uses every weight once.

    The units are sorted by degree, so when feature of rank i is set, exactly the units of degree i
    become computable: a block of rows of each layer. D steps cost one dense pass, where D full
    passes cost D. As in a blocked triangular solve, the units of a chunk of features are added to
    all later ones in one product. ``inputs`` and ``out`` hold the sums over finished chunks; a step adds what the open
    chunk gives, whose units of later features are still 0.

    With D = 3 features in their natural order and four hidden units of degrees 0, 0, 1, 1, ``ends`` is
    [[0, 1, 2, 3], [0, 2, 4, 4]]: before the feature of rank i is set, the first ends[0][i] inputs and ends[1][i] units
    are known. So x_0 is drawn from the biases alone; with it the first two units (degree 0) are computed and x_1
    drawn; with that the other two, and x_2.

    Args:
        net: the network; ``mask`` picks one of its sets of degrees.
        context: (N, C) or None.
        rows: N.
    """

    @torch.no_grad()
    def __init__(self, net: MaskedMLP, context: Tensor | None, rows: int, mask: int = 0) -> None:
        self.plan = plan = _plan(net, mask)
        self.features, self.outputs, self.categories = net.features, net.outputs, net.categories
        self.ends, self.chunk, self.activation = plan.ends, plan.chunk, net.activation
        sorts = plan.sorts
        to_last = net.context_to_last if net.layers else net.from_context

        layers = cast(list[nn.Linear], list(net.layers))

        def bias(linear: nn.Linear, from_context: nn.Linear | None, sort: _Sort) -> Tensor:
            value = linear.bias[:, None]  # (H, 1) or, with context, (H, N)
            if from_context is not None and context is not None:
                value = value + from_context.weight @ context.T
            return in_order(value, sort)

        self.weights = [
            in_order(in_order(layer.weight, up), down, 1).contiguous()
            for layer, down, up in zip(layers, sorts[:-1], sorts[1:], strict=True)
        ]
        biases = [
            bias(layer, net.from_context if i == 0 else None, sort)
            for i, (layer, sort) in enumerate(zip(layers, sorts[1:], strict=True))
        ]
        split = (net.outputs, net.features)
        last_weight = in_order(in_order(net.last.weight, plan.last), sorts[-1], 1)
        self.last_weight = last_weight.unflatten(0, split).transpose(0, 1).contiguous()  # (D, P, H)
        last_bias = bias(net.last, to_last, plan.last).unflatten(0, split).transpose(0, 1)
        self.direct = (
            None
            if net.direct is None
            else in_order(in_order(net.direct.weight, plan.last), sorts[0], 1)
            .unflatten(0, split)
            .transpose(0, 1)
            .contiguous()
        )
        like = net.last.weight
        self.units = [like.new_zeros(end[-1], rows) for end in self.ends]  # (H, N): a block of units is contiguous
        self.values = like.new_empty(net.features, rows) if self.categories else self.units[0]  # by rank, (D, N)
        # Pre-activations, as far as the finished chunks of features go: (H, N), and (D, P, N) of the outputs.
        self.inputs = [b.expand(-1, rows).clone() for b in biases]
        self.out = last_bias.expand(-1, -1, rows).clone(memory_format=torch.contiguous_format)
        self.spans = [slice(0, end[0]) for end in self.ends]  # the units of each level that the context alone sets
        for level, weight in enumerate(self.weights):
            under, here = self.spans[level : level + 2]
            inputs = self.inputs[level][here].addmm_(weight[here, under], self.units[level][under])
            self._activate(inputs, self.units[level + 1][here])
        self._push(0)
        self._open(0)

    def _activate(self, inputs: Tensor, units: Tensor) -> None:
        """Units from their pre-activations, which stay as they are: (H, N) into (H, N)."""
        if type(self.activation) is nn.ReLU:
            torch.clamp_min(inputs, 0, out=units)
        else:
            units.copy_(inputs)  # some functions work in place
            units.copy_(self.activation(units))

    def _push(self, first: int) -> None:
        """Add what the units of a finished chunk feed to all those of ranks from ``first`` on, in products of many
        rows."""
        for level, weight in enumerate(self.weights):
            under, start = self.spans[level], self.ends[level + 1][first]
            self.inputs[level][start:].addmm_(weight[start:, under], self.units[level][under])
        out = self.out[first:].flatten(0, 1)
        for weights, level in self._to_out():
            under = self.spans[level]
            out.addmm_(weights[first:, :, under].flatten(0, 1), self.units[level][under])

    def _to_out(self) -> list[tuple[Tensor, int]]:
        """What the outputs are made of: weights (D, P, H), and the level whose units they take."""
        return [(self.last_weight, -1)] + ([] if self.direct is None else [(self.direct, 0)])

    def _open(self, first: int) -> None:
        """Begin a chunk: views of all that its steps read and write, which cost half as much made at once."""
        self.first, self.past = first, min(first + self.chunk, self.features)
        self.spans = [slice(end[first], end[self.past]) for end in self.ends]
        units = [units[span] for units, span in zip(self.units, self.spans, strict=True)]
        self.own_values = self.values[first : self.past].unbind()
        self.own_codes = units[0].chunk(self.past - first) if self.categories else ()
        self.own_out = self.out[first : self.past].unbind()
        self.own_weights = [
            (weights[first : self.past, :, self.spans[level]].unbind(), units[level])
            for weights, level in self._to_out()
        ]
        self.own_levels = []  # for each hidden layer: how many units a step sets, and what it needs for them
        for level, weight in enumerate(self.weights):
            ends, span = self.ends[level + 1], self.spans[level + 1]
            sizes = [ends[i + 1] - ends[i] for i in range(first, self.past)]
            inputs, rows = self.inputs[level][span].split(sizes), weight[span, self.spans[level]].split(sizes)
            self.own_levels.append((sizes, inputs, rows, units[level], units[level + 1].split(sizes)))

    def parameters(self, i: int) -> Tensor:
        """The P numbers for the feature of rank i, (P, N), once the ranks below i are set; to be asked for once."""
        at = i - self.first
        out = self.own_out[at]
        for weights, under in self.own_weights:
            out.addmm_(weights[at], under)
        return out

    def set(self, i: int, value: Tensor) -> None:
        """Fix the feature of rank i to ``value`` (N,)."""
        at = i - self.first
        self.own_values[at].copy_(value)
        if self.categories:
            self.own_codes[at].copy_(one_hot(self.own_values[at], self.categories).T)
        for sizes, inputs, rows, under, units in self.own_levels:
            if sizes[at]:
                self._activate(inputs[at].addmm_(rows[at], under), units[at])
        if i + 1 == self.past < self.features:
            self._push(i + 1)
            self._open(i + 1)

    def ranked(self, x: Tensor) -> Tensor:
        """Rows (N, D) as columns in the order of ranks, (D, N)."""
        return in_order(x.T, self.plan.features)

    def result(self) -> Tensor:
        """The features in their natural order, (N, D), in memory of their own."""
        return self.rows(self.values).clone(memory_format=torch.contiguous_format)

    def rows(self, columns: Tensor) -> Tensor:
        """Columns in the order of ranks, (D, N), as rows of features in their natural order, (N, D)."""
        return in_order(columns, self.plan.back_to_features).T


def in_order(values: Tensor, sort: _Sort, dim: int = 0) -> Tensor:
    """values in an order along one dimension, without a copy where they have it already, as degrees mostly do."""
    return values if sort is None else values.index_select(dim, sort)
