"""Pictures: what is drawn, not how it looks; and the pages that hold them."""

from __future__ import annotations

import html
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from torch.distributions import constraints

from pyrodgm.core import Energy
from pyrodgm.diagnostics import (
    calibration_plot,
    curves,
    density_2d,
    image_grid,
    png,
    real_and_samples,
    save,
    scatter,
)
from pyrodgm.energy import RBM, NeuralEnergy
from pyrodgm.engine.result import Fit
from pyrodgm.evaluation import Calibration
from pyrodgm.implicit import GAN
from pyrodgm.latent import VAE
from pyrodgm.objectives import Adversarial, MaximumLikelihood
from pyrodgm.runs import train
from pyrodgm.tractable import Parametric, RealNVP, StandardNormal


def test_image_grid_holds_the_pictures() -> None:
    x = torch.rand(7, 12)
    shown = torch.as_tensor(image_grid(x, (3, 4), columns=5).axes[0].get_images()[0].get_array())
    assert shown.shape == (2 * 4 + 1, 5 * 5 + 1)
    torch.testing.assert_close(shown[1:4, 1:5], x[0].reshape(3, 4).to(shown))
    torch.testing.assert_close(shown[5:8, 6:10], x[6].reshape(3, 4).to(shown))


def test_image_grid_of_colours() -> None:
    x = torch.rand(3, 3, 4, 5)
    shown = torch.as_tensor(image_grid(x, (3, 4, 5)).axes[0].get_images()[0].get_array())
    torch.testing.assert_close(shown[1:5, 1:6], x[0].permute(1, 2, 0).to(shown))


def test_image_grid_refuses_another_size() -> None:
    with pytest.raises(ValueError, match="of 12 numbers"):
        image_grid(torch.rand(2, 12), (4, 4))


@pytest.mark.parametrize(("name", "panels"), [("negative log-likelihood", 1), ("energy distance", 2)])
def test_curves_share_axes_only_where_the_score_is_the_loss(name: str, panels: int) -> None:
    history = [{"epoch": e, "step": e, "seconds": e, "model": 3.0 / e, "held_out": 3.5 / e} for e in (1, 2, 3)]
    figure = curves(history, held_out_name=name)
    assert len(figure.axes) == panels
    assert figure.axes[0].get_ylabel() == f"{name if panels == 1 else 'loss'} (nats/datum)"
    assert figure.axes[-1].lines[-1].get_xdata()[0] == 3  # the best epoch


def test_curves_of_a_run_are_its_losses_and_no_other_measures() -> None:
    """A callback adds its own to the history's rows; a run knows its players, units and names."""
    row = {"step": 1.0, "seconds": 1.0, "held_out": 3.0, "kl": 7.0}
    one = Fit(RealNVP(2), MaximumLikelihood(), [{"epoch": e, "loss": 3.0 / e, **row} for e in (1.0, 2.0)])
    one.held_out_name, one.unit = "negative log-likelihood", "nats/row"
    figure = curves(one)
    assert [axes.get_ylabel() for axes in figure.axes] == ["negative log-likelihood (nats/row)"]
    assert " kl " not in repr(one)
    assert len(curves(one.history, held_out_name="negative log-likelihood").axes[0].lines) == len(figure.axes[0].lines)
    gan = GAN.mlp(2, latent=2, hidden=[8])
    two = Fit(gan, Adversarial.mlp(gan, hidden=[8]), [{"epoch": 1.0, "critic": 1.0, "generator": 2.0, **row}])
    assert [line.get_label() for line in curves(two).axes[0].lines] == ["critic", "generator"]


def test_epochs_are_marked_by_whole_numbers() -> None:
    ticks = curves([{"epoch": e, "loss": 1.0 / e} for e in range(1, 21)]).axes[0].get_xticks()
    assert len(ticks) > 2
    assert all(tick == round(tick) for tick in ticks)


def test_curves_of_players_and_of_scores_that_are_not_numbers() -> None:
    history = [{"epoch": e, "critic": 1.0, "generator": 2.0, "held_out": math.inf} for e in (1, 2)]
    assert len(curves(history).axes[0].lines) == 2


@pytest.mark.parametrize(("features", "panels"), [(1, 1), (2, 2), (3, 6), (9, 10)])
def test_scatter(features: int, panels: int) -> None:
    figure = scatter(torch.randn(40, features), torch.randn(30, features))
    assert len(figure.axes) == panels
    assert png(figure).startswith(b"\x89PNG")


def test_density_of_a_standard_normal() -> None:
    shown = torch.as_tensor(density_2d(StandardNormal(2), resolution=101).axes[0].get_images()[0].get_array())
    assert float(shown.max()) == pytest.approx(1 / (2 * math.pi), rel=1e-5)
    assert float(shown.sum()) * (8 / 100) ** 2 == pytest.approx(1, abs=1e-3)  # the mass beyond 4 is 1e-4


def test_density_of_a_latent_model_and_of_none() -> None:
    vae = VAE.mlp(2, latent=2, hidden=[8], family=dist.Normal)
    assert png(density_2d(vae, torch.randn(20, 2), resolution=15, particles=5)).startswith(b"\x89PNG")
    with pytest.raises(TypeError, match="scatter"):
        density_2d(GAN.mlp(2, latent=2, hidden=[8]))
    with pytest.raises(ValueError, match="event shape"):
        density_2d(RealNVP(3))


def drawn(figure: Figure) -> torch.Tensor:
    """The picture's numbers: x_2 upwards, x_1 to the right."""
    return torch.as_tensor(figure.axes[0].get_images()[0].get_array())


def test_an_energy_is_normalised_on_the_grid() -> None:
    model = NeuralEnergy.mlp(2, [8], base=StandardNormal(2))
    shown = drawn(density_2d(model, resolution=21))
    assert float(shown.sum()) * (8 / 20) ** 2 == pytest.approx(1, rel=1e-4)


class _Square(Energy):
    """Uniform on [0, 1]^2; whoever asks elsewhere gets nan."""

    support = constraints.independent(constraints.unit_interval, 1)

    def energy(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return torch.where(self.support.check(x), 0.0, torch.nan)


def test_a_density_is_nothing_outside_its_support() -> None:
    half = Parametric(dist.LogNormal, 2)
    shown, side = drawn(density_2d(half, bounds=(-1.0, 4.0), resolution=26)), torch.linspace(-1, 4, 26)
    inside = side > 0
    assert not bool(shown[:, ~inside].any() | shown[~inside].any())
    x = torch.cartesian_prod(side[inside], side[inside])
    expected = half.log_prob(x).exp().reshape(int(inside.sum()), -1).T.detach()
    torch.testing.assert_close(shown[inside][:, inside], expected)
    square = drawn(density_2d(_Square((2,)), bounds=(-0.5, 1.5), resolution=17))
    assert int((square > 0).sum()) == 9 * 9
    assert square.max().item() == pytest.approx(8 * 8 / 9**2)  # a cell is 1/8 wide


def test_densities_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match="real numbers"):
        density_2d(RBM(2, 2))
    with pytest.raises(ValueError, match="bounds that meet"):
        density_2d(Parametric(dist.LogNormal, 2), bounds=(-3.0, -1.0), resolution=5)


def test_calibration_is_drawn_on_the_scale_of_ranks() -> None:
    ranks = torch.randint(20, (500, 2))
    figure = calibration_plot(Calibration({"z": ranks, "log density": ranks[:, :1]}, draws=19))
    *histograms, coverage = figure.axes
    assert len(histograms) == 2
    for d, axes in enumerate(histograms):
        bars = axes.containers[0].patches
        assert bars[0].get_x() == -0.5
        assert bars[-1].get_x() + bars[-1].get_width() == 19.5
        below = sum(bar.get_height() for bar in bars if bar.get_x() + bar.get_width() <= 9.5)
        assert below == int((ranks[:, d] <= 9).sum())
    assert any((line.get_xdata() == line.get_ydata()).all() for line in coverage.lines)
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)


def test_pictures_touch_no_global_state_and_are_written_whole(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    figure = real_and_samples(torch.rand(9, 16), torch.rand(9, 16), (4, 4), "title")
    assert save(figure, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert plt.get_fignums() == []


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_a_report_is_one_file_that_says_what_was_done(tmp_path: Path) -> None:
    run = train("MADE", "digits_binary", tmp_path / "run", arguments={"hidden": [16]}, steps=3, progress=False)
    page = (run.path / "report.html").read_text()
    links = _Links()
    links.feed(page)
    assert len(links.found) == 2
    assert all(link.startswith("data:image/png;base64,") for link in links.found)
    timings, held_out = run.metrics["timings"], run.metrics["held_out"]
    said = "MADE on digits_binary", "nats/datum", "exact", "pyrodgm fit MADE digits_binary", "179 test rows"
    number = f"\N{MINUS SIGN}{-held_out['value']:.2f} &plusmn; {held_out['standard_error']:.2f}</span> nats/datum"
    took = f"{timings['seconds']:.1f} s on ", f" {timings['steps_per_second']:,.0f} steps/s"
    for words in (*said, number, "1 epochs, 3 steps", *took):
        assert words in page
    assert {p.name for p in run.path.iterdir()} == {
        "checkpoint", "config.json", "curves.png", "metrics.csv", "metrics.json", "model.pt", "report.html",
        "samples.npz", "samples.png",
    }  # fmt: skip


def test_the_code_of_a_report_makes_the_same_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"arguments": {"hidden": [16]}, "labels": True, "seed": 3, "lr": 0.01}
    run = train("MADE", "digits_binary", tmp_path / "run", steps=3, progress=False, **options)
    before = run.metrics["held_out"]
    page = (run.path / "report.html").read_text()
    code = html.unescape(page.split("In Python</p><pre>")[1].split("</pre>")[0])
    shutil.rmtree(run.path)
    found: dict[str, Any] = {}
    exec(code, found)
    again = found["run"]
    assert again.config == run.config
    assert again.metrics["held_out"] == before
    for key, value in run.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], value), key


@pytest.mark.parametrize("columns", [2, 3])
def test_constant_features_have_a_width(columns: int) -> None:
    """A tenth of the value on both sides, whatever the samples are."""
    real = torch.rand(15, columns)
    real[:, 0] = 5.0
    for rows in (real, real[:1]):
        drawn = real_and_samples(rows, torch.rand(15, columns), None).axes
        assert drawn[0].get_xlim() == pytest.approx((4.5, 5.5))
        low, high = drawn[-1].get_xlim()
        assert low < high


def test_pictures_in_other_units_are_not_clipped():
    real = torch.linspace(0, 255, 16).reshape(4, 4)
    figure = real_and_samples(real, real / 2, (2, 2))
    shown = figure.axes[0].images[0].get_array()
    assert len(set(shown.flatten().tolist())) >= 16
