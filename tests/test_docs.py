"""Every Python block of the README and the guides runs, in order, as a reader would paste it; tables and links hold."""

import importlib
import re
import subprocess
from pathlib import Path

import pyro
import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(page for folder in (".", "docs", "benchmarks", "examples") for page in (ROOT / folder).glob("*.md"))
FAMILIES = ("tractable", "latent", "energy", "implicit")
FOLDERS = ("bijectors", "guides", "objectives", "kernels", "distributions", "nets", *FAMILIES)


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


def parts_of(folder):
    """The names that docs/parts.md has of a folder: first cells of its tables, and what stands behind "Also:"."""
    text = (ROOT / "docs" / "parts.md").read_text()
    sections = re.split(r"^`pyrodgm\.(\w+)`", text, flags=re.MULTILINE)
    own = [body for name, body in zip(sections[1::2], sections[2::2], strict=True) if name == folder]
    cells = [name for body in own for name in re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)]
    also = [line for body in own for line in re.findall(r"^Also: (.*?)(?:\n\n|\Z)", body, re.MULTILINE | re.DOTALL)]
    return cells + re.findall(r"`(\w+)`", " ".join(also))


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_part_has_a_row(folder):
    """In docs/parts.md, or, as a model, in the README's table; and no row is of something that is not there."""
    public = set(importlib.import_module(f"pyrodgm.{folder}").__all__)
    listed = parts_of(folder)
    in_readme = set(re.findall(rf"`pyrodgm\.{folder}\.(\w+)`", (ROOT / "README.md").read_text()))
    assert len(set(listed)) == len(listed)
    assert listed or folder == "implicit"
    assert sorted(set(listed) | in_readme) == sorted(public)
    assert not set(listed) & in_readme


def test_every_example_is_in_the_index():
    listed = re.findall(r"^\| \[(\w+\.py)\]\(\1\) \| .+ \| .+ \|$", (ROOT / "examples" / "README.md").read_text(), re.M)
    assert sorted(listed) == sorted(path.name for path in ROOT.glob("examples/*.py"))


def anchors(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path) if path else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target}"


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
