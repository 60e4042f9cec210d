"""Inverting an autoregressive map with every weight used once, forwards and backwards."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrodgm.nets.masked import IncrementalPass

__all__ = ["IncrementalSolve"]


class IncrementalSolve(IncrementalPass):
    r"""An incremental pass that can also solve with the transposed Jacobian of the map it inverted.

    For :math:`F_i(x) = T(x_i; p_i(x_{<i}))` with p from the network, :math:`J = \partial F / \partial x` is
    triangular in the order of the features. :meth:`transposed` solves :math:`J^\top v = g` from the
    last feature to the first: once :math:`v_i` is known, what it adds to the units of lower degree is
    added, and the units of degree i - 1 are complete. Each weight is used once.

    Args:
        net, context, rows, mask: as :class:`IncrementalPass`.
    """

    def _activation_slopes(self) -> list[Tensor]:
        """The activation's derivative at every hidden unit, (H, N) a layer."""
        slopes = []
        for inputs in self.inputs:
            with torch.enable_grad():
                leaf = inputs.detach().requires_grad_()
                (slope,) = torch.autograd.grad(self.activation(leaf.clone()).sum(), leaf)
            slopes.append(slope)
        return slopes

    @torch.no_grad()
    def transposed(self, gradient: Tensor, diagonal: Tensor, slopes: Tensor) -> Tensor:
        r"""v with :math:`J^\top v = g`, after all features are set.

        Args:
            gradient: g, (N, D).
            diagonal: :math:`\partial T / \partial x_i`, (N, D).
            slopes: :math:`\partial T / \partial p_i`, (N, P, D).
        Shapes: returns (N, D).
        """
        order = self.order
        g, diagonal = gradient.T[order], diagonal.T[order]  # (D, N), by rank
        slopes = slopes.permute(2, 1, 0)[order]  # (D, P, N)
        active = self._activation_slopes()
        pending = [torch.zeros_like(units) for units in self.units]  # gradient at each unit so far, (H, N)
        v = torch.empty_like(g)
        levels = range(len(self.units) - 1, 0, -1)
        for i in range(self.features - 1, -1, -1):
            v[i] = (g[i] - pending[0][i]) / diagonal[i]
            into = slopes[i] * v[i]  # (P, N), the gradient at the parameters of feature i
            seen = self.ends[-1][i]
            pending[-1][:seen].addmm_(self.last_weight[i][:, :seen].T, into)
            if self.direct is not None:
                pending[0][:i].addmm_(self.direct[i][:, :i].T, into)
            if i == 0:
                break
            for level in levels:  # units of degree i - 1 feed ranks >= i only, and those are done
                start, end = self.ends[level][i - 1], self.ends[level][i]
                if start == end:
                    continue
                rows, below = slice(start, end), self.ends[level - 1][i]
                delta = pending[level][rows].mul_(active[level - 1][rows])
                pending[level - 1][:below].addmm_(self.weights[level - 1][rows, :below].T, delta)
        return v[order.argsort()].T.contiguous()
