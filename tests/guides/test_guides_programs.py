"""Guides of programs that the library has no part in: built from one trace, trained for a short while."""

import copy
import pickle

import pyro
import pytest
import torch
from programs import PROGRAMS, hierarchical_regression
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceEnum_ELBO

from pyrodgm.bijectors import Autoregressive, Planar, RationalQuadraticSpline
from pyrodgm.guides import (
    FlowGuide,
    FullCovariance,
    Hierarchical,
    MeanField,
    SemiAmortized,
    Sites,
    StraightThrough,
)
from pyrodgm.traces import sample_sites

BUILDERS = {
    "MeanField": lambda sites: MeanField(sites, [16]),
    "FullCovariance": lambda sites: FullCovariance(sites, [16]),
    "FlowGuide": lambda sites: FlowGuide(sites, layers=2, hidden=[16]),
    "Hierarchical": lambda sites: Hierarchical(sites, 2, [16]),
}
OTHERS = {
    "SemiAmortized": lambda sites: SemiAmortized(sites, steps=2, hidden=[16]),
    "planar": lambda sites: FlowGuide(sites, Planar, layers=2, hidden=[16]),
    "spline": lambda sites: FlowGuide(sites, spline, layers=1, hidden=[16]),
    "StraightThrough": lambda sites: MeanField(sites, [16], discrete=StraightThrough(0.5)),
}
PAIRS = [(name, builder) for name in PROGRAMS for builder in BUILDERS]
TRAINED_OTHERS = [("cevae", "SemiAmortized"), ("deep markov", "SemiAmortized")]
TRAINED_OTHERS += [("hierarchical regression", "planar"), ("cevae", "planar")]
TRAINED_OTHERS += [("gaussian process", "spline"), ("deep markov", "spline")]


def spline(features, context):
    return Autoregressive(features, RationalQuadraticSpline(), context=context, hidden=[16])


def setting(name, builder):
    torch.manual_seed(0)
    program, args, kwargs = PROGRAMS[name]()
    return program, args, kwargs, (BUILDERS | OTHERS)[builder](Sites(program, args, kwargs))


def parameters(program, guide):
    return [*(program.parameters() if isinstance(program, torch.nn.Module) else ()), *guide.parameters()]


def held_out(elbo, program, guide, args, kwargs, draws=40):
    with torch.no_grad():
        values = torch.tensor([elbo.loss(program, guide, *args, **kwargs) for _ in range(draws)])
    return values.mean(), values.std() / draws**0.5


def elbo_of(guide):
    enumerated = guide.discrete is not None and not isinstance(guide.discrete.how, StraightThrough)
    return TraceEnum_ELBO(max_plate_nesting=1) if enumerated else Trace_ELBO()


def train(program, guide, args, kwargs, steps=60):
    elbo, optimizer = elbo_of(guide), torch.optim.Adam(parameters(program, guide), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        elbo.differentiable_loss(program, guide, *args, **kwargs).backward()
        optimizer.step()


@pytest.mark.pyro_store  # the programs of pyro.contrib keep their parameters in the store
@pytest.mark.parametrize(("name", "builder"), [*PAIRS, *TRAINED_OTHERS, ("ssvae", "StraightThrough")])
def test_a_guide_of_any_program_matches_its_sites(name, builder):
    program, args, kwargs, guide = setting(name, builder)
    sites = sample_sites(poutine.trace(program).get_trace(*args, **kwargs))
    latent = {k: s["value"].shape for k, s in sites.items() if not s["is_observed"]}
    trace = poutine.trace(guide).get_trace(*args, **kwargs)
    own = {k: s for k, s in sample_sites(trace).items() if not s["infer"].get("is_auxiliary")}
    assert {k: s["value"].shape for k, s in own.items()} == latent
    assert all(bool(sites[k]["fn"].support.check(s["value"]).all()) for k, s in own.items())
    assert all(s["scale"] == sites[k]["scale"] for k, s in own.items())
    loss = elbo_of(guide).differentiable_loss(program, guide, *args, **kwargs)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in guide.parameters())


TRAINED = [("cevae", "FlowGuide"), ("gaussian process", "FullCovariance"), ("ssvae", "Hierarchical")]
TRAINED += [("deep markov", "MeanField"), ("hierarchical regression", "MeanField"), *TRAINED_OTHERS]


@pytest.mark.pyro_store
@pytest.mark.parametrize(("name", "builder"), TRAINED)
def test_a_short_training_raises_the_bound(name, builder):
    program, args, kwargs, guide = setting(name, builder)
    elbo = elbo_of(guide)
    before, before_error = held_out(elbo, program, guide, args, kwargs)
    train(program, guide, args, kwargs)
    after, after_error = held_out(elbo, program, guide, args, kwargs)
    assert after < before - 3 * (before_error**2 + after_error**2).sqrt()


@pytest.mark.parametrize("builder", ["MeanField", "FullCovariance", "SemiAmortized"])
def test_an_amortized_guide_of_lda_sorts_documents_that_it_has_not_read(builder):
    program, args, kwargs, guide = setting("lda", builder)
    kwargs["topics"] = 2  # there are as many kinds of documents
    guide = (BUILDERS | OTHERS)[builder](Sites(program, args, kwargs))
    before, before_error = held_out(Trace_ELBO(), program, guide, args, kwargs)
    train(program, guide, args, kwargs, 200)
    after, after_error = held_out(Trace_ELBO(), program, guide, args, kwargs)
    assert after < before - 3 * (before_error**2 + after_error**2).sqrt()
    (fresh,), _ = PROGRAMS["lda"]()[1:]
    draws = torch.stack([guide(fresh, **kwargs)["theta"].detach() for _ in range(50)])  # (50, documents, 2)
    torch.testing.assert_close(draws.sum(-1), torch.ones(50, len(fresh)))
    assert bool((draws >= 0).all())
    first = draws.mean(0).argmax(-1)
    assert sorted((first[::2].unique().tolist(), first[1::2].unique().tolist())) == [[0], [1]]


def test_a_straight_through_class_raises_the_bound():
    """The relaxed density is a signal and no bound: the bound is the enumerated one, of the same parameters."""
    program, args, kwargs, guide = setting("ssvae", "StraightThrough")
    summed, elbo = MeanField(guide.sites, [16]), TraceEnum_ELBO(max_plate_nesting=1)
    bounds = []
    for steps in (0, 60):
        train(program, guide, args, kwargs, steps)
        summed.load_state_dict(guide.state_dict())
        bounds.append(held_out(elbo, program, summed, args, kwargs))
    (before, before_error), (after, after_error) = bounds
    assert after < before - 3 * (before_error**2 + after_error**2).sqrt()


def test_the_ssvae_in_both_its_modes():
    """One guide: y is sampled where the program does not observe it, and read by q(z | x, y) either way."""
    program, (x,), _, guide = setting("ssvae", "FullCovariance")
    y = torch.eye(3)[torch.arange(len(x)) % 3]
    assert set(guide(x)) == {"y", "z"}
    assert set(guide(x, y)) == {"z"}
    elbo = Trace_ELBO()
    assert bool(torch.tensor(elbo.loss(program, guide, x, y)).isfinite())
    torch.manual_seed(1)
    one = guide(x, y)["z"]
    torch.manual_seed(1)
    assert not torch.equal(one, guide(x, y.roll(1, -1))["z"])


@pytest.mark.parametrize("builder", BUILDERS)
def test_predictive_pickle_and_copies(builder):
    program, args, kwargs, guide = setting("hierarchical regression", builder)
    draws = Predictive(hierarchical_regression, guide=guide, num_samples=3)(*args[:2])
    assert draws["y"].shape == (3, 24)
    for other in (pickle.loads(pickle.dumps(guide)), copy.deepcopy(guide)):
        torch.manual_seed(0)
        expected = guide(*args, **kwargs)
        torch.manual_seed(0)
        assert all(torch.equal(v, expected[k]) for k, v in other(*args, **kwargs).items())
    fresh = BUILDERS[builder](Sites(program, args, kwargs))
    fresh.load_state_dict(guide.state_dict())
    torch.manual_seed(0)
    assert all(torch.equal(v, expected[k]) for k, v in fresh(*args, **kwargs).items())


def test_a_trace_leaves_no_mark():
    program, args, kwargs = PROGRAMS["gaussian process"]()

    def with_parameter():
        pyro.param("left", torch.zeros(1))
        return program(*args, **kwargs)

    state = torch.get_rng_state()
    MeanField(Sites(with_parameter))
    # Parameters of the guide are drawn; the trace itself draws nothing that is seen outside.
    torch.set_rng_state(state)
    Sites(with_parameter)
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store())
