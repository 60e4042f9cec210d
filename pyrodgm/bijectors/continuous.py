"""Continuous flows: the solution of a differential equation whose velocity is a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyrodgm.bijectors.base import BijectiveTransform, Bijector
from pyrodgm.bijectors.ode import ODESolver, Path, odeint
from pyrodgm.bijectors.trace import ExactTrace, Trace
from pyrodgm.nets.concat_squash import ConcatSquashMLP

__all__ = ["Continuous", "Costs"]


class Costs(NamedTuple):
    r"""What a path costs, each (*B): :math:`\int |v|^2 dt` and :math:`\int \|\partial v / \partial x\|_F^2 dt`.

    Source: Finlay et al. (2020), arXiv:2002.02798, eq. 6-7.
    """

    kinetic: Tensor
    jacobian: Tensor


class ContinuousTransform(BijectiveTransform):
    """The solution of one velocity field under one context."""

    def __init__(self, net: nn.Module, context: Tensor | None, trace: Trace, solver: ODESolver, time: float) -> None:
        super().__init__()
        self.net, self.context, self.trace, self.solver, self.time = net, context, trace, solver, time

    def _path(self, x: Tensor, backwards: bool, costs: bool = False, ladj: bool = True) -> tuple[Tensor, Tensor]:
        context = self.context
        if context is not None:
            lead = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
            x, context = x.expand(*lead, -1), context.expand(*lead, -1)
        path = Path(self.net, self.trace if ladj else None, self.solver, self.time, backwards, costs)
        if not torch.is_inference_mode_enabled():
            return path(x, context)
        with torch.inference_mode(False), torch.no_grad():  # the trace is a derivative, which that mode forbids
            return path(x.clone(), None if context is None else context.clone())

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, q = self._path(x, False)
        return y, q[..., 0]

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, q = self._path(y, True)
        return x, q[..., 0]

    def _call(self, x: Tensor) -> Tensor:
        return self._path(x, False, ladj=False)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._path(y, True, ladj=False)[0]

    def inverse_and_costs(self, y: Tensor) -> tuple[Tensor, Tensor, Costs]:
        """The inverse, its ladj, and what its path costs, from one solve.

        A training loss that adds a small part of the mean costs to the negative log-likelihood keeps paths straight
        and cheap to solve (Finlay et al., 2020, eq. 8).
        """
        x, q = self._path(y, True, costs=True)
        return x, q[..., 0], Costs(-q[..., 1], -q[..., 2])  # that integral runs from T to 0


class Continuous(Bijector):
    r"""Continuous flow: y = x(T) where x(0) = x moves with the velocity of a network.

    .. math:: \frac{dx}{dt} = v(t, x, c), \qquad \mathrm{ladj} = \int_0^T \mathrm{tr} \frac{\partial v}{\partial x} dt

    Both directions solve the same equation. In training the trace is what ``trace`` estimates; in eval mode it is
    exact, unless ``eval_trace`` says otherwise.

    Args:
        features: D.
        net: any module (t (), x (*B, D), context (*B, C) or None) -> (*B, D), smooth in x and row by row;
            default a :class:`~pyrodgm.nets.ConcatSquashMLP`, which starts the flow as the identity.
        context: size C of the conditioning vector, 0 for none.
        hidden: widths of the default network's hidden layers.
        trace: :class:`ExactTrace` (the default), :class:`Hutchinson` or :class:`HutchPlusPlus`.
        eval_trace: the trace in eval mode; default exact.
        solver: method, tolerances, and how gradients are had.
        time: T > 0.
    Shapes: x (*B, D), context (*B, C) -> y (*B, D), ladj (*B,) in nats.
    Raises: ImportError without torchdiffeq; ValueError if features < 1 or time <= 0.
    Source: Chen et al. (2018), arXiv:1806.07366, eq. 8; Grathwohl et al. (2019), arXiv:1810.01367, eq. 4-7.
    Example:
        >>> layer = Continuous(3)
        >>> y, _ = layer(torch.ones(2, 3))
        >>> torch.allclose(layer.inv(y)[0], torch.ones(2, 3), atol=1e-4)
        True
    """

    def __init__(
        self,
        features: int,
        net: nn.Module | None = None,
        *,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        trace: Trace | None = None,
        eval_trace: Trace | None = None,
        solver: ODESolver | None = None,
        time: float = 1.0,
    ) -> None:
        super().__init__()
        odeint()
        if features < 1 or not time > 0:
            raise ValueError(f"expected features >= 1 and time > 0, got {features} and {time}")
        self.features, self.context, self.time = features, context, float(time)
        self.net = ConcatSquashMLP(features, context=context, hidden=hidden) if net is None else net
        self.trace = ExactTrace() if trace is None else trace
        self.eval_trace = ExactTrace() if eval_trace is None else eval_trace
        self.solver = ODESolver() if solver is None else solver

    def condition(self, context: Tensor | None = None) -> ContinuousTransform:
        trace = self.trace if self.training else self.eval_trace
        return ContinuousTransform(self.net, self.check(context), trace, self.solver, self.time)
