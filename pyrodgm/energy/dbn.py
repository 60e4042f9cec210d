"""Deep belief networks: sigmoid layers, drawn downwards, under a restricted Boltzmann machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrodgm.draws import one_of
from pyrodgm.energy.bipartite import RBMConditionals
from pyrodgm.energy.normalised import Normalised, log_partitions
from pyrodgm.energy.rbm import RBM
from pyrodgm.energy.recognition import Recognition, bernoulli_log_prob
from pyrodgm.energy.states import binary_states, deep_sizes
from pyrodgm.energy.visible_units import BernoulliUnits, draw_bernoulli

__all__ = ["DeepBeliefNetwork"]

_MOST_PAIRS = 20  # units of a hidden layer and the next, all of whose states meet in one table


class DeepBeliefNetwork(Normalised):
    r"""A deep belief network with layers x = h_0, h_1, ..., h_L.

    .. math::
        p(x) = \sum_{h_1, \dots, h_{L-1}} p(x \mid h_1) \cdots p(h_{L-2} \mid h_{L-1}) \,
            \frac{e^{-E(h_{L-1})}}{Z}, \qquad p(h_l \mid h_{l+1}) = \sigma(G_l h_{l+1} + b_l)

    The two top layers are an :class:`RBM` with the energy E; Z is its normaliser and so that of p(x), whose energy is
    minus the log of the sum without Z. ``sample`` runs the top machine, then one pass downwards. ``energy``, and the
    posterior that ``run_kernel`` starts from, are exact, by enumeration: hidden layers next to each other have at most
    20 units together, h_L not counted. Larger ones have :meth:`log_weights` and :meth:`bound`, by a
    :class:`Recognition` network. A context shifts the biases of the top machine.

    Train a list of RBMs by ``pyrodgm.fit_stack``, put it together with :meth:`from_stack`, then fine-tune by
    ``UpDown``.

    Args:
        visible: V.
        hidden: sizes of h_1 to h_L, L >= 2.
        context: size of the conditioning vector, 0 for none.
    Attributes:
        down: linear maps of p(h_l | h_{l+1}), from l = 0.
        top: the RBM of h_{L-1} and h_L.
    Shapes: x (*B, V) of zeros and ones, context (*B, C) -> energy (*B,).
    Raises: ValueError for sizes below 1 or fewer than two hidden layers.
    Source: Hinton, Osindero and Teh (2006), A fast learning algorithm for deep belief nets;
        Salakhutdinov and Murray (2008), On the quantitative analysis of deep belief networks.
    Example:
        >>> dbn = DeepBeliefNetwork(visible=6, hidden=[4, 3])
        >>> x = dbn.sample(5)
        >>> dbn.bound(x, Recognition(6, [4]), method="exact").shape
        torch.Size([5])
    """

    def __init__(self, visible: int, hidden: Sequence[int], context: int = 0) -> None:
        sizes = deep_sizes(visible, hidden)
        super().__init__((visible,), context)
        self.sizes = sizes
        self.top = RBM(sizes[-2], sizes[-1], context)
        self.kernel = self.top.kernel
        self.down = nn.ModuleList([nn.Linear(sizes[i + 1], sizes[i]) for i in range(len(sizes) - 2)])

    @classmethod
    def from_stack(cls, stack: Sequence[RBM]) -> DeepBeliefNetwork:
        """The network of pre-trained RBMs, bottom first: the upper two layers keep theirs, others only look down.

        Raises: ValueError for machines with a context, or visible units other than Bernoulli.
        """
        if any(rbm.context or not isinstance(rbm.units, BernoulliUnits) for rbm in stack):
            raise ValueError(
                "expected RBMs of Bernoulli units without context, got others; build DeepBeliefNetwork itself"
            )
        model = cls(stack[0].weight.shape[1], [rbm.weight.shape[0] for rbm in stack])
        model.to(stack[0].weight)
        model.top.load_state_dict(stack[-1].state_dict())
        for layer, rbm in zip(model.down, stack, strict=False):
            layer.load_state_dict({"weight": rbm.weight.t(), "bias": rbm.visible_bias})
        return model

    @property
    def support(self) -> Any:
        return self.top.support

    def joint_energy(self, x: Tensor, h: Sequence[Tensor], context: Tensor | None = None) -> Tensor:
        """-log of the sum's term, of h_1 to h_{L-1}: (*B, V), [(*B, H_l)] -> (*B,)."""
        x, context = self.check(x, context)
        return self.top.energy(h[-1], context) - self.log_likelihood(x, h)

    def log_likelihood(self, x: Tensor, h: Sequence[Tensor]) -> Tensor:
        r""":math:`\log p(x \mid h_1) + \dots + \log p(h_{L-2} \mid h_{L-1})` in nats: (*B, V), [(*B, H_l)] -> (*B,)."""
        log_prob = x.new_zeros(())
        for layer, low, high in zip(self.down, (x, *h), h, strict=False):
            log_prob = log_prob + bernoulli_log_prob(low, layer(high))
        return log_prob

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context = self.check(x, context)
        above = self._above(x, context)[0]
        return -(_table(x, self.down[0], self._states(1, x)) + above).logsumexp(-1)

    def _states(self, layer: int, like: Tensor) -> Tensor:
        return binary_states(self.sizes[layer], like)

    def _above(self, like: Tensor, context: Tensor | None) -> list[Tensor]:
        """log p(h_l) + log Z of every state of h_1 to h_{L-1}: [(*B, 2^H_l)]."""
        if not self._few_states:
            raise ValueError(
                f"expected hidden layers of at most {_MOST_PAIRS} units, two by two, to sum out, got "
                f"{self.sizes[1:-1]}; use log_weights, bound and UpDown"
            )
        last = len(self.sizes) - 2
        found = [-self.top.energy(self._states(last, like), None if context is None else context.unsqueeze(-2))]
        for layer in range(last - 1, 0, -1):
            table = _table(self._states(layer, like), self.down[layer], self._states(layer + 1, like))
            found.insert(0, (table + found[0].unsqueeze(-2)).logsumexp(-1))
        return found

    @torch.no_grad()
    def draw_hidden(
        self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """h_1 to h_{L-1} ~ p(h | x), exact by enumeration: (B, V) -> [(B, H_l)]."""
        x, context = self.check(x, context)
        drawn = [x]
        for i, above in enumerate(self._above(x, context)):
            states = self._states(i + 1, x)
            p = (_table(drawn[-1], self.down[i], states) + above).softmax(-1)
            drawn.append(states[one_of(p, generator)])
        return drawn[1:]

    @torch.no_grad()
    def descend(self, h: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """One pass downwards: x, h_1, ... given h_{L-1}: (*B, H_{L-1}) -> [(*B, H_l)] with h_{L-1} last."""
        layers = [h]
        for layer in reversed(self.down):
            layers.insert(0, draw_bernoulli(layer(layers[0]), generator))
        return layers

    def potential(self, context: Tensor | None = None) -> RBMConditionals:
        """The conditionals of the top machine, for chains (chains, H_{L-1})."""
        return self.top.potential(context)

    @property
    def moves_hidden(self) -> bool:
        return True

    def run_kernel(
        self, x: Tensor, context: Tensor | None, steps: int, generator: torch.Generator | None = None
    ) -> Tensor:
        h = self.draw_hidden(x, context, generator)[-1]
        return self.descend(super().run_kernel(h, context, steps, generator), generator)[0]

    @torch.no_grad()
    def start(self, n: int, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """One pass downwards from independent units with the top machine's biases: (n, V)."""
        return self.descend(self.top.start(n, context, generator), generator)[0]

    def _draw(self, rows: int, context: Tensor | None) -> Tensor:
        h = super().run_kernel(self.top.start(rows, context), context, self.sample_steps)
        return self.descend(h)[0]

    def log_weights(
        self, x: Tensor, recognition: Recognition, context: Tensor | None = None, *, particles: int = 1
    ) -> Tensor:
        r"""Importance weights :math:`\log p(x, h_k) Z - \log q(h_k \mid x)`, :math:`h_k \sim q`, in nats.

        Shapes: x (B, V) -> (K, B).
        """
        x, context = self.check(x, context)
        many = x.expand(particles, *x.shape)
        h = recognition.draw(many)
        return -self.joint_energy(many, h, context) - recognition.log_prob(many, h)

    @torch.no_grad()
    def bound(
        self,
        x: Tensor,
        recognition: Recognition,
        context: Tensor | None = None,
        *,
        particles: int = 100,
        method: str = "ais",
        **options: Any,
    ) -> Tensor:
        r"""A bound of log p(x) that rises to it with K, :math:`\log \frac1K \sum_k w_k - \log Z`, in nats.

        It lies below in expectation over the particles; by ``"ais"`` it has the error of log Z besides.

        Args:
            x, context: (B, V), (B, C); every distinct context costs a log Z.
            recognition: q(h | x).
            particles: K.
            method, options: of :meth:`log_partition`.
        Shapes: returns (B,).
        Source: Salakhutdinov and Murray (2008).
        """
        x, context = self.check(x, context)
        log_z = log_partitions(self, context, method, **options)
        weights = torch.stack([self.log_weights(x, recognition, context)[0] for _ in range(particles)])
        return (weights.double().logsumexp(0) - math.log(particles) - log_z).to(x.dtype)

    @property
    def _few_states(self) -> bool:
        middle = self.sizes[1:-1]
        return all(a + b <= _MOST_PAIRS for a, b in zip(middle, (*middle[1:], 0), strict=True))

    @property
    def enumerable(self) -> bool:
        """Whether both E(x) and log Z can be had exactly in about a second."""
        return self._few_states and self.top.enumerable

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
        """log Z in nats and its standard error: :meth:`RBM.log_partition` of the top machine.

        ``data`` and ``samples`` are rows of its visible layer, (N, H_{L-1}): what a recognition network makes of data.
        """
        return self.top.log_partition(
            method,
            context=context,
            chains=chains,
            temperatures=temperatures,
            data=data,
            samples=samples,
            seed=seed,
        )


def _table(low: Tensor, layer: nn.Module, states: Tensor) -> Tensor:
    """log p(low | each state above): (*B, N), (S, M) -> (*B, S)."""
    logits = layer(states)
    return low @ logits.t() - softplus(logits).sum(-1)
