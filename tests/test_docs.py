"""Every Python block of the README and the guide runs, in order, as a reader would paste it."""

import re
import subprocess
from pathlib import Path

import pyro
import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.pyro_store
@pytest.mark.parametrize("name", ["README.md", "docs/guide.md", "docs/flows.md", "docs/mcmc.md"])
def test_python_blocks_run(name, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "__docs__"}
    for block in blocks:
        block = re.sub(r"epochs=\d+", "epochs=2", block)
        exec(compile(block, name, "exec"), scope)
    pyro.clear_param_store()


def test_ci_runs_the_test_command_of_the_readme():
    """What .ci/run takes from the README, by its own line, is what a reader sees; and that is what it runs."""
    shown = re.search(r"<!-- test command -->\n```sh\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = (ROOT / ".ci" / "run").read_text()
    line = re.search(r"^command=\$\((.*)\)$", script, re.MULTILINE)
    assert shown is not None
    assert line is not None
    done = subprocess.run(["bash", "-c", line.group(1)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == shown.group(1)
    assert script.splitlines()[-1] == 'bash -euo pipefail -c "$command"'
    assert "pytest" in shown.group(1)
    assert "-c constraints.txt" in shown.group(1)
