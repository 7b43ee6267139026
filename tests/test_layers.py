"""Imports go downwards only, prediction and measurement stay apart, and heavy packages wait until they are needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vgjax

TOP = Path(vgjax.__file__).parent
FLOORS = [  # from the bottom to the top; a room may import its own floor and those below
    "names config environment files stopping layers",
    "settings grid activations initializers dense cadence",
    "dataset model optim octaves stats theory profiles ensemble jacobian",
    "units idx tfds_builders",
    "families",
    "data",
    "checks batches history capacity parallel machines",
    "checkpoint records chunks",
    "folder train watching",
    "divergence",
    "programs",
    "loop",
    "probe sweep_plan",
    "sweeps",
    "analysis case draws maps reruns",
    "trials verdicts signal_rules step_rules figures map_figures report",
    "clinic diagnosis",
    "show",
    "progress",
    "options",
    "training commands",
    "cli __main__",
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms.split()}
ROOMS = sorted(path.stem for path in TOP.glob("*.py") if path.stem != "__init__")
APART = {  # measurement and prediction meet in analysis alone
    room: {"train", "model", "stats", "units", "loop", "optim", "batches", "history", "parallel", "dataset", "data"}
    for room in ("theory", "profiles", "ensemble", "jacobian")
}
MEASURING = [
    "train",
    "programs",
    "chunks",
    "loop",
    "probe",
    "model",
    "dense",
    "stats",
    "units",
    "octaves",
    "batches",
    "history",
    "parallel",
    "folder",
    "records",
    "checkpoint",
]
APART |= {room: {"theory", "profiles", "ensemble", "jacobian"} for room in MEASURING}
HEAVY = {"tensorflow", "tensorflow_datasets", "matplotlib", "clu"}


def imports_of(room, only_at_module_level=False):
    """Full names of the modules that a room imports, wherever in it."""
    tree = ast.parse((TOP / f"{room}.py").read_text())
    inside = {child for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for child in ast.walk(node)}
    names = set()
    for node in ast.walk(tree):
        if only_at_module_level and node in inside:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room}: imports are written in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_of(room):
    """The rooms among them."""
    parts = [name.split(".") for name in imports_of(room)]
    return {p[1] for p in parts if p[0] == "vgjax" and len(p) > 1 and p[1] in ROOMS}


def test_the_reader_of_imports_reads():
    """The checks below would see an import of either form."""
    assert {"names", "config"} <= rooms_of("settings") and {"parallel", "families", "config"} <= rooms_of("train")
    assert "jax" in {name.split(".")[0] for name in imports_of("environment")}
    assert "jax" not in {name.split(".")[0] for name in imports_of("environment", only_at_module_level=True)}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_downwards(room):
    """Every room has its floor, and imports nothing from above it."""
    assert room in FLOOR, f"which floor is {room} on?"
    assert {other for other in rooms_of(room) if FLOOR[other] > FLOOR[room]} == set()


@pytest.mark.parametrize("room", APART)
def test_prediction_and_measurement_are_apart(room):
    """So that their agreement is evidence."""
    reached, todo = set(), [room]
    while todo:
        new = rooms_of(todo.pop()) - reached
        reached |= new
        todo += new
    assert not reached & APART[room]


@pytest.mark.parametrize("room", ROOMS)
def test_heavy_packages_are_imported_inside_functions(room):
    """TensorFlow, TFDS, CLU and matplotlib: at module level nowhere but in the rooms of figures."""
    allowed = {"matplotlib"} if room in ("figures", "map_figures") else set()
    assert {name.split(".")[0] for name in imports_of(room, only_at_module_level=True)} & HEAVY <= allowed


def modules_after(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_of_the_package_is_light():
    """`import vgjax` brings neither JAX nor TensorFlow nor matplotlib."""
    assert not modules_after("import vgjax; vgjax.__version__; dir(vgjax)") & {*HEAVY, "jax", "flax", "xarray"}


def test_import_of_the_engine_leaves_tensorflow_out():
    """Only a writer or a TFDS set needs TensorFlow, and only a figure matplotlib."""
    assert not modules_after("import vgjax; vgjax.run") & HEAVY


@pytest.mark.parametrize(
    "code",
    [
        "from vgjax import run, Config",
        "import vgjax; vgjax.run; run = vgjax.run",
        "import vgjax.training.tensorboard, vgjax.command.cli; from vgjax import run",
    ],
)
def test_run_is_the_function(code):
    """`vgjax.run` is the function at every look."""
    check = "import inspect\nassert inspect.isfunction(run), run"
    modules_after(f"{code}\n{check}")


def test_public_names_exist():
    """Everything in `__all__` can be had, and nothing else is invented."""
    for name in vgjax.__all__:
        assert getattr(vgjax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vgjax.nothing
