"""Boltzmann machines: binary units with any links between them, all visible or some hidden."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyrodgm.draws import one_of
from pyrodgm.energy.completion import Incomplete
from pyrodgm.energy.linked_units import AnnealedMachine, BoltzmannConditionals, draw_units, quadratic_energy
from pyrodgm.energy.normalised import Normalised, estimate_log_partition, one_context, seeded
from pyrodgm.energy.states import Spins, binary_states, log_odds, summed_in_chunks
from pyrodgm.kernels.sweep import GibbsSweep, colour

__all__ = ["BoltzmannMachine"]

_MOST_UNITS = 20  # 2^20 states are a second of work, each further unit doubles it
_MOST_HIDDEN = 12  # summed out for every row
_STATES_AT_ONCE = 2**16
_NUMBERS_AT_ONCE = 2**22  # of rows times states, 32 MB


class BoltzmannMachine(Normalised):
    r"""A Boltzmann machine of V visible and H hidden units; s = (x, h) is all of them.

    .. math::
        E(x, h) = -\sum_{i < j} w_{ij} s_i s_j - \sum_i b_i s_i, \qquad
        E(x) = -\log \sum_h e^{-E(x, h)}

    A positive weight makes two units agree. ``energy`` is E(x), the hidden units summed out one state by another,
    so the gradient of ``ContrastiveDivergence`` has an exact positive phase. The kernel's positions are all the
    units; ``run_kernel`` draws h given x exactly, sweeps, and keeps x. A context c shifts the biases,
    :math:`b(c) = b + B c`, and each context has a normaliser of its own.

    Args:
        visible: V.
        hidden: H <= 12; an :class:`RBM` has as many as one likes.
        context: size of the conditioning vector, 0 for none.
        spins: units are -1 or 1 rather than 0 or 1.
        links: which pairs have a weight, symmetric of bool, (V + H, V + H); default all pairs.
    Attributes:
        coupling: w of the linked pairs, in the order of ``pairs``, (L,).
        pairs: i < j of each, (2, L).
        bias: (V + H,).
    Shapes: x (*B, V), context (*B, C) -> energy (*B,).
    Raises: ValueError for sizes that do not fit, or links that are not symmetric.
    Source: Hinton and Sejnowski (1983), Optimal perceptual inference; Ackley, Hinton and Sejnowski (1985), Cognitive
        Science 9.
    Example:
        >>> machine = BoltzmannMachine(visible=3, spins=True)
        >>> machine.set_weights(torch.tensor([[0.0, -1, -1], [-1, 0, 2], [-1, 2, 0]]), torch.tensor([0.0, 1, 0]))
        >>> round(machine.log_partition("exact")[0].exp().item(), 2)
        172.42
        >>> x, observed = torch.tensor([0.0, -1.0, 0.0]), torch.tensor([False, True, False])
        >>> round(machine.marginals(x, observed)[0].item(), 2)  # p(x1 = 1 | x2 = -1)
        0.98
    """

    def __init__(
        self, visible: int, hidden: int = 0, context: int = 0, spins: bool = False, links: Tensor | None = None
    ) -> None:
        if visible < 1 or not 0 <= hidden <= _MOST_HIDDEN:
            raise ValueError(
                f"expected visible >= 1 and 0 <= hidden <= {_MOST_HIDDEN} units, got {visible} and {hidden}; "
                "an RBM takes many hidden units"
            )
        units = visible + hidden
        if links is None:
            links = torch.ones(units, units, dtype=torch.bool)
        if links.shape != (units, units) or links.dtype != torch.bool or not torch.equal(links, links.t()):
            raise ValueError(
                f"expected symmetric links of bool of shape ({units}, {units}), got {links.dtype} of "
                f"{tuple(links.shape)}; use links | links.t()"
            )
        super().__init__((visible,), context)
        links = links & ~torch.eye(units, dtype=torch.bool)
        self.visible, self.hidden, self.low = visible, hidden, -1.0 if spins else 0.0
        self.kernel = GibbsSweep()
        groups = colour(links)
        self._sizes = [len(group) for group in groups]
        self.register_buffer("_order", torch.tensor([i for group in groups for i in group]), persistent=False)
        self.register_buffer("pairs", links.triu().nonzero().t().contiguous())  # (2, L)
        self.coupling = nn.Parameter(0.01 * torch.randn(self.pairs.shape[1]))
        self.bias = nn.Parameter(torch.zeros(units))
        if context:
            self.bias_context = nn.Parameter(0.01 * torch.randn(units, context))
        self.register_load_state_dict_pre_hook(_check_links)

    pairs: Tensor
    _order: Tensor

    @property
    def groups(self) -> tuple[Tensor, ...]:
        """The places of units that no links join, which a sweep draws at once; they lie where the parameters do."""
        return self._order.split(self._sizes)

    @property
    def support(self) -> Any:
        unit = Spins() if self.low else torch.distributions.constraints.boolean
        return torch.distributions.constraints.independent(unit, 1)

    @property
    def weight(self) -> Tensor:
        """W, symmetric with zeros on the diagonal, (V + H, V + H)."""
        i, j = self.pairs
        upper = self.coupling.new_zeros(len(self.bias), len(self.bias)).index_put((i, j), self.coupling)
        return upper + upper.t()

    @torch.no_grad()
    def set_weights(self, weight: Tensor, bias: Tensor) -> None:
        """Take over a symmetric W (N, N), whose diagonal and missing links do not matter, and b (N,).

        Raises: ValueError for other shapes or a W that is not symmetric.
        """
        units = len(self.bias)
        if weight.shape != (units, units) or bias.shape != (units,) or not torch.equal(weight, weight.t()):
            raise ValueError(
                f"expected a symmetric weight ({units}, {units}) and a bias ({units},), got {tuple(weight.shape)} and "
                f"{tuple(bias.shape)}; use (weight + weight.t()) / 2"
            )
        self.coupling.copy_(weight[self.pairs[0], self.pairs[1]])
        self.bias.copy_(bias)

    def _bias(self, context: Tensor | None) -> Tensor:
        return self.bias if context is None else linear(context, self.bias_context, self.bias)

    def _states(self, units: int, like: Tensor) -> Tensor:
        """Every state of that many units, (2^units, units)."""
        return self.low + (1 - self.low) * binary_states(units, like)

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context = self.check(x, context)
        weight, bias = self.weight, self._bias(context)
        v = self.visible
        alone = quadratic_energy(x, weight[:v, :v], bias[..., :v])
        return alone if not self.hidden else alone - self._hidden_logits(x, weight, bias).logsumexp(-1)

    def joint_energy(self, x: Tensor, h: Tensor, context: Tensor | None = None) -> Tensor:
        """E(x, h): (*B, V), (*B, H) -> (*B,); leading dimensions broadcast."""
        x, context = self.check(x, context)
        lead = torch.broadcast_shapes(x.shape[:-1], h.shape[:-1])
        s = torch.cat((x.expand(*lead, -1), h.expand(*lead, -1)), -1)
        return quadratic_energy(s, self.weight, self._bias(context))

    def _hidden_logits(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The part of -E(x, h) with h in it, for every h: (*B, V) -> (*B, 2^H)."""
        v = self.visible
        h = self._states(self.hidden, x)
        inputs = x @ weight[:v, v:] + bias[..., v:]  # (*B, H)
        return inputs @ h.t() + 0.5 * ((h @ weight[v:, v:]) * h).sum(-1)

    def potential(self, context: Tensor | None = None) -> BoltzmannConditionals:
        """The conditionals of all V + H units, for chains with contexts (chains, C)."""
        _, context = self.check(None, context)
        return BoltzmannConditionals(self.weight, self._bias(context), self.groups, self.low)

    @torch.no_grad()
    def draw_hidden(self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """h ~ p(h | x), exact by enumeration: (B, V) -> (B, H)."""
        x, context = self.check(x, context)
        states, weight, bias = self._states(self.hidden, x), self.weight, self._bias(context).expand(len(x), -1)
        step = max(1, _NUMBERS_AT_ONCE // len(states))
        parts = [
            one_of(self._hidden_logits(x[i : i + step], weight, bias[i : i + step]).softmax(-1), generator)
            for i in range(0, len(x), step)
        ]
        return states[torch.cat(parts)]

    @property
    def moves_hidden(self) -> bool:
        return bool(self.hidden)

    def run_kernel(
        self, x: Tensor, context: Tensor | None, steps: int, generator: torch.Generator | None = None
    ) -> Tensor:
        if not self.hidden:
            return super().run_kernel(x, context, steps, generator)
        s = torch.cat((x, self.draw_hidden(x, context, generator)), -1)
        return super().run_kernel(s, context, steps, generator)[:, : self.visible]

    @torch.no_grad()
    def start(self, n: int, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Independent visible units with the model's biases: (n, V)."""
        _, context = self.check(None, context)
        logits = (1 - self.low) * self._bias(context)[..., : self.visible]
        return draw_units(logits.expand(n, -1), self.low, generator)

    @property
    def enumerable(self) -> bool:
        """Whether log Z can be had exactly."""
        return len(self.bias) <= _MOST_UNITS

    def log_partition(  # type: ignore[override]
        self,
        method: str = "ais",
        *,
        context: Tensor | None = None,
        chains: int = 1000,
        temperatures: int | Tensor = 1000,
        data: Tensor | None = None,
        samples: Tensor | None = None,
        seed: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""log Z in nats and its standard error, computed in float64.

        ``"exact"`` sums over all states of at most 20 units, with gradients. ``"ais"`` anneals all units from
        independence to the machine by Gibbs sweeps, :math:`f_\beta(s) = \exp((1 - \beta) b_0^\top s - \beta E(s))`.

        Args:
            method: ``"exact"``, ``"ais"`` or ``"reverse"``; the last two bracket log Z in expectation.
            context: one vector (C,), for a conditional model.
            chains, temperatures: of AIS; see :func:`annealed_importance_sampling`.
            data: rows (N, V) whose frequencies set the visible part of :math:`b_0`; default the model's own b.
            samples: for ``"reverse"``, draws (M, V) of the model, which start its chains.
            seed: of AIS; default torch's own generator.
        Shapes: returns (), ().
        Raises: ValueError for another method, more than 20 units by ``"exact"``, or several contexts.
        Source: Neal (2001), Annealed importance sampling; Salakhutdinov and Murray (2008).
        """
        context = one_context(self, context)
        weight, bias = self.weight.double(), self._bias(context).double()
        generator = seeded(self.device, seed)
        if samples is not None:
            samples = self.check(samples, context)[0]
            if self.hidden:
                each = None if context is None else context.expand(len(samples), -1)
                samples = torch.cat((samples, self.draw_hidden(samples, each, generator)), -1)

        def path() -> AnnealedMachine:
            base = bias.detach().clone()
            if data is not None:
                ones = (self.check(data, context)[0].double() - self.low) / (1 - self.low)
                base[: self.visible] = log_odds(ones) / (1 - self.low)
            return AnnealedMachine(BoltzmannConditionals(weight, bias, self.groups, self.low), base)

        def exact() -> Tensor:
            return self._enumerate(weight, bias)

        return estimate_log_partition(method, exact, path, samples, chains, temperatures, generator)

    def _enumerate(self, weight: Tensor, bias: Tensor) -> Tensor:
        if not self.enumerable:
            raise ValueError(
                f"expected at most {_MOST_UNITS} units to enumerate, got {len(self.bias)}; "
                'use log_partition("ais") or clamped Gibbs'
            )

        def chunk(s: Tensor) -> Tensor:
            return (-quadratic_energy(s, weight, bias)).logsumexp(0)

        return summed_in_chunks(chunk, self._states(len(bias), bias).split(_STATES_AT_ONCE), weight, bias)

    @torch.no_grad()
    def marginals(self, x: Tensor, mask: Tensor, context: Tensor | None = None) -> Tensor:
        """P(x_i = 1 | the observed part), exact by enumeration; for an observed unit it is 0 or 1.

        Args:
            x: (*B, V); what stands where mask is False does not matter.
            mask: True where x is observed, broadcast against x.
            context: (*B, C).
        Shapes: returns (*B, V).
        Raises: ValueError for more than 20 units in all.
        Example:
            >>> BoltzmannMachine(4).marginals(torch.ones(2, 4), torch.tensor([True, False, True, False])).shape
            torch.Size([2, 4])
        """
        if not self.enumerable:
            raise ValueError(f"expected at most {_MOST_UNITS} units to enumerate, got {len(self.bias)}; use complete()")
        return Incomplete(self, x, mask, context).marginals()

    def complete(
        self,
        x: Tensor,
        mask: Tensor,
        context: Tensor | None = None,
        *,
        steps: int = 100,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Fill in what is missing: draws from p(x_missing | x_observed).

        Exact by enumeration for at most 20 units in all; otherwise ``steps`` Gibbs sweeps with the observed units
        clamped, from a start at random.

        Args:
            x: (*B, V); what stands where mask is False does not matter.
            mask: True where x is observed, broadcast against x.
            context: (*B, C).
            steps: sweeps of the clamped chain.
        Shapes: returns (*B, V); the observed part is x itself.
        Source: Ackley, Hinton and Sejnowski (1985) (completion by clamping).
        Example:
            >>> BoltzmannMachine(4).complete(torch.ones(2, 4), torch.tensor([True, False, True, False])).shape
            torch.Size([2, 4])
        """
        rows = Incomplete(self, x, mask, context)
        return rows.draw(generator) if self.enumerable else rows.draw_clamped(steps, generator)


def _check_links(machine: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Which units are drawn together follows from the links, so other links are another machine."""
    saved, own = state.get(f"{prefix}pairs"), cast(Tensor, machine.pairs)
    if saved is not None and not torch.equal(saved.to(own), own):
        raise ValueError(
            "expected the state of a machine with these links, got other links; build it with links= as saved"
        )
