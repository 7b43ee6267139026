"""Killed at any moment, a run or sweep that is resumed is the undisturbed one, to the last bit; a signal is heard."""

from __future__ import annotations

import contextlib
import random
import re
import shlex
import shutil
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import small
from event_files import read_events, values_of
from forks import COMMAND
from kills import PATIENCE, Command, chain, environment, kill, phases

from vgjax import load

TRAIN = "train --dataset iris --hidden 5 4 --batch-size 50 --epochs 14 --seeds 2 --optimizer adam --learning-rate 0.01"
GRID = """
dataset: iris
hidden: [5, 4]
batch_size: 50
epochs: 7
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
        found[name] = [folder for some in folders for folder in some], [one for some in kills for one in some]
        for one in found[name][1]:
            print(f"{name}: {one.seconds:6.2f} s  sought {one.sought}: {' '.join(sorted(one.found))}")
    return found


@pytest.mark.parametrize("name", PHASES)
def test_twenty_kills_in_every_phase(killed, name):
    """No process came to its end before, and every phase was hit."""
    _, kills = killed[name]
    assert len(kills) == 20
    hit = [phase for one in kills for phase in one.found]
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


def same_run(folder, whole, ended=()):
    """Every number on disk is the same, bit for bit; slices `ended` by the program as users start it kept no state."""
    assert small.identical(load(folder), load(whole))
    for table in ("statistics.csv", "evaluations.csv", "lanes.csv"):
        for path in whole.rglob(table):
            assert (folder / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    kept = [path.relative_to(whole) for name in ("checkpoints", "last") for path in whole.rglob(name)]
    for path in kept:
        if path.parent in ended:
            continue
        there, here = last_checkpoint(whole / path), last_checkpoint(folder / path)
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


# TensorBoard


def test_tensorboard_has_every_step_once(commands, killed):
    """Each tag of each run, read by TensorBoard: steps and values of the undisturbed run."""
    wanted = told(read_events(commands["train"][1]))
    assert len(wanted) == 8 and all(wanted.values())
    for folder in killed["train"][0]:
        assert told(read_events(folder)) == wanted


def told(accumulators):
    """{run: {tag: [(step, value)]}}, of no step twice."""
    found = {name: {tag: values_of(one, tag) for tag in one.Tags()["tensors"]} for name, one in accumulators.items()}
    for tags in found.values():
        for tag, values in tags.items():
            steps = [step for step, _ in values]
            assert steps == sorted(set(steps)), tag
            tags[tag] = [(step, value.tobytes()) for step, value in values if not tag.startswith("_hparams")]
    return found


def test_a_tensorboard_that_is_reading_doubles_no_step(commands, tmp_path):
    """It was there before the kill, and saw the event files vanish and others come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    command, whole = commands["train"]
    folder, rng = tmp_path / "run", random.Random(1)
    reader, over = EventMultiplexer(tensor_size_guidance={"tensors": 0}), threading.Event()

    def look():
        with contextlib.suppress(ValueError):  # no folder yet
            reader.AddRunsFromDirectory(str(folder / "tensorboard"))
        reader.Reload()

    def keep_looking():
        while not over.wait(0.1):
            look()

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(keep_looking)
        try:
            for phase in ("tensorboard", "chunk", "tensorboard"):
                kill(command, folder, phase, rng)
            command.finish(folder)
        finally:
            over.set()
        looking.result()
    look()
    found = {name: reader.GetAccumulator(name) for name in reader.Runs()}
    assert told(found) == told(read_events(whole))


# Signals


@pytest.mark.parametrize(
    ("name", "number", "phase", "times"),
    [
        ("train", signal.SIGINT, "chunk", 1),
        ("train", signal.SIGTERM, "compile", 1),
        ("sweep", signal.SIGINT, "compile", 1),
        ("sweep", signal.SIGTERM, "chunk", 1),
        ("train", signal.SIGTERM, "chunk", 2),
        ("sweep", signal.SIGINT, "chunk", 2),
    ],
)
def test_a_stop_says_how_to_go_on(commands, tmp_path, name, number, phase, times):
    """One line: its command leads to the undisturbed run. What had landed is saved; by a second signal, or not."""
    command, whole = commands[name]
    folder, since = tmp_path / "in here", time.time()
    process = command.process([*command.words, "--out", str(folder)], COMMAND)
    while phase not in phases(folder, since):
        assert process.poll() is None, process.errors()
        time.sleep(0.001)
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.01)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number, errors
    [said] = re.findall(r"^stopped; go on with: vgjax (.*)\n$", errors)
    if times == 1:
        stopped = {file.parents[1] for file in folder.rglob("history/until-*.nc")}
        assert len(stopped) == 1 or (name, phase) == ("sweep", "chunk")  # whose slice can have ended meanwhile
        for run in stopped:
            steps = [int(path.name) for path in (run / "checkpoints").iterdir()]
            assert load(run)["evaluated_at"].values[-1] == max(steps)
    ended = [file.parent.relative_to(folder) for file in folder.rglob("history.nc")]
    again = command.process(shlex.split(said))
    _, errors = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, errors
    same_run(folder, whole, ended)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_wait_for_the_chunk(commands, tmp_path, number):
    """Which takes several seconds, and would have to land first."""
    command, folder = commands["train"][0], tmp_path / "run"
    words = "train --dataset digits --batch-size 1 --hidden 512 512 512 --seeds 2 --record norms --tensorboard none"
    process = command.process([*words.split(), "--out", str(folder)], COMMAND)
    try:
        while not (landed := len(list(folder.glob("history/until-*.nc")))):
            assert process.poll() is None, process.errors()
            time.sleep(0.05)
        process.send_signal(number)
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(number)
        asked = time.monotonic()
        _, errors = process.communicate(timeout=PATIENCE)
        assert time.monotonic() - asked < 2.0
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert errors.startswith("stopped; go on with: vgjax train --resume") and errors.count("\n") == 1
    assert len(list(folder.glob("history/until-*.nc"))) == landed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "line", ["train {}", "sweep grid.yaml", "predict {}", "diagnose {folder}", "clinic he_normal", "show {}", "list"]
)
def test_a_signal_at_any_moment_is_no_traceback(commands, tmp_path, line, number):
    """During imports or at work: one line at most, and soon."""
    command, whole = commands["train"]
    network = "--dataset iris --hidden 30 30 30 30 --batch-size 50"
    shutil.copytree(whole, tmp_path / "run")
    words = line.format(network, folder=tmp_path / "run").split()
    rng = random.Random(f"{line} {number}")
    process = command.users(words)
    while not hears(process.pid, number):
        time.sleep(0.001)
    time.sleep(rng.uniform(0.0, 1.0) ** 2 * 6)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    if process.returncode != 0:  # else it was quicker
        assert process.returncode == 128 + number, errors
        assert errors.startswith("stopped") and errors.count("\n") == 1


def hears(pid, number):
    """Whether a process has a handler for a signal."""
    caught = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{pid}/status").read_text())[1]
    return bool(int(caught, 16) >> (number - 1) & 1)
