"""Bernoulli conditionals: the value in both tails, and the slopes in the logits and in x."""

import pytest
import torch

from pyrodgm.distributions.conditionals import BernoulliConditional

LOGITS = torch.tensor([-120.0, -40.0, -3.0, 0.0, 2.0, 45.0, 120.0], dtype=torch.float64)


@pytest.mark.parametrize("one", [0.0, 1.0])
def test_value_is_the_log_of_the_sigmoid(one):
    sign = 2 * one - 1
    for logit in LOGITS:
        exact = -torch.log1p(torch.exp(-sign * logit)) if sign * logit > -100 else sign * logit
        got = BernoulliConditional().log_prob(logit[None], torch.tensor([one], dtype=torch.float64))
        torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-13)


def test_slope_in_the_logits():
    x = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    raw = LOGITS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(BernoulliConditional().log_prob(raw, x), raw)
    torch.testing.assert_close(slope, x - LOGITS.sigmoid())


def test_slope_in_x_is_the_logit():
    """Proposals from gradients compare log p at x = 0 and 1 by it: the density is extended linearly in x."""
    x = torch.ones(7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(BernoulliConditional().log_prob(LOGITS, x), x)
    torch.testing.assert_close(slope, LOGITS)
    batched = torch.func.vmap(torch.func.grad(lambda x, raw: BernoulliConditional().log_prob(raw, x)))
    torch.testing.assert_close(batched(x.detach()[:, None], LOGITS[:, None])[:, 0], LOGITS)
