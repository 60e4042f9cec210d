"""Two latent layers, z2 -> z1 -> x, and guides that draw them downwards or upwards: q(z1 | x) q(z2 | z1)."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import assert_means_agree, mean_and_error
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from test_contracts_latent import value_and_gradients
from torch import nn
from torch.distributions import kl_divergence

from pyrodgm.core import Latent, data_plate
from pyrodgm.evaluation import aggregate_distance, kl_per_dimension
from pyrodgm.objectives import ELBO, AdversarialAutoencoder, BetaTCVAE, FreeBits, InfoVAE
from pyrodgm.traces import latent_rows, sample_sites

MEAN, TOP, STEP, NOISE = 1.5, 0.6, 0.4, 0.7  # of z2, and the scales of z2, z1 and x
VARIANCE = TOP**2 + STEP**2  # of z1


class Affine(nn.Module):
    """N(gain c + shift, scale^2) over one number; c may be several, side by side."""

    def __init__(self, gain, shift, scale):
        super().__init__()
        self.gain, self.shift, self.scale = (
            nn.Parameter(torch.as_tensor(v, dtype=torch.float64).reshape(-1)) for v in (gain, shift, scale)
        )

    def forward(self, given):
        return dist.Normal((self.gain * given).sum(-1, keepdim=True) + self.shift, self.scale).to_event(1)


class Upwards(nn.Module):
    """The posterior, from x up to z2."""

    def __init__(self):
        super().__init__()
        gain, up = VARIANCE / (VARIANCE + NOISE**2), TOP**2 / VARIANCE
        self.of_z1 = Affine(gain, (1 - gain) * MEAN, (VARIANCE * (1 - gain)) ** 0.5)
        self.of_z2 = Affine(up, (1 - up) * MEAN, TOP * (1 - up) ** 0.5)

    def forward(self, x=None, context=None, *, n=None):
        with data_plate(x, context, n):
            z1 = pyro.sample("z1", self.of_z1(x))
            pyro.sample("z2", self.of_z2(z1))


class Downwards(nn.Module):
    """The posterior, z2 first."""

    def __init__(self):
        super().__init__()
        gain = TOP**2 / (VARIANCE + NOISE**2)
        self.of_z2 = Affine(gain, (1 - gain) * MEAN, TOP * (1 - gain) ** 0.5)
        variance = 1 / (STEP**-2 + NOISE**-2)
        self.of_z1 = Affine((variance / STEP**2, variance / NOISE**2), 0.0, variance**0.5)

    def forward(self, x=None, context=None, *, n=None):
        with data_plate(x, context, n):
            z2 = pyro.sample("z2", self.of_z2(x))
            pyro.sample("z1", self.of_z1(torch.cat((z2, x.expand_as(z2)), -1)))


class TwoLayers(Latent):
    def __init__(self, guide):
        super().__init__((1,))
        self.of_z2, self.of_z1, self.of_x = Affine(0.0, MEAN, TOP), Affine(1.0, 0.0, STEP), Affine(1.0, 0.0, NOISE)
        self.guide = guide()

    def forward(self, x=None, context=None, *, n=None):
        x, context = self.check(x, context)
        with data_plate(x, context, n):
            z2 = pyro.sample("z2", self.of_z2(self.of_z2.shift.new_zeros(1)))
            z1 = pyro.sample("z1", self.of_z1(z2))
            return pyro.sample("x", self.of_x(z1), obs=x)


def marginal():
    return dist.Normal(torch.tensor(MEAN).double(), (VARIANCE + NOISE**2) ** 0.5)


def rows(n=6):
    return marginal().sample((n, 1))


def beside(guide):
    """A model whose guide is not its posterior."""
    model = TwoLayers(guide)
    with torch.no_grad():
        for p in model.guide.parameters():
            p.mul_(1.3).add_(0.1)
    return model


@pytest.mark.parametrize("particles", [1, 3])
def test_at_an_upward_posterior_every_draw_gives_the_evidence(particles):
    x = rows()
    loss = ELBO(particles).loss(TwoLayers(Upwards), x)
    torch.testing.assert_close(loss, -marginal().log_prob(x).mean())


@pytest.mark.parametrize(("guide", "pyros"), [(Upwards, Trace_ELBO), (Downwards, TraceMeanField_ELBO)])
def test_the_closed_form_is_taken_where_the_order_is_the_programs(guide, pyros):
    model, x = beside(guide), rows()
    found = value_and_gradients(model, lambda: ELBO().loss(model, x))
    wanted = value_and_gradients(model, lambda: pyros().differentiable_loss(model, model.guide, x) / len(x))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("analytic", [True, False])
def test_free_bits_of_an_upward_guide_are_of_its_draws(analytic):
    model, x, nats = beside(Upwards), rows(), 0.3
    torch.manual_seed(2)
    loss = ELBO(analytic_kl=analytic, free_bits=FreeBits(nats)).loss(model, x)
    torch.manual_seed(2)
    drawn = poutine.trace(model.guide).get_trace(x)
    program = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(x)
    p, q = ({k: s["fn"].log_prob(s["value"]) for k, s in sample_sites(trace).items()} for trace in (program, drawn))
    expected = sum((q[k] - p[k]).mean().clamp(min=nats) for k in ("z1", "z2")) - p["x"].mean()
    torch.testing.assert_close(loss, expected)


def test_the_kl_of_an_upward_posterior():
    """KL(q(z1 | x) || p(z1)) in all, since q(z2 | z1) is the program's own."""
    model, x = TwoLayers(Upwards), rows(20)
    prior = dist.Normal(torch.tensor(MEAN).double(), VARIANCE**0.5)
    exact = kl_divergence(model.guide.of_z1(x).base_dist, prior).mean().detach()
    found = torch.stack([kl_per_dimension(model, x, particles=50).sum() for _ in range(60)])
    assert_means_agree(*mean_and_error(found), exact)


def test_latents_of_guide_and_prior_stand_in_one_order():
    """The aggregate of the posterior is the prior; z1 beside z2 taken for z2 beside z1 is another law."""
    model = TwoLayers(Upwards)
    with torch.no_grad():
        model.of_z1.shift.add_(3.0), model.of_x.shift.sub_(3.0)  # z1 in units of its own, which its posterior follows
        model.guide.of_z1.shift.add_(3.0), model.guide.of_z2.shift.sub_(3.0 * model.guide.of_z2.gain)
    x = rows(600)
    torch.testing.assert_close(ELBO().loss(model, x), -marginal().log_prob(x).mean())
    # an unbiased estimate from 600 rows has a standard deviation of about 1 / 600
    assert abs(aggregate_distance(model, x)) < 0.02
    bound, whole = ELBO().loss(model, x), InfoVAE(0.0, 2.0).loss(model, x)
    assert abs(whole - bound) < 0.02
    guide, prior = AdversarialAutoencoder(nn.Identity())._draws(model, x, None)
    assert_means_agree(*mean_and_error(guide), *mean_and_error(prior))


def test_rows_lie_first_whatever_plates_lie_before():
    def program(x):
        with pyro.plate("times", 3, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    trace = poutine.trace(program).get_trace(torch.zeros(5))
    z = trace.nodes["z"]["value"]  # (3, 5, 2)
    assert torch.equal(latent_rows(trace, 5)[4], z[:, 4].flatten())


class Apart(nn.Module):
    """q(z1 | x) q(z2 | x), in the order of the upward one."""

    def __init__(self):
        super().__init__()
        self.of_z1, self.of_z2 = Affine(0.5, 0.2, 0.4), Affine(0.3, 0.1, 0.5)

    def forward(self, x=None, context=None, *, n=None):
        with data_plate(x, context, n):
            pyro.sample("z1", self.of_z1(x))
            pyro.sample("z2", self.of_z2(x))


def test_pairs_of_rows_are_scored_only_where_sites_do_not_read_each_other():
    x = rows()
    for guide in (Upwards, Downwards):
        with pytest.raises(TypeError, match="that reads another"):
            BetaTCVAE().loss(TwoLayers(guide), x)
    model = TwoLayers(Apart)
    torch.manual_seed(1)
    found = BetaTCVAE(1.0).loss(model, x, n=50)
    torch.manual_seed(1)
    torch.testing.assert_close(found, ELBO(analytic_kl=False).loss(model, x))
