"""Checkpoints: written whole, read with care, and going on from them changes nothing."""

import os
import subprocess
import sys

import pytest
import torch

import pyrodgm
from pyrodgm import CheckpointError
from pyrodgm.files import write_atomically
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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"weights": torch.zeros(2)}, "not written by pyrodgm.fit"),
        ({"format": "pyrodgm-checkpoint", "version": 99}, "version 99"),
        ({"format": "pyrodgm-checkpoint", "version": 3, "fingerprint": "x"}, "another run"),
        (b"", "damaged"),
    ],
)
def test_foreign_files_are_refused(tmp_path, content, reason):
    target = tmp_path / "step-0000000004.pt"
    if isinstance(content, bytes):
        target.write_bytes(content)
    else:
        torch.save(content, target)
    with pytest.raises(CheckpointError, match=f"{reason}.*resume=False"):
        train(VAE, tmp_path)
    assert train(VAE, tmp_path, resume=False).timings["steps"] == 13
    assert train(VAE, tmp_path).stopped == "finished"


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


def test_starting_over_drops_the_old_run(tmp_path):
    train(VAE, tmp_path, steps=13)
    train(VAE, tmp_path, steps=3, resume=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000000002.pt", "step-0000000003.pt"]
    assert train(VAE, tmp_path, steps=3).timings["steps"] == 3


def test_what_a_killed_writer_left_is_ignored_and_removed(tmp_path):
    train(VAE, tmp_path, steps=3)
    (tmp_path / ".writing-123-step-0000000009.pt").write_bytes(b"half")
    assert train(VAE, tmp_path, steps=3).timings["steps"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000000002.pt", "step-0000000003.pt"]


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
