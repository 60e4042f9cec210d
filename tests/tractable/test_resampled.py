"""Resampled bases with few tries: the last one, taken as it comes, has the weight that the density gives it."""

import torch

from pyrodgm.tractable import Resampled

DRAWS = 100_000


def check_two_tries():
    """The mean of the draws is that of the density by quadrature; the weight of the last try is far from 0 and 1."""
    torch.manual_seed(0)
    model = Resampled(1, hidden=[8], tries=2, points=2**14).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(1.5 * torch.randn_like(p))
    x = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    p = model.log_prob(x[:, None]).detach().exp()
    mean, second = (torch.trapezoid(p * x**k, x) for k in (1, 2))
    assert abs(torch.trapezoid(p, x) - 1) < 0.01  # log Z is a mean of 2^14 points
    assert abs(mean) > 0.1
    draws = model.sample(DRAWS)[:, 0]
    error = draws.std() / DRAWS**0.5
    assert abs(draws.mean() - mean) < 5 * error + 0.01
    assert abs(draws.square().mean() - second) < 10 * error + 0.02


def test_two_tries():
    check_two_tries()
