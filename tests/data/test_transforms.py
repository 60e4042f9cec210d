"""Transforms: their log-dets against autodiff, their inverses, what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyrodgm.data import (
    binarize,
    bits_per_dim,
    dequantize,
    inverse_logit,
    logit,
    quantize,
    standardise,
    threshold,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(low: float = 0.01, high: float = 0.99) -> Tensor:
    return low + (high - low) * torch.rand(5, 4, generator=generator(), dtype=torch.float64)


def affine(x: Tensor) -> tuple[Tensor, Tensor]:
    return standardise(3 * rows())(x)


@pytest.mark.parametrize("transform", [logit, lambda x: logit(x, 0.05), inverse_logit, affine])
def test_ladj_is_the_jacobians_log_determinant(transform: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    x = rows()
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda v: transform(v[None])[0][0], row) for row in x])
    expected = torch.linalg.slogdet(jacobians).logabsdet
    torch.testing.assert_close(transform(x)[1], expected, rtol=0, atol=1e-10)  # float64, four well-conditioned terms


def test_inverses_give_x_back_with_the_opposite_ladj() -> None:
    x = rows()
    scaler = standardise(x)
    for forward, inverse in ((logit, inverse_logit), (scaler, scaler.inverse)):
        y, ladj = forward(x)
        back, ladj_back = inverse(y)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
        torch.testing.assert_close(ladj_back, -ladj, rtol=0, atol=1e-10)


def test_logit_is_finite_at_the_ends() -> None:
    """There y is log((1 - a) / a) either way, with the slope (1 - 2 a) / (a (1 - a))."""
    a, ends = 1e-6, torch.tensor([[0.0, 1.0]])
    y, ladj = logit(ends.double(), a)
    top = math.log1p(-a) - math.log(a)
    torch.testing.assert_close(y, torch.tensor([[-top, top]], dtype=torch.float64))
    slope = (1 - 2 * a) / (a * (1 - a))
    torch.testing.assert_close(ladj, torch.tensor([2 * math.log(slope)], dtype=torch.float64))
    assert all(bool(v.isfinite().all()) for v in logit(ends, a))  # in float32 as well


def test_dequantize_stays_in_its_level_and_has_the_ladj_of_a_division() -> None:
    x = torch.randint(256, (2000, 3), generator=generator())
    y, ladj = dequantize(x, 256, generator())
    assert bool((quantize(y, 256) == x).all())
    assert float(y.max()) < 1
    torch.testing.assert_close(ladj, torch.full((2000,), -3 * math.log(256)))


def test_dequantize_keeps_the_largest_noise_below_the_next_level(monkeypatch: pytest.MonkeyPatch) -> None:
    almost = 1 - torch.finfo(torch.float32).eps / 2
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, almost))
    x = torch.arange(256.0)[:, None]
    assert bool((quantize(dequantize(x, 256)[0], 256) == x).all())


def test_quantize_takes_what_lies_outside_to_the_nearest_level() -> None:
    y = torch.tensor([-0.2, 0.0, 0.2499, 0.25, 0.999, 1.0, 1.7])
    assert quantize(y, 4).tolist() == [0, 0, 0, 1, 3, 3, 3]


def test_a_uniform_density_costs_log2_of_the_levels() -> None:
    assert bits_per_dim(0.0, features=5, levels=17) == pytest.approx(math.log2(17))


def test_binarize_has_the_grey_level_as_its_mean() -> None:
    n = 20_000
    x = torch.tensor([[0.0, 0.2, 0.7, 1.0]]).expand(n, 4)
    mean = binarize(x, generator()).mean(0)
    assert bool(((mean - x[0]).abs() <= 4 * (x[0] * (1 - x[0]) / n).sqrt()).all())  # four standard errors


def test_threshold() -> None:
    assert threshold(torch.tensor([0.4, 0.5])).tolist() == [0.0, 1.0]


def test_standardise_leaves_a_constant_feature_alone() -> None:
    x = torch.stack((torch.arange(4.0), torch.full((4,), 7.0)), -1)
    y, _ = standardise(x)(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(2))
    torch.testing.assert_close(y.std(0, correction=0), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(
    ("call", "cure"),
    [
        (lambda: dequantize(torch.tensor([[0.5]]), 2), "whole numbers"),
        (lambda: dequantize(torch.tensor([[2.0]]), 2), "whole numbers"),
        (lambda: logit(torch.tensor([[2.0]])), r"in \[0, 1\]"),
        (lambda: logit(torch.tensor([[0.5]]), alpha=0.5), "alpha"),
        (lambda: binarize(torch.tensor([[-1.0]])), r"in \[0, 1\]"),
    ],
)
def test_mistakes_are_refused(call: Callable[[], object], cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        call()
