"""The map of a mixture of logistics is the mixture's own distribution function, but for its logit and its tilt."""

import pytest
import torch
from scipy import stats

from pyrodgm.bijectors import MixtureLogisticCDF

TILT = 0.01  # the docstring's epsilon
WEIGHTS, MEANS, SCALES = ([0.2, 0.5, 0.3], [-3.0, 0.0, 2.5], [0.3, 1.0, 0.5])


def numbers(values):
    return torch.tensor(values, dtype=torch.float64)


def raws(weights, means, scales, scale=1.0, shift=0.0):
    """The raw numbers of these components, behind the tanh that bounds logarithms of scales, (P, 1)."""
    bound = MixtureLogisticCDF(3).bound
    logs = bound * torch.atanh(numbers([*scales, scale]).log() / bound)
    return torch.cat((numbers(weights).log(), numbers(means), logs, numbers([shift]))).unsqueeze(-1)


def draws(n):
    generator = torch.Generator().manual_seed(0)
    k = torch.multinomial(numbers(WEIGHTS), n, replacement=True, generator=generator)
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    return numbers(MEANS)[k] + numbers(SCALES)[k] * u.logit()


def uniforms(x, weights=WEIGHTS, means=MEANS, scales=SCALES):
    """The map without its scale, its shift and its tilt, and behind a sigmoid in place of its logit."""
    y, _ = MixtureLogisticCDF(3).call_and_ladj(raws(weights, means, scales), x)
    return torch.sigmoid((y - TILT * x) / (1 - TILT))


def test_draws_of_the_mixture_become_uniforms():
    x = draws(20_000)
    assert stats.kstest(uniforms(x), "uniform").pvalue > 1e-3
    # another mixture's map does not make them uniform, were it only off in one of its parts
    others = {"weights": [0.25, 0.45, 0.3]}, {"means": [-3.0, 0.3, 2.5]}, {"scales": [0.3, 1.0, 0.9]}
    for other in others:
        assert stats.kstest(uniforms(x, **other), "uniform").pvalue < 1e-6


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.7, -0.4)])
def test_the_map_is_scipys_distribution_function_and_its_ladj_the_density(scale, shift):
    x = torch.linspace(-12, 12, 241).double()
    y, ladj = MixtureLogisticCDF(3).call_and_ladj(raws(WEIGHTS, MEANS, SCALES, scale, shift), x)
    parts = [(w, stats.logistic(m, s)) for w, m, s in zip(WEIGHTS, MEANS, SCALES, strict=True)]
    below, above, density = (
        torch.as_tensor(sum(w * getattr(d, name)(x.numpy()) for w, d in parts)) for name in ("cdf", "sf", "pdf")
    )
    expected = ((1 - TILT) * (below / above).log() + TILT * x) * scale + shift
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    slope = ((1 - TILT) * density / (below * above) + TILT) * scale
    torch.testing.assert_close(ladj, slope.log(), rtol=1e-9, atol=1e-9)
