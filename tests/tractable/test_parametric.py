"""What cannot be learned is refused when it is built, and a copy is the same model."""

import copy
import pickle

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyrodgm.distributions import DiscretizedLogistic
from pyrodgm.tractable import Parametric, VampPrior


@pytest.mark.parametrize(
    ("family", "name"),
    [(DiscretizedLogistic, "levels"), (dist.Binomial, "total_count"), (dist.Delta, "v")],
)
def test_parameters_without_free_numbers_are_refused(family, name):
    with pytest.raises(TypeError, match=rf"{family.__name__} with '{name}' of .*; pass fixed=\{{'{name}': \.\.\.\}}"):
        Parametric(family, 3)


def test_a_family_with_bounds_of_its_own_is_refused():
    with pytest.raises(TypeError, match="constant arg_constraints, got Uniform"):
        Parametric(dist.Uniform, 3)


def test_what_is_fixed_need_not_be_learned():
    assert Parametric(DiscretizedLogistic, 3, fixed={"levels": 256}).sample(2).shape == (2, 3)
    assert Parametric(dist.Binomial, 3, fixed={"total_count": 5}).sample(2).shape == (2, 3)


def test_a_family_of_vectors_is_refused():
    wide = Parametric(dist.OneHotCategorical, 3, sizes={"logits": 4})
    with pytest.raises(TypeError, match=r"OneHotCategorical, whose event for features \(3,\) has shape \(3, 4\)"):
        wide.log_prob(torch.zeros(2, 3))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_pseudo_inputs_of_a_copy_start_from_the_rows(duplicate):
    """Real ones are the rows themselves; a copy has a support of its own, which is as real."""
    prior = VampPrior(Parametric(dist.Normal, 2, context=4), 3)
    for model in (prior, duplicate(prior)):
        rows = torch.randn(3, 4)
        model.start_from(rows)
        assert torch.equal(model.pseudo_inputs, rows)
    bounded = duplicate(VampPrior(Parametric(dist.Normal, 2, context=4), 3, support=constraints.unit_interval))
    bounded.start_from(torch.rand(3, 4).round())
    assert bool(((bounded.pseudo_inputs > 0) & (bounded.pseudo_inputs < 1)).all())
