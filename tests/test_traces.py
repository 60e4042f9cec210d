"""What a run leaves behind: the record of sites beside Pyro's own trace, and the plate that scales the rows."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyrodgm.traces import SiteRecord, sample_sites, site_log_prob
from pyrodgm.tractable import MADE


def program(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, scale))
        pyro.deterministic("twice", 2 * z)
        pyro.sample("unseen", dist.Normal(0.0, 1.0), infer={"_do_not_trace": True, "is_auxiliary": True})
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_a_record_has_the_sites_of_pyros_trace():
    x = torch.arange(3.0)
    torch.manual_seed(0)
    trace = poutine.trace(program).get_trace(x)
    torch.manual_seed(0)
    with SiteRecord() as run:
        program(x)
    recorded, traced = sample_sites(run), sample_sites(trace)
    assert list(recorded) == list(traced) == ["scale", "z", "twice", "x"]
    for name, site in recorded.items():
        torch.testing.assert_close(site["value"], traced[name]["value"])
        torch.testing.assert_close(site_log_prob(site), site_log_prob(traced[name]))
        assert site["is_observed"] == traced[name]["is_observed"]


def test_a_record_can_be_replayed():
    with SiteRecord() as run:
        program(torch.zeros(2))
    again = poutine.trace(poutine.replay(program, trace=run)).get_trace(torch.zeros(2))
    torch.testing.assert_close(again.nodes["z"]["value"], run.nodes["z"]["value"])


def test_two_sites_of_one_name_are_an_error():
    def twice():
        for _ in range(2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(RuntimeError, match="got 'z' twice"), SiteRecord():
        twice()


@pytest.mark.parametrize("n", [None, 5, 40])
def test_the_rows_at_hand_stand_for_all(n):
    x = torch.zeros(5, 3)
    trace = poutine.trace(MADE(features=3, hidden=[4])).get_trace(x, n=n)
    plate, site = trace.nodes["data"], trace.nodes["x"]
    assert site["scale"] == (n or 5) / 5
    assert [(frame.name, frame.size, frame.full_size) for frame in site["cond_indep_stack"]] == [("data", 5, n or 5)]
    assert plate["value"].tolist() == list(range(5))
