"""Deep Boltzmann machines: layers of binary units, each linked with the next, none inside a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from pyrodgm.draws import one_of
from pyrodgm.energy.bipartite import RBMConditionals, few_states, input_of_few_links, log_partition_of_layers
from pyrodgm.energy.gap import Gap, Offsets, energy_gap
from pyrodgm.energy.normalised import Normalised, log_partitions, one_context, seeded
from pyrodgm.energy.rbm import RBM
from pyrodgm.energy.states import binary_states, deep_sizes
from pyrodgm.energy.twins import TwinRBM
from pyrodgm.energy.visible_units import BernoulliUnits, draw_bernoulli
from pyrodgm.kernels.gibbs import BlockGibbs

__all__ = ["DeepBoltzmannMachine"]

_MOST_ODD = 14  # units of the odd layers, summed out for every row
_NUMBERS_AT_ONCE = 2**22  # of rows times states of the odd layers
_BASE_ROWS = 2000  # whose hidden units set the base of AIS; more would only cost time
_CLAMPED_SWEEPS = 10  # from a mean-field posterior to p(h | x), where that cannot be enumerated


class DeepBoltzmannMachine(Normalised):
    r"""A deep Boltzmann machine with layers x = h_0, h_1, ..., h_L.

    .. math::
        E(x, h) = -\sum_{l=0}^L b_l^\top h_l - \sum_{l=1}^L h_l^\top W_l h_{l-1}, \qquad
        E(x) = -\log \sum_h e^{-E(x, h)}

    Given its odd layers the even ones are independent units and the other way round, so it is an RBM between the
    two: block Gibbs, AIS and the exact log Z are those of an RBM. The kernel's positions are the even layers;
    ``run_kernel`` draws them given x, exactly while the odd layers have at most 14 units and by ten clamped sweeps
    from the mean-field posterior otherwise. ``energy`` needs the enumeration; :meth:`variational_energy` and
    :meth:`bound` do not. A context c shifts every bias, :math:`b_l(c) = b_l + B_l c`.

    Train the layers of :meth:`stack` one by one with ``pyrodgm.fit_stack``, put them together with
    :meth:`from_stack`, then train jointly with ``MeanFieldContrastive``. Or start jointly from one trained RBM, by
    :meth:`from_rbm`.

    Args:
        visible: V.
        hidden: sizes of h_1 to h_L, L >= 2.
        context: size of the conditioning vector, 0 for none.
    Attributes:
        weights: W_l of shape (H_l, H_{l-1}), from l = 1.
        biases: b_l, from l = 0.
    Shapes: x (*B, V) of zeros and ones, context (*B, C) -> energy (*B,).
    Raises: ValueError for sizes below 1 or fewer than two hidden layers.
    Source: Salakhutdinov and Hinton (2009), Deep Boltzmann machines, AISTATS.
    Example:
        >>> dbm = DeepBoltzmannMachine(visible=6, hidden=[4, 3])
        >>> x = dbm.sample(5)
        >>> bool((dbm.bound(x, method="exact") <= dbm.log_prob(x) + 1e-4).all())
        True
    """

    def __init__(self, visible: int, hidden: Sequence[int], context: int = 0) -> None:
        sizes = deep_sizes(visible, hidden)
        super().__init__((visible,), context)
        self.sizes = sizes
        self.kernel = BlockGibbs()
        self.units = BernoulliUnits()
        pairs = zip(sizes[1:], sizes, strict=False)
        self.weights = nn.ParameterList([nn.Parameter(0.01 * torch.randn(up, down)) for up, down in pairs])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in sizes])
        if context:
            shifts = [nn.Parameter(0.01 * torch.randn(size, context)) for size in sizes]
            self.context_weights = nn.ParameterList(shifts)

    @staticmethod
    def stack(visible: int, hidden: Sequence[int]) -> list[TwinRBM]:
        """The machines to pre-train, bottom first: what a unit will get from two sides it gets twice from one.

        The first sees two copies of the data, the last has two copies of its hidden units, others have both.
        """
        sizes, last = (visible, *hidden), len(hidden) - 1
        return [TwinRBM(sizes[i], sizes[i + 1], 1 + (i < last), 1 + (i > 0)) for i in range(len(hidden))]

    @classmethod
    def from_stack(cls, stack: Sequence[TwinRBM]) -> DeepBoltzmannMachine:
        """The deep machine of pre-trained ones; a layer that two of them have takes the mean of their biases."""
        model = cls(stack[0].visible, [machine.hidden for machine in stack]).to(stack[0].weight)
        with torch.no_grad():
            below = [machine.hidden_bias for machine in stack]
            above = [machine.visible_bias for machine in stack]
            biases = [above[0], *[(a + b) / 2 for a, b in zip(below, above[1:], strict=False)], below[-1]]
            for own, given in zip(model.biases, biases, strict=True):
                own.copy_(given)
            for own, machine in zip(model.weights, stack, strict=True):
                own.copy_(machine.weight)
        return model

    @classmethod
    def from_rbm(cls, rbm: RBM, hidden: Sequence[int], scale: float = 0.01) -> DeepBoltzmannMachine:
        r"""The machine that is a trained RBM up to h_1, with layers of sizes ``hidden`` above that hardly say anything.

        Their weights have the standard deviation ``scale`` and the biases below take back what they say, to second
        order in the weights: p(x) is the RBM's and the mean-field bound is exact but for products of small weights, so
        joint training begins at the RBM's likelihood.

        Raises: ValueError for an RBM with a context, or visible units other than Bernoulli.
        Example:
            >>> DeepBoltzmannMachine.from_rbm(RBM(6, 4), [3]).sizes
            (6, 4, 3)
        """
        if rbm.context or not isinstance(rbm.units, BernoulliUnits):
            raise ValueError(
                "expected an RBM of Bernoulli units without context, got another; build DeepBoltzmannMachine itself"
            )
        first, visible = rbm.weight.shape
        model = cls(visible, [first, *hidden]).to(rbm.weight)
        with torch.no_grad():
            model.weights[0].copy_(rbm.weight)
            model.biases[0].copy_(rbm.visible_bias)
            for i in range(1, len(model.weights)):
                model.weights[i].normal_(0, scale)
                wanted = rbm.hidden_bias if i == 1 else model.biases[i]  # of the units once those above are summed out
                above = torch.zeros_like(model.biases[i + 1])
                model.biases[i].copy_(wanted - input_of_few_links(model.weights[i], above))
        return model

    @property
    def support(self) -> Any:
        return self.units.support

    def _layers(self, context: Tensor | None) -> list[Tensor]:
        """b_l of every layer: (H_l,), with the context's leading dimensions in front."""
        if context is None:
            return list(self.biases)
        return [linear(context, w, b) for w, b in zip(self.context_weights, self.biases, strict=True)]

    def joined(self, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As an RBM with the even layers visible and the odd ones hidden: W (O, E), b (*B, E), c (*B, O)."""
        biases = self._layers(context)
        return self._join(list(self.weights)), torch.cat(biases[::2], -1), torch.cat(biases[1::2], -1)

    def _join(self, weights: list[Tensor]) -> Tensor:
        """One matrix between odd and even layers, zero where there is no link: (O, E)."""
        rows = []
        for odd in range(1, len(self.sizes), 2):
            blocks = []
            for even in range(0, len(self.sizes), 2):
                if even == odd - 1:
                    blocks.append(weights[odd - 1])
                elif even == odd + 1:
                    blocks.append(weights[odd].t())
                else:
                    blocks.append(weights[0].new_zeros(self.sizes[odd], self.sizes[even]))
            rows.append(torch.cat(blocks, 1))
        return torch.cat(rows)

    def joint_energy(self, x: Tensor, h: Sequence[Tensor], context: Tensor | None = None) -> Tensor:
        """E(x, h) of h_1 to h_L, or its mean over independent units of these means: (*B, V), [(*B, H_l)] -> (*B,)."""
        x, context = self.check(x, context)
        layers = [x, *h]
        energy: Any = 0.0
        for layer, bias in zip(layers, self._layers(context), strict=True):
            energy = energy - (layer * bias).sum(-1)
        for weight, down, up in zip(self.weights, layers, h, strict=False):
            energy = energy - (up * linear(down, weight)).sum(-1)
        return energy

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context = self.check(x, context)
        _, bias, _ = self.joined(context)
        return -(x * bias[..., : self.sizes[0]]).sum(-1) - self._odd_logits(x, context)[0].logsumexp(-1)

    def even_energy(self, s: Tensor, context: Tensor | None = None) -> Tensor:
        """E of the even layers side by side, the odd ones summed out: (*B, E) -> (*B,)."""
        weight, b, c = self.joined(context)
        return -(s * b).sum(-1) - softplus(linear(s, weight) + c).sum(-1)

    def mean_field_gap(self, x: Tensor, mu: Sequence[Tensor], negatives: Tensor, offsets: Offsets | None = None) -> Gap:
        """Mean energy of rows and means of their hidden units less that of negatives, the odd layers of which are out.

        :meth:`joint_energy` less :meth:`even_energy`, with the gradient of :func:`pyrodgm.energy.gap.energy_gap`; for
        machines without context.

        Shapes: x (N, V), mu [(N, H_l)], negatives (M, E) -> ().
        """
        even, odd = torch.cat((x, *mu[1::2]), -1), torch.cat(list(mu[::2]), -1)
        linked = None
        if offsets is not None and len(self.sizes) > 3:  # the centred gradient must not make links between far layers
            linked = self._join([torch.ones_like(w) for w in self.weights])
        return energy_gap(*self.joined(), even, negatives, posterior=odd, offsets=offsets, linked=linked)

    def offsets(self) -> Offsets:
        """The means of even and odd layers as the biases alone have them: where centring starts."""
        _, b, c = self.joined()
        return Offsets(b.detach().sigmoid(), c.detach().sigmoid())

    def _odd_logits(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """-E of every state of the odd layers, the even hidden ones summed out, without b_0 x: (*B, 2^O), (2^O, O)."""
        weight, b, c = self.joined(context)
        if len(weight) > _MOST_ODD:
            raise ValueError(
                f"expected at most {_MOST_ODD} units in the odd layers to sum out, got {len(weight)}; use "
                "variational_energy, bound and MeanFieldContrastive"
            )
        v, odd = self.sizes[0], binary_states(len(weight), x)
        above = softplus((odd @ weight[:, v:]) + b[..., None, v:]).sum(-1)  # (*B, 2^O)
        return linear(x, weight[:, :v]) @ odd.t() + c @ odd.t() + above, odd

    def potential(self, context: Tensor | None = None) -> RBMConditionals:
        """The conditionals of even and odd layers given each other, for chains (chains, E)."""
        _, context = self.check(None, context)
        return RBMConditionals(*self.joined(context), self.units)

    @torch.no_grad()
    def draw_even(self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """(x, h_2, h_4, ...) with h ~ p(h | x), see the class: (B, V) -> (B, E)."""
        x, context = self.check(x, context)
        conditionals, v = self.potential(context), self.sizes[0]
        if len(conditionals.weight) <= _MOST_ODD:
            each = None if context is None else context.expand(len(x), -1)
            numbers = 2 ** len(conditionals.weight) * (1 if each is None else max(1, sum(self.sizes[2::2])))
            step, parts = max(1, _NUMBERS_AT_ONCE // numbers), []
            for i in range(0, len(x), step):
                logits, states = self._odd_logits(x[i : i + step], None if each is None else each[i : i + step])
                parts.append(states[one_of(logits.softmax(-1), generator)])
            odd = torch.cat(parts) if parts else x.new_empty(0, len(conditionals.weight))
        else:
            mean = torch.cat(self.mean_field(x, context)[::2], -1)
            odd = torch.empty_like(mean).uniform_(generator=generator).lt_(mean)
            for _ in range(_CLAMPED_SWEEPS):
                above = conditionals.visible_given_hidden(odd, generator)[:, v:]
                odd = conditionals.hidden_given_visible(torch.cat((x, above), -1), generator)
        return torch.cat((x, conditionals.visible_given_hidden(odd, generator)[:, v:]), -1)

    @property
    def moves_hidden(self) -> bool:
        return True

    def run_kernel(
        self, x: Tensor, context: Tensor | None, steps: int, generator: torch.Generator | None = None
    ) -> Tensor:
        return super().run_kernel(self.draw_even(x, context, generator), context, steps, generator)[:, : self.sizes[0]]

    @torch.no_grad()
    def start(self, n: int, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Independent visible units with the model's biases: (n, V)."""
        _, context = self.check(None, context)
        return draw_bernoulli(self._layers(context)[0].expand(n, -1).clone(), generator)

    @torch.no_grad()
    def mean_field(self, x: Tensor, context: Tensor | None = None, steps: int = 10) -> list[Tensor]:
        r"""The means of the factorised posterior nearest to p(h | x), by coordinate ascent of the bound.

        .. math:: \mu_l \leftarrow \sigma(W_l \mu_{l-1} + W_{l+1}^\top \mu_{l+1} + b_l), \qquad \mu_0 = x

        Odd and even layers in turn, each an exact maximum, so the bound never falls; the start is one pass upwards
        with doubled weights.

        Shapes: x (*B, V) -> [(*B, H_l)] of h_1 to h_L.
        Source: Salakhutdinov and Hinton (2009), also for the start.
        """
        x, context = self.check(x, context)
        biases = self._layers(context)
        mu, from_x = [x], linear(x, self.weights[0])  # the same at every step
        for i, weight in enumerate(self.weights):
            twice = 1 + (i + 1 < len(self.weights))
            mu.append((twice * (linear(mu[-1], weight) if i else from_x) + biases[i + 1]).sigmoid())
        for _ in range(steps):
            for layer in (*range(2, len(mu), 2), *range(1, len(mu), 2)):
                below = linear(mu[layer - 1], self.weights[layer - 1]) if layer > 1 else from_x
                inputs = below + biases[layer]
                if layer + 1 < len(mu):
                    inputs = inputs + mu[layer + 1] @ self.weights[layer]
                mu[layer] = inputs.sigmoid()
        return [m.detach() for m in mu[1:]]  # a traced graph forgets no_grad

    def variational_energy(self, x: Tensor, context: Tensor | None = None, steps: int = 10) -> Tensor:
        r"""An upper bound of the energy in nats, :math:`E_q E(x, h) - H(q) \geq E(x)`, (*B, V) -> (*B,)."""
        mu = self.mean_field(x, context, steps)
        entropy = sum(-(m.xlogy(m) + (1 - m).xlogy(1 - m)).sum(-1) for m in mu)
        return self.joint_energy(x, mu, context) - entropy

    def bound(
        self, x: Tensor, context: Tensor | None = None, *, steps: int = 10, method: str = "ais", **options: Any
    ) -> Tensor:
        r"""A lower bound of log p(x) in nats, :math:`H(q) - E_q E(x, h) - \log Z`.

        By ``"ais"`` the bound has the error of log Z, which :meth:`log_partition` reports.

        Args:
            x, context: (*B, V), (*B, C); every distinct context costs a log Z.
            steps: of :meth:`mean_field`.
            method, options: of :meth:`log_partition`.
        Shapes: returns (*B,).
        Source: Salakhutdinov and Hinton (2009).
        """
        x, context = self.check(x, context)
        log_z = log_partitions(self, context, method, **options)
        return (-self.variational_energy(x, context, steps).double() - log_z).to(x.dtype)

    @property
    def enumerable(self) -> bool:
        """Whether both E(x) and log Z can be had exactly in about a second."""
        odd, even = sum(self.sizes[1::2]), sum(self.sizes[::2])
        return odd <= _MOST_ODD and few_states(torch.empty(odd, even, device="meta"), self.units)

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
        """log Z in nats and its standard error, as :meth:`RBM.log_partition` of the even and odd layers.

        Args:
            method: ``"exact"`` (at most 25 units in the even or in the odd layers), ``"ais"`` or ``"reverse"``.
            context: one vector (C,), for a conditional model.
            chains, temperatures, seed: of AIS.
            data: rows (N, V) whose frequencies, and those of their mean-field posteriors, set the base.
            samples: for ``"reverse"``, draws (M, V) of the model.
        Shapes: returns (), ().
        Source: Salakhutdinov and Hinton (2009).
        """
        context = one_context(self, context)
        generator = seeded(self.device, seed)
        weight, b, c = self.joined(context)
        base = b.detach().double().clone()
        if data is not None:
            base = self._base(data, context).double()
        if samples is not None:
            each = None if context is None else context.expand(len(samples), -1)
            samples = self.draw_even(samples, each, generator)
        return log_partition_of_layers(method, weight, b, c, base, self.units, samples, chains, temperatures, generator)

    def _base(self, data: Tensor, context: Tensor | None) -> Tensor:
        """Locations of independent even layers as the rows have them: (N, V) -> (E,)."""
        data, context = self.check(data, context)
        some = data[:_BASE_ROWS]
        mu = self.mean_field(some, None if context is None else context.expand(len(some), -1))
        return torch.cat([self.units.location(layer) for layer in (data, *mu[1::2])])
