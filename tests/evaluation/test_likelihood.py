"""log_likelihood: means and errors of what each family knows."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrodgm.energy import RBM
from pyrodgm.evaluation import log_likelihood
from pyrodgm.latent import VAE
from pyrodgm.tractable import RealNVP


class Estimated(RBM):
    """Its log Z is known to be 2, give or take 0.3."""

    def log_partition(self, method: str = "ais", **options: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        if method == "exact":
            raise ValueError("too many units")
        assert options == {"chains": 7}
        return torch.tensor(2.0, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)


def test_an_estimated_normaliser_adds_its_variance_to_that_of_the_rows() -> None:
    model = Estimated(6, 3).double()
    torch.nn.init.normal_(model.visible_bias)
    x = (torch.rand(50, 6, dtype=torch.float64) < 0.5).double()
    energy = model.energy(x).detach()
    found = log_likelihood(model, x, batch_size=20, chains=7)
    assert found.kind == "AIS estimate"
    assert found.value == pytest.approx(-energy.mean().item() - 2.0)
    assert found.standard_error == pytest.approx(math.sqrt(energy.var().item() / 50 + 0.3**2))


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
