"""The way of draws through a flow: what stands after each layer, and what is drawn of it."""

import pytest
import torch
from cases import grow

from pyrodgm.diagnostics import path_2d, samples_by_layer
from pyrodgm.tractable import MAF, RealNVP


@pytest.mark.parametrize("context", [0, 2])
def test_each_stage_is_the_next_bijectors_image_of_the_one_before(context: int) -> None:
    """And the density of the last is the base's of the first, less the ladj of the way."""
    flow = grow(RealNVP(3, layers=3, hidden=[8], context=context)).double().train()
    c = torch.tensor([0.3, -1.0]).double() if context else None
    stages = samples_by_layer(flow, 7, c)
    assert len(stages) == len(flow.bijectors) + 1
    log_prob = flow.base.condition().log_prob(stages[0])
    for bijector, before, after in zip(flow.bijectors, stages[:-1], stages[1:], strict=True):
        image, ladj = bijector(before, c)
        torch.testing.assert_close(after, image)
        log_prob = log_prob - ladj
    torch.testing.assert_close(log_prob, flow.condition(c).log_prob(stages[-1]))
    assert not any(stage.requires_grad for stage in stages)
    assert flow.training  # as it was before


def test_the_last_stage_is_what_the_flow_samples() -> None:
    flow = grow(MAF(2, layers=2, hidden=[8]))
    torch.manual_seed(3)
    last = samples_by_layer(flow, 11)[-1]
    torch.manual_seed(3)
    torch.testing.assert_close(last, flow.sample(11))


def test_a_path_draws_every_stage_in_the_colour_of_its_start() -> None:
    flow = grow(RealNVP(2, layers=8, hidden=[8]))
    torch.manual_seed(4)
    stages = samples_by_layer(flow, 40)
    torch.manual_seed(4)
    panels = path_2d(flow, 40, columns=3).axes
    assert [axes.get_title() for axes in panels] == ["base", "after layer 4", "after layer 8"]
    start = stages[0] - stages[0].mean(0)
    angle = torch.atan2(start[:, 1], start[:, 0])
    for axes, stage in zip(panels, (0, 4, 8), strict=True):
        (cloud,) = axes.collections
        torch.testing.assert_close(torch.as_tensor(cloud.get_offsets().data).float(), stages[stage])
        torch.testing.assert_close(torch.as_tensor(cloud.get_array().data).float(), angle)
    assert len(path_2d(RealNVP(2, layers=2), n=5).axes) == 3  # no more panels than stages


def test_a_path_wants_pairs_and_two_panels() -> None:
    with pytest.raises(ValueError, match=r"event shape \(2,\), and columns >= 2, got \(3,\), 5"):
        path_2d(RealNVP(3, layers=2))
    with pytest.raises(ValueError, match="columns >= 2"):
        path_2d(RealNVP(2, layers=2), columns=1)
