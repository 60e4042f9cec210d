"""Pictures: what is drawn, not how it looks; and the pages that hold them."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from pyrodgm.diagnostics import curves, density_2d, image_grid, png, real_and_samples, save, scatter
from pyrodgm.energy import RBM
from pyrodgm.implicit import GAN
from pyrodgm.latent import VAE
from pyrodgm.runs import train
from pyrodgm.tractable import RealNVP, StandardNormal


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
    import pyro.distributions as dist

    vae = VAE.mlp(2, latent=2, hidden=[8], family=dist.Normal)
    assert png(density_2d(vae, torch.randn(20, 2), resolution=15, particles=5)).startswith(b"\x89PNG")
    with pytest.raises(TypeError, match="scatter"):
        density_2d(GAN.mlp(2, latent=2, hidden=[8]))
    with pytest.raises(ValueError, match="event shape"):
        density_2d(RealNVP(3))


def test_an_energy_is_normalised_on_the_grid() -> None:
    shown = torch.as_tensor(density_2d(RBM(2, 2), resolution=21).axes[0].get_images()[0].get_array())
    assert float(shown.sum()) * (8 / 20) ** 2 == pytest.approx(1, rel=1e-4)


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
    for said in ("MADE on digits_binary", "nats/datum", "exact", "pyrodgm fit MADE digits_binary", "179 test rows"):
        assert said in page
    assert {p.name for p in run.path.iterdir()} == {
        "checkpoint", "config.json", "curves.png", "metrics.csv", "metrics.json", "model.pt", "report.html",
        "samples.npz", "samples.png",
    }  # fmt: skip


@pytest.mark.parametrize("columns", [2, 3])
def test_constant_features_have_a_width(columns):
    real = torch.rand(15, columns)
    real[:, 0] = 5.0
    real_and_samples(real, torch.rand(15, columns), None)
    real_and_samples(real[:1], torch.rand(15, columns), None)


def test_pictures_in_other_units_are_not_clipped():
    real = torch.linspace(0, 255, 16).reshape(4, 4)
    figure = real_and_samples(real, real / 2, (2, 2))
    shown = figure.axes[0].images[0].get_array()
    assert len(set(shown.flatten().tolist())) >= 16
