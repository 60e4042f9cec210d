"""Restricted Boltzmann machines: binary data, binary hidden units, no links inside a layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus
from torch.utils.checkpoint import checkpoint

from pyrodgm.core import Energy
from pyrodgm.kernels.ais import annealed_importance_sampling
from pyrodgm.kernels.gibbs import BlockGibbs

__all__ = ["RBM", "RBMConditionals"]

_MOST_UNITS = 25  # 2^25 states of a layer are minutes of work, each further unit doubles them
_NUMBERS_AT_ONCE = 2**22  # of an enumeration, 32 MB
_NUMBERS_QUICK = 2**27  # an enumeration of so many numbers takes about a second


def _bernoulli(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """0 or 1 with P(1) = sigmoid(logits), which it overwrites; uniform_ and lt_ take 2/3 of bernoulli_'s time."""
    return torch.empty_like(logits).uniform_(generator=generator).lt_(logits.sigmoid_())


class RBMConditionals:
    """The two conditionals of an RBM with its biases fixed: what :class:`BlockGibbs` samples from.

    Args:
        weight: (H, V).
        visible_bias: (V,), or (chains, V) where each chain has a context of its own.
        hidden_bias: (H,) or (chains, H).
    """

    def __init__(self, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> None:
        self.weight = weight.detach()
        self.visible_bias = visible_bias.detach()
        self.hidden_bias = hidden_bias.detach()

    def hidden_given_visible(self, v: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return _bernoulli(torch.addmm(self.hidden_bias, v, self.weight.t()), generator)

    def visible_given_hidden(self, h: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return _bernoulli(torch.addmm(self.visible_bias, h, self.weight), generator)


class RBM(Energy):
    r"""Restricted Boltzmann machine, Bernoulli units.

    .. math::
        E(v, h) &= -b^\top v - c^\top h - h^\top W v \\
        E(v) &= -\log \sum_h e^{-E(v, h)} = -b^\top v - \sum_j \log(1 + e^{c_j + W_j v})

    ``energy`` is the second one (the free energy), so p(v) ∝ exp(-energy). A context s shifts the
    biases, :math:`b(s) = b + B s`, :math:`c(s) = c + C s`, and each context has a normaliser of its own.

    Args:
        visible: V.
        hidden: H.
        context: size of the conditioning vector, 0 for none.
    Shapes: x (*B, V) of zeros and ones, context (*B, C) -> energy (*B,).
    Raises: ValueError for sizes below 1.
    Source: Smolensky (1986); Hinton (2002), Training products of experts; Mnih et al. (2011),
        Conditional restricted Boltzmann machines for structured output prediction.
    Example:
        >>> rbm = RBM(visible=6, hidden=3)
        >>> x = rbm.sample(4)
        >>> rbm.log_prob(x).shape  # normalised: the hidden units are few enough to enumerate
        torch.Size([4])
    """

    def __init__(self, visible: int, hidden: int, context: int = 0) -> None:
        if visible < 1 or hidden < 1:
            raise ValueError(f"expected visible >= 1 and hidden >= 1 units, got {visible} and {hidden}")
        super().__init__((visible,), context)
        self.kernel = BlockGibbs()
        self.weight = nn.Parameter(0.01 * torch.randn(hidden, visible))
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        if context:
            self.visible_context = nn.Parameter(0.01 * torch.randn(visible, context))
            self.hidden_context = nn.Parameter(0.01 * torch.randn(hidden, context))

    @property
    def support(self) -> Any:
        return torch.distributions.constraints.independent(torch.distributions.constraints.boolean, 1)

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
        return -(v * b).sum(-1) - softplus(linear(v, self.weight) + c).sum(-1)

    def joint_energy(self, x: Tensor, h: Tensor, context: Tensor | None = None) -> Tensor:
        """E(v, h), of both layers: (*B, V), (*B, H) -> (*B,)."""
        v, context = self.check(x, context)
        b, c = self._biases(context)
        return -(v * b).sum(-1) - (h * (linear(v, self.weight) + c)).sum(-1)

    def potential(self, context: Tensor | None = None) -> RBMConditionals:
        """The conditionals that the kernel samples from, for chains (chains, V) with contexts (chains, C)."""
        _, context = self.check(None, context)
        return RBMConditionals(self.weight, *self._biases(context))

    @torch.no_grad()
    def start(self, n: int, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Independent visible units with the model's visible biases: (n, V)."""
        _, context = self.check(None, context)
        b, _ = self._biases(context)
        return _bernoulli(b.expand(n, -1).clone(), generator)

    @torch.no_grad()
    def set_visible_bias(self, x: Tensor) -> None:
        r"""Set :math:`b_i = \log p_i / (1 - p_i)`, p_i the frequency of unit i in the rows (N, V), before training.

        One pseudo-row of each value keeps units that never change finite.
        Source: Hinton (2010), A practical guide to training restricted Boltzmann machines, section 8.1.
        """
        no_context = torch.zeros(self.context, dtype=self.dtype, device=self.device) if self.context else None
        v, _ = self.check(x, no_context)
        self.visible_bias.copy_(_marginal_logits(v))

    @property
    def enumerable(self) -> bool:
        """Whether the exact log Z takes about a second at most."""
        layers = self.weight.shape
        return min(layers) <= _MOST_UNITS and 2 ** min(layers) * max(layers) <= _NUMBERS_QUICK

    def log_partition(  # type: ignore[override]
        self,
        method: str = "ais",
        *,
        context: Tensor | None = None,
        chains: int = 1000,
        temperatures: int | Tensor = 4000,
        data: Tensor | None = None,
        seed: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""log Z in nats and its standard error, computed in float64.

        ``"exact"`` sums over the states of the smaller layer, of at most 25 units; it has gradients
        and a standard error of 0. ``"ais"`` anneals from independent visible units to the model,

        .. math::
            f_\beta(v) = e^{(1 - \beta) b_0^\top v + \beta b^\top v} \prod_j (1 + e^{\beta (c_j + W_j v)})

        Args:
            method: ``"exact"`` or ``"ais"``.
            context: one vector (C,), for a conditional model.
            chains: of AIS.
            temperatures: of AIS, how many or the inverse temperatures; see :func:`annealed_importance_sampling`.
            data: rows (N, V) whose frequencies set the base :math:`b_0`; default the model's own b, which on a
                trained model takes many times more temperatures for the same error.
            seed: of AIS; default torch's own generator.
        Shapes: returns (), ().
        Raises: ValueError for another method, more than 25 units by ``"exact"``, or several contexts.
        Source: Salakhutdinov and Murray (2008), On the quantitative analysis of deep belief networks, section 4.1.
        Example:
            >>> rbm = RBM(visible=5, hidden=2)
            >>> log_z, standard_error = rbm.log_partition("exact")
            >>> all_x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 5)
            >>> torch.allclose(log_z.float(), (-rbm.energy(all_x)).logsumexp(0))
            True
        """
        _, context = self.check(None, context)
        if context is not None and context.dim() > 1:
            raise ValueError(
                f"expected one context of shape ({self.context},), got {tuple(context.shape)}; "
                "every context has a log Z of its own, so ask for one at a time"
            )
        b, c = (bias.double() for bias in self._biases(context))
        weight = self.weight.double()
        if method == "exact":
            log_z = _enumerate(weight, b, c)
            return log_z, torch.zeros_like(log_z)
        if method != "ais":
            raise ValueError(f'expected method "exact" or "ais", got {method!r}')
        base = b if data is None else _marginal_logits(self.check(data, context)[0].double())
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        path = _AnnealedRBM(weight.detach(), b.detach(), c.detach(), base.detach())
        estimate = annealed_importance_sampling(path, chains, temperatures, generator)
        return estimate.log_z, estimate.standard_error

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, method: str = "exact", **options: Any) -> Tensor:
        r"""Normalised log-probability :math:`-E(x) - \log Z` in nats.

        Args:
            x: (*B, V).
            context: (*B, C); every distinct one costs a log Z.
            method: how log Z is found; by ``"ais"`` it carries the error that :meth:`log_partition` reports.
            options: of :meth:`log_partition`.
        Shapes: returns (*B,).
        Raises: ValueError by ``"exact"`` if both layers have more than 25 units.
        """
        x, context = self.check(x, context)
        if context is None:
            log_z = self.log_partition(method, **options)[0]
        else:
            contexts, index = context.reshape(-1, self.context).unique(dim=0, return_inverse=True)
            log_zs = [self.log_partition(method, context=one, **options)[0] for one in contexts]
            log_z = torch.stack(log_zs)[index].reshape(context.shape[:-1])
        # the energy is rounded to the model's dtype, the difference is not rounded again before it is small
        return (-self.energy(x, context).double() - log_z).to(x.dtype)


def _marginal_logits(x: Tensor) -> Tensor:
    """log-odds of every column's frequency, with one pseudo-row of each value: (*B, V) -> (V,)."""
    ones = x.reshape(-1, x.shape[-1])
    on = ones.sum(0)
    return (on + 1).log() - (len(ones) - on + 1).log()


def _binary_states(units: int, like: Tensor) -> Tensor:
    """Every state of a layer, (2^units, units)."""
    codes = torch.arange(2**units, device=like.device).unsqueeze(-1)
    return (codes >> torch.arange(units, device=like.device)).bitwise_and(1).to(like.dtype)


def _enumerate(weight: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """log of the sum over all states: the smaller layer one by one, the other in closed form."""
    if weight.shape[0] > weight.shape[1]:
        weight, b, c = weight.t(), c, b
    units, others = weight.shape
    if units > _MOST_UNITS:
        raise ValueError(
            f"expected a layer of at most {_MOST_UNITS} units to enumerate, got layers of {others} and "
            f'{units}; use log_partition("ais")'
        )
    low = min(units, max(0, int(math.log2(_NUMBERS_AT_ONCE / others))))
    states = _binary_states(low, weight)
    bias, inputs = states @ c[:low], states @ weight[:low] + b  # (2^low,), (2^low, others)

    def chunk(high: Tensor) -> Tensor:
        """The states whose last units - low units are ``high``."""
        total = softplus(inputs + high @ weight[low:]).sum(-1) + bias
        return total.logsumexp(0) + high @ c[low:]

    # with gradients, many chunks are computed twice rather than all kept
    again = units > low and torch.is_grad_enabled() and any(t.requires_grad for t in (weight, b, c))
    parts = [
        checkpoint(chunk, high, use_reentrant=False) if again else chunk(high)
        for high in _binary_states(units - low, weight)
    ]
    return torch.stack(parts).logsumexp(0)


class _AnnealedRBM:
    """The path of :meth:`RBM.log_partition`: hidden inputs and visible biases grow with beta."""

    def __init__(self, weight: Tensor, b: Tensor, c: Tensor, base: Tensor) -> None:
        self.weight, self.b, self.c, self.base = weight, b, c, base
        self._columns = torch.cat((weight, base.unsqueeze(0), b.unsqueeze(0))).t().contiguous()
        self._last: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def base_log_partition(self) -> Tensor:
        return softplus(self.base).sum() + len(self.c) * math.log(2)

    def start(self, chains: int, generator: torch.Generator | None = None) -> Tensor:
        return _bernoulli(self.base.expand(chains, -1).clone(), generator)

    def _products(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c + W v, base v and b v: two densities and a move at one v share the pass over it."""
        if self._last is None or self._last[0] is not v:
            products = v @ self._columns
            self._last = v, products[:, :-2] + self.c, products[:, -2], products[:, -1]
        return self._last[1:]

    def log_density(self, x: Tensor, beta: Tensor) -> Tensor:
        inputs, base, visible = self._products(x)
        return torch.lerp(base, visible, beta) + softplus(beta * inputs).sum(-1)

    def move(self, x: Tensor, beta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        h = _bernoulli(beta * self._products(x)[0], generator)
        return _bernoulli(torch.addmm(torch.lerp(self.base, self.b, beta), h * beta, self.weight), generator)
