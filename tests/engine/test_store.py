"""Draws on disk: names, numbers of draws, and what a run may go on from."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.autoname import scope
from torch import Tensor

import pyrodgm
from pyrodgm.energy import RBM
from pyrodgm.engine import Posterior
from pyrodgm.kernels import (
    HMC,
    MALA,
    MEADS,
    NUTS,
    SGHMC,
    SGLD,
    ChEES,
    Dense,
    GibbsWithGradients,
    Kernel,
    LowRank,
    ParallelTempering,
    RandomWalk,
)

D = torch.float64
Y = torch.tensor([0.3, 1.9, 1.1, 2.2], dtype=D)


def program(y: Tensor, sd: float = 5.0) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=D), 1.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu.sum(), sd), obs=y)


def run(model: Any, folder: Any, kernel: Kernel | None = None, draws: int = 6, **options: Any) -> Posterior:
    settings = {"chains": 3, "warmup": 4, "compile": False, "progress": False, **options}
    return pyrodgm.mcmc(model, kernel or HMC(0.4), Y, draws=draws, store=folder, **settings)


def test_sites_with_slashes_are_kept(tmp_path: Any) -> None:
    scoped = scope(program, prefix="a")
    stored = run(scoped, tmp_path)
    assert list(stored.samples) == ["a/mu"]
    plain = pyrodgm.mcmc(scoped, HMC(0.4), Y, chains=3, warmup=4, draws=6, compile=False, progress=False)
    assert torch.equal(stored["a/mu"], plain["a/mu"])
    assert torch.equal(run(scoped, tmp_path, draws=8)["a/mu"][:, :6], plain["a/mu"])
    stored.to_arviz(prior_draws=2)
    import xarray

    tree = xarray.open_datatree(tmp_path / "draws.zarr", engine="zarr", consolidated=False)
    assert tree["posterior"]["a.mu"].shape == (3, 8, 2)
    alone = xarray.open_zarr(tmp_path / "draws.zarr", group="posterior", consolidated=False)
    assert torch.equal(torch.from_numpy(alone["a.mu"].values[:, :6]), plain["a/mu"])


def test_names_that_would_be_one_array_are_refused(tmp_path: Any) -> None:
    def both(y: Tensor) -> None:
        pyro.sample("a/x", dist.Normal(y.sum(), 1.0))
        pyro.sample("a.x", dist.Normal(y.sum(), 1.0))

    with pytest.raises(ValueError, match="rename one"):
        run(both, tmp_path)

    def coordinate(y: Tensor) -> None:
        pyro.sample("chain", dist.Normal(y.sum(), 1.0))

    with pytest.raises(ValueError, match="got 'chain'; rename it"):
        run(coordinate, tmp_path / "coordinate")


def test_another_device_is_another_run(tmp_path: Any) -> None:
    run(program, tmp_path)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save({**saved, "device": "cuda"}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="pass device='cuda', or choose another folder"):
        run(program, tmp_path, draws=8)


@pytest.mark.parametrize(
    "kernel",
    [
        MEADS(),
        ChEES(),
        HMC(metric=Dense()),
        HMC(metric=LowRank(1)),
        SGLD(0.1),
        SGHMC(0.1),
        ParallelTempering(RandomWalk(0.5), 3, 0.3),
    ],
    ids=lambda k: type(k).__name__,
)
def test_runs_go_on_bit_exactly(kernel: Kernel, tmp_path: Any) -> None:
    options: dict[str, Any] = {"chains": 10, "warmup": 25}
    whole = pyrodgm.mcmc(program, kernel, Y, draws=9, compile=False, progress=False, **options)
    run(program, tmp_path, kernel, draws=4, **options)
    resumed = run(program, tmp_path, kernel, draws=9, **options)
    assert torch.equal(resumed["mu"], whole["mu"])
    for name, values in whole.sample_stats.items():
        assert torch.equal(resumed.sample_stats[name], values)


def test_runs_of_machines_go_on(tmp_path: Any) -> None:
    rbm = RBM(5, 3)
    options: dict[str, Any] = {"chains": 3, "warmup": 2, "compile": False, "progress": False}
    for i, kernel in enumerate((GibbsWithGradients(), ParallelTempering(GibbsWithGradients(), 3, 0.2, scaled=False))):
        whole = pyrodgm.mcmc(rbm, kernel, draws=9, **options)
        for draws in (4, 9):
            found = pyrodgm.mcmc(rbm, kernel, draws=draws, store=tmp_path / str(i), **options)
        assert torch.equal(found["x"], whole["x"])


def test_fewer_draws_than_there_are(tmp_path: Any) -> None:
    whole = run(program, tmp_path, draws=9)
    some = run(program, tmp_path, draws=4)
    assert some["mu"].shape == (3, 4, 2)
    assert torch.equal(some["mu"], whole["mu"][:, :4])
    assert some.sample_stats["lp"].shape == (3, 4)
    assert run(program, tmp_path, draws=9)["mu"].shape == (3, 9, 2)  # nothing is lost


@pytest.mark.parametrize(
    "kernel",
    [
        HMC(0.4),
        NUTS(0.4),
        MALA(0.3),
        RandomWalk(0.3),
        ParallelTempering(HMC(step_size=0.4), 3, 0.3),
        SGLD(0.1),
        SGHMC(0.1),
    ],
    ids=lambda k: type(k).__name__,
)
def test_another_density_is_another_run(kernel: Kernel, tmp_path: Any) -> None:
    """A number inside the program is no argument, but the energies of the chains show it."""
    sd = 5.0

    def changing(y: Tensor) -> None:
        program(y, sd)

    run(changing, tmp_path, kernel)
    assert run(changing, tmp_path, kernel, draws=8)["mu"].shape == (3, 8, 2)
    sd = 4.9
    with pytest.raises(ValueError, match="program has changed: choose another folder"):
        run(changing, tmp_path, kernel, draws=8)


def test_float32_goes_on_where_it_stood(tmp_path: Any) -> None:
    def single(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 2000):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.linspace(-30, 30, 2000))

    run(single, tmp_path)
    assert run(single, tmp_path, draws=9)["mu"].shape == (3, 9)
