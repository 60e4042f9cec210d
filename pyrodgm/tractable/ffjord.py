"""FFJORD: a flow of continuous bijectors with any network as velocity."""

from __future__ import annotations

from collections.abc import Sequence

from pyrodgm.bijectors.continuous import Continuous
from pyrodgm.bijectors.ode import ODESolver
from pyrodgm.bijectors.trace import Hutchinson, Trace
from pyrodgm.core import Tractable
from pyrodgm.tractable.flow import Flow
from pyrodgm.tractable.parametric import StandardNormal

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
    Shapes: x (*B, D), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError if layers < 1; ImportError without torchdiffeq.
    Source: Grathwohl et al. (2019), arXiv:1810.01367, algorithm 1.
    Example:
        >>> FFJORD(features=2).sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        layers: int = 1,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        base: Tractable | None = None,
        trace: Trace | None = None,
        solver: ODESolver | None = None,
    ) -> None:
        if layers < 1:
            raise ValueError(f"expected layers >= 1, got {layers}")
        trace = Hutchinson() if trace is None else trace
        super().__init__(
            StandardNormal(features) if base is None else base,
            [Continuous(features, None, context, hidden, trace, solver=solver) for _ in range(layers)],
        )
