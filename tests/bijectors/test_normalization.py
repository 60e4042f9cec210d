"""Actnorm's start from data, once and for good; the batch's statistics in training."""

import copy
import math

import pyro.distributions as dist
import pytest
import torch
from cases import assert_gradients_are_slopes, grow

import pyrodgm
from pyrodgm.bijectors import ActNorm, AffineCoupling, BatchNorm, Compose
from pyrodgm.distributions.flow import FlowDistribution
from pyrodgm.tractable import Flow, StandardNormal


def rows(n=64):
    return 3 * torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + torch.arange(4.0)


def assert_standard(x):
    dims = tuple(i for i in range(x.dim()) if i != 1)
    torch.testing.assert_close(x.mean(dims), torch.zeros(x.shape[1], dtype=x.dtype))
    torch.testing.assert_close(x.var(dims, correction=0), torch.ones(x.shape[1], dtype=x.dtype))


@pytest.mark.parametrize("inverse", [False, True])
def test_the_first_rows_leave_with_mean_0_and_variance_1(inverse):
    layer = ActNorm(4).double()
    out = layer.initialize(rows(), inverse=inverse)
    assert_standard(out)
    transform = layer.condition()
    torch.testing.assert_close(out, (transform.inv if inverse else transform)(rows()))
    assert_standard(ActNorm(4).double().inv.initialize(rows(), inverse=inverse))


def test_channels_of_images():
    x = rows().reshape(4, 2, 4, 8)
    layer = ActNorm((2, 4, 8)).double()
    assert_standard(layer.initialize(x))
    y, ladj = layer(x)
    torch.testing.assert_close(ladj, (layer.log_scale.sum() * 32).expand(4))
    assert y.shape == x.shape


def test_every_actnorm_of_a_flow_meets_standardised_rows():
    torch.manual_seed(0)
    parts = [p for i in range(3) for p in (ActNorm(4), AffineCoupling(4, flip=bool(i % 2)))]
    flow = Flow(StandardNormal(4), parts).double()
    flow.initialize(rows())
    x = rows()
    for part in reversed(parts):
        x = part.condition().inv(x)
        if isinstance(part, ActNorm):
            assert_standard(x)


def test_fit_starts_once_and_a_loaded_model_does_not_start_again(tmp_path):
    torch.manual_seed(0)

    def build():
        return Flow(StandardNormal(4), [ActNorm(4), AffineCoupling(4)])

    flow, x = build(), rows().float()
    still = {"progress": False, "epochs": 1, "lr": 1e-30, "batch_size": 64}
    pyrodgm.fit(flow, x, **still)
    torch.testing.assert_close(flow.bijectors[0].shift, x.mean(0))
    started = copy.deepcopy(flow.state_dict())
    pyrodgm.fit(flow, x + 100, **still)
    other = build()
    other.load_state_dict(started)
    pyrodgm.fit(other, x + 100, **still)
    for model in (flow, other):
        torch.testing.assert_close(model.state_dict(), started, rtol=0, atol=1e-20)  # the steps were of 1e-30


def test_a_start_is_part_of_a_resumed_run(tmp_path):
    def run(epochs, checkpoint):
        torch.manual_seed(0)
        flow = Flow(StandardNormal(4), [ActNorm(4), AffineCoupling(4)])
        pyrodgm.fit(flow, rows().float(), epochs=epochs, batch_size=16, checkpoint=checkpoint, progress=False)
        return flow.state_dict()

    run(2, tmp_path)
    torch.testing.assert_close(run(4, tmp_path), run(4, None), rtol=0, atol=0)


def test_batch_norm_takes_the_batchs_moments_in_training_and_their_averages_afterwards():
    layer = BatchNorm(4, momentum=1.0, epsilon=0.0).double().train()
    x, ladj = layer.inv(rows())
    assert_standard(x)
    torch.testing.assert_close(ladj, -0.5 * rows().var(0, correction=0).log().sum().expand(64))
    torch.testing.assert_close(layer.running_mean, rows().mean(0))
    layer.eval()
    torch.testing.assert_close(layer.inv(rows())[0], x)
    torch.testing.assert_close(layer(x)[0], rows())


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_torchs_with_the_weight_e_to_the_gamma(training):
    layer = BatchNorm(4).double().train(training)
    with torch.no_grad():
        layer.log_scale.copy_(torch.tensor([0.5, -1.0, 0.0, 0.3]))
        layer.shift.copy_(torch.tensor([1.0, 2.0, -1.0, 0.0]))
        layer.running_mean.copy_(torch.arange(4.0))
        layer.running_variance.copy_(torch.tensor([4.0, 1.0, 0.5, 2.0]))
    mean, variance = layer.running_mean.clone(), layer.running_variance.clone()
    expected = torch.nn.functional.batch_norm(
        rows(), mean, variance, layer.log_scale.exp(), layer.shift, training, eps=layer.epsilon
    )
    x, ladj = layer.inv(rows())
    torch.testing.assert_close(x, expected)
    used = rows().var(0, correction=0) if training else variance
    slope = (layer.log_scale - 0.5 * (used + layer.epsilon).log()).sum()
    torch.testing.assert_close(ladj, slope.expand(64))
    layer.eval()
    y, ladj = layer(x)
    torch.testing.assert_close(ladj, -layer.inv(y)[1])


def test_gradients_go_through_the_statistics_of_the_batch():
    """In training every row moves the map of all of them."""
    layer, x = grow(BatchNorm(4)).double().train(), rows(6)

    def total():
        y, ladj = layer.inv(x)
        return y.sin().sum() + ladj.square().sum()

    assert_gradients_are_slopes(total, {"the rows": [x], "the parameters": list(layer.parameters())})


def test_a_feature_that_never_varies_stays_finite():
    """It leaves as 0, and what is a millionth larger as 1: the largest scale that a start gives."""
    x = torch.ones(8, 2, dtype=torch.float64)
    layer = Compose([ActNorm(2)]).double()
    torch.testing.assert_close(layer.initialize(x), torch.zeros_like(x))
    y, ladj = layer(x + 1e-6)
    torch.testing.assert_close(y, torch.ones_like(x))
    torch.testing.assert_close(ladj, torch.full((8,), 2 * math.log(1e6), dtype=torch.float64))


def test_pyros_own_distribution_trains_on_the_density_of_the_batch():
    """Value and gradients are those of the flow, and the averages take in each batch once."""
    ours, theirs = (grow(BatchNorm(4)).double().train() for _ in range(2))
    base, found = dist.Normal(torch.zeros(4).double(), 1.0).to_event(1), []
    for layer, distribution in ((ours, FlowDistribution), (theirs, dist.TransformedDistribution)):
        x = rows().requires_grad_()
        log_prob = distribution(base, [layer.condition()]).log_prob(x)
        found.append((log_prob, *torch.autograd.grad(log_prob.square().sum(), [x, *layer.parameters()])))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(theirs.state_dict(), ours.state_dict())
    assert not torch.equal(ours.running_mean, torch.zeros(4).double())
