"""Two layers without links inside a layer: their conditionals, their annealing path, their normaliser."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from pyrodgm.energy.normalised import estimate_log_partition
from pyrodgm.energy.states import binary_states, summed_in_chunks
from pyrodgm.energy.visible_units import BernoulliUnits, VisibleUnits, draw_bernoulli

__all__ = [
    "AnnealedRBM",
    "RBMConditionals",
    "enumerate_layers",
    "few_states",
    "input_of_few_links",
    "log_partition_of_layers",
]

_MOST_UNITS = 25  # 2^25 states of a layer are minutes of work, each further unit doubles them
_NUMBERS_AT_ONCE = 2**22  # of an enumeration, 32 MB
_NUMBERS_QUICK = 2**27  # an enumeration of so many numbers takes about a second


class RBMConditionals:
    """The two conditionals of an RBM with its biases fixed: what :class:`BlockGibbs` samples from.

    Args:
        weight: (H, V).
        visible_bias: (V,), or (chains, V) where each chain has a context of its own.
        hidden_bias: (H,) or (chains, H).
        units: the visible family; default Bernoulli.
    """

    def __init__(
        self, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, units: VisibleUnits | None = None
    ) -> None:
        self.weight = weight.detach()
        self.visible_bias = visible_bias.detach()
        self.hidden_bias = hidden_bias.detach()
        self.units = BernoulliUnits() if units is None else units

    def hidden_given_visible(self, v: Tensor, generator: torch.Generator | None = None) -> Tensor:
        inputs = self.units.statistic(v).detach()
        return draw_bernoulli(torch.addmm(self.hidden_bias, inputs, self.weight.t()), generator)

    def visible_given_hidden(self, h: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.units.draw(torch.addmm(self.visible_bias, h, self.weight), generator)

    @property
    def levels(self) -> int | None:
        """Levels of a group of visible units, of which one is 1; None for units by themselves."""
        return getattr(self.units, "levels", None)

    def discrete_energy(self, v: Tensor) -> Tensor:
        """E(v), the hidden units summed out, for kernels that flip units: (chains, V) -> (chains,)."""
        t = self.units.statistic(v)
        inputs = linear(t, self.weight) + self.hidden_bias
        return -(t * self.visible_bias).sum(-1) - softplus(inputs).sum(-1) - self.units.carrier(v)

    def path(self) -> AnnealedRBM:
        """From independent units with these visible biases to the RBM."""
        return AnnealedRBM(self.weight, self.visible_bias, self.hidden_bias, self.visible_bias, self.units)


class AnnealedRBM:
    r"""The path of :meth:`RBM.log_partition`: hidden inputs and visible biases grow with beta.

    .. math:: f_\beta(v) = e^{g(v) + T(v)^\top ((1 - \beta) b_0 + \beta b)} \prod_j (1 + e^{\beta (c_j + W_j T(v))})

    Args:
        weight: (H, V).
        b: visible biases, (V,) or (chains, V).
        c: hidden biases, (H,) or (chains, H).
        base: b_0, like b.
        units: the visible family.
    """

    def __init__(self, weight: Tensor, b: Tensor, c: Tensor, base: Tensor, units: VisibleUnits) -> None:
        self.weight, self.b, self.c, self.base, self.units = weight, b, c, base, units
        self._each = b.dim() > 1  # chains with biases of their own
        rows = (weight,) if self._each else (weight, base.unsqueeze(0), b.unsqueeze(0))
        self._columns = torch.cat(rows).t().contiguous()
        self._last: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def base_log_partition(self) -> Tensor:
        return self.units.log_partition(self.base).sum().detach() + len(self.c) * math.log(2)

    def start(self, chains: int, generator: torch.Generator | None = None) -> Tensor:
        return self.units.draw(self.base.expand(chains, -1).clone(), generator)

    def _products(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c + W T, base T and b T: two densities and a move at one v share the pass over it."""
        if self._last is None or self._last[0] is not v:
            t = self.units.statistic(v).detach()
            products = t @ self._columns
            if self._each:
                self._last = v, products + self.c, (t * self.base).sum(-1), (t * self.b).sum(-1)
            else:
                self._last = v, products[:, :-2] + self.c, products[:, -2], products[:, -1]
        return self._last[1:]

    def log_density(self, x: Tensor, beta: Tensor) -> Tensor:
        inputs, base, visible = self._products(x)
        return torch.lerp(base, visible, beta) + softplus(beta * inputs).sum(-1) + self.units.carrier(x)

    def move(self, x: Tensor, beta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        h = draw_bernoulli(beta * self._products(x)[0], generator)
        location = torch.addmm(torch.lerp(self.base, self.b, beta), h * beta, self.weight)
        return self.units.draw(location, generator)

    def reverse_move(self, x: Tensor, beta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.move(x, beta, generator)  # v -> h -> v' is its own reversal


def input_of_few_links(weight: Tensor, bias: Tensor) -> Tensor:
    r"""What hidden units of small weights add to the visible biases once they are summed out: (H, V), (H,) -> (V,).

    .. math:: \sum_j \log(1 + e^{c_j + W_j v}) \approx \text{const} + v^\top \Bigl(\sum_j \sigma(c_j) W_j
        + \tfrac12 \sigma'(c_j) W_j^2 \Bigr)

    to second order, since v^2 = v; what is left out are the products of two weights of one unit.
    """
    p = bias.sigmoid()
    return p @ weight + (p * (1 - p) / 2) @ weight.square()


def few_states(weight: Tensor, units: VisibleUnits) -> bool:
    """Whether the exact log Z takes about a second at most."""
    hidden, visible = weight.shape
    least, other = (visible, hidden) if _binary(units) and visible < hidden else (hidden, visible)
    return least <= _MOST_UNITS and 2**least * other <= _NUMBERS_QUICK


def _binary(units: VisibleUnits) -> bool:
    return isinstance(units, BernoulliUnits)


def enumerate_layers(weight: Tensor, b: Tensor, c: Tensor, units: VisibleUnits) -> Tensor:
    """log of the sum over all states: the hidden layer, or the smaller one of two binary layers, state by state.

    Args:
        weight: (H, V).
        b, c: visible and hidden biases, (V,), (H,).
        units: the visible family.
    Shapes: returns (), with gradients.
    Raises: ValueError for a layer of more than 25 units.
    """
    if _binary(units) and weight.shape[0] > weight.shape[1]:
        weight, b, c = weight.t(), c, b
    layer, others = weight.shape
    if layer > _MOST_UNITS:
        raise ValueError(
            f"expected a layer of at most {_MOST_UNITS} units to enumerate, got layers of {others} and "
            f'{layer}; use log_partition("ais")'
        )
    low = min(layer, max(0, int(math.log2(_NUMBERS_AT_ONCE / others))))
    states = binary_states(low, weight)
    bias, inputs = states @ c[:low], states @ weight[:low] + b  # (2^low,), (2^low, others)

    def chunk(high: Tensor) -> Tensor:
        """The states whose last layer - low units are ``high``."""
        total = units.log_partition(inputs + high @ weight[low:]) + bias
        return total.logsumexp(0) + high @ c[low:]

    return summed_in_chunks(chunk, binary_states(layer - low, weight).unbind(0), weight, b, c)


def log_partition_of_layers(
    method: str, weight: Tensor, b: Tensor, c: Tensor, base: Tensor, units: VisibleUnits, *how: Any
) -> tuple[Tensor, Tensor]:
    """log Z of two layers and its standard error: (), ().

    Args:
        method: "exact", "ais" or "reverse".
        base: locations of the independent visible units from which AIS starts, (V,).
        how: samples, chains, temperatures and generator of :func:`estimate_log_partition`.
    """
    weight, b, c, base = (t.double() for t in (weight, b, c, base))

    def path() -> AnnealedRBM:
        return AnnealedRBM(weight.detach(), b.detach(), c.detach(), base.detach(), units)

    return estimate_log_partition(method, lambda: enumerate_layers(weight, b, c, units), path, *how)
