"""Energies that tilt a density: any network as energy, kept normalisable by a base density. Neural models share it."""

from __future__ import annotations

import math
from abc import abstractmethod
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from pyrodgm.core import Energy, Tractable, evaluating
from pyrodgm.draws import draw_from
from pyrodgm.energy.normalised import normalised_log_prob, one_context
from pyrodgm.kernels.ais import annealed_importance_sampling
from pyrodgm.kernels.base import Kernel, refuse_memory
from pyrodgm.kernels.langevin import MALA
from pyrodgm.seeding import random_state
from pyrodgm.tractable.parametric import StandardNormal

__all__ = ["TiltedEnergy"]

_ROWS_AT_ONCE = 2**14  # of a quadrature or an importance sample
_BOX_DRAWS = 256
_COARSE = 33  # nodes of an axis while the box is looked for
_RIM = 1e-8  # share of the mass that the rim of the box may hold


class TiltedEnergy(Energy):
    r"""A base density times the exponential of minus a function: :math:`p(x) \propto b(x) \exp(-f(x))`.

    .. math:: E(x) = f(x) - \log b(x), \qquad Z = \mathbb E_{x \sim b} \exp(-f(x))

    The base keeps Z finite whatever grows slower than -log b: with a Gaussian base, any f that falls at most linearly,
    as perceptrons do. The base is where chains and annealing start, and learns with f where it has parameters.

    Subclasses write :meth:`tilt`, f.

    Args:
        event_shape: of one x; a number D is (D,).
        base: a density over all of R^event, with context 0 or C; default N(0, I). Standardise data to it, or fit it.
        kernel: default ``MALA(0.3)``, for energies whose scale is the base's.
        context: size C of the conditioning vector, 0 for none.
    Raises: ValueError if the base's event shape or context does not fit.
    """

    sample_steps = 500
    negative_steps = 20

    def __init__(
        self, event_shape: int | tuple[int, ...], base: Tractable | None, kernel: Kernel | None, context: int
    ) -> None:
        super().__init__(event_shape, context)
        event = tuple(self.event_shape)
        base = StandardNormal(event) if base is None else base
        if tuple(base.event_shape) != event or base.context not in (0, context):
            raise ValueError(
                f"expected a base of event shape {event} with context 0 or {context}, got {tuple(base.event_shape)} "
                f"with context {base.context}"
            )
        self.base = base
        self.kernel = MALA(0.3) if kernel is None else kernel

    @abstractmethod
    def tilt(self, x: Tensor, context: Tensor | None) -> Tensor:
        """f of rows, (B, *event), (B, C) -> (B,)."""

    @property
    def support(self) -> Any:
        return self.base.support

    @property
    def enumerable(self) -> bool:
        """Whether quadrature finds the one log Z: x has at most two numbers, and no context."""
        return self.event_shape.numel() <= 2 and not self.context

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context = self.check(x, context)
        tilt, log_base = self._parts(x, context)
        return tilt - log_base

    def _parts(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """f(x) and log b(x), each (*B)."""
        event = self.event_shape
        lead = x.shape[: x.dim() - len(event)]
        if context is not None:
            lead = torch.broadcast_shapes(lead, context.shape[:-1])
            context = context.expand(*lead, -1)
        x = x.expand(*lead, *event)
        rows = x.reshape(-1, *event)
        tilt = self.tilt(rows, None if context is None else context.reshape(len(rows), -1))
        return tilt.reshape(lead), self.base.log_prob(x, context if self.base.context else None)

    @torch.no_grad()
    def start(self, n: int, context: Tensor | None = None) -> Tensor:
        """Draws of the base: (n, *event)."""
        _, context = self.check(None, context)
        if self.base.context and context is not None:
            return draw_from(self.base.condition(context.expand(n, -1)))
        return draw_from(self.base.condition(), (n,))

    def log_partition(  # type: ignore[override]
        self,
        method: str = "ais",
        *,
        context: Tensor | None = None,
        chains: int = 1000,
        temperatures: int | Tensor = 300,
        proposal: Tractable | None = None,
        draws: int = 100_000,
        points: int = 257,
        seed: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""log Z in nats and its standard error, summed in float64.

        ``"ais"`` anneals from the base by the model's kernel, :math:`f_\beta(x) = b(x) e^{-\beta f(x)}`.
        ``"importance"`` is :math:`\frac1M \sum_m e^{-E(x_m)} / q(x_m)`, x drawn from q: honest only where q covers p.
        ``"grid"`` is the trapezoidal rule in one or two dimensions, which on smooth densities converges faster than
        any power of the spacing. Its box starts at the base's draws and grows until its rim is empty; what every
        other node gives, less the value, stands for the standard error. It has gradients.

        Args:
            method: ``"ais"``, ``"importance"`` or ``"grid"``.
            context: one vector (C,), for a conditional model.
            chains, temperatures: of AIS, see :func:`annealed_importance_sampling`.
            proposal: q of ``"importance"``, without context; default the base.
            draws: M of ``"importance"``.
            points: nodes of each axis of ``"grid"``, odd.
            seed: of the noise; default torch's own generator.
        Shapes: returns (), ().
        Raises: ValueError for another method, several contexts, an even number of points, more than two dimensions
            by ``"grid"``, or a density whose box never ends.
        Source: Neal (2001), Annealed importance sampling; Trefethen and Weideman (2014), SIAM Review 56(3).
        """
        context = one_context(self, context)
        if method == "grid":
            return self._by_grid(context, points)
        if method not in ("ais", "importance"):
            raise ValueError(f'expected method "ais", "importance" or "grid", got {method!r}')
        with evaluating(self), nullcontext() if seed is None else random_state(self.device, seed):
            if method == "ais":
                refuse_memory(self.kernel, "AIS")
                estimate = annealed_importance_sampling(_Path(self, context), chains, temperatures)
                return estimate.log_z, estimate.standard_error
            return self._by_importance(context, proposal, draws)

    def _by_importance(self, context: Tensor | None, proposal: Tractable | None, draws: int) -> tuple[Tensor, Tensor]:
        if draws < 2:
            raise ValueError(f"expected draws >= 2 (the standard error needs two), got {draws}")
        parts = []
        for i in range(0, draws, _ROWS_AT_ONCE):
            rows = min(_ROWS_AT_ONCE, draws - i)
            each = None if context is None else context.expand(rows, -1)
            if proposal is None:
                parts.append(-self._parts(self.start(rows, each), each)[0])
            else:
                x = proposal.sample(rows)
                parts.append(-self.energy(x, each) - proposal.log_prob(x))
        log_weights = torch.cat(parts).double()
        log_z = log_weights.logsumexp(0) - math.log(draws)
        return log_z, (log_weights - log_z).exp().std() / math.sqrt(draws)

    def _by_grid(self, context: Tensor | None, points: int) -> tuple[Tensor, Tensor]:
        size = self.event_shape.numel()
        if size > 2:
            raise ValueError(f'expected one or two dimensions for "grid", got {size}; use "ais"')
        if points < 3 or points % 2 == 0:
            raise ValueError(
                f"expected an odd number of points >= 3, of which every other reaches both ends, got {points}"
            )
        centre, half = self._box(context)
        values, spacing = self._on_grid(centre, half, points, context)
        log_z = values.flatten().logsumexp(0) + spacing.log().sum()
        coarse = values[(slice(None, None, 2),) * size].flatten().logsumexp(0) + (2 * spacing).log().sum()
        return log_z, (log_z - coarse).detach().abs()

    def _box(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Centre and half width of a box whose rim holds nothing, each (D,)."""
        with evaluating(self), random_state(self.device, 0):
            draws = self.start(_BOX_DRAWS, None if context is None else context.expand(_BOX_DRAWS, -1)).flatten(1)
            centre, half = draws.mean(0), 6 * draws.std(0)
            for _ in range(20):
                values, _ = self._on_grid(centre, half, _COARSE, context)
                inner = values[(slice(1, -1),) * values.dim()]
                # what the inner nodes hold of all: no difference of two sums, which rounding would drown
                rim = values.clone()
                rim[(slice(1, -1),) * values.dim()] = -math.inf
                if rim.flatten().logsumexp(0) - inner.flatten().logsumexp(0) < math.log(_RIM):
                    return centre, half
                half = 1.5 * half
        raise ValueError(
            "expected an energy that the base confines, got one whose mass grows with every box; "
            "use a net that falls slower than the base's -log b rises"
        )

    def _on_grid(self, centre: Tensor, half: Tensor, points: int, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """-E in float64 on a grid, (points,) * D, and its spacing (D,)."""
        unit = torch.linspace(-1, 1, points, dtype=centre.dtype, device=centre.device)
        nodes = torch.cartesian_prod(*[c + h * unit for c, h in zip(centre, half, strict=True)])
        nodes = nodes.reshape(-1, *self.event_shape)
        values = torch.cat([-self.energy(part, context).double() for part in nodes.split(_ROWS_AT_ONCE)])
        return values.reshape([points] * len(centre)), 2 * half.double() / (points - 1)

    def log_prob(
        self, x: Tensor, context: Tensor | None = None, *, method: str | None = None, **options: Any
    ) -> Tensor:
        r"""Normalised log-probability :math:`-E(x) - \log Z` in nats.

        Args:
            x: (*B, *event).
            context: (*B, C); every distinct one costs a log Z.
            method: how log Z is found; default ``"grid"`` in one or two dimensions, else ``"ais"``, which carries
                the error that :meth:`log_partition` reports.
            options: of :meth:`log_partition`.
        Shapes: returns (*B,).
        """
        return normalised_log_prob(
            self, x, context, method or ("grid" if self.event_shape.numel() <= 2 else "ais"), **options
        )


class _Path:
    """From the base to the model: log f_beta(x) = log b(x) - beta f(x), moved by the model's own kernel."""

    def __init__(self, model: TiltedEnergy, context: Tensor | None) -> None:
        self.model, self.context = model, context
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def base_log_partition(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self.model.device)

    def _each(self, rows: int) -> Tensor | None:
        return None if self.context is None else self.context.expand(rows, -1)

    def start(self, chains: int, generator: torch.Generator | None = None) -> Tensor:
        return self.model.start(chains, self._each(chains))  # Pyro's distributions draw from torch's own generator

    def log_density(self, x: Tensor, beta: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not x:  # two temperatures share one pass
            tilt, log_base = self.model._parts(x, self.context)
            self._last = x, tilt.double(), log_base.double()
        return self._last[2] - beta * self._last[1]

    def move(self, x: Tensor, beta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        weight = beta.to(x.dtype)

        def energy(x: Tensor) -> Tensor:
            tilt, log_base = self.model._parts(x, self.context)
            return weight * tilt - log_base

        kernel = self.model.kernel
        moved: Tensor = kernel.step(kernel.init(energy, x), generator)[0].positions
        return moved
