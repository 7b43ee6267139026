"""`vgjax rerun`: a result made again from what it says of itself gives the same bits, and says so where it does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from vgjax.command.cli import main
from vgjax.files import write_sealed
from vgjax.sweeps.reruns import rerun

TRAIN = "train --dataset iris --hidden 8 8 --epochs 2 --batch-size 50 --seeds 5 9 --sigma-w 1.3 --tensorboard none"
GRID = """
dataset: iris
hidden: [6, 6]
epochs: 2
batch_size: 50
seeds: 2
product: {activation: [tanh, relu], learning_rate: [0.01, 0.1]}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main([*TRAIN.split(), "--out", str(folder)]) == 0
    return folder


def altered(finished: Path, tmp_path: Path, change: dict[str, object] | None = None) -> Path:
    """The run's history alone, elsewhere, its first gradient norm off by 1 %, and what it was made with changed."""
    with xr.open_dataset(finished / "history.nc") as history:
        history = history.load()
    history["gradient_norm"][0, 0, 0] *= 1.01
    made = json.loads(history.attrs["environment"])
    made["versions"]["jax"] = "0.1"
    history.attrs["environment"] = json.dumps(made)
    history.attrs |= change or {}
    path = tmp_path / "altered.nc"
    write_sealed(path, history.to_netcdf(engine="netcdf4"))
    return path


@pytest.mark.slow
def test_a_run_comes_out_the_same(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From its folder, from its history wherever that is, and what is made is kept where one asks for it."""
    alone = shutil.copy(finished / "history.nc", tmp_path / "moved.nc")
    for result, options in ((finished, []), (alone, ["--out", str(tmp_path / "again")])):
        assert main(["rerun", str(result), *options]) == 0
        assert "the same to the last bit" in capsys.readouterr().out
    tables = [(folder / "statistics.csv").read_bytes() for folder in (finished, tmp_path / "again")]
    assert tables[0] == tables[1]
    assert rerun(finished).differences == {}


@pytest.mark.slow
def test_a_sweep_comes_out_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its whole grid."""
    (tmp_path / "grid.yaml").write_text(GRID)
    assert main(["sweep", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "sweep")]) == 0
    assert main(["rerun", str(tmp_path / "sweep")]) == 0
    assert "of 8 lanes" in capsys.readouterr().out


@pytest.mark.slow
def test_a_number_that_differs_is_named(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How many of its kind, by how much, and what the two were made with."""
    path = altered(finished, tmp_path)
    assert main(["rerun", str(path)]) == 1
    printed = capsys.readouterr().out
    size = xr.open_dataset(path)["gradient_norm"].size
    words = [line.split() for line in printed.splitlines()]
    assert ["gradient_norm", f"{1 / size:.3g}", f"{0.01 / 1.01:.3g}"] in words
    assert ["jax", "0.1", rerun(path).changed["jax"][1]] in words
    assert "1 of" in printed and "date" not in printed


@pytest.mark.slow
def test_another_seed_makes_other_numbers(finished: Path, tmp_path: Path) -> None:
    """A result that names a seed it does not come from is found out."""
    about = json.loads(xr.open_dataset(finished / "history.nc").attrs["run"])
    about["seeds"][1] = 10
    found = rerun(altered(finished, tmp_path, {"run": json.dumps(about)})).differences
    assert {"seed", "loss", "gradient_rms"} <= set(found) and 0.4 < found["loss"].share <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "history.nc").unlink(), "run is not finished; allowed: the folder of a finished run"),
        (shutil.rmtree, "run holds no result; allowed: the folder of a finished run or sweep, or its history.nc"),
        (lambda folder: (folder / "history.nc").write_bytes(b"no"), "history.nc is damaged"),
        (
            lambda folder: write_sealed(folder / "history.nc", xr.Dataset({"x": 1.0}).to_netcdf(engine="netcdf4")),
            "does not say how it was made; allowed: the history of a run or a sweep",
        ),
    ],
)
def test_what_cannot_be_made_again(finished: Path, tmp_path: Path, capsys, make, message: str) -> None:
    """One line, and nothing is written."""
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    make(folder)
    assert main(["rerun", str(folder), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_given_variables_are_not_in_the_result(tmp_path: Path) -> None:
    """Such a run cannot be made again, and says so."""
    from vgjax import Config, run

    config = Config(dataset="iris", hidden=(4,), epochs=1, batch_size=50)
    given = run(config).variables
    run(config, variables=given, folder=tmp_path / "run", tensorboard="none")
    with pytest.raises(ValueError, match="started from given variables"):
        rerun(tmp_path / "run")


@pytest.mark.slow
def test_devices_that_shared_a_batch_are_asked_for_again(tmp_path: Path) -> None:
    """By a process that has one device, unless it is told of more before it computes."""
    own = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    options = ["--shard", "batch", "--out", str(tmp_path / "run")]
    commands = [([*TRAIN.split(), *options], "2"), (["rerun", str(tmp_path / "run")], "")]
    for words, devices in commands:
        environment = {**own, "JAX_PLATFORMS": "cpu", **({"JAX_NUM_CPU_DEVICES": devices} if devices else {})}
        done = subprocess.run(
            [sys.executable, "-m", "vgjax", *words], env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
    assert "the same to the last bit" in done.stdout
    assert np.int64(2) == xr.open_dataset(tmp_path / "run" / "history.nc").attrs["devices"]
