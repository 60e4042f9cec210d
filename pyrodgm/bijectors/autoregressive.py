"""Autoregressive bijectors: each feature is mapped by a function that the features before it choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.distributions import constraints
from torch.nn.modules.dropout import _DropoutNd

from pyrodgm.bijectors.base import BijectiveTransform, Bijector, in_its_precision
from pyrodgm.bijectors.events import check_size
from pyrodgm.bijectors.univariate import ScaleShift, Univariate
from pyrodgm.nets.incremental import IncrementalPass
from pyrodgm.nets.incremental_solve import IncrementalSolve
from pyrodgm.nets.masked import MaskedMLP
from pyrodgm.shapes import expand_to

__all__ = ["Autoregressive"]


def _solve(state: IncrementalPass, univariate: Univariate, y: Tensor) -> Tensor:
    """x feature by feature: rows (N, D) -> (N, D)."""
    for i, column in enumerate(state.ranked(y).contiguous().unbind()):
        state.set(i, univariate.inverse(state.parameters(i), column))
    return state.result()


def _solved_ladj(state: IncrementalPass, univariate: Univariate) -> Tensor:
    """The inverse's ladj at the x that was found, of all features at once: (N)."""
    return -univariate.ladj(state.out.permute(2, 1, 0), state.values.T).sum(-1)


class _Sequential(Function):
    """(x, ladj) of the inverse: solved feature by feature, differentiated implicitly and as incrementally."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, context: Tensor | None, transform: _Transform, *tensors: Tensor) -> Any:
        state = IncrementalSolve(transform.net, context, len(y))
        x = _solve(state, transform.univariate, y)
        ladj = _solved_ladj(state, transform.univariate)
        ctx.save_for_backward(context, *tensors)
        ctx.state, ctx.univariate = state, transform.univariate
        return x, ladj

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, grad_ladj: Tensor) -> Any:
        _ = ctx.saved_tensors  # an error if one was changed in place since
        state = ctx.state
        with in_its_precision(grad_x):
            with torch.enable_grad():  # of the map itself, the parameters held still; the inverse's ladj is -ladj
                x, raw = state.values.detach().requires_grad_(), state.out.detach().requires_grad_()
                y, ladj = ctx.univariate.call_and_ladj(raw.permute(2, 1, 0), x.T)
                diagonal, slopes = torch.autograd.grad(y.sum(), (x, raw), retain_graph=True)
                own, through = torch.zeros_like(diagonal), torch.zeros_like(slopes)
                if ladj.requires_grad:  # else it is constant
                    at_ladj = -grad_ladj.unsqueeze(-1).expand_as(ladj)
                    own, through = torch.autograd.grad(ladj, (x, raw), at_ladj, materialize_grads=True)
            v = state.back(state.ranked(grad_x) + own, diagonal, slopes, through)
            at_context, *others = state.gradients(ctx.needs_input_grad[1], ctx.needs_input_grad[3:])
        return state.rows(v), at_context, None, *others


class _Transform(BijectiveTransform):
    def __init__(self, net: MaskedMLP, univariate: Univariate, features: int, context: Tensor | None) -> None:
        super().__init__()
        self.net, self.univariate, self.features, self.context = net, univariate, features, context
        self.domain = constraints.independent(univariate.domain, 1)
        self.codomain = constraints.independent(univariate.codomain, 1)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = check_size(x, self.features)
        y, ladj = self.univariate.call_and_ladj(self.net(x, self.context).to(x.dtype), x)
        return y, expand_to(ladj.sum(-1), y.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        lead, rows, context = self._rows(y)
        with in_its_precision(y):
            if torch._C._are_functorch_transforms_active():
                x, ladj = self._by_passes(rows, context)
            elif torch.is_grad_enabled():
                self._check_dropout()
                x, ladj = _Sequential.apply(rows, context, self, *IncrementalSolve.tensors(self.net))
            else:  # nothing to remember
                state = IncrementalPass(self.net, context, len(rows))
                x, ladj = _solve(state, self.univariate, rows), _solved_ladj(state, self.univariate)
        return x.reshape(*lead, self.features), ladj.reshape(lead)

    def _inverse(self, y: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return self.inverse_and_ladj(y)[0]
        lead, rows, context = self._rows(y)
        with in_its_precision(y):
            x = _solve(IncrementalPass(self.net, context, len(rows)), self.univariate, rows)
        return x.reshape(*lead, self.features)

    def _rows(self, y: Tensor) -> tuple[torch.Size, Tensor, Tensor | None]:
        """The batch shape, and y and the context as rows (N, D) and (N, C)."""
        lead, context = check_size(y, self.features).shape[:-1], self.context
        if context is not None:
            lead = torch.broadcast_shapes(lead, context.shape[:-1])
            context = context.expand(*lead, -1).reshape(lead.numel(), context.shape[-1]).to(y.dtype)
        return lead, y.expand(*lead, -1).reshape(lead.numel(), self.features), context

    def _check_dropout(self) -> None:
        """The backward pass runs the network once more, and would drop other units there, or draw other slopes."""
        dropout = any(
            isinstance(part, (_DropoutNd, nn.RReLU)) and part.training for part in self.net.activation.modules()
        )
        if dropout:
            raise ValueError(
                "expected no dropout in the sequential way of an autoregressive map where gradients are wanted; train "
                "by the other way (an MAF by log_prob, an IAF by rsample), call eval() or leave the dropout out"
            )

    def _by_passes(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The inverse by D passes of the network, of plain operations: for transforms of ``torch.func``."""
        x, ladj = torch.zeros_like(y), torch.zeros_like(y[..., 0])
        places = torch.arange(self.features, device=y.device)
        for feature in self.net.get_buffer("ranks")[0].argsort().tolist():
            raw = self.net(x, context).to(y.dtype)[..., feature : feature + 1]
            one, slope = self.univariate.inverse_and_ladj(raw, y[..., feature : feature + 1])
            x, ladj = torch.where(places == feature, one, x), ladj + slope[..., 0]
        return x, ladj


class Autoregressive(Bijector):
    r"""Masked autoregressive bijector: :math:`y_i = T(x_i; p_i(x_{<i}, c))`.

    The way from x to y is one pass of a masked network. The way back is sequential, and each
    weight is used once in it and once in its gradient: hidden units are sorted by degree, and the
    gradient solves with the triangular Jacobian instead of unrolling D passes. As it stands it is
    the inverse autoregressive flow of a sampler; its ``.inv`` makes a masked autoregressive flow.

    Args:
        features: D.
        univariate: the map T; default :class:`ScaleShift`.
        context: size C of the conditioning vector, 0 for none.
        hidden: widths of the masked network's hidden layers.
        activation: makes one activation module of that network, which works unit by unit; with dropout the flow can
            learn by the way of one pass alone.
        order: ``order[d]`` is the rank of feature d; default natural.
    Shapes: x (*B, D), context (*B, C) -> y (*B, D), ladj (*B,) in nats.
    Source: Papamakarios et al. (2017), arXiv:1705.07057; Kingma et al. (2016), arXiv:1606.04934.
    Example:
        >>> layer = Autoregressive(4)
        >>> x = torch.randn(3, 4)
        >>> torch.allclose(layer.inv(layer(x)[0])[0], x, atol=1e-5)
        True
    """

    def __init__(
        self,
        features: int,
        univariate: Univariate | None = None,
        *,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        order: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.univariate = ScaleShift() if univariate is None else univariate
        self.net = MaskedMLP(
            features, self.univariate.size, hidden, context=context, order=order, activation=activation
        )
        self.net.columns = self.univariate.columns
        self.volume_preserving = self.univariate.volume_preserving
        self.features, self.context = features, context
        self.triangular = order is None or bool((torch.as_tensor(order).diff() > 0).all())
        to_last = self.net.context_to_last if hidden else self.net.from_context
        with torch.no_grad():
            for parameter in (*self.net.last.parameters(), *(to_last.parameters() if to_last is not None else ())):
                parameter.zero_()

    def extra_repr(self) -> str:
        return str(self.univariate)

    def condition(self, context: Tensor | None = None) -> BijectiveTransform:
        return _Transform(self.net, self.univariate, self.features, self.check(context))
