"""RBMs with tied copies of a layer: how the layers of a deep Boltzmann machine are trained one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from pyrodgm.energy.bipartite import RBMConditionals, few_states, log_partition_of_layers
from pyrodgm.energy.gap import Gap, Offsets, energy_gap
from pyrodgm.energy.normalised import Normalised, seeded
from pyrodgm.energy.visible_units import BernoulliUnits, draw_bernoulli
from pyrodgm.kernels.gibbs import BlockGibbs

__all__ = ["TwinRBM"]


class TwinRBM(Normalised):
    r"""An RBM with A copies of its visible layer and B of its hidden layer, all with the same weights and biases.

    .. math:: E(v_1, \dots, v_A) = -\sum_a b^\top v_a - B \sum_j \log(1 + e^{c_j + W_j \sum_a v_a})

    Two visible copies double what a hidden unit gets from below, as the layer above will do later.

    Args:
        visible: V.
        hidden: H.
        visible_copies: A.
        hidden_copies: B.
    Shapes: x (*B, A V) of zeros and ones, copy after copy -> energy (*B,).
    Raises: ValueError for sizes or copies below 1.
    Source: Salakhutdinov and Hinton (2009), Deep Boltzmann machines, AISTATS.
    Example:
        >>> TwinRBM(4, 3, visible_copies=2).energy(torch.ones(5, 8)).shape
        torch.Size([5])
    """

    def __init__(self, visible: int, hidden: int, visible_copies: int = 1, hidden_copies: int = 1) -> None:
        if min(visible, hidden, visible_copies, hidden_copies) < 1:
            raise ValueError(
                "expected sizes and copies >= 1, got "
                f"{visible} and {hidden} units, {visible_copies} and {hidden_copies} copies"
            )
        super().__init__((visible_copies * visible,))
        self.visible, self.hidden = visible, hidden
        self.visible_copies, self.hidden_copies = visible_copies, hidden_copies
        self.kernel = BlockGibbs()
        self.units = BernoulliUnits()
        self.weight = nn.Parameter(0.01 * torch.randn(hidden, visible))
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))

    @property
    def support(self) -> Any:
        return self.units.support

    def _tied(self) -> tuple[Tensor, Tensor, Tensor]:
        """W, b and c of all copies: (B H, A V), (A V,), (B H,)."""
        a, b = self.visible_copies, self.hidden_copies
        return self.weight.repeat(b, a), self.visible_bias.repeat(a), self.hidden_bias.repeat(b)

    def _total(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.visible_copies, self.visible)).sum(-2)  # (*B, A V) -> (*B, V)

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, _ = self.check(x, context)
        total = self._total(x)
        hidden = softplus(linear(total, self.weight) + self.hidden_bias).sum(-1)
        return -(total * self.visible_bias).sum(-1) - self.hidden_copies * hidden

    def energy_gap(self, x: Tensor, negatives: Tensor, offsets: Offsets | None = None) -> Gap:
        """Mean energy of rows (N, A V) less that of negatives (M, A V), see :meth:`RBM.energy_gap`."""
        tied = self.weight, self.visible_bias, self.hidden_bias
        copies = self.visible_copies, self.hidden_copies
        return energy_gap(*tied, self._total(x), self._total(negatives), copies=copies, offsets=offsets)

    def offsets(self) -> Offsets:
        """The means of all units as the biases alone have them: where centring starts."""
        return Offsets(self.visible_bias.detach().sigmoid(), self.hidden_bias.detach().sigmoid())

    def potential(self, context: Tensor | None = None) -> RBMConditionals:
        """The conditionals of all copies, for chains (chains, A V)."""
        self.check(None, context)
        return RBMConditionals(*self._tied(), self.units)

    @torch.no_grad()
    def start(self, n: int, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Independent visible units with the model's biases: (n, A V)."""
        return draw_bernoulli(self.visible_bias.repeat(self.visible_copies).repeat(n, 1), generator)

    @torch.no_grad()
    def draw_hidden(self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """One copy of h ~ p(h | v), (*B, A V) -> (*B, H): the rows of the next machine of a stack."""
        x, _ = self.check(x, context)
        return draw_bernoulli(linear(self._total(x), self.weight) + self.hidden_bias, generator)

    @torch.no_grad()
    def set_visible_bias(self, x: Tensor) -> None:
        """Set b to the log-odds of the frequencies in the rows (N, A V), before training."""
        x, _ = self.check(x, None)
        self.visible_bias.copy_(self.units.location(x.unflatten(-1, (self.visible_copies, self.visible))))

    @property
    def enumerable(self) -> bool:
        """Whether the exact log Z takes about a second at most."""
        return few_states(self._tied()[0], self.units)

    def log_partition(  # type: ignore[override]
        self,
        method: str = "ais",
        *,
        chains: int = 1000,
        temperatures: int | Tensor = 4000,
        data: Tensor | None = None,
        samples: Tensor | None = None,
        seed: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """log Z in nats and its standard error; see :meth:`RBM.log_partition`."""
        generator = seeded(self.device, seed)
        weight, b, c = self._tied()
        base = b if data is None else self.units.location(self.check(data, None)[0].double())
        return log_partition_of_layers(method, weight, b, c, base, self.units, samples, chains, temperatures, generator)
