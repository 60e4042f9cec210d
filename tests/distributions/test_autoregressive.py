"""Sampling in parts that fit memory: rows keep their context, and a wide output counts."""

import pytest
import torch
from cases import grow

from pyrodgm.distributions import autoregressive
from pyrodgm.tractable import MADE, CategoricalConditional


@pytest.mark.parametrize(("masks", "lead"), [(1, (7, 3)), (2, (21,))])
def test_rows_come_in_parts_with_their_own_context(masks, lead, monkeypatch):
    """The context says what is drawn, by logits so large that nothing else can be."""
    model = MADE(4, [8], conditional=CategoricalConditional(5), context=5, masks=masks).eval()
    rows = []

    class Counted(autoregressive.IncrementalPass):
        def __init__(self, net, context, n, mask=0):
            rows.append(n)
            super().__init__(net, context, n, mask)

    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        into_last = model.net.context_to_last.weight  # (P * D, C), each parameter's D outputs in a row
        into_last.copy_(1e4 * torch.eye(5).repeat_interleave(4, 0))
    label = torch.randint(5, lead)
    monkeypatch.setattr(autoregressive, "IncrementalPass", Counted)
    monkeypatch.setattr(autoregressive, "_NUMBERS_AT_ONCE", 6 * 4 * (5 + 5))
    x = model.condition(torch.nn.functional.one_hot(label, 5).float()).sample()
    assert torch.equal(x, label.float().unsqueeze(-1).expand(*lead, 4))
    assert max(rows) <= 6
    assert sum(rows) == 21


def test_a_sample_in_parts_has_the_density(monkeypatch):
    torch.manual_seed(0)
    model = grow(MADE(2, [8], conditional=CategoricalConditional(3))).double()
    monkeypatch.setattr(autoregressive, "_NUMBERS_AT_ONCE", 1000 * 2 * (3 + 3))
    every = torch.cartesian_prod(torch.arange(3), torch.arange(3)).double()
    n = 30_000
    share = (model.sample(n).unsqueeze(1) == every).all(-1).double().mean(0)
    p = model.log_prob(every).exp().detach()
    assert bool(((share - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all())
