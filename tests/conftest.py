"""What every test starts from and leaves behind: seeds, validation, an empty parameter store, float32."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))


@pytest.fixture(autouse=True)
def clean_state(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seeded, validated, one thread; afterwards Pyro's store must be empty (unless marked ``pyro_store``)."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_num_threads(1)  # tests share their cores with other workers
    pyro.clear_param_store()
    pyro.set_rng_seed(0)  # torch, numpy and random
    with pyro.validation_enabled(True):
        yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    left = sorted(pyro.get_param_store().keys())
    pyro.clear_param_store()
    if left and request.node.get_closest_marker("pyro_store") is None:
        pytest.fail(f"expected Pyro's parameter store empty, got {left}; a member keeps its parameters to itself")
