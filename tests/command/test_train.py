"""`vgjax train` as its user sees it: progress, the table at the end, folders that are left alone, Ctrl-C."""

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import COMMAND, SMALL, refused

from vgjax.command import train
from vgjax.command.cli import main, parse
from vgjax.config import Config
from vgjax.settings import parse_seeds
from vgjax.training import history


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished small run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main([*SMALL, "--epochs", "3", "--seeds", "2", "--sigma-w", "1.5", "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_the_table_at_the_end_is_that_of_the_history(capsys, finished):
    assert main(["train", "--resume", "--out", str(finished), "--tensorboard", "none"]) == 0
    out, err = capsys.readouterr()
    found = history.load(finished)
    assert (found.sizes["lane"], list(found["step"].values)) == (2, [0, 3, 6, 8])
    for i, layer in enumerate(("layer_1", "layer_2")):
        rms = np.exp(np.log(found["gradient_rms"].astype(float)).mean("lane")).values[:, i]
        assert re.search(rf"^{layer} .* {rms[0]:.3g} +{rms[-1]:.3g} *$", out, re.M)
    accuracy = float(found["validation_accuracy"][:, -1].mean())
    assert f"validation accuracy {accuracy:.4f}, mean over 2 lanes" in out
    assert str(finished / "history.nc") in out and str(finished / "statistics.csv") in out
    assert "tensorboard" not in out
    assert err == ""  # there was nothing left to do


@pytest.mark.slow
def test_a_folder_with_a_run_is_left_alone(capsys, finished):
    same = [*SMALL, "--epochs", "3", "--seeds", "2", "--sigma-w", "1.5", "--out", str(finished)]
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert "holds this run already; go on with --resume" in refused(capsys, same)
    assert "epochs is 3 there, 4 here" in refused(capsys, [*same, "--epochs", "4"])
    assert "epochs is 3 there, 4 here" in refused(capsys, [*same, "--epochs", "4", "--resume"])
    assert "[0, 1] there, [0, 1, 2] here" in refused(
        capsys, ["train", "--resume", "--out", str(finished), "--seeds", "3"]
    )
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.slow
def test_the_saved_config_can_be_given_back(finished):
    Path("c.toml").write_text("hidden = [99]")
    assert (
        main(["train", "--config-file", str(finished / "config.yaml"), "--out", "again", "--tensorboard", "none"]) == 0
    )
    assert Path("again/config.yaml").read_text() == (finished / "config.yaml").read_text()
    same = ["gradient_rms", "validation_accuracy"]
    assert history.load("again")[same].equals(history.load(finished)[same])


@pytest.mark.slow
@pytest.mark.parametrize("content", ["a: [", "config: 3", "3"])
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_damaged_run_is_left_alone(capsys, content, resume):
    Path("run").mkdir()
    Path("run/config.yaml").write_text(content)
    assert "run" in refused(capsys, [*SMALL, "--out", "run", *resume])


def test_out_where_no_folder_can_be(capsys):
    Path("file").touch()
    assert "file" in refused(capsys, [*SMALL, "--out", "file"])
    assert "file" in refused(capsys, [*SMALL, "--out", "file/run"])


@pytest.mark.slow
def test_the_default_folder_says_what_is_in_it(monkeypatch):
    config = Config(dataset="./my data", activation="leaky_relu(0.2)", initializer="module:function")
    name = train.new_folder(config)
    assert re.fullmatch(r"runs/my_data-leaky_relu_0\.2-module_function-\d{8}-\d{6}", str(name))
    assert main([*SMALL, "--epochs", "1"]) == 0
    assert re.fullmatch(r"iris-relu-he_normal-\d{8}-\d{6}", next(Path("runs").iterdir()).name)


@pytest.mark.slow
def test_off_a_terminal_one_line_tells_how_it_ended(capsys):
    assert main([*SMALL, "--epochs", "2", "--out", "run"]) == 0
    err = capsys.readouterr().err
    assert re.fullmatch(r"step 6 of 6  loss [\d.]+  accuracy [\d.]+  first-layer RMS [\d.e-]+\n", err)


@pytest.mark.slow
def test_on_a_terminal_a_bar_and_nothing_else():
    terminal, far_end = pty.openpty()
    line = [*COMMAND, *SMALL[:-2], "--epochs", "4", "--out", "run"]
    done = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=far_end, env=os.environ | {"TERM": "xterm"}, text=True)
    os.close(far_end)
    seen = b""
    while piece := _read(terminal):
        seen += piece
    os.close(terminal)
    out = done.communicate()[0]
    assert done.returncode == 0
    assert f"tensorboard.main --logdir {Path('run/tensorboard')}" in out and list(Path("run/tensorboard").iterdir())
    frames = [frame for frame in re.split(r"[\r\n]|\x1b\[[\d;?]*[A-LsuhlK]", seen.decode()) if frame.strip()]
    shown = [re.sub(r"\x1b\[[\d;]*m", "", frame).strip() for frame in frames]
    bar, left = r"[━╸╺ ]+", r"(-:--:--|\d+:\d\d:\d\d)"
    numbers = r"loss [\d.]+  accuracy [\d.]+  first-layer RMS [\d.e-]+"
    assert [frame for frame in shown if not re.fullmatch(rf"{bar} *(\d+%)? *(compiling|{numbers} {left})", frame)] == []
    assert re.fullmatch(rf"{bar} 100% {numbers} 0:00:00", shown[-1])


def _read(terminal):
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.slow
def test_control_c_says_how_to_go_on():
    line = [*COMMAND, *SMALL, "--epochs", "1000000", "--seeds", "2", "--data-dir", "some where", "--out", "run"]
    running = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 40
    while not list(Path("run/history").glob("*.nc")) and time.monotonic() < until:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=40)
    assert (running.returncode, out) == (130, "")
    said = re.fullmatch(r"stopped; go on with: vgjax (train --resume --out run .*)\n", err)
    again = parse(shlex.split(said[1]))
    assert (again.config.epochs, parse_seeds(again.seeds)) == (1000000, (0, 1))
    assert (again.resume, again.data_dir, again.tensorboard) == (True, Path("some where"), "none")
    assert history.load("run")["loss"].sizes["lane"] == 2
    landed = int(history.load("run")["evaluated_at"].values[-1])
    assert (Path("run/checkpoints") / str(landed)).is_dir()  # what has landed is kept


@pytest.mark.slow
def test_what_is_too_large_is_said_in_one_line(capsys, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("INTERNAL: Out of memory allocating 10802042180 bytes.\nmore")

    monkeypatch.setattr(sys.modules["vgjax.training.loop"], "run", fails)
    assert main([*SMALL, "--out", "run"]) == 1
    assert re.fullmatch(r"vgjax: too large for this machine; allowed: .*\n", capsys.readouterr().err)
