"""Flows of wrapped splines on the circle and the torus: one unit of mass, and draws as the density says."""

import math

import pyro.distributions as dist
import torch
from cases import grow
from scipy import stats

from pyrodgm.bijectors import CircularSpline, Coupling, Elementwise
from pyrodgm.core import Tractable
from pyrodgm.tractable import Flow

SPLINE = CircularSpline(4, limit=1.0, wrap=True)  # so that no bin is too steep for a grid
DRAWS = 20_000


class Angles(Tractable):
    """Uniform on the torus."""

    def condition(self, context=None):
        end = torch.full(self.event_shape, math.pi, dtype=torch.float64)
        return dist.Uniform(-end, end).to_event(1)


def middles(n):
    """Of n cells of the circle."""
    return (2 * math.pi / n) * (torch.arange(n).double() + 0.5) - math.pi


def sampled(flow):
    torch.manual_seed(1)
    with torch.no_grad():
        x = flow.sample(DRAWS)
    assert bool(((x >= -math.pi) & (x < math.pi)).all())
    return x


@torch.no_grad()
def test_a_flow_on_the_circle():
    flow = grow(Flow(Angles((1,)), [Elementwise(1, SPLINE), Elementwise(1, SPLINE)]), 1.0).double()
    n = 40_000
    density = flow.log_prob(middles(n).unsqueeze(-1)).exp() * (2 * math.pi / n)  # mass of each cell
    assert abs(density.sum() - 1) < 1e-6  # kinks at the knots: an error of the cell squared
    assert density.max() > 3 * density.min()  # it is far from the uniform one it came from
    below = torch.cat((torch.zeros(1).double(), density.cumsum(0)))
    x = sampled(flow)[:, 0]
    place = (x + math.pi) / (2 * math.pi) * n
    cell = place.long().clamp(max=n - 1)
    ranks = below[cell] + (place - cell) * density[cell]  # F(x), linear in each cell
    assert stats.kstest(ranks, "uniform").pvalue > 1e-3
    assert stats.kstest(place / n, "uniform").pvalue < 1e-6


@torch.no_grad()
def test_a_flow_on_the_torus():
    layers = [Coupling(2, SPLINE, hidden=[8], flip=flip) for flip in (False, True, False)]
    flow = grow(Flow(Angles((2,)), layers), 0.3).double()
    n, bins = 600, 6
    grid = torch.cartesian_prod(middles(n), middles(n))
    mass = flow.log_prob(grid).exp().reshape(n, n) * (2 * math.pi / n) ** 2
    # networks jump where the angle that they read does, along curves that cut cells: an error of the cell's width
    assert abs(mass.sum() - 1) < 1e-3
    share = mass.reshape(bins, n // bins, bins, n // bins).sum((1, 3)).flatten()
    assert share.max() > 2 * share.min()
    place = ((sampled(flow) + math.pi) / (2 * math.pi) * bins).long().clamp(max=bins - 1)
    counts = torch.bincount(place[:, 0] * bins + place[:, 1], minlength=bins * bins).double()
    assert stats.chisquare(counts, share / share.sum() * DRAWS).pvalue > 1e-3
    assert stats.chisquare(counts).pvalue < 1e-6
