"""Nothing is public without a case, nothing in the README without a class, and every example runs."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cases import BIJECTORS, GUIDES, KERNELS, MODELS, OBJECTIVES, TRACES
from torch import nn

import pyrodgm
from pyrodgm.bijectors import Bijector, Trace, Univariate
from pyrodgm.core import GenerativeModel
from pyrodgm.kernels import Kernel, PyroKernel
from pyrodgm.members import MEMBERS
from pyrodgm.objectives import Objective

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MODULES = sorted(m.name for m in pkgutil.walk_packages(pyrodgm.__path__, "pyrodgm.") if not m.name.endswith("__main__"))


def public(folder, base):
    """The final classes of a folder's ``__all__`` that are a ``base``: some, or the test that asks sees nothing."""
    module = importlib.import_module(f"pyrodgm.{folder}")
    found = {name: getattr(module, name) for name in module.__all__}
    names = {name for name, c in found.items() if inspect.isclass(c) and issubclass(c, base) and c is not base}
    names = {name for name in names if not is_abstract(found[name])}
    assert names, f"no {base.__name__} in {folder}"
    return names


def is_abstract(cls):
    """Also where its metaclass takes no notice of it."""
    members = (inspect.getattr_static(cls, name, None) for name in dir(cls))
    return any(getattr(member, "__isabstractmethod__", False) for member in members)


def built(cases, build):
    return {type(build(case)).__name__ for case in cases.values()}


@pytest.mark.parametrize("folder", ["tractable", "latent", "energy", "implicit"])
def test_every_model_has_a_case(folder):
    """As one itself; what has no form without a context, as a part of one."""
    parts = {type(m).__name__ for case in MODELS.values() for m in case.build().modules()} & {"Embedded"}
    assert not public(folder, GenerativeModel) - built(MODELS, lambda case: case.build()) - parts


def test_every_bijector_has_a_case():
    assert not public("bijectors", Bijector) - built(BIJECTORS, lambda case: case.build())


def test_every_univariate_map_has_a_case():
    modules = [m for case in BIJECTORS.values() for m in case.build().modules() if hasattr(m, "univariate")]
    assert not public("bijectors", Univariate) - {type(m.univariate).__name__ for m in modules}


def test_every_trace_has_a_case():
    exact = BIJECTORS["Continuous"].build().trace
    assert public("bijectors", Trace) == {type(trace).__name__ for trace in (exact, *TRACES.values())}


def test_every_guide_has_a_case():
    """As one itself or as a part of one, a critic or a codebook."""
    names = public("guides", nn.Module) | (public("latent", nn.Module) - public("latent", GenerativeModel))
    assert not names - {type(m).__name__ for case in GUIDES.values() for m in case.guide().modules()}


def test_every_objective_has_a_case():
    covered = built(OBJECTIVES, lambda case: case.build(MODELS[case.model].build()))
    assert not public("objectives", Objective) - covered


def test_every_kernel_has_a_case():
    assert public("kernels", Kernel) == built(KERNELS, lambda case: case.build())
    assert not issubclass(PyroKernel, Kernel)  # an adapter, which tests/kernels tests


def test_the_cases_build_what_they_say():
    for name, case in {**MODELS, **BIJECTORS}.items():
        assert case.build().context == 0, name
        if case.conditional is not None:
            assert case.conditional().context > 0, name


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_is_public(name):
    module = importlib.import_module(name)
    if not Path(module.__file__).read_text().strip():
        return  # an empty __init__
    assert module.__doc__, f"{name} has no docstring"
    assert all(hasattr(module, public) for public in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)


def members_table():
    """The cells of the README's table ``system | class | family | year | source``, as dicts."""
    lines = (ROOT / "README.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] if "|" in line else [] for line in lines]
    start = next(i for i, row in enumerate(cells) if [c.lower() for c in row][:3] == ["system", "class", "family"])
    header, found = [c.lower() for c in cells[start]], []
    for row in cells[start + 2 :]:
        if len(row) != len(header):
            break
        found.append(dict(zip(header, row, strict=True)))
    return found


def test_every_class_of_the_readme_exists():
    table = members_table()
    assert len(table) >= 5
    for row in table:
        names = re.findall(r"`([\w.]+)", row["class"])
        assert names, f"no class in {row}"
        for name in names:
            path, _, attribute = name.rpartition(".")
            folder = path or f"pyrodgm.{row['family']}"
            cls = getattr(importlib.import_module(folder), attribute)
            assert issubclass(cls, GenerativeModel)
            assert cls.family == row["family"]
        assert re.fullmatch(r"\d{4}", row["year"])
        assert row["source"]


def test_every_model_is_in_the_readme():
    text = " ".join(row["class"] for row in members_table())
    helpers = {"StandardNormal"}  # a base for others, no system of its own
    for folder in ("tractable", "latent", "energy", "implicit"):
        for name in public(folder, GenerativeModel) - helpers:
            assert re.search(rf"\b{name}\b", text), f"{name} has no row"


def test_the_readme_and_the_command_line_have_the_same_classes():
    rows = {(row["class"].strip("`"), row["family"], row["year"]) for row in members_table()}
    members = {(m.path, m.family, str(m.year)) for m in MEMBERS}
    assert members <= rows
    assert {path for path, _, _ in rows} == {path for path, _, _ in members}  # some have several rows


def python(code, *arguments, cwd=ROOT, timeout=300):
    """A fresh interpreter that finds this checkout, warnings as errors from pyrodgm's side."""
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, *code, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_there_are_examples():
    assert len(EXAMPLES) >= 5
    assert set(KNOWN) <= {path.stem for path in EXAMPLES}


def close(value, error, exact):
    return abs(value - exact) < 5 * error + 0.004  # both are rounded to three digits


# What examples print beside a truth that binds an untrained model as well: # stands for a number.
KNOWN = {
    "boltzmann_machine_worked": ("# ± #; reverse AIS #", lambda z, error, _: close(z, error, 172.420)),
    "dbm_digits": ("log Z: AIS # +- #, enumerated #", close),
    "distilled_sampler_digits": ("teacher): # +- # nats", lambda divergence, error: divergence > -5 * error),
    "eight_schools_guides": (  # a mean of 16 terms, whose noise this allows
        "bound # nats, log evidence by quadrature #;",
        lambda bound, evidence: bound < evidence + 0.5,
    ),
    "eight_schools_mcmc": (": # +- #, quadrature #;", close),
    "kde_eight_gaussians": ("nats: # here, # in scikit-learn", lambda ours, theirs: abs(ours - theirs) < 2e-4),
    "made_digits": (  # pixels that are always 0 count as rates of 0.001
        "train: # nats (closed form #)",
        lambda found, least: found > least - 64 * 0.008,
    ),
    "neural_energy_rings": ("log Z # by quadrature, # +- # by AIS", lambda z, ais, error: close(ais, error, z)),
    "rbm_digits": ("log Z: AIS # +- #, enumerated #", close),
    "sentences_grammar": (  # nothing says the test sentences better than what has made them
        "test: # +- # nats (exact); the grammar itself #",
        lambda value, error, best: value < best + 2 * error,
    ),
    "smc_evidence": ("log evidence # +- # nats, exact #", close),
    "vae_digits": (  # the best linear model of the training rows, but for noise the best of the test rows
        "linear VAE, test: # +- # nats (bound); probabilistic PCA, exact: #",
        lambda bound, error, exact: bound < exact + 2 * error,
    ),
    "vqvae_digits": ("codebook: perplexity # of #,", lambda perplexity, codes: 1 <= perplexity <= codes == 32),
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path):
    assert len(path.read_text().splitlines()) <= 120
    shown = python([str(path)], "--smoke", cwd=tmp_path)
    assert re.search(r"\d", shown), "an example prints its number beside a reference"
    if path.stem in KNOWN:
        pattern, holds = KNOWN[path.stem]
        found = re.findall(re.escape(pattern).replace(r"\#", r"(-?\d+(?:\.\d+)?)"), shown)
        assert found, shown
        assert all(holds(*map(float, numbers)) for numbers in found), shown


STATE = """
import random, sys, warnings
import numpy, pyro, torch
from pyro.settings import get

def state():
    return {
        "dtype": torch.get_default_dtype(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(numpy.random.get_state()),
        "random": random.getstate(),
        "validation": torch.distributions.Distribution._validate_args,
        "pyro validation": pyro.poutine.util.is_validation_enabled(),
        "pyro": get(),
        "filters": list(warnings.filters),
        "store": list(pyro.get_param_store().keys()),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }

import pyro.contrib.autoname, pyro.distributions, pyro.infer  # what is imported lazily is not ours
before = state()
import pyrodgm, pyrodgm.bijectors, pyrodgm.energy, pyrodgm.evaluation, pyrodgm.guides, pyrodgm.implicit
import pyrodgm.kernels, pyrodgm.latent, pyrodgm.objectives, pyrodgm.tractable
after = state()
changed = [k for k in before if before[k] != after[k]]
assert not changed, changed
heavy = {"lightning_fabric", "matplotlib", "sklearn", "pandas", "arviz", "jsonargparse"} & set(sys.modules)
assert not heavy, heavy
"""


def test_import_changes_no_global_state_and_imports_nothing_heavy():
    python(["-W", "error", "-c", STATE])


TIME = "import time, torch, pyro, pyro.infer; t = time.perf_counter(); import pyrodgm; print(time.perf_counter() - t)"


def test_import_is_quick():
    """The one timed test: the best of three, beside torch and Pyro; it takes 0.1 s on a busy core."""
    assert min(float(python(["-c", TIME])) for _ in range(3)) < 0.3
