"""Checkpoints: written whole, read with care, and going on from them changes nothing."""

import os
import subprocess
import sys
import time

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import pyrodgm
from pyrodgm import CheckpointError, latent
from pyrodgm.files import write_atomically
from pyrodgm.objectives import ELBO
from pyrodgm.tractable import RealNVP

sys.path.insert(0, os.path.dirname(__file__))
from _resume_cases import CASES, same, train

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VAE, GAN = "VAE with best state", "GAN"


def test_runs_killed_inside_an_epoch_resume_bit_exactly(tmp_path):
    script = os.path.join(os.path.dirname(__file__), "_resume_cases.py")
    done = subprocess.run(
        [sys.executable, script, str(tmp_path)], capture_output=True, text=True, timeout=300, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"{case} | 13 | True" for case in CASES]


def test_a_finished_run_returns_at_once_and_goes_on_with_more_steps(tmp_path):
    first = train(VAE, tmp_path, steps=7)  # ends inside the second epoch
    again = train(VAE, tmp_path, steps=7)
    assert same(first, again)
    assert again.timings["steps"] == 7
    assert len(again.history) == 2
    assert same(train(VAE, tmp_path, steps=13), train(VAE, steps=13))


def test_an_early_stopped_run_stays_stopped(tmp_path):
    options = {"early_stopping": 1, "lr": 0.5, "steps": 200}
    first = train(VAE, tmp_path, **options)
    assert first.stopped == "early_stopping"
    assert first.timings["steps"] < 200
    again = train(VAE, tmp_path, **options)
    assert again.stopped == "early_stopping"
    assert same(first, again)


def newest(folder):
    return max(folder.glob("step-*.pt"))


def test_a_cut_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    whole = train(VAE, tmp_path)
    cut = newest(tmp_path)
    cut.write_bytes(cut.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"step-0000000013.pt is damaged.*went on from step-0000000012"):
        resumed = train(VAE, tmp_path)
    assert same(resumed, whole)
    assert len(list(tmp_path.glob("step-*.pt"))) == 2
    assert len(list(tmp_path.glob("*.refused"))) == 1
    train(VAE, tmp_path)  # and no warning a second time


FOREIGN = [
    ({"weights": torch.zeros(2)}, "not written by pyrodgm.fit"),
    ({"format": "pyrodgm-checkpoint", "version": 99}, "version 99"),
    ({"format": "pyrodgm-checkpoint", "version": 4, "fingerprint": "x"}, "another run"),
    (b"", "damaged"),
]


def put(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)


@pytest.mark.parametrize(("content", "reason"), FOREIGN)
def test_foreign_files_are_refused(tmp_path, content, reason):
    put(tmp_path / "step-0000000004.pt", content)
    with pytest.raises(CheckpointError, match=f"{reason}.*resume=False"):
        train(VAE, tmp_path)
    assert train(VAE, tmp_path, resume=False).timings["steps"] == 13
    assert train(VAE, tmp_path).stopped == "finished"


@pytest.mark.parametrize(("content", "reason"), FOREIGN)
def test_a_foreign_newest_file_is_passed_over_for_the_one_before(tmp_path, content, reason):
    whole = train(VAE, tmp_path)
    put(newest(tmp_path), content)
    with pytest.warns(UserWarning, match=rf"step-0000000013.pt.*{reason}.*went on from step-0000000012"):
        resumed = train(VAE, tmp_path)
    assert same(resumed, whole)


def test_another_model_objective_optimiser_schedule_seed_or_batch_size_is_refused(tmp_path):
    train(VAE, tmp_path, steps=7)
    for options in (
        {"optimizer": lambda ps: torch.optim.SGD(ps, 0.1)},
        {"lr_schedule": lambda o, t: torch.optim.lr_scheduler.ConstantLR(o)},
    ):
        with pytest.raises(CheckpointError, match="another run"):
            train(VAE, tmp_path, **options)
    with pytest.raises(CheckpointError, match="another run"):
        train(GAN, tmp_path)
    with pytest.raises(CheckpointError, match="seed=0, this run has seed=1"):
        train(VAE, tmp_path, seed=1)
    model = CASES[VAE][0]()
    with pytest.raises(CheckpointError, match="batches an epoch=5, this run has batches an epoch=3"):
        pyrodgm.fit(model[0], CASES[VAE][1](), model[1], steps=13, batch_size=32, checkpoint=tmp_path, progress=False)


def test_another_learning_rate_objective_or_data_is_refused_and_the_same_goes_on(tmp_path):
    """Each would be passed over without a word: the optimiser's state has its own rate, and a finished run its end."""
    x, context = torch.randn(40, 2), torch.randn(40, 3)

    def run(rows=x, epochs=2, beta=1.0, **options):
        vae = latent.VAE.mlp(2, 2, [4], family=dist.Normal)
        options = {"lr": 1e-3, "batch_size": 10, "checkpoint": tmp_path, "progress": False} | options
        return pyrodgm.fit(vae, rows, ELBO(beta=beta), epochs=epochs, **options)

    fold = torch.cat((x[:10], x[20:30], x[10:20], x[30:]))  # equal in size, in its ends and in its sum
    run(validate=x[:5])
    for options, told in (
        ({"lr": 1e-4}, "model.lr=0.001, this run has model.lr=0.0001"),
        ({"lr": 1e-4, "epochs": 4}, "model.lr=0.001, this run has model.lr=0.0001"),
        ({"beta": 0.5, "epochs": 4}, "objective.beta=1.0, this run has objective.beta=0.5"),
        ({"rows": x[:30]}, "rows of data=40, this run has rows of data=30"),
        ({"rows": fold}, "digest of data="),
        ({"validate": x[5:10]}, "digest of held-out data="),
    ):
        with pytest.raises(CheckpointError, match=f"{told}.*folder of its own, or pass resume=False"):
            run(**options)
    assert run(validate=x[:5]).timings["steps"] == 8
    assert run(rows=x.numpy(), epochs=3, validate=x[:5]).timings["steps"] == 12
    assert run(epochs=4, batch_size=20).timings["steps"] == 14

    def halved(optimizer, total):
        return torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)

    def conditional(context, epochs, lr):
        options = {"batch_size": 10, "checkpoint": tmp_path / "flow", "progress": False, "lr_schedule": halved}
        return pyrodgm.fit(RealNVP(2, context=3), (x, context), epochs=epochs, lr=lr, **options)

    conditional(context, 2, 1e-3)
    with pytest.raises(CheckpointError, match=r"model.lr=0.001, this run has model.lr=0.01"):
        conditional(context, 4, 1e-2)
    with pytest.raises(CheckpointError, match="digest of data="):
        conditional(context.flip(0), 4, 1e-3)
    assert conditional(context, 4, 1e-3).timings["steps"] == 16


def test_numbers_of_numpy_are_written_as_plain_ones(tmp_path):
    options = {"lr": np.logspace(-3, -2, 2)[0], "seed": np.int64(3), "batch_size": np.int64(20), "progress": False}
    x = torch.randn(40, 2)
    pyrodgm.fit(RealNVP(2), x, epochs=2, checkpoint=tmp_path / "own", **options)
    torch.load(newest(tmp_path / "own"), weights_only=True)
    assert pyrodgm.fit(RealNVP(2), x, epochs=3, checkpoint=tmp_path / "own", **options).timings["steps"] == 6
    options["optimizer"] = lambda ps: torch.optim.SGD(ps, lr=np.float64(0.01), momentum=np.float32(0.5))
    for epochs in (1, 2):
        pyrodgm.fit(RealNVP(2), x, epochs=epochs, checkpoint=tmp_path / "given", **options)


def test_without_held_out_rows_the_further_training_stays(tmp_path):
    """The best state of the rows that picked it before is not what the longer run ends with."""
    x = torch.randn(40, 2)
    options = {"batch_size": 20, "checkpoint": tmp_path, "progress": False}
    first = pyrodgm.fit(RealNVP(2), x, epochs=2, validate=x[:10], **options)
    model = RealNVP(2)
    run = pyrodgm.fit(model, x, epochs=4, **options)
    assert run.best is None
    last = torch.load(newest(tmp_path), weights_only=True)["model"]
    assert all(torch.equal(v, last[k]) for k, v in model.state_dict().items())
    assert not all(torch.equal(v, last[k]) for k, v in first.model.state_dict().items())


def test_a_model_in_double_precision_goes_on_in_the_same_process(tmp_path):
    model, x = RealNVP(2), torch.randn(40, 2)
    for epochs, steps in ((1, 2), (2, 4)):
        options = {"batch_size": 20, "checkpoint": tmp_path, "progress": False, "precision": "64-true"}
        assert pyrodgm.fit(model, x, epochs=epochs, **options).timings["steps"] == steps


def test_a_callback_that_raises_costs_no_epoch(tmp_path):
    def breaks(run):
        raise KeyError(len(run.history))

    x = torch.randn(40, 2)
    options = {"batch_size": 10, "checkpoint": tmp_path, "progress": False}
    for epoch in (1, 2):
        with pytest.raises(KeyError, match=str(epoch)):
            pyrodgm.fit(RealNVP(2), x, epochs=3, callbacks=[breaks], **options)
    run = pyrodgm.fit(RealNVP(2), x, epochs=3, **options)
    assert [row["step"] for row in run.history] == [4, 8, 12]


def test_starting_over_drops_the_old_run(tmp_path):
    train(VAE, tmp_path, steps=13)
    train(VAE, tmp_path, steps=3, resume=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000000002.pt", "step-0000000003.pt"]
    assert train(VAE, tmp_path, steps=3).timings["steps"] == 3


def test_what_a_killed_writer_left_is_ignored_and_removed_and_what_another_writes_is_not(tmp_path):
    train(VAE, tmp_path, steps=3)
    for pid, age in ((123, 3600), (124, 0)):
        part = tmp_path / f".writing-{pid}-step-0000000009.pt"
        part.write_bytes(b"half")
        os.utime(part, (time.time() - age,) * 2)
    assert train(VAE, tmp_path, steps=3).timings["steps"] == 3
    kept = [".writing-124-step-0000000009.pt", "step-0000000002.pt", "step-0000000003.pt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == kept


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "file.pt"
    write_atomically(target, lambda part: torch.save({"a": 1}, part))

    def half(part):
        part.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, half)
    assert torch.load(target) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.pt"]


def test_checkpoints_hold_no_code(tmp_path):
    train(GAN, tmp_path)
    torch.load(newest(tmp_path), weights_only=True)


def test_more_epochs_with_another_batch_size(tmp_path):
    x = torch.randn(40, 2)
    options = {"checkpoint": tmp_path / "run", "progress": False}
    pyrodgm.fit(RealNVP(2), x, epochs=4, batch_size=10, **options)
    run = pyrodgm.fit(RealNVP(2), x, epochs=8, batch_size=20, **options)
    assert [row["epoch"] for row in run.history] == list(range(1, 9))
    assert run.timings["steps"] == 4 * 4 + 4 * 2


def test_a_schedule_that_ends_with_the_run_is_not_stretched(tmp_path):
    def cosine(optimizer, total):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)

    x = torch.randn(40, 2)
    options = {"checkpoint": tmp_path / "run", "progress": False, "lr_schedule": cosine}
    pyrodgm.fit(RealNVP(2), x, epochs=2, batch_size=20, **options)
    with pytest.raises(CheckpointError, match="T_max=4, this run's has T_max=8"):
        pyrodgm.fit(RealNVP(2), x, epochs=4, batch_size=20, **options)
    pyrodgm.fit(RealNVP(2), x, epochs=4, batch_size=20, resume=False, **options)
