"""Real `vgjax` processes, killed where their folder says they are: the driver of test_kills.py.

A process is stopped (SIGSTOP) before it is killed, so that the phase it is in can be read from the files it leaves.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
from compiling import FLAGS
from forks import Fork
from paths import TOP

from vgjax import load

PATIENCE = 400.0  # seconds
# The command itself, with a chunk an epoch and a checkpoint at each; a slice's last checkpoint is kept to be looked at.
PROGRAM = """
import os, shutil, vgjax.training.chunk_plan, vgjax.training.folder
from vgjax.__main__ import main

def remove(path, *options, rmtree=shutil.rmtree, **more):
    last = os.path.join(os.path.dirname(path), "last")
    if os.path.basename(path) == "checkpoints" and os.path.exists(path) and not os.path.exists(last):
        os.rename(path, last)
    else:
        rmtree(path, *options, **more)

shutil.rmtree = remove
vgjax.training.folder.SECONDS_BETWEEN_CHECKPOINTS = 0.0
vgjax.training.chunk_plan.STEPS_AT_ONCE = 1
main()
"""


def environment(cache: Path, devices: int) -> dict[str, str]:
    """Programs are compiled once: what is resumed finds them in JAX's own cache, as a user's process may."""
    own = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(TOP), os.environ.get("PYTHONPATH", "")]),
        "XLA_FLAGS": FLAGS,
    }
    return {**os.environ, **own}


@dataclass
class Command:
    """A command line less its --out, where it is said, and what its processes find around them."""

    words: list[str]
    where: Path
    environment: dict[str, str]
    took: float = 0.0  # seconds, undisturbed

    def start(self, folder: Path) -> Fork:
        """A process that begins or goes on."""
        words = [*self.words, "--out", str(folder)]
        if self.words[0] == "train" and (folder / "config.yaml").exists():
            words.append("--resume")
        return self.process(words)

    def process(self, words: list[str], program: str = PROGRAM) -> Fork:
        """That line, by default with a chunk an epoch and a checkpoint at each."""
        return Fork(words, self.where, self.environment, program)

    def users(self, words: list[str]) -> subprocess.Popen:
        """That line as a user starts it."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-m", "vgjax", *words], cwd=self.where, env=self.environment, **pipes)

    def finish(self, folder: Path) -> None:
        """To the end, undisturbed."""
        process = self.start(folder)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors


def phases(folder: Path, since: float) -> set[str]:
    """What the process that began then is doing in the folder, as far as files tell."""
    runs = [folder, *folder.glob("slices/*")]
    if not changed([run / ".lock" for run in runs], since):
        return {"start"}
    found = {"chunk"} if landed(folder, since) else {"compile"}
    if changed([folder / "history.nc"], since):
        found = {"end"}
    if seen(runs, "checkpoints/*.orbax-checkpoint-tmp*"):
        found.add("checkpoint")
    tables = ("statistics.tmp", "evaluations.tmp", "lanes.tmp")
    if changed(seen(runs, "history/*.tmp", "history.tmp", *tables), since):
        found.add("history")
    if 0 < logged(folder) < len(seen([folder], "history/until-*.nc")):
        found.add("tensorboard")  # a chunk has landed, and its events are not all written
    return found


def readable(folder: Path) -> None:
    """Whatever history was left is whole."""
    for run in [folder, *folder.glob("slices/*")]:
        if (run / "history.nc").exists() or list(run.glob("history/until-*.nc")):
            load(run)


def landed(folder: Path, since: float) -> list[Path]:
    """The chunks written after that moment, and the histories."""
    return changed(seen([folder, *folder.glob("slices/*")], "history/until-*.nc", "history.nc"), since)


def seen(folders: Sequence[Path], *patterns: str) -> list[Path]:
    """What matches, of folders from which files come and go."""
    found = []
    for folder in folders:
        for pattern in patterns:
            with contextlib.suppress(FileNotFoundError):
                found += folder.glob(pattern)
    return found


def changed(paths: list[Path], since: float) -> list[Path]:
    """Those of the files that were written after that moment."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime > since:
                found.append(path)
    return found


def logged(folder: Path) -> int:
    """How many chunks train.log tells of: their events are written first."""
    log = folder / "train.log"
    return log.read_text().count("\n") if log.exists() else 0


class Kill(NamedTuple):
    """When a process was killed, what for, and what it was doing."""

    sought: str
    seconds: float  # since its start
    found: set[str]


WORK = ("chunk", "checkpoint", "history")


def kill(command: Command, folder: Path, sought: str, rng: random.Random) -> Kill | None:
    """Start a process and kill it in a phase, or at "any" moment; None: it came to its end before."""
    since, began = time.time(), time.monotonic()
    process = command.start(folder)
    its = psutil.Process(process.pid)
    wanted = rng.randint(1, 2)  # chunks of this process, where a phase is one of work
    if sought in ("any", "start"):
        time.sleep(rng.uniform(0.0, 0.8 if sought == "any" else 0.2) * command.took)
    while process.poll() is None:
        assert time.monotonic() < began + PATIENCE, f"never in phase {sought}"
        now = phases(folder, since)
        if sought not in ("any", *now) or (sought in WORK and len(landed(folder, since)) < wanted):
            time.sleep(0.002)
            continue
        time.sleep(rng.uniform(0.0, 0.5 if sought == "compile" else 0.004))
        process.send_signal(signal.SIGSTOP)
        while process.poll() is None and its.status() != psutil.STATUS_STOPPED:
            time.sleep(0.0005)
        now = phases(folder, since)
        if process.poll() is None and sought in ("any", *now):
            process.kill()
            process.communicate()
            readable(folder)
            return Kill(sought, time.monotonic() - began, now)
        process.send_signal(signal.SIGCONT)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return None


def chain(command: Command, top: Path, wanted: list[str], seed: str) -> tuple[list[Path], list[Kill]]:
    """Kill, resume, kill, … and at last let it end; a run that ends before is followed by another.

    Returns:
      The folders, all of finished runs, and the kills.
    """
    rng, folders, kills = random.Random(seed), [top / "0"], []
    while len(kills) < len(wanted):
        if one := kill(command, folders[-1], wanted[len(kills)], rng):
            kills.append(one)
        else:
            folders.append(top / str(len(folders)))
    command.finish(folders[-1])
    return folders, kills
