"""Every Python block of the README and the guide runs, in order, as a reader would paste it."""

import re
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


def test_readme_commands_are_the_ones_ci_runs():
    text = (ROOT / "README.md").read_text()
    command = re.search(r"<!-- test command -->\n```sh\n(.*?)\n```", text, re.DOTALL)
    assert command is not None
    assert "pytest" in command.group(1)
    assert "constraints.txt" in command.group(1)
