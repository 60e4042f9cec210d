"""Calibration: right posteriors pass, a guide of wrong scale or location is exposed by ranks, coverage and k-hat."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyrodgm
from pyrodgm.core import Latent, data_plate
from pyrodgm.evaluation import (
    Calibration,
    guide_calibration,
    guide_fit,
    latent_calibration,
    mcmc_calibration,
)
from pyrodgm.evaluation.calibration import _thinned
from pyrodgm.kernels import HMC

D = torch.float64
LEVELS = [0.2, 0.5, 0.8, 0.95]
SD = 0.5**0.5  # of z | x in N(0, 1) x N(z, 1)
BROKEN = pytest.mark.parametrize(("scale", "shift"), [(0.4, 0.0), (2.5, 0.0), (1.0, 1.0)])


class Gaussian(Latent):
    """z ~ N(0, I), x ~ N(z, I) in two dimensions, with a guide that is q(z | x) = N(x / 2 + shift, scale^2 / 2)."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__((2,))
        self.guide = _Posterior(scale, shift)

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        with data_plate(x, context, n):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


class _Posterior(torch.nn.Module):
    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        with data_plate(x, context, n):
            return pyro.sample("z", dist.Normal(x / 2 + self.shift * SD, self.scale * SD).to_event(1))


def program() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1))


def guide(scale: float = 1.0, shift: float = 0.0):
    def q(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x / 2 + shift * SD, scale * SD).to_event(1))

    return q


def assert_right(found: Calibration) -> None:
    assert found.p_value > 1e-3
    share, error = found.coverage(LEVELS)
    assert ((share - torch.tensor(LEVELS, dtype=D)).abs() < 4 * error + 1 / (found.draws + 1)).all()


def assert_exposed(found: Calibration, scale: float, shift: float) -> None:
    assert found.p_value < 1e-6
    share, error = found.coverage(LEVELS)
    gap = (share - torch.tensor(LEVELS, dtype=D)) / error
    if scale > 1:
        assert gap[1] > 5, "a wide guide covers too much"
    else:
        assert gap[1] < -5, "a narrow or shifted guide covers too little"
    assert found.kolmogorov()["log density"] < 1e-6


def test_a_latent_model_with_the_exact_posterior() -> None:
    found = latent_calibration(Gaussian(), simulations=2000, draws=99)
    assert found.ranks["z"].shape == (2000, 2)
    assert_right(found)


@BROKEN
def test_a_latent_model_with_a_broken_guide(scale: float, shift: float) -> None:
    assert_exposed(latent_calibration(Gaussian(scale, shift), simulations=600, draws=59), scale, shift)


def test_a_wrong_scale_and_a_wrong_location_look_as_they_should() -> None:
    narrow = latent_calibration(Gaussian(0.5), simulations=1000, draws=99).histograms()["z"]
    assert (narrow[[0, -1]] > 100).all()  # of 50 a bin
    shifted = latent_calibration(Gaussian(1.0, -0.5), simulations=1000, draws=99).histograms()["z"]
    assert (shifted[0] < shifted[-1]).all()  # draws too low: the truth ranks high


def test_the_guide_of_a_program() -> None:
    assert_right(guide_calibration(program, guide(), ["x"], simulations=200, draws=19))


@BROKEN
def test_a_broken_guide_of_a_program(scale: float, shift: float) -> None:
    assert_exposed(guide_calibration(program, guide(scale, shift), ["x"], simulations=150, draws=19), scale, shift)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_chains(shift: float) -> None:
    def sampler(conditioned, seed):
        settings = {"chains": 39, "warmup": 0, "thin": 10, "draws": 1, "compile": False, "progress": False}
        posterior = pyrodgm.mcmc(conditioned, HMC(1.5, 0.5), seed=seed, **settings)
        return {"z": posterior["z"] + shift * SD}

    found = mcmc_calibration(program, sampler, ["x"], simulations=50, draws=39)
    if shift:
        assert found.p_value < 1e-6
        assert (found.coverage([0.5])[0] > 0.7).all()  # of the program's density, which the draws miss
    else:
        assert_right(found)


def exact_draws(conditioned, seed: int) -> dict[str, Tensor]:
    """Of the posterior, as many chains of one draw."""
    noise = torch.randn(19, 1, 2, dtype=D, generator=torch.Generator().manual_seed(seed))
    x = poutine.trace(conditioned).get_trace().nodes["x"]["value"]
    return {"z": x / 2 + SD * noise}


def test_every_simulation_has_a_seed_of_its_own() -> None:
    """Equal noise in all simulations makes ranks that depend on each other, and a right posterior look wrong."""
    assert_right(mcmc_calibration(program, partial(exact_draws, seed=3), ["x"], simulations=400, draws=19))
    same = mcmc_calibration(program, lambda p: exact_draws(p, 3), ["x"], simulations=400, draws=19)
    assert same.p_value < 1e-6


@pytest.mark.parametrize(("chains", "each", "draws"), [(4, 50, 10), (4, 100, 20), (7, 3, 19), (1, 100, 9), (30, 1, 9)])
def test_draws_are_taken_from_all_chains_and_times(chains: int, each: int, draws: int) -> None:
    """Which chain and which draw of it, told by the draws themselves."""
    number = torch.arange(chains * each).reshape(chains, each)
    found = _thinned({"z": number}, draws)["z"]
    assert len(set(found.tolist())) == draws
    of_chain = torch.bincount(found // each, minlength=chains)
    assert of_chain.max() - of_chain.min() <= 1
    times = (found % each).unique()
    rounds = -(-draws // chains)
    assert len(times) == rounds
    assert times.max() == each - 1
    if rounds > 1:
        assert times.diff().min() >= each // rounds


def test_ties_of_discrete_sites_are_broken_at_random() -> None:
    def coin() -> None:
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Bernoulli(0.5)), 1e3))

    def half(x: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(0.5))

    found = guide_calibration(coin, half, ["x"], simulations=400, draws=9)
    assert found.p_value > 1e-3


def test_p_values_are_uniform_where_ranks_are() -> None:
    generator = torch.Generator().manual_seed(1)
    p = []
    for _ in range(300):
        ranks = torch.randint(64, (200, 4), generator=generator)
        p.append(Calibration({"z": ranks}, 63).chi_square()["z"])
    p = torch.cat(p)
    # 1200 uniform values: standard error of the share below a tenth is 0.009
    assert abs((p < 0.1).double().mean() - 0.1) < 4.5 * 0.009
    assert abs(p.mean() - 0.5) < 4.5 / math.sqrt(12 * 1200)


def test_even_ranks_are_covered_to_the_level() -> None:
    ranks = torch.arange(20).repeat(7).unsqueeze(-1)
    levels = torch.arange(1, 20, dtype=D) / 20
    share, error = Calibration({"log density": ranks}, draws=19).coverage(levels)
    torch.testing.assert_close(share, levels)
    torch.testing.assert_close(error, (levels * (1 - levels) / 140).sqrt())


@pytest.mark.parametrize(("t", "p"), [(0.828, 0.5), (1.224, 0.1), (1.358, 0.05), (1.628, 0.01), (0.1, 1.0)])
def test_kolmogorovs_table(t: float, p: float) -> None:
    """Of N = 250,000 coins the share of zeros is off by t / sqrt N; Smirnov (1948), Annals of Math. Statistics 19."""
    ones = torch.arange(250_000) >= 125_000 + round(500 * t)
    found = Calibration({"z": ones.long().unsqueeze(-1)}, draws=1).kolmogorov()["z"].item()
    assert found == pytest.approx(p, rel=0.005)  # the table has four digits


def conditioned(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def test_khat_of_a_right_guide_and_of_a_wide_one() -> None:
    x = torch.tensor([0.7, -0.4], dtype=D)
    evidence = dist.Normal(0.0, 2**0.5).log_prob(x).sum().item()
    exact = guide_fit(conditioned, guide(), x, particles=200)
    assert exact.khat < 0.7
    assert exact.log_z == pytest.approx(evidence)
    assert exact.effective == pytest.approx(200)
    wide = guide_fit(conditioned, guide(2.5), x, particles=1000)
    assert wide.khat < 0.7  # weights are bounded
    assert wide.effective < 400
    error = (1 / wide.effective - 1 / 1000) ** 0.5
    assert abs(wide.log_z - evidence) < 5 * error


@pytest.mark.parametrize(("scale", "shift"), [(0.3, 0.0), (1.0, 4.0)])
def test_khat_exposes_a_narrow_and_a_shifted_guide(scale: float, shift: float) -> None:
    x = torch.tensor([0.7, -0.4], dtype=D)
    fit = guide_fit(conditioned, guide(scale, shift), x, particles=1000)
    assert fit.khat > 0.7
    assert fit.elbo < fit.log_z


def test_the_rows_of_a_context_are_the_simulations() -> None:
    """However many `simulations` says: 50 rows make more than one bin of 60 ranks, 12 rows none of 99."""
    assert latent_calibration(_Shifted(True), torch.randn(50, 2), simulations=1, draws=59).simulations == 50
    with pytest.raises(ValueError, match="divisor of 2 to 2, got draws=98"):
        latent_calibration(_Shifted(True), torch.randn(12, 2), draws=98)


def test_kolmogorov_is_the_gap_of_the_ecdf() -> None:
    """By the ranks themselves, one by one; and for as many as have no room beside every rank that there is."""
    ranks = torch.randint(12, (500, 3)) * torch.tensor([1, 0, 1]) // torch.tensor([1, 1, 2])
    found = Calibration({"z": ranks}, draws=11).kolmogorov()["z"]
    for d in range(3):
        gap = max(abs((ranks[:, d] <= r).double().mean().item() - (r + 1) / 12) for r in range(12))
        t = gap * math.sqrt(500)
        p = 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * t * t) for k in range(1, 101))
        assert found[d].item() == pytest.approx(min(1.0, p), abs=1e-12)
    many = torch.arange(20_000).remainder(1000).unsqueeze(-1).expand(-1, 100)  # 16 GB beside each of 1000 ranks
    assert bool((Calibration({"z": many}, draws=999).kolmogorov()["z"] == 1).all())


class _Module(torch.nn.Module):
    """z ~ N(0, I), x ~ N(z, I), as a module."""

    def forward(self) -> None:
        program()


def test_the_sampler_sees_the_program_in_eval_mode_and_may_take_gradients() -> None:
    module, seen = _Module().train(), []

    def sampler(conditioned):
        seen.append((module.training, torch.is_grad_enabled()))
        return exact_draws(conditioned, 0)

    with torch.no_grad():
        mcmc_calibration(module, sampler, ["x"], simulations=10, draws=19, progress=False)
    assert set(seen) == {(False, True)}
    assert module.training


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_is_shown_where_it_is_asked_for(progress: bool, capsys) -> None:
    guide_calibration(program, guide(), ["x"], simulations=10, draws=9, progress=progress)
    mcmc_calibration(program, lambda p: exact_draws(p, 0), ["x"], simulations=10, draws=9, progress=progress)
    assert capsys.readouterr().err.count("simulations: 100%") == 2 * progress


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="among the sites"):
        guide_calibration(program, guide(), ["y"], simulations=2)
    with pytest.raises(ValueError, match="simulations >= 2"):
        latent_calibration(Gaussian(), simulations=1)
    with pytest.raises(ValueError, match="at least 63 draws"):
        mcmc_calibration(program, lambda p: {"z": torch.zeros(2, 5, 2)}, ["x"], simulations=2)
    with pytest.raises(ValueError, match="25 particles"):
        guide_fit(conditioned, guide(), torch.zeros(2, dtype=D), particles=10)
    with pytest.raises(ValueError, match="divisor"):
        _ = Calibration({"z": torch.zeros(10, 1).long()}, 6).p_value
    with pytest.raises(ValueError, match="divisor"):  # before the sampler is called at all
        mcmc_calibration(program, lambda p: 1 / 0, ["x"], simulations=20, draws=100)


def test_a_latent_that_the_guide_lacks_is_seen() -> None:
    def lacking(x: Tensor) -> None:
        pyro.sample("other", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})

    with pytest.raises(ValueError, match="expected a guide that samples the program's latent sites"):
        guide_fit(conditioned, lacking, torch.zeros(2, dtype=D), particles=30)


class _Shifted(Gaussian):
    """z ~ N(c, I), x ~ N(z, I), with the posterior N((x + c) / 2, I / 2), or one that knows of no c."""

    def __init__(self, knows: bool) -> None:
        super().__init__()
        self.context, self.guide = 2, self._Guide(knows)

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        with data_plate(x, context, n):
            z = pyro.sample("z", dist.Normal(context, 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    class _Guide(torch.nn.Module):
        def __init__(self, knows: bool) -> None:
            super().__init__()
            self.knows = knows

        def forward(self, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
            with data_plate(x, context, n):
                return pyro.sample("z", dist.Normal((x + context * self.knows) / 2, SD).to_event(1))


@pytest.mark.parametrize("knows", [True, False])
def test_every_simulation_may_have_a_context_of_its_own(knows: bool) -> None:
    found = latent_calibration(_Shifted(knows), 2 * torch.randn(1000, 2), draws=59)
    assert found.ranks["z"].shape == (1000, 2)
    assert (found.p_value > 1e-3) is knows
