"""A job of real processes does what one process does, stops as one, and ends in a line where it loses one of them."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import small
import xarray as xr
from engine import assert_same_history
from forks import COMMAND, Fork
from machine_runs import CASES, RESUMED
from paths import TOP
from processes import environment

from vgjax import load, run
from vgjax.command.cli import main, parse
from vgjax.training import checkpoint

ENDLESS = (
    "--dataset iris --hidden 8 8 --activation tanh --batch-size 50 --epochs 2000000 --seeds 2 --cadence every(1000)"
)
GONE = "vgjax: another process of this job is gone; go on from the last checkpoint with --resume"

COMMANDS = re.search(r"## On GPUs.*?```sh\n(.*?)```", (TOP / "README.md").read_text(), re.S)[1].splitlines()
RECIPES = {line.split()[0]: shlex.split(line.partition("vgjax ")[2].strip("'"), comments=True) for line in COMMANDS}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def around(devices):
    """What a process with so many virtual devices finds around it; no cluster."""
    return {name: value for name, value in environment(devices).items() if not name.startswith("SLURM_")}


def as_a_user(words, devices, **more):
    """A process of the command as a user starts it."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "vgjax", *map(str, words)]
    return subprocess.Popen(command, env=around(devices) | more, **pipes)


def start(words, devices, program=COMMAND):
    """The same as a fork, of the command or another program."""
    return Fork(words, Path.cwd(), around(devices), program)


def ends_of(processes, timeout=280):
    """Status, stdout and stderr of each; none is left behind."""
    try:
        ends = []
        for process in processes:
            out, errors = process.communicate(timeout=timeout)
            ends.append((process.returncode, out, errors))
        return ends
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def found(tmp_path_factory, an_epoch_a_chunk):
    """The runs of `machine_runs`: by one process of four devices, and by each of two processes of two.

    The job's last run is one that a process of one device began, and left after its first epoch.
    """
    top = tmp_path_factory.mktemp("machines")

    def leave(part, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        options = dict(dataset=small.dataset(), folder=top / "job", tensorboard="none", devices=1)
        run(*RESUMED, **options, progress=leave)
    address = f"127.0.0.1:{free_port()}"
    program = "import sys, machine_runs; machine_runs.main(sys.argv[1], sys.argv[2], sys.argv[3:])"
    processes = [start([top / "alone.pickle", top / "alone"], 4, program)]
    for index in range(2):
        processes.append(start([top / f"{index}.pickle", top / "job", address, 2, index], 2, program))
    for status, _, errors in ends_of(processes):
        assert status == 0, errors
    return top, [pickle.loads((top / f"{name}.pickle").read_bytes()) for name in ("alone", 0, 1)]


@pytest.mark.parametrize("case", [*CASES, "resumed"])
def test_the_same_history_on_two_machines(found, case):
    """Every process has the whole history: bit for bit that of one with as many devices, where no sum crosses them."""
    _, (alone, *job) = found
    assert alone["devices"] == (4, 4) and [one["devices"] for one in job] == [(2, 4)] * 2
    history, variables = alone[case]
    whole = xr.Dataset.from_dict(history)
    assert whole.sizes["lane"] == (2 if case == "batch" else 4)
    for one in job:
        mine = xr.Dataset.from_dict(one[case][0])
        if case == "lanes":
            assert small.identical(mine, whole)
        else:  # another order of summation, or another number of devices before the resumption
            assert mine["step"].values.tolist() == whole["step"].values.tolist()
            assert_same_history(mine, whole, rtol=1e-4)
        for a, b in zip(jax.tree.leaves(one[case][1]), jax.tree.leaves(variables), strict=True):
            np.testing.assert_allclose(a, b, rtol=0 if case == "lanes" else 1e-4, atol=0 if case == "lanes" else 1e-6)
    assert (whole["first_bad_step"].values >= 0).any() == (case == "lanes")


def test_the_job_wrote_one_folder(found):
    """The first process wrote, as one alone would have; its last checkpoint is that of the run's end."""
    top, (alone, *job) = found
    assert "holds this run already; go on with --resume" in alone["refusal"] and alone["refusal"].count("\n") == 0
    assert job[0]["refusal"] == alone["refusal"].replace("/alone", "/job")
    assert job[1]["refusal"] == "stopped because process 0 failed; it says why"
    names = [sorted(path.name for path in (top / name).iterdir()) for name in ("job", "alone")]
    assert names[0] == names[1] and "history.nc" in names[0]
    assert load(top / "job")["loss"].values.tolist() == job[1]["resumed"][0]["data_vars"]["loss"]["data"]
    manager = checkpoint.open_checkpoints(top / "job")
    assert manager.latest_step() == load(top / "job")["evaluated_at"].values[-1] == 12
    manager.close()


def slurm(index, port):
    """The environment that `srun --nodes 2` gives to the process of one node."""
    own = {"JOB_ID": 7, "STEP_NODELIST": "127.0.0.1,localhost", "NTASKS": 2, "PROCID": index, "LOCALID": 0}
    return {f"SLURM_{name}": str(value) for name, value in own.items()} | {"JAX_COORDINATOR_PORT": str(port)}


def job(words, by_slurm=False, devices=1):
    """Two processes of a command, given the address or finding it."""
    port = free_port()
    if by_slurm:
        return [as_a_user([*words, "--distributed"], devices, **slurm(i, port)) for i in range(2)]
    return [start([*words, "--distributed", f"127.0.0.1:{port}", 2, i], devices) for i in range(2)]


def wait_for_more(folder, processes):
    """Until the job has written four more chunks."""

    def last():
        return max((int(path.stem[6:]) for path in (folder / "history").glob("until-*.nc")), default=0)

    goal, deadline = last() + 4 * 63, time.monotonic() + 280
    while last() < goal:
        assert all(process.poll() is None for process in processes) and time.monotonic() < deadline, ends_of(processes)
        time.sleep(0.05)


def test_a_job_stops_as_one_and_survives_the_loss_of_a_process(tmp_path):
    """A stop that reaches one process stops both; what the loss of either leaves is one line, and a run to resume."""
    folder = tmp_path / "run"
    words = [*RECIPES["srun"][:-1], *ENDLESS.split(), "--out", str(folder), "--tensorboard", "none"]
    processes = job(words, by_slurm=True)
    wait_for_more(folder, processes)
    processes[1].send_signal(signal.SIGINT)
    (status, out, errors), (other, silent, line) = ends_of(processes)
    assert (status, other, out, silent, line) == (130, 130, "", "", "stopped\n")
    assert errors == f"stopped; go on with: vgjax train --resume --out {folder} --tensorboard none --distributed\n"
    for victim in (1, 0):
        processes = job([*words, "--resume"])
        wait_for_more(folder, processes)
        processes[victim].kill()
        since = time.monotonic()
        ends = ends_of(processes)
        status, out, errors = ends[1 - victim]
        assert (ends[victim][0], status, out) == (-signal.SIGKILL, 1, "")
        assert errors.startswith(GONE) and errors.count("\n") == 1
        assert time.monotonic() - since < 15
    assert load(folder).sizes["evaluation"] > 8


IDLE = """
import os, pathlib, sys, time
from vgjax.training.processes import joined
with joined(sys.argv[1:4]):
    other = pathlib.Path(sys.argv[4])
    if sys.argv[3] == "1":
        other.touch()
    while sys.argv[3] == "0":
        if other.exists():
            os.kill(os.getpid(), 9)
    time.sleep(60)
"""


def test_a_process_that_computes_nothing_learns_of_the_loss(tmp_path):
    """JAX's service tells it so and aborts, with a page from C++; what is seen is the line."""
    address = f"127.0.0.1:{free_port()}"
    _, idle = ends_of([start([address, 2, index, tmp_path / "joined"], 1, IDLE) for index in range(2)])
    assert idle == (1, "", f"{GONE}\n")


@pytest.mark.parametrize(
    "words", [["here"], ["here:1"], ["here:1", "2"], ["here:1", "2", "2"], ["here:0", "2", "0"], [":1", "2", "x"]]
)
def test_what_is_no_address(words, capsys):
    """One line, before anything is waited for."""
    assert main(["train", "--dataset", "iris", "--distributed", *words]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"vgjax: --distributed {' '.join(words)}: not an address; allowed: ") and "HOST:PORT" in line
    assert line.count("\n") == 1


def test_no_cluster():
    """Where JAX detects none, the line says where it would, and what to give."""
    [(status, out, errors)] = ends_of([as_a_user(["train", "--dataset", "iris", "--distributed"], 1)])
    assert (status, out) == (2, "") and errors.startswith("vgjax: --distributed: no cluster found; allowed: ")
    assert errors.count("\n") == 1


def test_recipes_of_the_readme(tmp_path):
    """The command for one GPU, on one device and on eight gives one history; the others differ in `--distributed`."""
    [plain, cloud, slurm, given] = RECIPES.values()
    assert cloud == slurm == [*plain, "--distributed"] and given[: len(plain)] == plain
    assert parse(cloud).distributed == () and parse(given).distributed == ("node1:1234", "2", "0")
    small_run = ["--epochs", "1", "--hidden", "8", "--tensorboard", "none", "--record", "norms", "--out"]
    eight = start([*plain, *small_run, tmp_path / "8"], 8)
    assert main([*plain, *small_run, str(tmp_path / "1")]) == 0
    [(status, _, errors)] = ends_of([eight])
    assert status == 0, errors
    assert_same_history(load(tmp_path / "8"), load(tmp_path / "1"), rtol=1e-4)
    assert len(json.loads((tmp_path / "8" / "environment.json").read_text())["devices"]) == 8


def test_a_sweep_on_two_machines(tmp_path):
    """Both processes take part in every slice, the first writes; the history is that of one process."""
    plain = {"dataset": "iris", "hidden": [8], "activation": "tanh", "batch_size": 25, "epochs": 2, "seeds": 2}
    plain["product"] = {"depth": [1, 2, 3], "learning_rate": [0.1, 0.2]}
    (tmp_path / "grid.json.yaml").write_text(json.dumps(plain))
    words = [
        "sweep",
        tmp_path / "grid.json.yaml",
        "--out",
        tmp_path / "sweep",
        "--plot",
        "depth,learning_rate,validation_loss",
    ]
    (status, out, errors), (status2, out2, errors2) = ends_of(job(words))
    assert status == status2 == 0, errors + errors2
    assert "Best settings" in out and out2 == ""
    assert (tmp_path / "sweep" / "depth_learning_rate_validation_loss.png").exists()
    words[3] = tmp_path / "alone"
    [(status, _, errors)] = ends_of([start(words, 1)])
    assert status == 0, errors
    found, alone = (load(tmp_path / name) for name in ("sweep", "alone"))
    for name in ("train_loss", "gradient_rms", "delta_rms"):
        np.testing.assert_allclose(found[name].values, alone[name].values, rtol=1e-5)
