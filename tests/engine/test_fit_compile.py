"""compile=True: the same run as without, or one warning that says why not."""

import warnings

import pytest
import torch
from cases import grow
from torch import nn

import pyrodgm
from pyrodgm.energy import RBM
from pyrodgm.implicit import GAN
from pyrodgm.latent import VAE, VQVAE, VQVAE2
from pyrodgm.objectives import ELBO, ContrastiveDivergence, MaximumLikelihood, VectorQuantization
from pyrodgm.tractable import MADE, RealNVP


def bits(rows=70):
    return (torch.rand(rows, 6, generator=torch.Generator().manual_seed(1)) < 0.3).float()


def fit(model, data, objective=None, **options):
    options = {"batch_size": 16, "progress": False, "device": "cpu", "epochs": 2, **options}
    return pyrodgm.fit(model, data, objective, **options)


def vae_with_batch_norm():
    vae = VAE.mlp(6, 2, [8])
    encoder = next(m for m in vae.guide.modules() if isinstance(m, nn.Sequential))
    # without a bias: its gradient before batch norm is pure rounding, which Adam enlarges
    encoder[0] = nn.Linear(6, 8, bias=False)
    encoder[1] = nn.Sequential(nn.BatchNorm1d(8), encoder[1], nn.Dropout(0.1))
    return vae


CASES = {
    "VAE, batch norm, dropout": (vae_with_batch_norm, ELBO),
    "RBM, chains": (lambda: RBM(6, 3), lambda: ContrastiveDivergence(k=2, persistent=True)),
    "MADE, masks": (lambda: MADE(6, [8], masks=3), MaximumLikelihood),
    "VQVAE, averages": (lambda: VQVAE.mlp(6, 2, 4, 3, [8]), lambda: VectorQuantization(prior=True)),
    "VQVAE2, averages": (lambda: VQVAE2.mlp(6, (1, 2), 4, 3, [8]), lambda: VectorQuantization(prior=True)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_compiled_training_is_eager_training(name, tmp_path):
    make, objective = CASES[name]
    runs = {}
    for compile in (False, True):
        torch.manual_seed(0)
        rng = torch.get_rng_state()
        model = make()
        made = torch.get_rng_state()
        # 70 rows: the last batch of an epoch is ragged
        runs[compile] = fit(model, bits(), objective(), compile=compile, validate=bits(20), epochs=3)
        assert torch.equal(made, torch.get_rng_state())
        assert not torch.equal(rng, made)
    eager, compiled = runs[False], runs[True]
    assert compiled.timings["compile_seconds"] > 0.1
    assert eager.timings["compile_seconds"] == 0
    for a, b in zip(eager.history, compiled.history, strict=True):
        # float32 sums in another order, over 15 steps of Adam
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
        assert b["held_out"] == pytest.approx(a["held_out"], abs=1e-4)
    other = compiled.model.state_dict()
    for key, value in eager.model.state_dict().items():
        assert torch.allclose(value.double(), other[key].double(), atol=1e-3), key
    if compiled.objective.state_dict():
        agree = (compiled.objective.negatives == eager.objective.negatives).double().mean()
        assert agree > 0.95  # a chain parts from its twin only where a uniform falls into the rounding


class Branches(RealNVP):
    def log_prob(self, x, context=None):
        return super().log_prob(x, context) * (1.0 if x.mean() > 0 else 2.0)


class Raises(MaximumLikelihood):
    def loss(self, model, x, context=None, *, n=None):
        if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() or _tracing():
            raise RuntimeError("not while tracing")
        return super().loss(model, x, context, n=n)


def _tracing():
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return get_proxy_mode() is not None


@pytest.mark.parametrize(
    ("make", "objective", "reason"),
    [
        (lambda: GAN.mlp(2, 2, [8]), None, "Adversarial has losses for several players"),
        (lambda: Branches(features=2), None, "get a value out of|data-dependent|scalar"),
        (lambda: RealNVP(features=2), Raises(), "RuntimeError: not while tracing"),
    ],
)
def test_what_cannot_be_compiled_runs_eagerly_with_one_warning(make, objective, reason):
    results = []
    for compile in (True, False):
        torch.manual_seed(0)
        model = make()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append(fit(model, torch.randn(70, 2), objective, compile=compile))
        told = [str(w.message) for w in caught if "fell back" in str(w.message)]
        if compile:
            assert len(told) == 1
            with pytest.raises(UserWarning, match=f"fell back to eager: .*({reason})"):
                raise UserWarning(told[0])
        else:
            assert not told
    a, b = ([{k: v for k, v in row.items() if k != "seconds"} for row in run.history] for run in results)
    assert a == b


class _InnerGradient(MaximumLikelihood):
    """A loss with the gradient of a gradient, which tracing silently loses."""

    def loss(self, model, x, context=None, *, n=None):
        x = x.detach().requires_grad_()
        (score,) = torch.autograd.grad(model.log_prob(x).sum(), x, create_graph=True)
        return score.square().sum(-1).mean()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # by torch, of itself, at its first compiling
def test_a_graph_with_other_gradients_is_refused():
    torch.manual_seed(0)
    model = grow(RealNVP(2, 2, hidden=[8]))
    with pytest.warns(UserWarning, match="% off in the traced graph"):
        pyrodgm.fit(model, torch.randn(64, 2), _InnerGradient(), steps=3, batch_size=32, compile=True, progress=False)
