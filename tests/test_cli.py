"""The command line: every command on a tiny budget; errors of one line; exit codes."""

from __future__ import annotations

import inspect
import json
import math
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrodgm.cli import commands, demo, main, output
from pyrodgm.data.sets import split_rows
from pyrodgm.diagnostics import comparison, report
from pyrodgm.diagnostics.page import badge
from pyrodgm.energy import RBM
from pyrodgm.members import MEMBERS, Member
from pyrodgm.objectives import ContrastiveDivergence, MaximumLikelihood, default_objective
from pyrodgm.runs import evaluate, fit_command, load_run, prepare, read_config, train
from pyrodgm.runs.config import build_model, build_objective
from pyrodgm.runs.folder import read_samples

QUICK = ["--steps", "2", "--progress", "false"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "made"
    assert main(["fit", "MADE", "digits_binary", "--out", str(out), "--hidden", "16", "--hidden", "8", *QUICK]) == 0
    return out


@pytest.fixture(scope="module")
def moons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "moons"
    words = ["fit", "RealNVP", "moons", "--out", str(out), "--layers", "2", "--hidden", "[8]", "--labels", "true"]
    assert main([*words, *QUICK]) == 0
    return out


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert err.startswith("pyrodgm: error: ")
    assert err.count("\n") == 1
    return err


def test_models_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(m.name in out for m in MEMBERS)
    assert main(["data"]) == 0
    assert "checkerboard" in capsys.readouterr().out


@pytest.mark.parametrize("member", [m for m in MEMBERS if m.factory], ids=lambda m: m.name)
def test_every_member_fits(member: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, kind = member.name, member.data  # type: ignore[attr-defined]
    data = "wine" if kind == "real" else "digits_binary"
    if name == "BoltzmannMachine":  # all of whose units are linked: 64 take a quarter of a minute
        data = str(tmp_path / "bits.npz")
        np.savez(data, x=np.random.default_rng(0).integers(0, 2, (60, 4)))
    out = str(tmp_path / "run")
    assert main(["fit", name, data, "--out", out, "--hidden", "8", *QUICK]) == 0
    run = load_run(out)
    held_out = run.metrics["held_out"]
    assert (held_out["value"] is None) == (run.model.family == "implicit")
    assert run.sample(3).shape == (3, *run.model.event_shape)
    assert torch.equal(run.sample(3), load_run(out).sample(3))


@pytest.mark.parametrize("name", ["MADE", "VAE", "GAN"])
def test_real_data_choose_their_likelihood(name: str, tmp_path: Path) -> None:
    assert main(["fit", name, "wine", "--out", str(tmp_path / "r"), "--hidden", "8", *QUICK]) == 0
    run = load_run(tmp_path / "r")
    assert bool(run.model.support.check(torch.full((13,), -7.3)))  # as no zero or one is
    value = run.metrics["held_out"]["value"]
    assert value is None if name == "GAN" else math.isfinite(value)


def test_the_command_of_a_report_makes_the_same_run(made: Path, tmp_path: Path) -> None:
    words = shlex.split(fit_command(read_config(made), tmp_path / "again"))
    assert words[0] == "pyrodgm"
    assert main(words[1:]) == 0
    first, again = load_run(made), load_run(tmp_path / "again")
    assert first.config == again.config
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    assert first.metrics["held_out"] == again.metrics["held_out"]


def test_repeated_values_make_a_list(made: Path) -> None:
    assert read_config(made)["arguments"]["hidden"] == [16, 8]


def test_arguments_of_the_objective(tmp_path: Path) -> None:
    words = ["fit", "GAN", "moons", "--out", str(tmp_path / "r"), "--hidden", "8", *QUICK]
    assert main([*words, "--objective.hidden", "4", "--objective.hidden", "5"]) == 0
    assert read_config(tmp_path / "r")["objective"] == {"hidden": [4, 5]}


def test_the_objective_is_what_help_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With and without an argument of its own: what is not given has the default that is printed."""
    config = {"model": "RBM", "objective": {}, "labels": False, "seed": 0}
    rbm = RBM(4, 3)
    for given in ({}, {"weight_cost": 1e-3}):
        objective = build_objective(config | {"objective": given}, rbm)
        assert isinstance(objective, ContrastiveDivergence)
        assert (objective.k, objective.persistent) == (5, True)
    given_labels = build_objective(config, RBM(4, 3, context=2))
    assert isinstance(given_labels, ContrastiveDivergence)
    assert not given_labels.persistent
    assert main(["fit", "RBM", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "default 5" in shown
    assert "default True" in shown


def takes_labels(which: Member) -> bool:
    return bool(which.objective and which.factory) and "context" in inspect.signature(which.build()).parameters


@pytest.mark.parametrize("which", list(filter(takes_labels, MEMBERS)), ids=lambda m: m.name)
def test_every_objective_suits_its_model_given_labels(which: Member) -> None:
    build = which.build()
    size = "visible" if "visible" in inspect.signature(build).parameters else "features"
    model = build(**{size: 4, "context": 2}, **dict(which.defaults))
    config = {"model": which.name, "objective": {}, "labels": True, "seed": 0}
    objective = build_objective(config, model) or default_objective(model)
    objective.check(model)


def test_a_vqvae_learns_its_codebook_and_its_prior(tmp_path: Path) -> None:
    words = ["fit", "VQVAE", "digits_binary", "--out", str(tmp_path / "r"), "--epochs", "3", "--progress", "false"]
    assert main([*words, "--positions", "2", "--codes", "8", "--hidden", "32"]) == 0
    run = load_run(tmp_path / "r")
    with torch.random.fork_rng():
        fresh = build_model(run.config)
    assert not torch.equal(run.model.codebook.vectors, fresh.codebook.vectors)
    bound = evaluate(run)["value"]
    codes = run.model.codes(run.data().test.float())
    uniform = -2 * math.log(8)
    assert run.model.code_prior.log_prob(codes).mean() > uniform + 0.05  # its own frequencies
    assert bound > -64 * math.log(2)


def test_a_vqvae2_learns_both_codebooks(tmp_path: Path) -> None:
    words = ["fit", "VQVAE2", "digits_binary", "--out", str(tmp_path / "r"), "--epochs", "3", "--progress", "false"]
    assert main([*words, "--positions", "1", "--positions", "2", "--codes", "8", "--hidden", "32"]) == 0
    run = load_run(tmp_path / "r")
    with torch.random.fork_rng():
        fresh = build_model(run.config)
    for book, old in zip(run.model.codebooks, fresh.codebooks, strict=True):
        assert not torch.equal(book.vectors, old.vectors)
    codes = run.model.codes(run.data().test.float())
    assert [part.shape[1] for part in codes] == [1, 2]
    assert evaluate(run)["value"] > -64 * math.log(2)


@pytest.mark.parametrize("ending", ["npy", "npz", "csv", "png"])
def test_sample(ending: str, moons: Path, tmp_path: Path) -> None:
    out = tmp_path / f"new/s.{ending}"
    assert main(["sample", str(moons), "-n", "6", "--out", str(out), "--label", "1"]) == 0
    expected = load_run(moons).sample(6, "1").numpy()
    if ending == "npy":
        np.testing.assert_array_equal(np.load(out), expected)
    elif ending == "npz":
        stored = np.load(out)
        np.testing.assert_array_equal(stored["x"], expected)
        assert stored["y"].tolist() == [1] * 6
    elif ending == "csv":
        assert out.read_text().splitlines()[0] == "x0,x1,label"
        table = np.loadtxt(out, delimiter=",", skiprows=1)
        np.testing.assert_allclose(table[:, :2], expected, rtol=1e-6)  # seven digits
        assert table[:, 2].tolist() == [1.0] * 6
    else:
        assert out.read_bytes().startswith(b"\x89PNG")


def test_evaluate(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(made), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == load_run(made).metrics["held_out"]
    run = load_run(made)
    expected = run.model.log_prob(run.data().test).mean().item()  # type: ignore[operator]
    assert found["value"] == pytest.approx(expected, rel=1e-5)
    assert main(["evaluate", str(made), "--part", "train", "--rows", "10"]) == 0
    assert "10 train rows" in capsys.readouterr().out


def test_evaluate_on_other_data(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bits = np.random.default_rng(1).integers(0, 2, (50, 64))
    np.save(tmp_path / "bits.npy", bits)
    assert main(["evaluate", str(made), str(tmp_path / "bits.npy"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    test = torch.as_tensor(bits)[split_rows(50, 0)["test"]].float()
    log_prob = load_run(made).model.log_prob(test)  # type: ignore[operator]
    assert found["value"] == pytest.approx(log_prob.mean().item(), rel=1e-5)
    assert found["standard_error"] == pytest.approx(log_prob.std().item() / math.sqrt(5), rel=1e-5)
    assert (found["rows"], found["kind"], found["data"]) == (5, "exact", str(tmp_path / "bits.npy"))


def test_compare_sorts_by_likelihood(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    better = tmp_path / "better"
    assert main(["fit", "MADE", "digits_binary", "--out", str(better), "--epochs", "2", "--progress", "false"]) == 0
    capsys.readouterr()
    page = tmp_path / "page.html"
    assert main(["compare", str(made), str(better), "--out", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith(str(better))
    assert lines[2].endswith(str(made))
    assert page.read_text().count("<img") == 3  # the data once, then each model


def test_compare_marks_every_kind(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The largest value first, whatever its kind; what has none is last; the page says of each what it is."""
    values = {"exact": -20.0, "none": None, "bound": -10.0, "AIS estimate": -15.0}
    for kind, value in values.items():
        shutil.copytree(made, tmp_path / kind)
        metrics = json.loads((made / "metrics.json").read_text())
        metrics["held_out"] |= {"kind": kind, "value": value, "standard_error": None if value is None else 0.5}
        (tmp_path / kind / "metrics.json").write_text(json.dumps(metrics))
    assert main(["compare", *(str(tmp_path / kind) for kind in values), "--out", str(tmp_path / "page.html")]) == 0
    shown, order = capsys.readouterr().out.splitlines(), ["bound", "AIS estimate", "exact", "none"]
    for line, kind in zip(shown[1:5], order, strict=True):
        value = "-" if values[kind] is None else f"{values[kind]:.2f}"
        assert line.split("  ")[-1].endswith(f"/{kind}")
        assert f" {value} " in line
        assert f"  {kind}  " in line
    page = (tmp_path / "page.html").read_text()
    marks = "&ge;&#8239;\N{MINUS SIGN}10", "&asymp;&#8239;\N{MINUS SIGN}15", ">\N{MINUS SIGN}20", ">&ndash;<"
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)
    for kind in values:
        assert page.count(badge(kind)) == 2  # what it means, and in its row


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("MADE", "digits_binary", {"hidden": [8]}, {}), ("RealNVP", "digits_dequantized", {"layers": 2}, {})
    monkeypatch.setattr(demo, "_MODELS", small)
    words = ["demo", "--out", str(tmp_path / "demo"), "--epochs", "1", "--progress", "false"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "1/2 MADE on digits_binary\n" in shown.err
    assert shown.out.splitlines()[-1].endswith(str(tmp_path / "demo" / "index.html"))
    page = (tmp_path / "demo" / "index.html").read_text()
    assert "bits/dim" in page
    assert page.count("<h2>") == 2
    assert main(words) == 0  # what is there is kept
    assert "--overwrite" in capsys.readouterr().err


def test_the_demo_has_a_model_of_each_family(tmp_path: Path) -> None:
    """Its own models: each suits its data, and its options are those of fit, of the model and of its objective."""
    families = set()
    for model, data, arguments, options in demo._MODELS:
        job = prepare(model, data, tmp_path / model, arguments=arguments, **options)
        assert job.model.event_shape.numel() == math.prod(job.data.event_shape)
        families.add(job.model.family)
    assert families == {"tractable", "latent", "energy", "implicit"}


def test_a_finished_run_is_kept(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (made / "model.pt").read_bytes()
    assert main(["fit", "MADE", "digits_binary", "--out", str(made), *QUICK]) == 2
    assert "--overwrite" in one_line(capsys)
    assert (made / "model.pt").read_bytes() == before


def test_an_unfinished_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "MADE", "digits_binary", "--hidden", "8", "--epochs", "2", "--progress", "false", "--out"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*words, str(whole)]) == main([*words, str(cut)]) == 0
    for name in ("metrics.json", "model.pt"):
        (cut / name).unlink()
    assert main(["sample", str(cut), "--out", str(tmp_path / "s.npy")]) == 2
    assert "resume it by pyrodgm fit" in one_line(capsys)
    assert main([*words, str(cut), "--lr", "0.1"]) == 2
    assert "other settings" in one_line(capsys)
    assert main([*words, str(cut)]) == 0
    a, b = load_run(whole).model.state_dict(), load_run(cut).model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert main([*words, str(cut), "--overwrite", "--lr", "0.1"]) == 0


def test_the_model_may_stand_after_the_options(tmp_path: Path) -> None:
    words = ["fit", "--hidden", "[8]", *QUICK, "--overwrite", "--out", str(tmp_path / "VAE"), "MADE", "digits_binary"]
    assert main(words) == 0
    config = read_config(tmp_path / "VAE")
    assert (config["model"], config["arguments"]["hidden"]) == ("MADE", [8])


def test_ctrl_c_ends_a_fit_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is written, the exit code is the shell's for Ctrl-C, and the same command goes on."""
    loss, calls = MaximumLikelihood.loss, []

    def interrupted(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(None)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return loss(*args, **options)

    words = ["fit", "MADE", "digits_binary", "--hidden", "8", "--epochs", "2", "--progress", "false", "--out"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*words, str(whole)]) == 0
    capsys.readouterr()
    monkeypatch.setattr(MaximumLikelihood, "loss", interrupted)
    assert main([*words, str(cut)]) == 130
    assert load_run(cut).metrics["timings"]["steps"] == 3
    shown = capsys.readouterr()
    assert "nats/datum" in shown.out
    assert "without --overwrite, goes on" in shown.err
    assert main([*words, str(cut)]) == 0
    a, b = load_run(whole).model.state_dict(), load_run(cut).model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_pictures_of_other_units_are_drawn_by_the_range_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standardised pictures: what is drawn is a line through the numbers, and the data reach from white to black."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).uniform(0, 255, (60, 3, 3)).astype(np.float32))
    out = tmp_path / "run"
    words = ["--out", str(out), "--layers", "2", "--hidden", "[8]"]
    assert main(["fit", "RealNVP", f"{tmp_path / 'x.npy'}:standardised", *words, *QUICK]) == 0
    figures: list[Any] = []
    monkeypatch.setattr(output, "save", lambda figure, path: figures.append(figure))
    assert main(["sample", str(out), "-n", "4", "--out", str(tmp_path / "s.png")]) == 0
    monkeypatch.setattr(comparison, "png", lambda figure: figures.append(figure) or b"")
    assert main(["compare", str(out), "--out", str(tmp_path / "page.html")]) == 0
    run = load_run(out)
    real = run.data().test
    low, high = real.min(), real.max()
    assert low < 0
    for figure, x in zip(figures, (run.sample(4), real, read_samples(out)[1]), strict=True):
        shown = torch.as_tensor(figure.axes[0].images[0].get_array())[1:4, 1:4]
        expected = ((x[0].reshape(3, 3) - low) / (high - low)).clamp(0, 1)
        torch.testing.assert_close(shown.to(expected), expected)


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["fitt"], "did you mean fit?"),
        (["fit"], "required"),
        (["fit", "--hidden", "[8]"], "unknown option --hidden"),
        (["fit", "--clip", "-1", "MAD", "digits", "--out", "x"], "did you mean MADE"),
        (["fit", "MADE", "digits_binary"], "required: out"),
        (["fit", "MAD", "digits", "--out", "x"], "did you mean MADE"),
        (["fit", "MADE", "digit_binary", "--out", "x"], "did you mean digits_binary?"),
        (["fit", "MADE", "digits", "--out", "x", "--hiden", "3"], "did you mean --hidden?"),
        (["fit", "MADE", "digits", "--out", "x", "--lr", "fast"], "expected --lr as float, got 'fast'"),
        (["fit", "MADE", "digits", "--out", "x", "--hidden", "wide"], "expected --hidden as int, got 'wide'"),
        (["fit", "MADE", "digits", "--out", "x", "--epochs", "1", "--steps", "1"], "epochs or steps"),
        (["fit", "MADE", "digits", "--out", "x", "--epochs", "0"], "epochs as a whole number >= 1"),
        (["fit", "MADE", "digits", "--out", "x", "--batch_size", "0"], "batch_size"),
        (["fit", "MADE", "digits", "--out", "x", "--lr", "0"], "lr > 0"),
        (["fit", "MADE", "digits", "--out", "x", "--clip", "-1"], "clip > 0"),
        (["fit", "MADE", "digits", "--out", "x", "--seed", "-1"], "seed as a whole number >= 0"),
        (["fit", "MADE", "digits", "--out", "x", "--device", "gpu"], 'device "auto"'),
        (["fit", "MADE", "digits", "--out", "x", "--devices", "0"], "devices"),
        (["fit", "MADE", "digits", "--out", "x", "--precision", "12"], "recision"),
        (["fit", "MADE", "digits", "--out", "x", "--strategy", "none"], "strategy"),
        (["fit", "MADE", "digits", "--out", "x", "--hidden", "0"], "hidden"),
        (["fit", "RBM", "digits_binary", "--out", "x", "--objective.k", "0"], "k >= 1"),
        (
            ["fit", "RBM", "digits_binary", "--out", "x", "--labels", "true", "--objective.persistent", "true"],
            "persistent=False",
        ),
        (["fit", "Flow", "digits", "--out", "x"], "in Python"),
        (["fit", "RBM", "wine", "--out", "x"], "binary"),
        (["fit", "RealNVP", "digits_binary", "--out", "x"], "digits_dequantized"),
        (["fit", "MADE", "absent.csv", "--out", "x"], "expected a file that exists"),
        (["sample", "nowhere", "--out", "s.npy"], "pyrodgm fit MODEL DATA --out nowhere"),
        (["sample", "nowhere", "--out", "s.doc"], ".npy"),
        (["sample", "nowhere", "--out", "s.npy", "-n", "0"], "at least 1"),
        (["evaluate", "nowhere"], "not a run"),
        (["compare", "nowhere"], "not a run"),
    ],
)
def test_wrong_commands(
    words: list[str], cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert cure in one_line(capsys)
    assert not any(tmp_path.iterdir())


def test_data_that_changed_since_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The split is by the number of rows: one row more, and test rows are those of the training."""
    x, out = np.random.default_rng(0).integers(0, 2, (60, 4)), str(tmp_path / "run")
    file = tmp_path / "x.npy"
    words = ["fit", "MADE", str(file), "--out", out, "--hidden", "8", *QUICK]
    np.save(file, x)
    assert main(words) == 0
    np.save(file, x.astype(np.float32))  # the same rows, written anew
    assert main(["evaluate", out]) == 0
    np.save(file, x[:-1])
    (tmp_path / "run" / "metrics.json").unlink()
    capsys.readouterr()
    for command, cure in ((["evaluate", out], "pyrodgm evaluate RUN DATA"), (words, "put the old data back")):
        assert main(command) == 2
        told = one_line(capsys)
        assert "changed since" in told
        assert cure in told
    assert main(["evaluate", out, str(file)]) == 0  # at the user's word
    np.save(file, x)
    assert main(words) == 0  # and the run goes on


def test_a_change_of_labels_is_a_change_of_the_data(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y)
    run = train("RealNVP", tmp_path / "a.npz", tmp_path / "r", steps=1, progress=False, arguments={"layers": 2})
    assert len(run.data().train) == 24
    np.savez(tmp_path / "a.npz", x=x, y=1 - y)
    with pytest.raises(ValueError, match="changed since"):
        run.data()


def test_wrong_data_for_a_run(made: Path, moons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(made), "wine"]) == 2
    assert "shape" in one_line(capsys)
    assert main(["evaluate", str(made), "digits_dequantized"]) == 2
    assert "kind" in one_line(capsys)
    assert main(["evaluate", str(moons), "rings"]) == 2
    assert "labels" in one_line(capsys)
    assert main(["evaluate", str(made), "--part", "dev"]) == 2
    assert "train, valid or test" in one_line(capsys)
    for count in ("rows", "particles"):
        assert main(["evaluate", str(made), f"--{count}", "0"]) == 2
        assert f"{count} of at least 1" in one_line(capsys)
    rows = tmp_path / "rows.csv"
    rows.write_text("\n".join(f"{i},{i * i}" for i in range(30)))
    assert main(["evaluate", str(moons), f"{rows}:standardised"]) == 2
    assert "standardised by its own training rows" in one_line(capsys)
    assert main(["sample", str(made), "--label", "1", "--out", str(tmp_path / "s.npy")]) == 2
    assert "--labels true" in one_line(capsys)
    assert main(["sample", str(moons), "--label", "7", "--out", str(tmp_path / "s.npy")]) == 2
    assert "expected one of 0, 1" in one_line(capsys)


def test_a_wrong_argument_leaves_an_old_run_alone(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (made / "model.pt").read_bytes()
    words = ["fit", "MADE", "digits_binary", "--out", str(made), "--overwrite"]
    for wrong, told in (
        (["--epochs", "1", "--steps", "1"], "epochs or steps"),
        (["--device", "gpu"], "expected device"),
        (["--precision", "bf16-true"], "round the log-densities"),
        (["--devices", "3", "--device", "cpu"], "multiple of the 3 devices"),
        (["--devices", "2", "--device", "cpu"], 'strategy="ddp_spawn"'),
    ):
        assert main([*words, *wrong]) == 2
        assert told in one_line(capsys)
    words = ["fit", "RBM", *words[2:], "--precision", "bf16-mixed"]
    assert main(words) == 2
    assert "for RBM" in one_line(capsys)
    assert (made / "model.pt").read_bytes() == before


def test_only_a_runs_own_files_are_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "MADE", "digits_binary", "--out", str(tmp_path), "--hidden", "8", *QUICK, "--overwrite"]
    for foreign in ({"model": "bert", "layers": 12}, {"format": 1, "model": "bert"}, ["a", "list"]):
        (tmp_path / "config.json").write_text(json.dumps(foreign))
        assert main(words) == 2
        assert "is not a run; choose another folder" in one_line(capsys)
        assert main(["sample", str(tmp_path), "--out", str(tmp_path / "s.npy")]) == 2
        assert "its config.json is of something else" in one_line(capsys)
        assert json.loads((tmp_path / "config.json").read_text()) == foreign
    (tmp_path / "config.json").unlink()
    assert main(words) == 0
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "data").mkdir()
    assert main([*words, "--lr", "0.1"]) == 0
    assert read_config(tmp_path)["fit"]["lr"] == 0.1
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "data").is_dir()


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_a_run_in_another_precision_is_scored_as_it_is_loaded(precision: str, tmp_path: Path) -> None:
    run = train("MADE", "digits_binary", tmp_path / "r", steps=2, progress=False, precision=precision)
    assert run.model.dtype == torch.float32
    assert evaluate(load_run(run.path)) == run.metrics["held_out"]


def test_a_run_counts_as_finished_when_its_page_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["fit", "MADE", "digits_binary", "--out", str(tmp_path / "r"), "--hidden", "8", *QUICK]
    with monkeypatch.context() as patch:
        patch.setattr(report, "write_page", lambda *args: 1 / 0)
        assert main(words) == 1
    assert not (tmp_path / "r" / "metrics.json").exists()
    assert main(words) == 0
    assert (tmp_path / "r" / "report.html").exists()


def test_what_nobody_foresaw_is_one_line_too(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made, tmp_path / "cut")
    model = tmp_path / "cut" / "model.pt"
    model.write_bytes(model.read_bytes()[:200])
    assert main(["evaluate", str(tmp_path / "cut")]) == 2
    assert "model.pt is damaged" in one_line(capsys)
    monkeypatch.setattr(commands, "data_sets", lambda: {}["x"])
    assert main(["data"]) == 1
    assert "KeyError: 'x'" in one_line(capsys)


def test_links_of_a_comparison_are_quoted(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "50% #1?")
    page = comparison.write_comparison([tmp_path / "50% #1?"], tmp_path / "page.html")
    assert 'href="50%25%20%231%3F/report.html"' in page.read_text()


def test_the_visible_biases_of_an_rbm_start_at_the_frequencies(tmp_path: Path) -> None:
    run = train("RBM", "digits_binary", tmp_path / "r", steps=1, progress=False, arguments={"hidden": 4})
    x = run.data().train
    p = (x.sum(0) + 1) / (len(x) + 2)
    torch.testing.assert_close(run.model.visible_bias, p.logit(), atol=0.05, rtol=0)  # one step of training


def test_a_failed_run_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "MADE", "wine", "--out", str(tmp_path / "r"), "--lr", "1e30", "--epochs", "3"]
    assert main([*words, "--progress", "false"]) == 1
    assert "smaller lr" in one_line(capsys)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jsonargparse", None)
    assert main(["data"]) == 1
    assert 'pip install "pyrodgm[cli]"' in one_line(capsys)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["fit", "MADE", "--help"], ["sample", "--help"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out
    if "MADE" in words:
        assert "--hidden" in out
        assert "--compile" in out
        assert "train as without, with a warning that says why" in " ".join(out.split())  # a note's second line too
