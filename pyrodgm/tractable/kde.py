"""Kernel density estimation: a bump at every row of data."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrodgm.core import Tractable
from pyrodgm.distributions.kernel_mixture import KernelMixture, pair_log_sums
from pyrodgm.distributions.radial_kernels import KERNELS, RadialKernel

__all__ = ["KDE"]

_METRICS = ("euclidean", "seuclidean", "mahalanobis")
_BUFFERS = ("points", "log_weights", "log_bandwidths")
_HELD_OUT = 2000  # rows at which a bandwidth is tried; each is scored under all others
_GRID = [k / 2 * math.log(2) for k in range(-12, 7)]  # log of the bandwidths tried first, beside Scott's
_MOST = 60  # bandwidths of the grid after it has grown
_LEAST = 1e-6  # times the rows' extent: the rounding of distances shows at bandwidths below


class KDE(Tractable):
    r"""Kernel density estimator over rows of any event shape, with fixed or location-adaptive bandwidth.

    .. math:: p(x) = \sum_i w_i \frac{1}{h_i^D\, |L|} K\Big(\frac{|L^{-1} (x - x_i)|}{h_i}\Big), \qquad
        h_i = h \ \text{ or }\ h \Big(\frac{\tilde p(x_i)}{g}\Big)^{-1/2}

    with K a radial density, L L^T the metric, and for the adaptive one p~ the estimate of fixed bandwidth h and log g
    the mean of log p~ over the rows. It has no parameters: the rows are buffers, ``fit`` has nothing to move and only
    reports its likelihood, and a flow that stands on it trains around it. Pairs are summed in blocks, so that neither
    scoring nor its gradient holds a matrix of all pairs. A checkpoint of another number of rows loads.

    Args:
        data: the rows, (n, *event).
        kernel: "gaussian", "epanechnikov", "tophat", "exponential", "linear" or "cosine", as scikit-learn defines them.
        bandwidth: h itself; "scott" is :math:`m^{-1/(D+4)}`, "silverman" :math:`(m (D+2)/4)^{-1/(D+4)}` with
            :math:`m = 1 / \sum_i w_i^2`; "cv" maximises the likelihood of rows left out one at a time (of 2000 rows
            drawn with a fixed seed, where there are more).
        adaptive: Abramson's bandwidths, narrow where the rows are dense.
        metric: "mahalanobis": L L^T is the covariance of the data, as in SciPy's ``gaussian_kde``; "seuclidean": its
            diagonal; "euclidean": the identity, as in scikit-learn's ``KernelDensity``. h is a multiple of this unit.
        weights: of the rows, (n,), scaled to sum to 1; default equal.
    Shapes: x (*B, *event) -> log_prob (*B,) in nats, -inf where no kernel reaches.
    Raises: TypeError if data is no tensor of numbers; ValueError for data or weights of another shape or not finite, a
        covariance that is singular, an unknown name, h <= 0, or rows so often repeated that "cv" has no maximum.
    Source: Silverman (1986), Density Estimation for Statistics and Data Analysis, eq. 4.1, 3.30, 5.7-5.9;
        Abramson (1982), Annals of Statistics 10(4).
    Example:
        >>> KDE(torch.tensor([[-1.0], [1.0]]), bandwidth=1.0, metric="euclidean").log_prob(torch.zeros(1)).exp()
        tensor(0.2420)
    """

    def __init__(
        self,
        data: Tensor,
        kernel: str = "gaussian",
        *,
        bandwidth: str | float = "scott",
        adaptive: bool = False,
        metric: str = "mahalanobis",
        weights: Tensor | None = None,
    ) -> None:
        data, weights = _rows(data), _weights(data, weights)
        super().__init__(tuple(data.shape[1:]))
        _one_of("kernel", kernel, KERNELS)
        _one_of("metric", metric, _METRICS)
        self.kernel, self.metric, self.adaptive = kernel, metric, adaptive
        self.points: Tensor
        self.factor: Tensor
        self.log_weights: Tensor
        self.log_bandwidths: Tensor
        flat = data.flatten(1)
        self.register_buffer("points", flat)
        self.register_buffer("factor", _factor(flat, weights, metric))
        self.register_buffer("log_weights", weights.log().to(flat.dtype))
        self.register_buffer("log_bandwidths", flat.new_zeros(len(flat)))
        self.log_bandwidths += self._choose(bandwidth)
        if adaptive:
            pilot = self.condition().log_prob(data)
            self.log_bandwidths -= 0.5 * (pilot - (weights.to(pilot.dtype) * pilot).sum())

    @property
    def bandwidths(self) -> Tensor:
        """h of every row, in units of the metric, (n,)."""
        return self.log_bandwidths.exp()

    @property
    def _radial(self) -> RadialKernel:
        return KERNELS[self.kernel]

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        self.check(None, context)
        return KernelMixture(
            self._radial, self.points, self.log_bandwidths, self.log_weights, self.factor, self.event_shape
        )

    def leave_one_out(self, bandwidth: float, rows: Tensor | None = None) -> Tensor:
        """Mean log-likelihood of rows, each under all rows but itself, at a fixed bandwidth h, in nats: ().

        Args:
            rows: the indices of those that are left out in turn; default all.
        Source: Silverman (1986), eq. 3.43.
        """
        if not bandwidth > 0:
            raise ValueError(f"expected bandwidth > 0, got {bandwidth}")
        index = torch.arange(len(self.points), device=self.points.device) if rows is None else rows
        units, width = self._units(), torch.full_like(self.log_bandwidths, math.log(bandwidth))
        sums = pair_log_sums(self._radial, units[index], units, width, self.log_weights, index)
        others = torch.log1p(-self.log_weights[index].exp())
        return (sums - others).mean() - self.factor.diagonal().log().sum()

    def _units(self) -> Tensor:
        """The rows in the metric's units, about their mean, (n, D)."""
        return (self.points - self.points.mean(0)) @ torch.linalg.inv(self.factor).T

    def _choose(self, bandwidth: str | float) -> float:
        """log h."""
        features = self.points.shape[1]
        size = -math.log(self.log_weights.double().mul(2).exp().sum())  # of equal weights, log n
        if bandwidth == "cv":
            return self._cross_validated(-size / (features + 4))
        if bandwidth == "silverman":
            size += math.log((features + 2) / 4)
        elif bandwidth != "scott":
            if isinstance(bandwidth, str):
                raise ValueError(f'expected bandwidth "scott", "silverman", "cv" or a number, got {bandwidth!r}')
            if not 0 < bandwidth < math.inf:
                raise ValueError(f"expected bandwidth > 0, got {bandwidth}")
            return math.log(bandwidth)
        return -size / (features + 4)

    def _cross_validated(self, scott: float) -> float:
        """log h of the largest left-out likelihood: the best of a grid, then the golden section about it."""
        n = len(self.points)
        if n < 2:
            raise ValueError(f"expected two rows or more to leave one out, got {n}; pass a bandwidth")
        chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:_HELD_OUT].to(self.points.device)

        def score(log_h: float) -> float:
            return float(self.leave_one_out(math.exp(log_h), chosen))

        grid = [scott + step for step in _GRID]
        values = [score(log_h) for log_h in grid]
        best = max(range(len(grid)), key=values.__getitem__)
        least = math.log(_LEAST) + self._units().norm(dim=-1).amax().log().item()
        while best in (0, len(grid) - 1) and len(grid) < _MOST:
            if best == 0 and values[0] > -math.inf:  # clusters far apart
                if grid[0] < least:
                    break
                grid.insert(0, 2 * grid[0] - grid[1])
                values.insert(0, score(grid[0]))
            else:  # far outliers under a kernel that ends
                grid.append(2 * grid[-1] - grid[-2])
                values.append(score(grid[-1]))
            best = max(range(len(grid)), key=values.__getitem__)
        if best in (0, len(grid) - 1):
            falls = best == 0 and values[0] > -math.inf
            reason = (
                "as the bandwidth falls: rows are repeated, to a millionth of their extent; drop the copies, add "
                "noise, or pass a bandwidth"
                if falls
                else f'up to the bandwidth {math.exp(grid[-1]):.3g}; use metric="seuclidean", or pass a bandwidth'
            )
            raise ValueError(f"expected left-out likelihood with a largest value, got one that grows {reason}")
        low, high = grid[best - 1], grid[best + 1]
        shrink = (5**0.5 - 1) / 2
        a, b = high - shrink * (high - low), low + shrink * (high - low)
        at_a, at_b = score(a), score(b)
        while high - low > 1e-3:  # the likelihood is flat at its top: its loss is of the order of the square
            if at_a < at_b:
                low, a, at_a = a, b, at_b
                b = low + shrink * (high - low)
                at_b = score(b)
            else:
                high, b, at_b = b, a, at_a
                a = high - shrink * (high - low)
                at_a = score(a)
        return max(((at_a, a), (at_b, b), (values[best], grid[best])))[1]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in _BUFFERS:  # the rows are the state, however many there are
            given, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(given, Tensor) and given.dim() == own.dim() and given.shape[1:] == own.shape[1:]:
                setattr(self, name, own.new_empty(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _one_of(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(f"expected {name} to be one of {', '.join(map(repr, known))}, got {value!r}")


def _rows(data: Tensor) -> Tensor:
    if not isinstance(data, Tensor) or data.is_complex():
        got = data.dtype if isinstance(data, Tensor) else f"{type(data).__name__}; use torch.as_tensor"
        raise TypeError(f"expected data as a torch.Tensor of real numbers, got {got}")
    data = (data if data.is_floating_point() else data.to(torch.get_default_dtype())).detach().clone()
    if data.dim() < 2 or not data.numel():
        raise ValueError(f"expected data of shape (n, *event), got {tuple(data.shape)}; one column is data[:, None]")
    if not bool(data.isfinite().all()):
        row = int((~data.flatten(1).isfinite().all(1)).nonzero()[0])
        raise ValueError(f"expected finite data, got row {row}: {data[row].flatten()[:8].tolist()}")
    return data


def _weights(data: Tensor, weights: Tensor | None) -> Tensor:
    n = len(data)
    if weights is None:
        return data.new_full((n,), 1 / n, dtype=torch.float64)
    weights = torch.as_tensor(weights).detach().to(data.device, torch.float64)
    if weights.shape != (n,) or not bool((weights > 0).all() & weights.isfinite().all()):
        raise ValueError(f"expected {n} positive weights, got shape {tuple(weights.shape)}; drop rows of weight 0")
    return weights / weights.sum()


def _factor(flat: Tensor, weights: Tensor, metric: str) -> Tensor:
    """L of the metric, (D, D), computed in float64."""
    x, features = flat.double(), flat.shape[1]
    if metric == "euclidean":
        return torch.eye(features, dtype=flat.dtype, device=flat.device)
    centred = x - weights @ x
    # The unbiased covariance of weighted rows, as numpy.cov with aweights has it.
    covariance = (centred.T * weights) @ centred / (1 - weights.square().sum()).clamp_min(1e-300)
    if metric == "seuclidean":
        covariance = covariance.diagonal().diag()
    factor, info = torch.linalg.cholesky_ex(covariance)
    scale = covariance.diagonal().sqrt()
    varies = (factor.diagonal() > 1e-7 * scale) & (scale > 1e-12 * x.abs().amax(0))  # by more than rounding
    if int(info) or not bool(varies.all()):
        raise ValueError(
            f"expected data whose {features} features vary in all directions, got {len(flat)} rows with a singular "
            'covariance; drop features that are constant or follow from others, or use metric="euclidean"'
        )
    return factor.to(flat.dtype)
