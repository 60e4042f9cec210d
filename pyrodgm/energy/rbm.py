"""Restricted Boltzmann machines: visible and binary hidden units, no links inside a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from pyrodgm.energy.bipartite import RBMConditionals, few_states, input_of_few_links, log_partition_of_layers
from pyrodgm.energy.gap import Gap, Offsets, energy_gap
from pyrodgm.energy.normalised import Normalised, one_context, seeded
from pyrodgm.energy.visible_units import BernoulliUnits, VisibleUnits, draw_bernoulli
from pyrodgm.kernels.gibbs import BlockGibbs

__all__ = ["RBM"]


class RBM(Normalised):
    r"""Restricted Boltzmann machine: binary hidden units, visible ones of any exponential family.

    .. math::
        E(v, h) &= -g(v) - b^\top T(v) - c^\top h - h^\top W T(v) \\
        E(v) &= -\log \sum_h e^{-E(v, h)} = -g(v) - b^\top T(v) - \sum_j \log(1 + e^{c_j + W_j T(v)})

    with T(v) = v and g(v) = 0 for units of 0 and 1; ``units`` says what they are for others. ``energy`` is the
    second one (the free energy), so p(v) ∝ exp(-energy). A context s shifts the
    biases, :math:`b(s) = b + B s`, :math:`c(s) = c + C s`, and each context has a normaliser of its own.

    Args:
        visible: V.
        hidden: H.
        context: size of the conditioning vector, 0 for none.
        units: visible family: :class:`BernoulliUnits` (default), :class:`GaussianUnits`, :class:`SoftmaxUnits`.
    Shapes: x (*B, V) in the support of the units, context (*B, C) -> energy (*B,).
    Raises: ValueError for sizes below 1, or that the units cannot fill.
    Source: Smolensky (1986); Hinton (2002), Training products of experts; Welling et al. (2005), Exponential family
        harmoniums; Mnih et al. (2011), Conditional restricted Boltzmann machines for structured output prediction.
    Example:
        >>> rbm = RBM(visible=6, hidden=3)
        >>> x = rbm.sample(4)
        >>> rbm.log_prob(x).shape  # normalised: the hidden units are few enough to enumerate
        torch.Size([4])
    """

    def __init__(self, visible: int, hidden: int, context: int = 0, units: VisibleUnits | None = None) -> None:
        if visible < 1 or hidden < 1:
            raise ValueError(f"expected visible >= 1 and hidden >= 1 units, got {visible} and {hidden}")
        super().__init__((visible,), context)
        self.kernel = BlockGibbs()
        self.units = BernoulliUnits() if units is None else units
        self.units.check(visible)
        self.weight = nn.Parameter(0.01 * torch.randn(hidden, visible))
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        if context:
            self.visible_context = nn.Parameter(0.01 * torch.randn(visible, context))
            self.hidden_context = nn.Parameter(0.01 * torch.randn(hidden, context))

    @property
    def support(self) -> Any:
        return self.units.support

    def _biases(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """b(s) and c(s): (V,), (H,), with the context's leading dimensions in front."""
        if context is None:
            return self.visible_bias, self.hidden_bias
        return (
            linear(context, self.visible_context, self.visible_bias),
            linear(context, self.hidden_context, self.hidden_bias),
        )

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        v, context = self.check(x, context)
        b, c = self._biases(context)
        t = self.units.statistic(v)
        return -(t * b).sum(-1) - softplus(linear(t, self.weight) + c).sum(-1) - self.units.carrier(v)

    def joint_energy(self, x: Tensor, h: Tensor, context: Tensor | None = None) -> Tensor:
        """E(v, h), of both layers: (*B, V), (*B, H) -> (*B,)."""
        v, context = self.check(x, context)
        b, c = self._biases(context)
        t = self.units.statistic(v)
        return -(t * b).sum(-1) - (h * (linear(t, self.weight) + c)).sum(-1) - self.units.carrier(v)

    def energy_gap(self, x: Tensor, negatives: Tensor, offsets: Offsets | None = None) -> Gap:
        """Mean energy of rows (N, V) less that of negatives (M, V), see :func:`pyrodgm.energy.gap.energy_gap`.

        For machines without context; with ``offsets`` its gradient is the centred one.
        """
        t, s = self.units.statistic(x), self.units.statistic(negatives)
        gap = energy_gap(self.weight, self.visible_bias, self.hidden_bias, t, s, offsets=offsets)
        carriers = self.units.carrier(x), self.units.carrier(negatives)
        if isinstance(carriers[0], Tensor) and isinstance(carriers[1], Tensor):
            gap = gap._replace(value=gap.value - carriers[0].mean() + carriers[1].mean())
        return gap

    def offsets(self) -> Offsets:
        """The means of all units as the biases alone have them: where centring starts."""
        b = self.visible_bias.detach().requires_grad_()
        with torch.enable_grad():  # E T = A'(b)
            (visible,) = torch.autograd.grad(self.units.log_partition(b).sum(), b)
        return Offsets(visible.detach(), self.hidden_bias.detach().sigmoid())

    def potential(self, context: Tensor | None = None) -> RBMConditionals:
        """The conditionals that the kernel samples from, for chains (chains, V) with contexts (chains, C)."""
        _, context = self.check(None, context)
        return RBMConditionals(self.weight, *self._biases(context), self.units)

    @torch.no_grad()
    def start(self, n: int, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Independent visible units with the model's visible biases: (n, V)."""
        _, context = self.check(None, context)
        b, _ = self._biases(context)
        return self.units.draw(b.expand(n, -1).clone(), generator)

    @torch.no_grad()
    def draw_hidden(self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """h ~ p(h | v), (*B, V) -> (*B, H): the rows of the next machine of a stack."""
        v, context = self.check(x, context)
        return draw_bernoulli(linear(self.units.statistic(v), self.weight) + self._biases(context)[1], generator)

    @torch.no_grad()
    def set_visible_bias(self, x: Tensor) -> None:
        r"""Set b to the independent units that fit the rows (N, V), before training.

        For units of 0 and 1, :math:`b_i = \log p_i / (1 - p_i)` with the frequency p_i of unit i; one pseudo-row of
        each value keeps units that never change finite. For Gaussian units b is the mean.
        Source: Hinton (2010), A practical guide to training restricted Boltzmann machines.
        """
        no_context = torch.zeros(self.context, dtype=self.dtype, device=self.device) if self.context else None
        v, _ = self.check(x, no_context)
        self.visible_bias.copy_(self.units.location(v))

    @torch.no_grad()
    def tie(self, below: RBM) -> None:
        r"""Start as ``below`` turned over, so that a belief network of the two is ``below`` itself.

        .. math:: W = W_{\text{below}}^\top, \quad b = c_{\text{below}}, \quad c = b_{\text{below}}

        Then :math:`\sum_h p(v \mid h) p(h)` is the lower machine's p(v), its :math:`p(h \mid v)` is the network's
        posterior, and the bound is exact: whatever training adds to :math:`E_{q(h \mid v)} \log p(h)` from here is
        added to it. From other weights the bound starts below the lower machine and may stay there. Hidden units
        beyond the visible ones of ``below`` keep their small weights; the visible biases take what they say back,
        to second order in the weights.

        Raises: ValueError if the visible units are not the hidden ones of ``below``, for fewer hidden units than it has
            visible ones, and for a context or units other than Bernoulli.
        Source: Hinton, Osindero and Teh (2006), A fast learning algorithm for deep belief nets (tied weights).
        Example:
            >>> below, above = RBM(6, 4), RBM(4, 6)
            >>> above.tie(below)
            >>> torch.equal(above.weight, below.weight.t())
            True
        """
        hidden, visible = below.weight.shape
        binary = isinstance(below.units, BernoulliUnits) and isinstance(self.units, BernoulliUnits)
        if self.context or below.context or not binary:
            raise ValueError("expected RBMs of Bernoulli units without context to tie, got others; train them untied")
        if self.event_shape[0] != hidden or len(self.weight) < visible:
            raise ValueError(
                f"expected RBM({hidden}, {visible} or more) on top of RBM({visible}, {hidden}), got "
                f"RBM({self.event_shape[0]}, {len(self.weight)}); train it untied"
            )
        self.weight[:visible] = below.weight.t()
        self.hidden_bias[:visible] = below.visible_bias
        self.visible_bias.copy_(
            below.hidden_bias - input_of_few_links(self.weight[visible:], self.hidden_bias[visible:])
        )

    @property
    def enumerable(self) -> bool:
        """Whether the exact log Z takes about a second at most."""
        return few_states(self.weight, self.units)

    def log_partition(  # type: ignore[override]
        self,
        method: str = "ais",
        *,
        context: Tensor | None = None,
        chains: int = 1000,
        temperatures: int | Tensor = 4000,
        data: Tensor | None = None,
        samples: Tensor | None = None,
        seed: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""log Z in nats and its standard error, computed in float64.

        ``"exact"`` sums over the states of the hidden layer, or of a smaller Bernoulli visible one, of at most 25
        units; it has gradients and a standard error of 0. ``"ais"`` anneals from independent visible units, of
        location :math:`b_0`, to the model,

        .. math::
            f_\beta(v) = e^{g(v) + ((1 - \beta) b_0 + \beta b)^\top T(v)} \prod_j (1 + e^{\beta (c_j + W_j T(v))})

        Args:
            method: ``"exact"``, ``"ais"`` or ``"reverse"``; the last two bracket log Z in expectation.
            context: one vector (C,), for a conditional model.
            chains: of AIS.
            temperatures: of AIS, how many or the inverse temperatures; see :func:`annealed_importance_sampling`.
            data: rows (N, V) whose frequencies set the base :math:`b_0`; default the model's own b, which on a
                trained model takes many times more temperatures for the same error.
            samples: for ``"reverse"``, draws (M, V) of the model, which start its chains.
            seed: of AIS; default torch's own generator.
        Shapes: returns (), ().
        Raises: ValueError for another method, more than 25 units by ``"exact"``, or several contexts.
        Source: Salakhutdinov and Murray (2008), On the quantitative analysis of deep belief networks.
        Example:
            >>> rbm = RBM(visible=5, hidden=2)
            >>> log_z, standard_error = rbm.log_partition("exact")
            >>> all_x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 5)
            >>> torch.allclose(log_z.float(), (-rbm.energy(all_x)).logsumexp(0))
            True
        """
        context = one_context(self, context)
        b, c = self._biases(context)
        base = b if data is None else self.units.location(self.check(data, context)[0].double())
        if samples is not None:
            samples, _ = self.check(samples, context)
        generator = seeded(self.device, seed)
        return log_partition_of_layers(
            method, self.weight, b, c, base, self.units, samples, chains, temperatures, generator
        )
