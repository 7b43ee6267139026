"""A disk that fills up or turns read-only, a folder that vanishes: one line, and what was saved goes on bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax.numpy as jnp
import pytest
import small

import vgjax.command.progress
import vgjax.training.folder
from vgjax import run
from vgjax.command.cli import main
from vgjax.training import checkpoint, history
from vgjax.training.folder import claimed
from vgjax.training.tensorboard import Records

pytestmark = pytest.mark.usefixtures("an_epoch_a_chunk")
TRAIN = ["train", "--dataset", "iris", "--hidden", "8", "6", "--activation", "tanh", "--batch-size", "25"]
TRAIN += ["--epochs", "4", "--cadence", "every(3)"]
LAST = 24  # steps, in chunks of 6
GRID = """
{dataset: iris, hidden: [8, 6], batch_size: 25, epochs: 4, cadence: every(3), product: {learning_rate: [0.1, 0.2]}}
"""
FULL, READ_ONLY = "No space left on device", "Read-only file system"


class Disk(type(Path())):
    """A small file system of its own."""

    def fill(self, free: int) -> None:
        """Leave so many bytes."""
        with (self / "filling").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while os.statvfs(self).f_bavail * os.statvfs(self).f_frsize > free:
                file.write(b"x" * 4096)

    def empty(self) -> None:
        """Give the room back."""
        (self / "filling").unlink()

    def remount(self, options: str) -> None:
        """Such as ro."""
        subprocess.run(["mount", "-o", f"remount,{options}", self], check=True)


@pytest.fixture
def disk(tmp_path):
    """One of 20 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "vgjax-test", path], capture_output=True)
    if made.returncode:
        pytest.skip("a file system can only be mounted as root")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The history of a run of the same command."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main([*TRAIN, "--tensorboard", "none", "--out", str(folder)]) == 0
    return history.load(folder)


@pytest.fixture
def at_step(monkeypatch):
    """Have something happen when a chunk has landed; a checkpoint is saved after each."""
    monkeypatch.setattr(vgjax.training.folder, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)

    def arrange(step, do):
        def update(self, part, *rest):
            if part["evaluated_at"].values[-1] == step:
                do()

        monkeypatch.setattr(vgjax.command.progress.ProgressBar, "update", update)

    return arrange


def refused(capfd, arguments):
    """The one line on stderr, of the process and of whatever thread in it."""
    capfd.readouterr()
    assert main([str(word) for word in arguments]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and said.startswith("vgjax: "), said
    return said


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_full_at_the_start(disk, capfd, undisturbed):
    """Not even the config can be written: nothing is begun, and the same command begins when there is room."""
    disk.fill(0)
    out = disk / "run"
    assert FULL in refused(capfd, [*TRAIN, "--tensorboard", "none", "--out", out])
    assert not (out / "config.yaml").exists()
    disk.empty()
    assert main([*TRAIN, "--tensorboard", "none", "--out", str(out)]) == 0
    assert small.identical(history.load(out), undisturbed)


@pytest.mark.parametrize(
    ("step", "free", "tensorboard"),
    [
        (6, 0, "none"),
        (12, 8192, "none"),
        (12, 140_000, "none"),
        (12, 30_000, "all"),
        (LAST, 0, "all"),
        (LAST, 80_000, "none"),
    ],
)
def test_full_in_the_middle(disk, capfd, at_step, undisturbed, step, free, tensorboard):
    """In the history, a checkpoint's or TensorBoard's thread, at the end: one line names it and how to go on."""
    out = disk / "run"
    train = [*TRAIN, "--tensorboard", tensorboard, "--out", out]
    at_step(step, lambda: disk.fill(free))
    said = refused(capfd, train)
    assert (
        said.startswith(f"vgjax: {out}") and f": {FULL}; stopped; go on with: vgjax train --resume --out {out}" in said
    )
    disk.empty()
    at_step(-1, None)
    assert main([*map(str, train), "--resume"]) == 0
    assert small.identical(history.load(out), undisturbed)
    assert not [path for path in out.rglob("*") if "tmp" in path.name] and (out / "signal.png").exists()


def test_sweep_on_a_full_disk(disk, capfd, at_step, tmp_path):
    """Said again when there is room, it has the history of an undisturbed one."""
    grid, out = tmp_path / "grid.yaml", disk / "sweep"
    grid.write_text(GRID)
    assert main(["sweep", str(grid), "--out", str(tmp_path / "whole")]) == 0
    disk.fill(0)
    assert FULL in refused(capfd, ["sweep", grid, "--out", out])
    disk.empty()
    at_step(12, lambda: disk.fill(0))
    said = refused(capfd, ["sweep", grid, "--out", out])
    assert f": {FULL}; stopped; go on with: vgjax sweep {grid} --out {out}" in said
    disk.empty()
    at_step(-1, None)
    assert main(["sweep", str(grid), "--out", str(out)]) == 0
    assert small.identical(history.load(out), history.load(tmp_path / "whole"))


def test_checkpoints_in_the_background(disk):
    """What failed there is raised at the next look, and at the end, as an error of the system; the last one stays."""
    tree = {"w": jnp.arange(30_000.0)}
    manager = checkpoint.open_checkpoints(disk)
    checkpoint.save(manager, 1, tree)
    checkpoint.finish(manager)
    disk.fill(8192)
    with pytest.raises(OSError, match=FULL) as caught:
        checkpoint.save(manager, 2, tree)
        while True:
            checkpoint.check(manager)
    assert caught.value.filename == str(disk / "checkpoints") and "\n" not in str(caught.value)
    disk.empty()
    again = checkpoint.open_checkpoints(disk)
    step, back = checkpoint.restore(again, tree)
    again.close()
    assert step == 1 and (back["w"] == tree["w"]).all()


@pytest.mark.parametrize("free", [0, 40_000])
def test_records_in_the_background(disk, tmp_path, capfd, free):
    """TensorBoard's files and the log: raised at the next chunk or the end, and nothing said besides."""
    part = run(small.CONFIG, seeds=2, dataset=small.dataset()).history.isel(evaluation=slice(0, 1))
    (disk / "run").mkdir()
    records = Records(disk / "run")
    disk.fill(free)
    with pytest.raises(OSError, match=FULL), warnings.catch_warnings():
        for _ in range(20):
            records.write(part)
            records._written[-1].exception()
    with contextlib.suppress(OSError):
        records.close()
    assert capfd.readouterr().err == ""


def test_read_only(disk, capfd, tmp_path, monkeypatch):
    """Every command that writes says so in one line; nothing has changed."""
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(GRID)
    out = disk / "run"
    train = [*TRAIN, "--tensorboard", "none", "--out"]
    assert main([*train, str(out)]) == 0
    assert main(["sweep", "grid.yaml", "--out", str(disk / "sweep")]) == 0
    before = contents(disk)
    disk.remount("ro")
    for line in (
        [*train, disk / "another"],
        [*train, out, "--resume"],
        ["sweep", "grid.yaml", "--out", disk / "another"],
        ["sweep", "grid.yaml", "--out", disk / "sweep"],
        ["diagnose", out],
        ["predict", "--dataset", "iris", "--hidden", "8", "--batch-size", "25", "--draws", "2", "--out", disk / "p"],
    ):
        said = refused(capfd, line)
        assert said.startswith(f"vgjax: {disk}") and READ_ONLY in said
    disk.remount("rw")
    assert contents(disk) == before


def test_predict_on_a_full_disk(disk, capfd):
    """The picture that could not be written is named, and no half of it is left."""
    disk.fill(8192)
    predict = ["predict", "--dataset", "iris", "--hidden", "8", "--batch-size", "25", "--draws", "2"]
    assert refused(capfd, [*predict, "--out", disk / "p"]) == f"vgjax: {disk / 'p.png'}: {FULL}\n"
    assert [path.name for path in disk.iterdir()] == ["filling"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["list", "clips"], ["train", "--help"]], ids=" ".join)
def test_a_full_device_behind_stdout(words, unbuffered):
    """Of a program's last words too, which a process holds back unless told otherwise."""
    with open("/dev/full", "w") as device:
        line, environment = [sys.executable, "-m", "vgjax", *words], os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(line, env=environment, stdout=device, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, f"vgjax: file: {FULL}\n")


@pytest.mark.parametrize(("then", "tensorboard"), [("nothing", "all"), ("another", "none")])
def test_the_folder_vanishes(tmp_path, capfd, at_step, then, tensorboard):
    """It is not made again, and another that has its name by then is left alone."""
    out, other = tmp_path / "run", tmp_path / "other"

    if then == "another":
        run(small.CONFIG, dataset=small.dataset(), folder=other, tensorboard="none")
    before = {out / path.relative_to(other): content for path, content in contents(other).items()}

    def vanish():
        while list(out.glob("checkpoints/*tmp*")):  # or Orbax makes what it is about to write into
            time.sleep(0.01)
        while out.exists():  # TensorBoard's thread may be writing
            shutil.rmtree(out, ignore_errors=True)
        if then == "another":
            other.rename(out)

    at_step(12, vanish)
    said = refused(capfd, [*TRAIN, "--tensorboard", tensorboard, "--out", out])
    assert said.startswith(f"vgjax: {out}: the folder has vanished")
    assert contents(out) == before and out.exists() == (then == "another")


def test_two_processes(tmp_path, capfd):
    """The second is refused, whatever it wants to do there."""
    out = tmp_path / "run"
    out.mkdir()
    with claimed(out):
        said = refused(capfd, [*TRAIN, "--out", out])
    assert said == f"vgjax: {out} is in use by another process; wait for it, or choose another folder\n"
    assert not list(out.iterdir())


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_another_version(tmp_path, capfd, command):
    """Named, and nothing is written over; nor where the file that tells the version is damaged."""
    grid, out = tmp_path / "grid.yaml", tmp_path / "out"
    grid.write_text(GRID)
    line = [*TRAIN, "--tensorboard", "none"] if command == "train" else ["sweep", str(grid)]
    assert main([*line, "--out", str(out)]) == 0
    file = out / "environment.json"
    made_with = json.loads(file.read_text())
    ours = made_with["versions"]["vgjax"]
    again = [*line, "--out", out, *(["--resume"] if command == "train" else [])]
    file.write_text(json.dumps(made_with | {"versions": {"vgjax": "0.0.9"}}))
    before = contents(out)
    said = f"vgjax: {out} was made with vgjax 0.0.9, this is {ours}; choose another folder\n"
    assert refused(capfd, again) == said and contents(out) == before
    file.write_text("{")
    before = contents(out)
    assert f"{file} is damaged or missing" in refused(capfd, again) and contents(out) == before
