"""log_likelihood: means and errors of what each family knows."""

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrodgm.diagnostics.page import KINDS
from pyrodgm.energy import RBM, NeuralEnergy
from pyrodgm.evaluation import importance_estimate, log_likelihood
from pyrodgm.latent import VAE
from pyrodgm.tractable import Parametric, RealNVP, StandardNormal


class Estimated(RBM):
    """Its log Z is known to be 2, give or take 0.3."""

    def log_partition(self, method: str = "ais", **options: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        if method != "ais":
            raise ValueError("too many units")
        assert options.pop("chains") == 7
        context = options.pop("context", None)
        assert not options
        log_z = 2.0 if context is None else 2.0 + context[0].item()
        return torch.tensor(log_z, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)


def test_an_estimated_normaliser_adds_its_variance_to_that_of_the_rows() -> None:
    model = Estimated(6, 3).double()
    torch.nn.init.normal_(model.visible_bias)
    x = (torch.rand(50, 6, dtype=torch.float64) < 0.5).double()
    energy = model.energy(x).detach()
    found = log_likelihood(model, x, batch_size=20, chains=7)
    assert found.kind == "AIS estimate"
    assert found.value == pytest.approx(-energy.mean().item() - 2.0)
    assert found.standard_error == pytest.approx(math.sqrt(energy.var().item() / 50 + 0.3**2))


def test_every_context_has_a_normaliser_of_its_own() -> None:
    """Rows of one context share the error of its log Z: 30 and 20 of 50 weigh it so."""
    x = (torch.rand(50, 6, dtype=torch.float64) < 0.5).double()
    context = (torch.arange(50) % 5 < 3).double().unsqueeze(-1)
    model = Estimated(6, 3, context=1).double()
    rows = -model.energy(x, context).detach() - 2.0 - context[:, 0]
    found = log_likelihood(model, x, context, chains=7)
    assert found.kind == "AIS estimate"
    assert found.value == pytest.approx(rows.mean().item())
    assert found.standard_error == pytest.approx(math.hypot(rows.std().item() / 50**0.5, 0.6 * 0.3, 0.4 * 0.3))
    exact = RBM(6, 3, context=1).double()
    found = log_likelihood(exact, x, context, batch_size=20)
    assert found.kind == "exact"
    assert found.value == pytest.approx(exact.log_prob(x, context).mean().item())


def test_two_dimensions_are_normalised_by_quadrature() -> None:
    model, x = NeuralEnergy.mlp(2, [8]).double(), torch.randn(20, 2, dtype=torch.float64)
    found = log_likelihood(model, x)
    assert found.kind == "exact"
    assert found.value == pytest.approx(model.log_prob(x, method="grid").mean().item())
    assert log_likelihood(model, x, method="ais", chains=20, temperatures=10).kind == "AIS estimate"


def test_an_estimate_is_called_by_its_method_and_pages_know_its_name() -> None:
    model, x = NeuralEnergy.mlp(2, [8]).double(), torch.randn(20, 2, dtype=torch.float64)
    found = log_likelihood(model, x, method="importance", draws=50)
    assert found.kind == "importance estimate"
    assert found.kind in KINDS


def test_the_error_of_an_exact_likelihood_is_that_of_a_mean() -> None:
    model, x = RealNVP(2).double(), torch.randn(30, 2, dtype=torch.float64)
    rows = model.log_prob(x).detach()
    found = log_likelihood(model, x, batch_size=7)
    assert found.kind == "exact"
    assert found.value == pytest.approx(rows.mean().item())
    assert found.standard_error == pytest.approx(rows.std().item() / math.sqrt(30))
    assert math.isnan(log_likelihood(model, x[:1]).standard_error)  # one row tells nothing of the spread


@pytest.mark.parametrize(
    ("x", "options", "error"),
    [
        (np.zeros((3, 2)), {}, (TypeError, "torch.as_tensor")),
        (torch.zeros(3, 2, dtype=torch.float64), {}, (TypeError, "float64")),
        (torch.zeros(2), {}, (ValueError, "rows, 2")),
        (torch.zeros(0, 2), {}, (ValueError, "at least one row")),
        (torch.zeros(3, 2), {"batch_size": 0}, (ValueError, "batch_size")),
        (torch.zeros(3, 2), {"particles": 0}, (ValueError, "particles")),
        (torch.zeros(3, 2), {"chains": 5}, (TypeError, "chains")),
        (torch.zeros(3, 2), {"context": torch.zeros(2, 4)}, (ValueError, "context")),
    ],
)
def test_what_cannot_be_scored_is_refused(x: Any, options: dict[str, Any], error: tuple[Any, str]) -> None:
    for model in (
        RealNVP(2, context=4 * ("context" in options)),
        VAE.mlp(2, 1, [4], context=4 * ("context" in options)),
    ):
        with pytest.raises(error[0], match=error[1]):
            log_likelihood(model, x, **options)


class Counted(VAE):
    """Notes the rows that its networks see at once."""

    most = 0

    def log_weights(self, x: Tensor, context: Tensor | None = None, *, particles: int = 1) -> Tensor:
        self.most = max(self.most, particles * len(x))
        return super().log_weights(x, context, particles=particles)


def test_a_row_of_two_numbers_is_no_small_row() -> None:
    """Its hidden layers are wide: 5000 particles of 500 rows in one pass would make gigabytes of activations."""
    vae = Counted(StandardNormal(1), Parametric(dist.Normal, 2, context=1), Parametric(dist.Normal, 1, context=2))
    found = log_likelihood(vae, torch.randn(1000, 2), particles=200)
    assert 500 <= vae.most <= 2**22 / 512  # 2^22 numbers, of rows that count 512 at least
    assert math.isfinite(found.value)


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_is_shown_where_it_is_asked_for(progress: bool, capsys: pytest.CaptureFixture[str]) -> None:
    vae = VAE.mlp(features=6, latent=2, hidden=[8])
    log_likelihood(vae, torch.ones(7, 6), particles=2, batch_size=3, progress=progress)
    importance_estimate(vae, torch.ones(7, 6), particles=25, batch_size=3, progress=progress)
    assert capsys.readouterr().err.count("batches of rows: 100%") == 2 * progress
