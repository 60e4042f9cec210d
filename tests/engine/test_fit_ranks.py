"""Several processes: one run, whose losses are means over the global batch."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.nn.utils import parameters_to_vector

import pyrodgm
from pyrodgm.objectives import MaximumLikelihood
from pyrodgm.tractable import RealNVP

sys.path.insert(0, os.path.dirname(__file__))
from _ranks import CASES, train

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
ENVIRONMENT = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the two processes of _ranks.py have at the end, and the folder that they wrote to."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", f"{HERE}/_ranks.py"]
    done = subprocess.run([*command, folder], capture_output=True, text=True, timeout=300, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, [torch.load(folder / f"rank{i}.pt") for i in range(2)]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("case", CASES)
def test_ranks_end_with_equal_models_and_resume_bit_exactly(ranks, case):
    _, (first, second) = ranks
    assert equal(first[case]["whole"]["model"], second[case]["whole"]["model"])
    for rank in (first, second):
        whole, resumed = rank[case]["whole"], rank[case]["resumed"]
        assert equal(whole["model"], resumed["model"])
        assert equal(whole["objective"], resumed["objective"])
        assert [r["held_out"] for r in whole["history"]] == [r["held_out"] for r in resumed["history"]]


@pytest.mark.parametrize("case", ["RealNVP", "MADE", "VQVAE", "VQVAE2"])
def test_two_processes_train_as_one_on_the_same_batches(ranks, case):
    _, (first, _) = ranks
    double, single = first[case]["whole"], train(case, 7, 1)
    for key, value in single.model.state_dict().items():
        # no noise in these members, so means over shares are means over batches, up to float32 rounding in 7 steps
        assert torch.allclose(value, double["model"][key], atol=1e-5), key
    for a, b in zip(single.history, double["history"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["held_out"] == pytest.approx(a["held_out"], rel=1e-5)


def test_a_start_from_data_is_shared_and_kept(ranks):
    """Both processes have one start, which the resumed run keeps."""
    _, (first, second) = ranks
    for rank in (first, second):
        for state in (rank["Glow"]["whole"]["model"], rank["Glow"]["resumed"]["model"]):
            started = {key: value for key, value in state.items() if key.endswith("started")}
            assert len(started) == 2
            assert all(started.values())
            assert equal(state, first["Glow"]["whole"]["model"])


def test_noise_and_chains_differ_between_ranks(ranks):
    _, (first, second) = ranks
    chains = [rank["RBM"]["whole"]["objective"]["negatives"] for rank in (first, second)]
    assert not torch.equal(*chains)
    assert torch.equal(first["VAE"]["noise"], second["VAE"]["noise"])  # the script's own random state is as it was


def test_codes_revive_at_vectors_of_every_process(ranks):
    """Eight codes from two batches of six: each process has given four, none of them twice."""
    _, found = ranks
    first, second = (rank["revived"] for rank in found)
    assert equal(first["book"], second["book"])
    batch = torch.cat((first["batch"], second["batch"]))
    taken = (first["book"]["vectors"].unsqueeze(1) == batch).all(-1)  # (8, 12)
    assert taken.sum(1).tolist() == [1] * 8
    assert taken.any(0).unflatten(0, (2, 6)).sum(1).tolist() == [4, 4]


def test_only_the_first_process_writes(ranks):
    folder, _ = ranks
    for case in CASES:
        assert sorted(p.name for p in (folder / case).iterdir()) == ["step-0000000006.pt", "step-0000000007.pt"]
        assert len((folder / f"{case}.csv").read_text().splitlines()) == 3


def test_a_run_of_two_processes_is_not_resumed_by_one(ranks):
    folder, _ = ranks
    with pytest.raises(pyrodgm.CheckpointError, match="processes=2, this run has processes=1"):
        train("MADE", 9, 1, folder)


def test_ctrl_c_ends_spawned_processes_well(tmp_path):
    """All of them hear it, the one that waits included: it must live to hand the run over."""
    script = tmp_path / "spawn.py"
    script.write_text(
        "import torch, pyrodgm\n"
        "from pyrodgm.tractable import RealNVP\n"
        "if __name__ == '__main__':\n"
        "    options = dict(epochs=10**6, batch_size=16, device='cpu', progress=False, csv='run.csv')\n"
        "    run = pyrodgm.fit(RealNVP(2), torch.randn(64, 2), devices=2, strategy='ddp_spawn', **options)\n"
        "    print(run.stopped, len(run.history) > 0, flush=True)\n"
    )
    command = [sys.executable, str(script)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True
    ) as process:
        try:
            until = time.monotonic() + 200
            while not (tmp_path / "run.csv").exists() and time.monotonic() < until:
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
            assert process.communicate(timeout=60)[0] == "interrupted True\n"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def test_spawned_processes_train_the_callers_model(tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(
        "import torch, pyrodgm\n"
        "from pyrodgm.tractable import RealNVP\n"
        "if __name__ == '__main__':\n"
        "    torch.manual_seed(0)\n"
        "    model, x = RealNVP(features=2), torch.randn(64, 2)\n"
        "    options = dict(steps=4, batch_size=16, device='cpu', progress=False)\n"
        "    run = pyrodgm.fit(model, x, devices=2, strategy='ddp_spawn', **options)\n"
        "    assert run.model is model and not model.training and run.stopped == 'finished', run\n"
        "    torch.save((x, model.state_dict(), run.history), 'out.pt')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=200, cwd=tmp_path, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-4000:]
    x, state, history = torch.load(tmp_path / "out.pt")
    torch.manual_seed(0)
    model = RealNVP(features=2)
    alone = pyrodgm.fit(model, x, MaximumLikelihood(), steps=4, batch_size=16, device="cpu", progress=False)
    trained = RealNVP(features=2)
    trained.load_state_dict(state)
    # the same gradients up to rounding, which Adam's first steps (lr times a sign) enlarge where a gradient is near 0
    assert history[0]["loss"] == pytest.approx(alone.history[0]["loss"], rel=1e-5)
    difference = parameters_to_vector(model.parameters()) - parameters_to_vector(trained.parameters())
    assert difference.norm() < 1e-3 * parameters_to_vector(model.parameters()).norm()
