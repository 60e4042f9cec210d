"""What a guide reads of a program: masks, scales, supports, plates and arguments as they are in each call."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import HIDDEN
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn
from torch.distributions import constraints

from pyrodgm.core import Latent, data_plate
from pyrodgm.distributions.mixture import MixtureDistribution
from pyrodgm.guides import FullCovariance, Hierarchical, Local, MeanField, SemiAmortized, Sites
from pyrodgm.latent import VAE
from pyrodgm.objectives import ELBO
from pyrodgm.traces import sample_sites
from pyrodgm.tractable import Parametric, VampPrior

X = torch.tensor([0.3, -1.2, 2.0, 0.7])


def mask_in(guide, *args):
    """Of z in the guide's trace."""
    return poutine.trace(guide).get_trace(*args).nodes["z"]["mask"].expand(len(X))


# masks


SEEN = torch.tensor([True, False, True, False])


def by_distribution(x, seen):
    with pyro.plate("data", len(x)):
        fn = dist.Normal(torch.zeros(len(x), 2), 1.0).mask(seen.unsqueeze(-1)).to_event(1)
        z = pyro.sample("z", fn)
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0).mask(seen), obs=x)


def by_both(x, seen):
    with pyro.plate("data", len(x)), poutine.mask(mask=seen | torch.tensor([False, True, False, False])):
        own = seen | torch.tensor([False, False, False, True])
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1).mask(own))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


@pytest.mark.parametrize("program", [by_distribution, by_both])
@pytest.mark.parametrize("builder", [MeanField, FullCovariance])
def test_a_mask_of_the_distribution_is_one_of_the_guide(builder, program):
    guide = builder(Sites(program, (X, torch.ones(4, dtype=torch.bool))), HIDDEN)
    assert torch.equal(mask_in(guide, X, SEEN), SEEN)


def by_truth(x, on=True):
    with pyro.plate("data", len(x)), poutine.mask(mask=on):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("builder", [MeanField, FullCovariance])
def test_a_mask_that_is_one_truth_value(builder):
    guide = builder(Sites(by_truth, (X,)), HIDDEN)
    assert not mask_in(guide, X, False).any()
    assert mask_in(guide, X, True).all()


def test_a_mask_of_half_an_event_is_refused():
    def program(x):
        with pyro.plate("data", len(x)):
            half = torch.tensor([True, False])
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).mask(half).to_event(1))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match="mask of whole events at 'z'"):
        Sites(program, (X,))


# scales


def annealed(x, weight=1.0, size=None):
    with pyro.plate("data", size or len(x), subsample=x):
        with poutine.scale(scale=weight):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("weight", [1.0, 0.3, torch.tensor([0.5, 1.0, 2.0, 0.1])])
def test_a_scaled_site_is_scaled_in_the_guide(weight):
    """Its factor may be 1 in the first trace, as where annealing has a default; the plate's own counts once."""
    guide = MeanField(Sites(annealed, (X,)), HIDDEN)
    program = poutine.trace(annealed).get_trace(X, weight, 40)
    found = poutine.trace(guide).get_trace(X, weight, 40)
    scales = [torch.as_tensor(trace.nodes["z"]["scale"]) for trace in (found, program)]
    torch.testing.assert_close(*scales)
    torch.testing.assert_close(scales[0], 10 * torch.as_tensor(weight))


def test_scaled_sites_are_refused_where_all_have_one_density():
    sites = Sites(annealed, (X,))
    for builder in (FullCovariance, Hierarchical, SemiAmortized):
        with pytest.raises(ValueError, match=rf"without poutine.scale for a {builder.__name__}.*\['z'\]"):
            builder(sites)


class Weighed(Latent):
    def __init__(self, weight):
        super().__init__((1,))
        self.weight = weight
        self.guide = MeanField(Sites(self, (X.unsqueeze(-1),)), HIDDEN)

    def forward(self, x=None, context=None, *, n=None):
        with data_plate(x, context, n), poutine.scale(scale=self.weight):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def test_a_scale_of_each_row_is_refused_by_our_bound():
    x = X.unsqueeze(-1)
    assert ELBO().loss(Weighed(0.5), x).shape == ()
    with pytest.raises(ValueError, match=r"of shape \(4,\) at 'z'; use PyroObjective"):
        ELBO().loss(Weighed(torch.ones(4)), x)


# supports


def positive(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(2), rate.unsqueeze(-1)).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_copy_knows_real_sites(how):
    """A copy of ``constraints.real`` is another object, and the guide's plain normals have their KL in closed form."""
    guide = MeanField(Sites(positive, (X,)), HIDDEN)
    vae = VAE.mlp(6, 2, [8])
    local = Local(vae, torch.ones(3, 6))
    for one, args in ((guide, (X,)), (local, (torch.ones(3, 6),))):
        traces = [poutine.trace(m).get_trace(*args) for m in (one, how(one))]
        kinds = [{k: type(s["fn"]) for k, s in sample_sites(trace).items()} for trace in traces]
        assert kinds[0] == kinds[1]
    real = how(constraints.real)
    prior = VampPrior(Parametric(dist.Normal, 2, context=6), 5, support=real)
    assert prior.pseudo_inputs is prior.free


def test_a_mixture_knows_a_copy_of_the_reals():
    class Copied(dist.Normal):
        support = copy.deepcopy(constraints.real)

    mixture = MixtureDistribution(torch.zeros(2), [Copied(0.0, 1.0), dist.LogNormal(0.0, 1.0)])
    assert mixture.support is Copied.support


def beside(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(x - 1, x + 1))
        above = pyro.sample("above", dist.Pareto(1.0, 2.0))
        pyro.sample("x", dist.Normal(z + above, 0.5), obs=x)


@pytest.mark.parametrize("builder", [MeanField, FullCovariance, SemiAmortized])
def test_bounds_of_rows_are_those_of_each_call(builder):
    """Other rows have other bounds, and a last batch may have fewer."""
    guide = builder(Sites(beside, (X,)), hidden=HIDDEN)
    for x in (X + 10, X[:2] - 5):
        draws = guide(x)
        assert bool(((draws["z"] - x).abs() <= 1).all())
        assert bool((draws["above"] >= 1).all())
        assert torch.tensor(Trace_ELBO().loss(beside, guide, x)).isfinite()


def test_bounds_that_move_with_other_sites_are_refused():
    def program():
        a = pyro.sample("a", dist.Uniform(0.0, 1.0))
        pyro.sample("b", dist.Uniform(0.0, a))

    with pytest.raises(ValueError, match=r"that of 'b', .* write it as a \* u with u ~ Uniform"):
        Sites(program)
    assert Sites(poutine.condition(program, data={"a": torch.tensor(0.5)})).global_size == 1


# what a call observes or does not have


def partly(x, z=None, seen=None):
    with pyro.plate("data", len(x)):
        w = pyro.sample("w", dist.Bernoulli(0.3))
        z = pyro.sample("z", dist.Normal(w, 1.0), obs=z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=seen)


@pytest.mark.parametrize("builder", [MeanField, FullCovariance])
def test_sites_that_a_call_observes_or_lacks_are_left_out(builder):
    guide = builder(Sites(partly, (X, None, SEEN)), hidden=HIDDEN)
    assert set(guide(X, None, SEEN)) == {"w", "z", "x_unobserved"}
    assert set(guide(X, torch.zeros(4), SEEN)) == {"w", "x_unobserved"}
    assert set(guide(X)) == {"w", "z"}


def test_what_a_packed_guide_draws_for_an_absent_site_has_the_pseudo_priors_density():
    """Where the guide is that standard normal, the bound is that of a program without the site."""

    def program(x, z=None):
        with pyro.plate("data", len(x)), poutine.mask(mask=True):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=z)
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    guide = FullCovariance(Sites(program, (X,)), hidden=[])
    with torch.no_grad():
        for p in guide.posterior_of_locals.net.parameters():
            p.zero_()
    z = torch.randn(4, 2)
    expected = dist.Normal(0.0, 1.0).log_prob(z).sum() + dist.Normal(z.sum(-1), 1.0).log_prob(X).sum()
    found = -Trace_ELBO().loss(program, guide, X, z)
    assert found == pytest.approx(float(expected), rel=1e-4)  # the guide's scales are 1 but for 1e-6


# plates


def regression(x, y):
    """All latents are global; the rows come one by one, a few at a time."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(x), subsample_size=2):
        pyro.sample(f"y_{i}", dist.Normal(slope * x[i], 1.0), obs=y[i])


def test_a_loop_around_observed_sites_alone_is_no_matter_of_a_guide():
    sites = Sites(regression, (X, X))
    assert [s.name for s in sites.global_sites] == ["slope"]
    assert torch.tensor(Trace_ELBO().loss(regression, MeanField(sites), X, X)).isfinite()


def topics(words):
    """Words are enumerated, (words, documents): the plate with the latents is that of the documents."""
    with pyro.plate("documents", words.shape[1]):
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("words", len(words)):
            topic = pyro.sample("topic", dist.Categorical(share), infer={"enumerate": "parallel"})
            pyro.sample("word", dist.Normal(topic.to(share), 1.0), obs=words)


def test_the_plate_of_the_data_is_one_with_latents():
    words = torch.randn(4, 4)
    assert Sites(topics, (words,)).plate == "documents"
    assert Sites(topics, (torch.randn(5, 4),)).plate is None  # what is read first has the rows of another plate


def test_no_plate_of_the_data_makes_all_sites_global():
    sites = Sites(by_truth, (X,), plate=False)
    assert [s.name for s in sites.global_sites] == ["z"]
    assert sites.plate is None
    assert MeanField(sites)(X)["z"].shape == (4,)
    with pytest.raises(ValueError, match="name of one of the program's plates, got 'rows'"):
        Sites(by_truth, (X,), plate="rows")


def test_plates_are_named_from_the_outermost():
    def program(x):
        with pyro.plate("outer", 2, dim=-3), pyro.plate("data", len(x), dim=-2), pyro.plate("inner", 3, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert Sites(program, (X,)).continuous[0].plates == ("outer", "data", "inner")


def test_the_floating_type_is_that_of_the_first_floating_site():
    def program(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(x.new_ones(3)))
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

    x = X.double()
    sites = Sites(program, (x,))
    assert sites.like.dtype == torch.float64
    assert MeanField(sites, HIDDEN)(x)["z"].dtype == torch.float64


# arguments and modules


def test_an_encoder_is_given_what_it_takes():
    """Of a model that is called with x, context and n: x, and by name what else it knows."""

    class WithContext(nn.Linear):
        def forward(self, x, context=None):
            assert context is None or len(context) == len(x)
            return super().forward(x)

    vae, x = VAE.mlp(6, 2, [8]), torch.ones(4, 6)
    for encoder in (nn.Linear(6, 4), WithContext(6, 4), nn.Sequential(nn.Linear(6, 4), nn.Tanh())):
        vae.guide = MeanField(Sites(vae, (x,), observed=encoder), HIDDEN)
        for n in (None, 40):
            loss = ELBO().loss(vae, x, n=n)
            assert all(bool((g != 0).any()) for g in torch.autograd.grad(loss, list(encoder.parameters())))


def test_arguments_are_read_in_the_programs_order():
    def program(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    guide = MeanField(Sites(program, (), {"x": X, "y": -X}), HIDDEN)
    found = []
    for call in (lambda: guide(X, -X), lambda: guide(x=X, y=-X), lambda: guide(y=-X, x=X)):
        torch.manual_seed(1)
        found.append(call()["z"])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3))

    def forward(self, x):
        return self.program(x)

    def program(self, x, seen=None):
        with pyro.plate("data", len(x)), poutine.mask(mask=True if seen is None else seen):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("method", [False, True])
def test_reading_a_program_leaves_its_statistics_alone(method):
    model = Normed().train()
    before, x = copy.deepcopy(model.state_dict()), torch.randn(5, 3)
    guide = MeanField(Sites(model.program if method else model, (x,)), HIDDEN)
    guide(x)
    assert all(m.training for m in model.modules())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_trace_with_rows_leaves_no_mark():
    """Nor does finding the plate, for which the program runs once more."""

    def program(x):
        scale = pyro.param("scale", torch.ones(()))
        g = pyro.sample("g", dist.Normal(0.0, scale))
        with pyro.plate("data", 2 * len(x), subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(g, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    state = torch.get_rng_state()
    Sites(program, (X,), observed=nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Dropout(0.5)))
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store())
