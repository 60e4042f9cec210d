"""FFJORD: a flow of continuous bijectors, whose velocities are networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from pyrodgm.bijectors.continuous import Continuous
from pyrodgm.bijectors.ode import ODESolver
from pyrodgm.bijectors.trace import Hutchinson, Trace
from pyrodgm.core import Tractable
from pyrodgm.tractable.flow import Flow, check_layers, normal_unless

__all__ = ["FFJORD"]


class FFJORD(Flow):
    r"""Free-form continuous flow: x(1) where :math:`\dot x = v(t, x, c)`, x(0) ~ base.

    .. math:: \log p(x(1)) = \log p_0(x(0)) - \int_0^1 \mathrm{tr} \frac{\partial v}{\partial x} dt

    Training takes an unbiased estimate of the trace; in eval mode the density is exact (to the solver's tolerance).

    Args:
        features: D.
        layers: number of velocity fields in a row.
        hidden: widths of each velocity network's hidden layers.
        context: size C of the conditioning vector, 0 for none.
        base: density of x(0); default N(0, I).
        trace: of the Jacobian in training; default :class:`~pyrodgm.bijectors.Hutchinson` with one product.
        solver: method, tolerances, and how gradients are had.
        net: makes a network, once for each layer, such as ``lambda: MyNet(2)``: any module that
            :class:`~pyrodgm.bijectors.Continuous` takes; default :class:`~pyrodgm.nets.ConcatSquashMLP` of ``hidden``.
    Shapes: x (*B, D), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError if layers < 1; TypeError for a network in the place of what makes one; ImportError without
        torchdiffeq.
    Source: Grathwohl et al. (2019), arXiv:1810.01367, algorithm 1.
    Example:
        >>> FFJORD(features=2).sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        layers: int = 1,
        *,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        base: Tractable | None = None,
        trace: Trace | None = None,
        solver: ODESolver | None = None,
        net: Callable[[], nn.Module] | None = None,
    ) -> None:
        check_layers(layers)
        if isinstance(net, nn.Module):
            raise TypeError(
                f"expected net as a function that makes a network, got a {type(net).__name__}; each layer has one "
                "of its own: pass net=lambda: ..."
            )
        trace = Hutchinson() if trace is None else trace
        super().__init__(
            normal_unless(base, features),
            [
                Continuous(
                    features,
                    None if net is None else net(),
                    context=context,
                    hidden=hidden,
                    trace=trace,
                    solver=solver,
                )
                for _ in range(layers)
            ],
        )
