"""The loop: what a run gives back, when it stops, and what it leaves as it was."""

import math
import os
import signal
import subprocess
import sys
import threading
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from pyro.infer import Trace_ELBO
from torch import nn

import pyrodgm
from pyrodgm.bijectors import ActNorm
from pyrodgm.energy import RBM
from pyrodgm.engine.loop import Trainer
from pyrodgm.engine.surroundings import validation
from pyrodgm.implicit import GAN
from pyrodgm.latent import ETM, M2, NVDM, VAE, VQVAE, VQVAE2, ProdLDA
from pyrodgm.objectives import Adversarial, MaximumLikelihood, ReverseKL
from pyrodgm.traces import sample_sites
from pyrodgm.tractable import MADE, Flow, Mixture, Parametric, RealNVP, StandardNormal

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def bits(rows: int = 96) -> torch.Tensor:
    return (torch.rand(rows, 6, generator=torch.Generator().manual_seed(1)) < 0.3).float()


def reals(rows: int = 96) -> torch.Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(1))


def fit(model, data, *args, **options):
    return pyrodgm.fit(model, data, *args, **{"batch_size": 32, "progress": False, "device": "cpu", **options})


def flat(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Breaks(Parametric):
    """A model whose loss is nan from one step on, by a layer of its own."""

    def __init__(self, at: int) -> None:
        super().__init__(dist.Normal, 2)
        self.at, self.calls = at, 0
        self.layer = nn.Identity()

    def log_prob(self, x, context=None):
        self.calls += 1
        x = self.layer(torch.full_like(x, math.nan) if self.calls >= self.at else x)
        return super().log_prob(x, context)


MEMBERS = {
    "RealNVP": (lambda: RealNVP(features=2), reals, ["loss"]),
    "MADE": (lambda: MADE(features=6, hidden=[8]), bits, ["loss"]),
    "VAE": (lambda: VAE.mlp(6, 2, [8]), bits, ["loss"]),
    "RBM": (lambda: RBM(6, 3), bits, ["loss"]),
    "GAN": (lambda: GAN.mlp(2, 2, [8]), reals, ["critic", "generator"]),
    "GAN in float64": (lambda: GAN.mlp(2, 2, [8]).double(), reals, ["critic", "generator"]),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_every_family_trains_by_its_default_objective(name):
    make, data, losses = MEMBERS[name]
    torch.manual_seed(0)
    model = make()
    before = flat(model)
    run = fit(model, data(), epochs=2, validate=data()[:40])
    assert run.stopped == "finished"
    assert run.model is model
    assert not model.training
    assert [row["step"] for row in run.history] == [3, 6]
    assert set(run.history[0]) == {"epoch", "step", "seconds", *losses, "held_out"}
    assert run.best["held_out"] == min(row["held_out"] for row in run.history)
    assert run.timings["steps"] == 6
    assert run.timings["seconds"] > 0
    assert not torch.equal(before, flat(model))
    assert name.split()[0] in repr(run)
    assert "finished after 2 epochs" in repr(run)


def test_the_loss_of_an_epoch_is_the_mean_over_its_rows():
    model = Parametric(dist.Normal, 2)
    x = reals(90)  # the last batch is ragged
    expected = -model.log_prob(x).mean().item()
    run = fit(model, x, epochs=1, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.0))
    assert run.history[0]["loss"] == pytest.approx(expected, rel=1e-5)  # float32


def test_fit_learns_the_maximum_likelihood_mean():
    x = reals(64) + torch.tensor([3.0, -2.0])
    model = Parametric(dist.Normal, 2)
    fit(model, x, epochs=400, batch_size=64, lr=0.05)
    fitted = model.condition()
    assert torch.allclose(fitted.mean, x.mean(0), atol=1e-2)  # Adam's last steps are of the order lr / 10


def test_same_seed_same_run_other_seed_other_run():
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(0)
        model = VAE.mlp(6, 2, [8])
        torch.manual_seed(seed * 17 + len(results))  # the caller's state must not matter
        fit(model, bits(), epochs=2, seed=seed)
        results.append(flat(model))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_validation_rows_and_callbacks_do_not_change_training():
    results = []

    def meddles(run):
        run.model.eval()
        torch.rand(3)

    for options in ({}, {"validate": bits(), "callbacks": [meddles]}):
        torch.manual_seed(0)
        model = VAE.mlp(6, 2, [8])
        rows = fit(model, bits(), epochs=3, **options).history
        results.append([row["loss"] for row in rows])
    assert results[0] == results[1]


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_state_is_as_before(fails):
    torch_flag = torch.distributions.Distribution._validate_args
    pyro.enable_validation(False)
    torch.distributions.Distribution.set_default_validate_args(True)
    try:
        handler = signal.getsignal(signal.SIGINT)
        model = Breaks(4) if fails else GAN.mlp(2, 2, [8])
        rng = torch.get_rng_state()
        if fails:
            with pytest.raises(FloatingPointError):
                fit(model, reals(), epochs=2)
        else:
            fit(model, reals(), epochs=2, validate=reals(10))  # the default critic is drawn from the run's seed
        assert torch.equal(rng, torch.get_rng_state())
        assert not pyro.distributions.util.is_validation_enabled()
        assert not pyro.poutine.util.is_validation_enabled()
        assert not pyro.infer.util.is_validation_enabled()
        assert torch.distributions.Distribution._validate_args is True
        assert torch.get_default_dtype() == torch.float32
        assert signal.getsignal(signal.SIGINT) is handler
        assert not model.training
    finally:
        pyro.enable_validation(True)
        torch.distributions.Distribution.set_default_validate_args(torch_flag)


def test_checks_are_on_in_the_first_step_only():
    seen = []

    class Looks(MaximumLikelihood):
        def loss(self, model, x, context=None, *, n=None):
            seen.append((pyro.poutine.util.is_validation_enabled(), torch.distributions.Distribution._validate_args))
            return super().loss(model, x, context, n=n)

    fit(Parametric(dist.Normal, 2), reals(), Looks(), epochs=2)
    assert seen == [(True, True)] + [(False, False)] * 5


def test_early_stopping_restores_the_best_state():
    model = Parametric(dist.Normal, 2)
    states = []
    run = fit(
        model, reals(64) + 5, epochs=50, lr=0.5, validate=reals(64) + 1, early_stopping=3,
        callbacks=[lambda run: states.append(flat(run.model))],
    )  # fmt: skip
    assert run.stopped == "early_stopping"
    best = int(run.best["epoch"])
    assert len(run.history) == best + 3
    assert torch.equal(flat(model), states[best - 1])


class Told(MaximumLikelihood):
    """Its held-out scores are given."""

    def __init__(self, *scores):
        super().__init__()
        self.scores = iter(scores)

    def held_out(self, model, x, context=None, *, n=None):
        return torch.tensor(next(self.scores))


def test_patience_counts_the_epochs_since_the_best_score():
    """A better score gives all of it back, an equal one none of it."""
    for scores, epochs, best in (((3.0, 2.0, 2.5, 1.0, 1.5, 1.25, 0.0), 6, 4), ((2.0, 2.0, 2.0, 0.0), 3, 1)):
        run = fit(Parametric(dist.Normal, 2), reals(32), Told(*scores), epochs=9, validate=reals(8), early_stopping=2)
        assert run.stopped == "early_stopping"
        assert len(run.history) == epochs
        assert run.best == {"epoch": best, "held_out": scores[best - 1]}


def test_losses_and_scores_are_told_their_mode_and_how_many_rows_a_batch_stands_for():
    seen = set()

    class Looks(MaximumLikelihood):
        def loss(self, model, x, context=None, *, n=None):
            if torch.is_grad_enabled():
                seen.add(("loss", model.training, self.training, n))
            return super().loss(model, x, context, n=n)

        def held_out(self, model, x, context=None, *, n=None):
            seen.add(("held-out", model.training, self.training, n))
            return super().held_out(model, x, context, n=n)

    model = Parametric(dist.Normal, 2).eval()  # as an earlier run leaves it
    fit(
        model,
        reals(90),
        Looks().eval(),
        epochs=2,
        validate=reals(40),
        callbacks=[lambda run: run.model.eval() and None],
    )
    assert seen == {("loss", True, True, 90), ("held-out", False, False, 40)}


def test_a_player_moves_by_the_gradient_of_its_own_latest_loss():
    """Gradient descent on half of |p|^2 shrinks p by 1 - lr a step, whatever another player's loss says of it."""

    class Shrinks(MaximumLikelihood):
        def __init__(self):
            super().__init__()
            self.other = nn.Parameter(torch.tensor([2.0, -3.0]))

        def players(self, model):
            return {"first": [self.other], "second": model.parameters()}

        def forward(self, model, x, context=None, *, n=None):
            def own():
                return sum(p.square().sum() for p in model.parameters()) / 2

            yield "first", self.other.square().sum() / 2 + own()
            yield "second", own() + 7 * self.other.sum()

    model, objective = Parametric(dist.Normal, 2), Shrinks()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    before = flat(model)
    fit(model, reals(), objective, steps=6, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.25))
    torch.testing.assert_close(flat(model), 0.75**6 * before)
    torch.testing.assert_close(objective.other.detach(), 0.75**6 * torch.tensor([2.0, -3.0]))


def test_a_score_that_is_not_finite_is_never_the_best():
    class Blind(MaximumLikelihood):
        def held_out(self, model, x, context=None, *, n=None):
            scores.append(0)
            return torch.tensor([math.nan, -math.inf, 2.0, 3.0][len(scores) - 1])

    scores: list[int] = []
    run = fit(Parametric(dist.Normal, 2), reals(32), Blind(), epochs=4, validate=reals(8))
    assert run.best == {"epoch": 3.0, "held_out": 2.0}


def test_a_callback_ends_the_run():
    run = fit(Parametric(dist.Normal, 2), reals(), epochs=9, callbacks=[lambda run: len(run.history) == 2])
    assert run.stopped == "callback"
    assert len(run.history) == 2


def test_callbacks_draw_noise_of_the_seed_and_the_epoch():
    def drawn(seed):
        found = []
        fit(
            Parametric(dist.Normal, 2),
            reals(),
            epochs=3,
            seed=seed,
            callbacks=[lambda run: found.append(torch.rand(()))],
        )
        return torch.stack(found)

    first = drawn(1)
    assert len(first.unique()) == 3
    assert torch.equal(first, drawn(1))
    assert not torch.equal(first, drawn(9))


def test_a_callback_does_not_hide_that_patience_ran_out():
    """The reason decides what a resumed run does."""
    run = fit(
        Parametric(dist.Normal, 2), reals(32), Told(1.0, 2.0), epochs=9, validate=reals(8), early_stopping=1,
        callbacks=[lambda run: len(run.history) == 2, lambda run: None],
    )  # fmt: skip
    assert run.stopped == "early_stopping"


def test_clip_bounds_the_gradient_and_schedules_step():
    rates, model = [], Parametric(dist.Normal, 2)

    def schedule(optimizer, total):
        assert total == 6
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates.append(step) or 1.0)

    before = flat(model)
    fit(
        model, reals() * 1e3, steps=6, clip=0.5, lr_schedule=schedule,
        optimizer=lambda ps: torch.optim.SGD(ps, lr=1.0),
    )  # fmt: skip
    assert rates == list(range(7))
    assert (flat(model) - before).norm() <= 6 * 0.5 + 1e-4  # six steps of a norm of at most 0.5


def test_bf16_autocast_keeps_distribution_parameters_in_float32():
    seen = set()

    class Looks(pyrodgm.objectives.ELBO):
        def _trace(self, *run):
            before = len(casts)
            trace = super()._trace(*run)
            inside.extend(casts[before:])
            for site in sample_sites(trace).values():
                base = getattr(site["fn"], "base_dist", site["fn"])
                values = [getattr(base, k) for k in base.arg_constraints]
                seen.update(v.dtype for v in values if isinstance(v, torch.Tensor))
            return trace

    casts, inside = [], []
    model = VAE.mlp(6, 2, [8])
    linear = next(m for m in model.modules() if isinstance(m, nn.Linear))
    linear.register_forward_hook(lambda m, i, o: casts.append(o.dtype))
    run = fit(model, bits(), Looks(), epochs=2, precision="bf16-mixed", validate=bits())
    assert set(inside) == {torch.bfloat16}
    assert seen == {torch.float32}
    assert math.isfinite(run.best["held_out"])
    assert next(model.parameters()).dtype == torch.float32


def tensors_of(value):
    """The floating-point tensors that a distribution has, and those of the distributions that it has."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, list | tuple):
        return [t for part in value for t in tensors_of(part)]
    return tensors_of(list(vars(value).values())) if isinstance(value, torch.distributions.Distribution) else []


def gated():
    return Mixture([Parametric(dist.Normal, 2, context=3), Parametric(dist.Normal, 2)], nn.Linear(3, 2))


AUTOCAST = {
    "VQVAE": lambda: (VQVAE.mlp(6, 2, 4, 3, [8]), bits()),
    "VQVAE2": lambda: (VQVAE2.mlp(6, (1, 2), 4, 3, [8]), bits()),
    "VQVAE2 of images": lambda: (VQVAE2.conv((1, 4, 4), codes=4, size=3, channels=4), bits(16).reshape(-1, 1, 4, 4)),
    "M2": lambda: (M2.mlp(6, 3, 2, [8]), (bits(), torch.eye(4, 3)[torch.arange(96) % 4])),
    "M2 without labels": lambda: (M2.mlp(6, 3, 2, [8], labelled=False), bits()),
    "Mixture": lambda: (gated(), (reals(), bits()[:, :3])),
    "NVDM": lambda: (NVDM(6, 2, [8]), bits()),
    "ProdLDA": lambda: (ProdLDA(6, 2, [8]), bits()),
    "ETM": lambda: (ETM(6, 2, [8], 4), bits()),
}


@pytest.mark.parametrize("name", AUTOCAST)
def test_bf16_autocast_of_other_members(name):
    torch.manual_seed(0)
    model, data = AUTOCAST[name]()
    run = fit(model, data, epochs=2, precision="bf16-mixed", validate=data)
    assert math.isfinite(run.best["held_out"])
    x, context = data if isinstance(data, tuple) else (data, None)
    for mode in (True, False):
        model.train(mode)
        with torch.autocast("cpu", torch.bfloat16):
            traces = [pyro.poutine.trace(program).get_trace(x, context) for program in (model, model.guide)]
        sites = [site for trace in traces for site in sample_sites(trace).values()]
        assert {t.dtype for site in sites for t in tensors_of(site["fn"])} == {torch.float32}


def test_double_precision_converts_model_and_rows():
    run = fit(RealNVP(features=2), reals(), epochs=1, precision="64-true", validate=reals())
    assert run.model.dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32


def test_a_loss_that_is_not_finite_names_the_layer_before_the_step():
    model = Breaks(5)
    states = []

    class Notes(MaximumLikelihood):
        def loss(self, model, x, context=None, *, n=None):
            states.append(flat(model))
            return super().loss(model, x, context, n=n)

    with pytest.raises(FloatingPointError, match=r"'model' is nan at step 5: layer 'layer'"):
        fit(model, reals(), Notes(), epochs=5)
    assert torch.equal(flat(model), states[4])


def test_a_parameter_that_is_not_finite_is_named_and_never_saved(tmp_path):
    class Explodes(MaximumLikelihood):
        def loss(self, model, x, context=None, *, n=None):
            loss = super().loss(model, x, context, n=n)
            finite = loss.detach() + 0 * loss
            steps.extend([0] * torch.is_grad_enabled())  # held-out rows are no steps
            # finite with a gradient that is not: what sqrt does at 0
            return finite + (torch.sqrt(0 * loss) if len(steps) == 6 else 0)

    steps: list[int] = []
    model = Parametric(dist.Normal, 2)
    with pytest.raises(FloatingPointError, match=r"parameter .* is not finite after step 6.*last good checkpoint"):
        fit(model, reals(), Explodes(), epochs=3, checkpoint=tmp_path, validate=reals())
    resumed = fit(Parametric(dist.Normal, 2), reals(), Explodes(), epochs=1, checkpoint=tmp_path, validate=reals())
    assert [row["epoch"] for row in resumed.history] == [1]
    assert torch.isfinite(flat(resumed.model)).all()


def test_nan_in_the_first_step_is_named_too():
    model = RealNVP(features=2)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"parameter .* is not finite"):
        fit(model, reals(), epochs=1)


def test_losses_that_wait_on_a_device_still_stop_the_run_in_time(monkeypatch):
    """The way of accelerators, forced on the CPU: losses are read late, and fused optimisers stand still till then."""
    original = Trainer.__init__

    def lazy(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.lazy = True
        self._set_up_optimizers()

    monkeypatch.setattr(Trainer, "__init__", lazy)
    model = Parametric(dist.Normal, 2)
    good = []

    class Breaking(MaximumLikelihood):
        def loss(self, model, x, context=None, *, n=None):
            good.append(flat(model))
            return super().loss(model, x, context, n=n) * (math.nan if len(good) == 5 else 1.0)

    with pytest.raises(FloatingPointError, match="'model' is nan"):
        fit(model, reals(32 * 12), Breaking(), epochs=2)
    assert len(good) >= 12
    assert torch.equal(flat(model), good[4])


def test_an_error_of_the_program_is_not_told_as_a_loss_that_is_not_finite():
    """A last batch of one row under a batch norm: a smaller lr would not help."""
    vae = VAE.mlp(6, 2, [8])
    encoder = next(m for m in vae.guide.modules() if isinstance(m, nn.Sequential))
    encoder[1] = nn.Sequential(nn.BatchNorm1d(8), encoder[1])
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fit(vae, bits(33), epochs=1)


def test_whole_numbers_may_be_floats():
    runs = [fit(RealNVP(2), reals(), batch_size=size, seed=size // 32, epochs=size // 16) for size in (32.0, 32)]
    assert [len(run.history) for run in runs] == [2, 2]
    run = fit(RealNVP(2), None, ReverseKL(lambda x: -x.square().sum(-1)), batch_size=8.0, epochs=1.0)
    assert run.stopped == "finished"


def test_gradients_of_scaled_losses_are_clipped(monkeypatch):
    """A fused optimiser would undo the scale itself, after the clipping: Lightning refuses it."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    mixed = MixedPrecision("16-mixed", "cpu", scaler)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=mixed)
    monkeypatch.setattr(sys.modules["pyrodgm.engine.fit"], "make_fabric", lambda *_: fabric)
    model = Parametric(dist.Normal, 2)
    before = flat(model)
    fit(model, reals() * 1e3, steps=6, clip=0.5, optimizer=lambda ps: torch.optim.SGD(ps, lr=1.0, fused=True))
    assert 0 < (flat(model) - before).norm() <= 6 * 0.5 + 1e-4
    fit(VAE.mlp(6, 2, [8]), bits(), steps=6, clip=0.5)  # the default optimiser is a fused one


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"epochs": 2, "steps": 3}, "epochs or steps"),
        ({"epochs": 0}, "epochs"),
        ({"steps": 1.5}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": -1.0}, "lr"),
        ({"clip": 0.0}, "clip"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"early_stopping": 2}, "validate="),
        ({"checkpoint_every": 2}, "checkpoint="),
        ({"device": "tpu"}, "device"),
    ],
)
def test_bad_arguments_are_refused(options, error):
    with pytest.raises(ValueError, match=error):
        fit(Parametric(dist.Normal, 2), reals(), **options)


@pytest.mark.parametrize(
    ("model", "options", "error"),
    [
        (torch.nn.Linear(2, 2), {}, "Linear"),
        (RealNVP, {}, "the class RealNVP"),
        (RealNVP(2), {"objective": MaximumLikelihood}, "the class MaximumLikelihood"),
        (RealNVP(2), {"objective": Trace_ELBO()}, "PyroObjective"),
        (RealNVP(2), {"optimizer": pyro.optim.Adam({"lr": 0.1})}, "PyroOptim"),
        (RealNVP(2), {"optimizer": torch.optim.SGD(RealNVP(2).parameters())}, "got SGD"),
        (RealNVP(2), {"callbacks": print}, "in a list"),
    ],
)
def test_what_is_no_model_objective_optimiser_or_callback_is_refused(model, options, error):
    with pytest.raises(TypeError, match=error):
        fit(model, reals(), **options)


def test_folders_that_cannot_be_written_are_refused_before_the_first_step(tmp_path):
    class Counted(MaximumLikelihood):
        def loss(self, *args, **kwargs):
            raise AssertionError("a step was taken")

    (tmp_path / "file").write_text("")
    for options in ({"checkpoint": tmp_path / "file"}, {"csv": tmp_path}, {"csv": tmp_path / "file" / "run.csv"}):
        with pytest.raises(ValueError, match="folder"):
            fit(RealNVP(2), reals(), Counted(), **options)


def test_a_device_may_be_torchs_own():
    assert fit(RealNVP(2), reals(), device=torch.device("cpu"), epochs=1).stopped == "finished"


def test_what_starts_from_data_looks_at_more_than_one_small_batch():
    x = 3 + 2 * reals()
    flow = Flow(StandardNormal(2), [ActNorm(2)])
    fit(flow, x, epochs=1, batch_size=1, lr=1e-12)
    z = flow.bijectors[0].condition().inv(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(2), rtol=0, atol=1e-4)  # all 96 rows, in float32
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(2), rtol=0, atol=1e-4)


def test_an_objective_for_another_family_is_refused():
    with pytest.raises(TypeError, match="Implicit"):
        fit(RealNVP(features=2), reals(), Adversarial.mlp(GAN.mlp(2, 2, [4])))


def test_fit_works_outside_the_main_thread():
    runs = []
    thread = threading.Thread(target=lambda: runs.append(fit(Parametric(dist.Normal, 2), reals(), epochs=1)))
    thread.start()
    thread.join(60)
    assert runs[0].stopped == "finished"


def test_progress_goes_to_stderr_with_the_unit(capfd):
    fit(Parametric(dist.Normal, 2), reals(), epochs=2, progress=True, validate=reals())
    out, err = capfd.readouterr()
    assert out == ""
    assert "loss" in err
    assert "nats/datum" in err
    assert "held-out negative log-likelihood" in err


def test_csv_has_a_row_an_epoch(tmp_path):
    run = fit(GAN.mlp(2, 2, [8]), reals(), epochs=3, csv=tmp_path / "log" / "run.csv")
    lines = (tmp_path / "log" / "run.csv").read_text().splitlines()
    assert lines[0] == "epoch,step,seconds,critic,generator"
    assert len(lines) == 4
    assert float(lines[2].split(",")[3]) == run.history[1]["critic"]
    assert [p.name for p in (tmp_path / "log").iterdir()] == ["run.csv"]


_INTERRUPTED = """
import time, torch, pyrodgm
from pyrodgm.tractable import RealNVP
from pyrodgm.objectives import MaximumLikelihood
class Slow(MaximumLikelihood):
    def loss(self, *args, **kwargs):
        time.sleep(0.05)
        return super().loss(*args, **kwargs)
def tell(run):
    print("epoch", len(run.history), flush=True)
run = pyrodgm.fit(RealNVP(features=2), torch.randn(320, 2), Slow(), epochs=99, batch_size=32, progress=False,
                  callbacks=[tell], checkpoint={folder!r})
print(run.stopped, len(run.history), int(run.timings["steps"]), flush=True)
"""


def test_ctrl_c_ends_the_run_with_the_state_so_far(tmp_path):
    command = [sys.executable, "-c", _INTERRUPTED.replace("{folder!r}", repr(str(tmp_path)))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "epoch 1\n"
        time.sleep(0.15)
        process.send_signal(signal.SIGINT)
        output = process.stdout.read().splitlines()
        assert process.wait(60) == 0
    stopped, epochs, steps = output[-1].split()
    assert stopped == "interrupted"
    assert int(epochs) == 1 + len(output[:-1])
    assert int(epochs) * 10 < int(steps) < (int(epochs) + 1) * 10  # inside an epoch, which does not count
    newest = max(tmp_path.glob("step-*.pt"))
    state = torch.load(newest, weights_only=True)
    assert state["counters"]["steps"] == int(steps)
    assert len(state["history"]) == int(epochs)


def test_a_schedule_has_one_step_for_each_of_the_run():
    """However often a player moves in a step: a schedule that is to end with the run ends with it."""
    made = []

    def schedule(optimizer, total):
        made.append(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / total))
        return made[-1]

    gan = GAN.mlp(features=2, latent=2, hidden=[4])
    objective = Adversarial.mlp(gan, hidden=[4])
    objective.critic_steps = 3
    pyrodgm.fit(gan, torch.randn(40, 2), objective, steps=5, batch_size=10, lr_schedule=schedule, progress=False)
    assert [s.last_epoch for s in made] == [5, 5]
    assert all(s.get_last_lr() == [0.0] for s in made)


def test_a_last_held_out_batch_of_one_row_is_scored():
    gan = GAN.mlp(features=2, latent=2, hidden=[4])
    assert Adversarial.mlp(gan, hidden=[4]).held_out(gan, torch.ones(1, 2)).isfinite()


def test_made_scores_in_its_own_precision_under_autocast():
    made, x = MADE(6, [8]), torch.ones(3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16), validation(False):
        assert made.log_prob(x).dtype is torch.float32
