"""`vgjax sweep` says what is wrong in one line, before anything is written; stopped, it says how to go on."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import environment

from vgjax import load
from vgjax.command.cli import main

GRID = """
dataset: iris
hidden: [8, 8]
batch_size: 25
epochs: 2
product:
  learning_rate: [0.1, 0.2]
"""
BAD = [
    ("product:", "prodct:", "", "unknown field 'prodct'; did you mean 'product'"),
    ("learning_rate:", "learnin_rate:", "", "unknown field 'learnin_rate' in product; did you mean 'learning_rate'"),
    ("[0.1, 0.2]", "[]", "", "learning_rate has no values; allowed: at least one"),
    ("[0.1, 0.2]", "[0.1, -1]", "", "learning_rate -1.0 is not allowed; allowed: 0 or more"),
    ("batch_size: 25", "batch_size: 250", "", "batch_size 250 is more than the 150 training examples"),
    ("epochs: 2", "activation: tahn", "", "unknown activation 'tahn'; did you mean 'tanh'"),
    ("epochs: 2", "cadence: at(100000)", "", "names no step of this run; allowed: 0 to"),
    ("", "", "--lanes 0", "lanes 0 is not allowed; allowed: whole numbers from 1"),
    ("", "", "--plot learning_rate", "plot 'learning_rate' is not allowed; allowed: X,VALUE or X,Y,VALUE"),
    ("", "", "--plot learning_rat,validation_loss", "did you mean 'learning_rate'"),
    ("", "", "--plot learning_rate,validation_los", "did you mean 'validation_loss'"),
    ("", "", "--plot seed,validation_loss", "a cell of seed would mix learning_rate (0.1, 0.2); allowed: plot over it"),
    ("epochs: 2", "record: [norms]", "--plot learning_rate,delta_rms", "unknown value 'delta_rms'; allowed: loss"),
    ("", "", "--devices 99", "99 devices asked for; allowed: 1 to"),
    ("", "", "--shard batches", "--shard"),
]


@pytest.mark.parametrize("old, new, options, message", BAD)
def test_bad_input(tmp_path, monkeypatch, capsys, old, new, options, message):
    """One line, status 2, and no folder."""
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(GRID.replace(old, new) if old else GRID)
    assert main(["sweep", "grid.yaml", *options.split()]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]


def test_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "grid.yaml"]) == 2
    assert capsys.readouterr().err == "vgjax: grid.yaml: No such file or directory\n"


@pytest.mark.slow
def test_stopped_and_gone_on(tmp_path, monkeypatch, capsys):
    """SIGINT lets the chunk land and says the command that goes on; that command ends the sweep.

    Meanwhile nobody else gets into the folder.
    """
    (tmp_path / "grid.yaml").write_text(
        GRID.replace("epochs: 2", "epochs: 60\ncadence: every(1000)").replace("25", "4")
    )
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "vgjax", "sweep", "grid.yaml", "--lanes", "1"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    folder, deadline = tmp_path / "sweeps" / "grid", time.monotonic() + 120
    while not list(folder.glob("slices/*/history/until-*.nc")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert main(command[3:]) == 2
    said = capsys.readouterr().err
    assert "sweeps/grid is in use by another process; wait for it" in said and said.count("\n") == 1
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    [advice] = re.findall(r"stopped; go on with: vgjax (.*)\n", errors)
    assert advice == "sweep grid.yaml --out sweeps/grid --lanes 1"
    assert not (folder / "history.nc").exists() and "2, of which 0 are finished" in out
    subprocess.run([*command[:3], *advice.split()], cwd=tmp_path, env=environment(1), check=True, timeout=200)
    assert load(folder)["learning_rate"].values.tolist() == [0.1, 0.2]
    assert load(folder)["evaluated_at"].values[-1] == 60 * 37
