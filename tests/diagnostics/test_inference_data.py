"""Both generations of arviz: the installed one, and the call that 1.x takes."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import xarray

from pyrodgm import Posterior
from pyrodgm.diagnostics.inference_data import inference_data


def posterior() -> Posterior:
    torch.manual_seed(0)
    return Posterior({"mu": torch.randn(3, 5), "a/z": torch.randn(3, 5, 2)}, {"energy": torch.randn(3, 5)})


def from_dict(data: dict[str, dict[str, Any]], *, name: str | None = None) -> xarray.DataTree:
    """As arviz 1.x has it: one dictionary of groups, to a DataTree; it takes no group by keyword."""
    groups = {
        group: xarray.Dataset(
            {key: (["chain", "draw", *(f"{key}_{i}" for i in range(v.ndim - 2))], v) for key, v in values.items()}
        )
        for group, values in data.items()
    }
    return xarray.DataTree.from_dict(groups, name=name)


@pytest.fixture(params=["installed", "1.0.0"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "installed":
        fake = SimpleNamespace(__version__=request.param, from_dict=from_dict, summary=lambda data, **options: data)
        monkeypatch.setitem(sys.modules, "arviz", fake)
    return request.param


def test_groups_and_numbers(version: str) -> None:
    draws = posterior()
    data = draws.to_arviz()
    assert isinstance(data, xarray.DataTree) == (version != "installed")
    assert set(data["posterior"].data_vars) == {"mu", "a.z"}  # a "/" would be a group of a tree
    for key, site in (("mu", "mu"), ("a.z", "a/z")):
        assert torch.equal(torch.as_tensor(data["posterior"][key].values), draws[site])
    assert torch.equal(torch.as_tensor(data["sample_stats"]["energy"].values), draws.sample_stats["energy"])


def test_summaries(version: str) -> None:
    found = posterior().summary()
    if version == "installed":
        assert list(found.index) == ["mu", "a.z[0]", "a.z[1]"]
    else:
        assert list(found.children) == ["posterior"]  # what is handed to arviz


def test_without_arviz_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"pip install .pyrodgm\[diagnostics\]"):
        inference_data({"posterior": {"mu": torch.zeros(2, 5)}})
