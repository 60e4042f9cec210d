"""The gradient of an incremental pass, which is incremental too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyrodgm.nets.incremental import IncrementalPass, in_order
from pyrodgm.nets.masked import MaskedMLP
from pyrodgm.nets.staircase import weight_gradient

__all__ = ["IncrementalSolve"]


class IncrementalSolve(IncrementalPass):
    r"""An incremental pass that can also go back, from the last feature to the first.

    x was solved for in :math:`y_i = T(x_i; p_i(x_{<i}))`, with p from the network; a function of x and p has its
    gradient by y and by all that the network is made of. The Jacobian :math:`J` of y by x is triangular in the order of
    the features, so :math:`J^\top v = g` is solved from the last feature: once :math:`v_i` is known, so is the gradient
    at :math:`p_i`, and then that at the units of degree i - 1. Each weight is used once in that, chunk by chunk as on
    the way there, and once for its own gradient.

    Args:
        net, context, rows: as :class:`IncrementalPass`; the net has no direct connections.
    """

    def __init__(self, net: MaskedMLP, context: Tensor | None, rows: int) -> None:
        super().__init__(net, context, rows)
        self.masks = [net.get_buffer(name) for name in net.kept] or net._make_masks(0)
        self.blocks = net.blocks or [None] * len(self.masks)
        self.shared = {name: p.detach() for name, p in net.activation.named_parameters()}
        self.context = context
        self.from_context = [layer.weight.detach() for layer in _from_context(net)]

    @staticmethod
    def tensors(net: MaskedMLP) -> list[Tensor]:
        """What the network is made of; where a parametrization computes a weight, that weight."""
        linears = cast(list[nn.Linear], [*net.layers, net.last])
        own = [tensor for layer in linears for tensor in (layer.weight, layer.bias)]
        return own + [layer.weight for layer in _from_context(net)] + list(net.activation.parameters())

    @torch.no_grad()
    def back(self, gradient: Tensor, diagonal: Tensor, slopes: Tensor, through: Tensor) -> Tensor:
        r"""v, the gradient at y, after all features are set. Features are by rank, here and in the result.

        Args:
            gradient: of the function by :math:`x_i`, p held still, (D, N).
            diagonal: :math:`\partial T / \partial x_i`, (D, N).
            slopes: :math:`\partial T / \partial p_i`, (D, P, N).
            through: of the function by :math:`p_i`, x held still, (D, P, N).
        Shapes: returns (D, N).
        """
        self.active = self._activation_slopes()
        self.pending = [torch.zeros_like(units) for units in self.units]  # the gradient at each unit, (H, N)
        self.deltas = [torch.zeros_like(units) for units in self.inputs]  # and at what it is the function of
        self.into = through.new_zeros(through.shape)  # at the outputs
        v = torch.empty_like(gradient)
        for past in range(self.features, 0, -self.chunk):
            first = max(past - self.chunk, 0)
            fed = self._fed(first, past)
            levels = [self._views(level, first, past, *feeds) for level, feeds in enumerate(fed)][::-1]
            for i in range(past - 1, first - 1, -1):
                at = i - first
                for sizes, pending, weights, deltas, active, own in levels:  # units of degree i, then feature i itself
                    if sizes[at]:
                        pending[at].addmm_(weights[at], deltas)
                        if own:
                            torch.mul(pending[at], active[at], out=own[at])
                torch.div(gradient[i] + self.pending[0][i], diagonal[i], out=v[i])
                torch.addcmul(through[i], slopes[i], v[i], value=-1, out=self.into[i])
            for level, (weight, deltas) in enumerate(fed):  # to all that the chunk came from
                below = slice(0, self.ends[level][first])
                self.pending[level][below].addmm_(weight[:, below].T, deltas)
        self._back_to_context()
        return v

    def _fed(self, first: int, past: int) -> list[tuple[Tensor, Tensor]]:
        """What the units of each level feed in a chunk: weights (H', H), and the gradient there, (H', N)."""
        spans = [slice(end[first], end[past]) for end in self.ends[1:]]
        hidden = [(w[span], d[span]) for w, d, span in zip(self.weights, self.deltas, spans, strict=True)]
        return [*hidden, (self.last_weight[first:past].flatten(0, 1), self.into[first:past].flatten(0, 1))]

    def _views(self, level: int, first: int, past: int, weight: Tensor, deltas: Tensor) -> tuple[Any, ...]:
        """What each step of a chunk reads and writes at one level: how many units it has, and their parts."""
        ends = self.ends[level]
        span, sizes = slice(ends[first], ends[past]), [ends[i + 1] - ends[i] for i in range(first, past)]
        parts = [self.pending[level][span].split(sizes), weight[:, span].T.split(sizes), deltas]
        if level == 0:  # inputs have no activation
            return sizes, *parts, (), ()
        return sizes, *parts, self.active[level - 1][span].split(sizes), self.deltas[level - 1][span].split(sizes)

    def _back_to_context(self) -> None:
        """The units that the context alone sets."""
        for level in range(len(self.weights), 0, -1):
            rows, under = slice(0, self.ends[level][0]), slice(0, self.ends[level - 1][0])
            delta = torch.mul(self.pending[level][rows], self.active[level - 1][rows], out=self.deltas[level - 1][rows])
            self.pending[level - 1][under].addmm_(self.weights[level - 1][rows, under].T, delta)

    def _activation_slopes(self) -> list[Tensor]:
        """The activation's derivative at every hidden unit, (H, N) a layer."""
        if type(self.activation) is nn.ReLU:
            return [units.sign() for units in self.units[1:]]
        slopes = []
        for inputs in self.inputs:
            with torch.enable_grad():
                leaf = inputs.detach().requires_grad_()
                (slope,) = torch.autograd.grad(self._activated(leaf, self.shared).sum(), leaf)
            slopes.append(slope)
        return slopes

    def _activated(self, inputs: Tensor, shared: dict[str, Tensor]) -> Tensor:
        """With the parameters of the forward pass, whatever the network holds by now."""
        return cast(Tensor, functional_call(self.activation, shared, (inputs.clone(),)))

    @torch.no_grad()
    def gradients(self, of_context: bool, wanted: Sequence[bool]) -> list[Tensor | None]:
        """After :meth:`back`: at the context (N, C), then at each of :meth:`tensors`; None where it is not wanted."""
        naturally = self.plan.naturally
        out = in_order(self.into, self.plan.back_to_features).transpose(0, 1).flatten(0, 1)  # (P * D, N)
        deltas = [*(in_order(d, sort) for d, sort in zip(self.deltas, naturally[1:], strict=True)), out]
        asked, found = iter(wanted), list[Tensor | None]()
        for delta, units, sort, mask, blocks in zip(
            deltas, self.units, naturally, self.masks, self.blocks, strict=True
        ):
            found.append(weight_gradient(delta.T, in_order(units, sort).T, mask, blocks) if next(asked) else None)
            found.append(delta.sum(1) if next(asked) else None)
        at_context = None
        for delta, weight in zip((deltas[0], deltas[-1]), self.from_context, strict=False):
            found.append(delta @ cast(Tensor, self.context) if next(asked) else None)
            if of_context:
                part = delta.T @ weight
                at_context = part if at_context is None else at_context + part
        return [at_context, *found, *self._gradients_of_activation(list(asked))]

    def _gradients_of_activation(self, wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        if not any(wanted):
            return [None] * len(wanted)
        with torch.enable_grad():
            shared = {name: value.clone().requires_grad_() for name, value in self.shared.items()}
            units = [self._activated(inputs, shared) for inputs in self.inputs]
            return torch.autograd.grad(units, list(shared.values()), self.pending[1:], allow_unused=True)


def _from_context(net: MaskedMLP) -> list[nn.Linear]:
    return [layer for layer in (net.from_context, net.context_to_last) if layer is not None]
