"""Killed at any moment, a run or sweep that is resumed is the undisturbed one, to the last bit; a signal is heard."""

from __future__ import annotations

import random
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr
from kills import Command, chain, environment
from test_records import read_events

from vgjax import load

TRAIN = "train --dataset iris --hidden 5 4 --batch-size 50 --epochs 60 --seeds 2 --optimizer adam --learning-rate 0.01"
GRID = """
dataset: iris
hidden: [5, 4]
batch_size: 50
epochs: 20
optimizer: adam
record: [norms, gradient_histogram]
seeds: 2
product:
  learning_rate: [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
"""
PHASES = {  # twenty each, in chains of five
    "train": ["start", "compile", "chunk", "checkpoint", "history", "tensorboard"] * 3 + ["any"] * 2,
    "sweep": ["start", "compile", "chunk", "checkpoint", "history"] * 3 + ["any"] * 5,
}
CHAINS = 4


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Both, and the folders of their undisturbed runs."""
    top = tmp_path_factory.mktemp("undisturbed")
    (top / "grid.yaml").write_text(GRID)
    words = {"train": [*TRAIN.split(), "--record", "norms", "gradient_histogram"], "sweep": ["sweep", "grid.yaml"]}
    words["sweep"] += ["--lanes", "4"]
    found = {}
    for name, devices in (("train", 1), ("sweep", 2)):
        command = Command(words[name], top, environment(top / "cache", devices))
        command.finish(top / f"{name}-first")  # which compiles
        began = time.monotonic()
        command.finish(top / name)
        command.took = time.monotonic() - began
        found[name] = command, top / name
    return found


@pytest.fixture(scope="module")
def killed(commands, tmp_path_factory):
    """Of each command: the folders in the end, and twenty kills."""
    jobs = {}
    with ThreadPoolExecutor(2) as pool:
        for name, wanted in PHASES.items():
            wanted, n = random.Random(name).sample(wanted, len(wanted)), len(wanted) // CHAINS
            for i in range(CHAINS):
                top = tmp_path_factory.mktemp(f"{name}-{i}")
                some = wanted[i * n : (i + 1) * n]
                jobs[name, i] = pool.submit(chain, commands[name][0], top, some, f"{name} {i}")
    found = {}
    for name in PHASES:
        folders, kills = zip(*(jobs[name, i].result() for i in range(CHAINS)), strict=True)
        found[name] = [folder for some in folders for folder in some], [kill for some in kills for kill in some]
        for kill in found[name][1]:
            print(f"{name}: {kill.seconds:6.2f} s  sought {kill.sought}: {' '.join(sorted(kill.found))}")
    return found


@pytest.mark.parametrize("name", PHASES)
def test_twenty_kills_in_every_phase(killed, name):
    """No process came to its end before, and every phase was hit."""
    _, kills = killed[name]
    assert len(kills) == 20
    hit = [phase for kill in kills for phase in kill.found]
    assert {*PHASES[name]} - {"any"} <= {*hit}


@pytest.mark.parametrize("name", PHASES)
def test_killed_is_undisturbed(commands, killed, name):
    """History, tables, parameters, optimizer state and keys are those of the undisturbed run; no file is left over."""
    _, whole = commands[name]
    folders, _ = killed[name]
    assert len(folders) >= CHAINS
    for folder in folders:
        same_run(folder, whole)
        assert files(folder) == files(whole)


def same_run(folder, whole):
    """Every number on disk is the same, bit for bit."""
    xr.testing.assert_identical(load(folder), load(whole))
    for table in ("statistics.csv", "evaluations.csv", "lanes.csv"):
        for path in whole.rglob(table):
            assert (folder / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    for path in [*whole.rglob("checkpoints"), *whole.rglob("last")]:
        there, here = last_checkpoint(path), last_checkpoint(folder / path.relative_to(whole))
        assert {type(x) for x in there.values()} == {np.ndarray} and any("opt_state" in name for name in there)
        assert {name: (x.dtype, x.tobytes()) for name, x in here.items()} == {
            name: (x.dtype, x.tobytes()) for name, x in there.items()
        }


def last_checkpoint(path):
    """{where: array} of a run's latest."""
    import jax
    import orbax.checkpoint as ocp

    latest = max((one for one in path.iterdir() if one.name.isdigit()), key=lambda one: int(one.name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ocp.StandardCheckpointer().restore(latest / "state")
    return {jax.tree_util.keystr(at): np.asarray(x) for at, x in jax.tree_util.tree_leaves_with_path(tree)}


def files(folder):
    """What there is, less what is within a checkpoint, and the names of event files."""
    found = {path.relative_to(folder) for path in folder.rglob("*")}
    names = {path.parent / "events" if "tfevents" in path.name else path for path in found}
    return {p for p in names if not any(one.name in ("checkpoints", "last") for one in list(p.parents)[1:])}
