"""Imports go one way, prediction and measurement stay apart, and heavy packages wait until they are needed."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import grimp
import pytest
from paths import TOP

import vgjax

HEAVY = {"tensorflow", "tensorflow_datasets", "matplotlib", "clu"}
DRAWING = {"vgjax.figures", "vgjax.clinic.clinic_figures", "vgjax.sweeps.map_figures"}
MODULES = [module.name for module in pkgutil.walk_packages(vgjax.__path__, "vgjax.")]


def test_imports_go_one_way():
    """The order of the modules, the wall before theory, and no circles: the contracts stand in pyproject.toml."""
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_theory_reaches_four_modules_alone():
    """Whatever it imports, and whatever that imports."""
    graph = grimp.build_graph("vgjax", cache_dir=None)
    reached = graph.find_upstream_modules("vgjax.theory", as_package=True)
    assert reached == {f"vgjax.{name}" for name in ("config", "names", "activations", "initializers")}


def modules_after(code):
    """The modules that a process has imported after that code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.slow
def test_heavy_packages_wait():
    """No module but those that draw imports TensorFlow, TFDS, CLU or Matplotlib before a function of it needs them."""
    assert set(MODULES) > DRAWING
    light = [name for name in MODULES if name not in DRAWING]
    imported = modules_after(f"import {', '.join(light)}")
    assert set(light) <= imported and not imported & {*HEAVY, *DRAWING}


def test_import_of_the_package_is_light():
    """`import vgjax` and its wings bring neither JAX nor TensorFlow nor Matplotlib."""
    wings = [name for _, name, is_package in pkgutil.iter_modules(vgjax.__path__, "vgjax.") if is_package]
    imported = modules_after(f"import vgjax, {', '.join(wings)}; vgjax.__version__; dir(vgjax)")
    assert set(wings) <= imported and not imported & {*HEAVY, "jax", "flax", "xarray", "numpy"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "from vgjax import run, sweep, diagnose",
        "import vgjax; run, sweep, diagnose = vgjax.run, vgjax.sweep, vgjax.diagnose",
        "import vgjax.sweeps.sweep, vgjax.diagnosis.rules, vgjax.command.cli; from vgjax import run, sweep, diagnose",
    ],
)
def test_functions_are_not_hidden_by_modules(code):
    """Each is the function at every look, whatever was imported before."""
    modules_after(f"{code}\nimport inspect\nassert all(map(inspect.isfunction, (run, sweep, diagnose)))")


NAMES = [
    *("run", "sweep", "watch", "diagnose", "load", "rerun", "Config", "Hypers", "Dataset", "Grid", "Result"),
    *("theory.chi1", "theory.critical_point", "clinic.examine_initializer", "analysis.signals", "data.load"),
    *("data.Dataset", "diagnosis.RULES", "figures.write_signal", "config.Config"),
]


@pytest.mark.slow
def test_names_work_after_a_bare_import():
    """What README and docs name is there after `import vgjax`, each in a fork that has imported nothing else of it."""
    code = f"""
import os, jax, flax.linen, optax, orbax.checkpoint, xarray, matplotlib.pyplot, vgjax
for name in {NAMES}:
    if not (child := os.fork()):
        found = vgjax
        for part in name.split("."):
            found = getattr(found, part)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_public_names_exist():
    """Everything in `__all__` can be had, and nothing else is invented."""
    for name in vgjax.__all__:
        assert getattr(vgjax, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = vgjax.nothing
