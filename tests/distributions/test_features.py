"""Normal and Bernoulli features in fewer steps: everything is as ``to_event`` of the family has it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Independent, kl_divergence

from pyrodgm.distributions import IndependentBernoulli, IndependentNormal, StandardNormalDistribution
from pyrodgm.tractable import Parametric

B, EVENT = 4, (3, 2)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(name):
    """The lean distribution and Pyro's own, with a value of theirs."""
    a, b = numbers(B, *EVENT), numbers(B, *EVENT, seed=1)
    if name == "normal":
        return IndependentNormal(a, b, 2), dist.Normal(a, b.exp()).to_event(2), numbers(B, *EVENT, seed=2)
    return IndependentBernoulli(a, 2), dist.Bernoulli(logits=a).to_event(2), (numbers(B, *EVENT, seed=2) > 0).double()


both = pytest.mark.parametrize("name", ["normal", "bernoulli"])


@both
@pytest.mark.parametrize("validated", [False, True])
def test_it_is_the_familys_own_to_event(name, validated):
    with pyro.validation_enabled(validated):
        lean, own, x = pair(name)
        assert isinstance(lean, Independent)
        assert (lean.batch_shape, lean.event_shape) == (own.batch_shape, own.event_shape)
        assert lean.has_rsample == own.has_rsample
        more = torch.stack((x, x.flip(0), x))
        for value in (x, x[0], more):
            torch.testing.assert_close(lean.log_prob(value), own.log_prob(value))
        for what in ("mean", "variance"):
            torch.testing.assert_close(getattr(lean, what), getattr(own, what))
        torch.testing.assert_close(lean.entropy(), own.entropy())
        wide = lean.expand((5, B))
        assert wide.batch_shape == (5, B)
        torch.testing.assert_close(wide.log_prob(x), own.log_prob(x).expand(5, B))
        assert lean.sample((7,)).shape == (7, B, *EVENT)
        assert str(lean.support) == str(own.support)


@both
def test_the_family_is_built_only_where_it_is_asked_for(name):
    with pyro.validation_enabled(False):
        lean, _, x = pair(name)
        assert (lean.rsample() if lean.has_rsample else lean.log_prob(x)).isfinite().all()
        assert "_base" not in vars(lean)
        lean._validate_args = True
        assert lean._validate_args
        assert lean.base_dist._validate_args
        with pytest.raises(ValueError, match="within the support"):
            lean.log_prob(torch.full_like(x, float("nan")))


@both
def test_samples_have_its_moments(name):
    lean, own, _ = pair(name)
    torch.manual_seed(0)
    n = 20_000
    x = lean.sample((n,))
    z = (x.mean(0) - own.mean) / (own.variance / n).sqrt()
    assert z.abs().max() < 4.5
    second = (x - own.mean).square()
    assert ((second.mean(0) - own.variance) / (second.std(0) / n**0.5 + 1e-9)).abs().max() < 4.5


def test_draws_carry_the_gradient_of_both_parameters():
    loc, log_scale = (numbers(B, 3, seed=s).requires_grad_() for s in (0, 1))
    torch.manual_seed(0)
    z = IndependentNormal(loc, log_scale).rsample()
    noise = ((z - loc) / log_scale.exp()).detach()
    weights = numbers(B, 3, seed=3)
    found = torch.autograd.grad((weights * z).sum(), (loc, log_scale))
    torch.testing.assert_close(found, (weights, (weights * noise * log_scale.exp()).detach()))


def test_kl_from_the_standard_normal():
    loc, log_scale = numbers(B, 3), numbers(B, 3, seed=1)
    p = StandardNormalDistribution(loc, (3,))
    one = kl_divergence(dist.Normal(loc, log_scale.exp()), dist.Normal(torch.zeros(3).double(), 1.0)).sum(-1)
    for q in (IndependentNormal(loc, log_scale), dist.Normal(loc, log_scale.exp()).to_event(1)):
        torch.testing.assert_close(kl_divergence(q, p), one)


def test_nan_is_refused_under_validation():
    with pyro.validation_enabled(True):
        for make in (lambda x: IndependentNormal(x, x), IndependentBernoulli):
            with pytest.raises(ValueError, match="nan"):
                make(torch.tensor([[0.0, float("nan")]]))
        with pytest.raises(ValueError, match="support"):
            IndependentBernoulli(torch.zeros(1, 2)).log_prob(torch.tensor([[0.5, 1.0]]))


@pytest.mark.parametrize(("family", "lean"), [(dist.Normal, IndependentNormal), (dist.Bernoulli, IndependentBernoulli)])
def test_parametric_gives_them(family, lean):
    """Unless a parameter is fixed; with the scale as an exponential, as ``biject_to`` makes it."""
    torch.manual_seed(0)
    model = Parametric(family, EVENT, context=2, hidden=[4]).double()
    c = numbers(B, 2)
    d = model.condition(c)
    assert type(d) is lean
    raw = model.net(c).unflatten(-1, (-1, *EVENT))
    own = family(raw[:, 0], raw[:, 1].exp()) if family is dist.Normal else family(logits=raw[:, 0])
    x = (numbers(B, *EVENT, seed=2) > 0).double()
    torch.testing.assert_close(d.log_prob(x), own.to_event(2).log_prob(x))
    if family is dist.Normal:
        fixed = Parametric(family, EVENT, context=2, fixed={"scale": 0.5}).double().condition(c)
        assert type(fixed) is not lean
        assert bool((fixed.base_dist.scale == 0.5).all())
