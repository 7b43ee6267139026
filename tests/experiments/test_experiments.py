"""Every experiment through its real entry point, at smoke size, on a machine with neither network nor files."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import EXPERIMENTS, prepare_jax
from experiments.options import Options
from experiments.reproduction import Within, row, runs_folder
from vgjax.analysis import Estimate

SMOKE = ("mxnet_mnist", "keras_notebook", "lu_dying_relu")
ROW = {
    "experiment",
    "quantity",
    "source",
    "published",
    "predicted",
    "measured",
    "interval",
    "n_seeds",
    "tolerance",
    "verdict",
}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """Three experiments through the entry point, with an empty data folder; test_figures_at_start.py has the rest."""
    out = tmp_path_factory.mktemp("smoke")
    environment = {k: v for k, v in os.environ.items() if k not in ("VGJAX_MANUAL_DIR", "TFDS_DATA_DIR")}
    environment["VGJAX_DATA_DIR"] = str(out / "data")
    command = [sys.executable, "-m", "experiments", *SMOKE, "--smoke", "--out", str(out / "result")]
    return out / "result", subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)


def test_smoke_run_ends_well_and_prints_table_and_page(smoke: tuple) -> None:
    """It ends with status 0, the table, and the path of a page that is there."""
    _, done = smoke
    assert done.returncode == 0, done.stderr[-2000:]
    page = Path(re.search(r"^page: (.*)$", done.stdout, re.M).group(1))
    assert page.is_file()
    assert "verdict" in done.stdout or "tolerance" in done.stdout
    assert "Warning" not in done.stderr


def test_reproduction_json_has_every_row_and_the_environment(smoke: tuple) -> None:
    """Rows have all their fields, numbers are numbers or null, and every experiment has some."""
    out, _ = smoke
    content = json.loads((out / "reproduction.json").read_text())
    assert {row["experiment"] for row in content["rows"]} == set(SMOKE) <= set(EXPERIMENTS)
    for entry in content["rows"]:
        assert set(entry) == ROW
        assert entry["n_seeds"] >= 0  # 0: theory alone, against a closed form
        assert entry["verdict"] in ("reproduced", "differs", "no data")
        assert len(entry["interval"]) == 2 and math.isfinite(entry["measured"])
    environment = content["environment"]
    assert {"versions", "devices", "commit", "date", "seconds"} <= set(environment)


def test_stand_in_data_are_named_and_never_judged_by_published_numbers(smoke: tuple) -> None:
    """Without MNIST the page and the terminal say so, and no MNIST row shows a published number."""
    out, done = smoke
    assert "digits" in done.stderr
    assert "digits (8×8 images) instead" in (out / "report.html").read_text()
    rows = json.loads((out / "reproduction.json").read_text())["rows"]
    mnist = [entry for entry in rows if entry["experiment"] == "mxnet_mnist"]
    assert mnist and all(entry["published"] is None for entry in mnist)
    assert any(entry["predicted"] is not None for entry in mnist)


def test_page_is_self_contained_and_has_every_figure(smoke: tuple) -> None:
    """Nothing is loaded from elsewhere; every picture is inline, with its files and table beside it."""
    out, _ = smoke
    page = (out / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    pictures = sorted(path.stem for path in (out / "figures").glob("*.png"))
    assert page.count('<img alt="') == len(pictures) >= 6
    for name in pictures:
        assert (out / "figures" / f"{name}.svg").stat().st_size > 1000
        assert (out / "figures" / f"{name}.csv").stat().st_size > 100


def test_help_waits_for_nothing() -> None:
    """--help imports neither JAX nor matplotlib."""
    command = [sys.executable, "-X", "importtime", "-m", "experiments", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "--smoke" in done.stdout
    assert "tyro" in imported and not imported & {"jax", "matplotlib", "tensorflow"}


@pytest.mark.parametrize(
    ("smoke", "flags", "expected"),
    [
        (True, "", "--xla_backend_optimization_level=0"),
        (True, "--xla_a=1", "--xla_a=1 --xla_backend_optimization_level=0"),
        (True, "--xla_backend_optimization_level=2", "--xla_backend_optimization_level=2"),
        (False, "", ""),
    ],
)
def test_smoke_runs_compile_without_optimising(monkeypatch, smoke: bool, flags: str, expected: str) -> None:
    """Only smoke runs do, and never against what the user has set."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    prepare_jax(smoke)
    assert os.environ["XLA_FLAGS"] == expected


def test_unknown_experiment_is_one_line_and_status_2(tmp_path: Path) -> None:
    """A wrong name gives the nearest one and leaves nothing behind."""
    command = [sys.executable, "-m", "experiments", "mxnet_mnits", "--out", str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not (tmp_path / "x").exists()
    assert len(done.stderr.strip().splitlines()) == 1 and "mxnet_mnist" in done.stderr


@pytest.mark.parametrize(
    ("within", "measured", "reference", "holds"),
    [
        (Within(factor=2), 1.9, 1.0, True),
        (Within(factor=2), 2.1, 1.0, False),
        (Within(factor=2), 0.49, 1.0, False),
        (Within(share=0.35), 1.34, 1.0, True),
        (Within(share=0.35), 0.64, 1.0, False),
        (Within(low=0.93), 0.92, 0.96, False),
        (Within(low=0.09, high=0.12), 0.105, None, True),
        (Within(share=0), 25475.0, 25475.0, True),
        (Within(factor=2), math.nan, 1.0, False),
        (Within(low=10), 9.9, None, False),
    ],
)
def test_tolerances(within: Within, measured: float, reference: float | None, holds: bool) -> None:
    """Factors, shares and bounds judge as they read."""
    assert within.holds(measured, reference) is holds


def test_a_tolerance_without_anything_to_compare_with_is_refused() -> None:
    """A forgotten reference cannot pass as reproduced."""
    with pytest.raises(ValueError, match="compared with"):
        Within(factor=2).holds(1.0, None)


def test_runs_are_replaced_once_the_data_are_there_or_resumed(tmp_path: Path) -> None:
    """A wrong folder of data loses no earlier run; --resume keeps them."""
    earlier = tmp_path / "runs" / "mxnet_mnist" / "precious"
    earlier.mkdir(parents=True)
    command = [sys.executable, "-m", "experiments", "mxnet_mnist", "--out", str(tmp_path)]
    nowhere = ["--data-dir", str(tmp_path / "nothing prepared"), "--manual-dir", str(tmp_path / "no")]
    done = subprocess.run([*command, *nowhere], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and earlier.is_dir()
    assert len(done.stderr.strip().splitlines()) == 2  # the experiment's name, and the error
    assert runs_folder(Options(out=tmp_path, resume=True), "mxnet_mnist") and earlier.is_dir()
    assert runs_folder(Options(out=tmp_path), "mxnet_mnist") and not earlier.exists()


def test_published_number_goes_before_the_predicted_and_is_dropped_without_data() -> None:
    """What is judged against what."""
    measured = Estimate(1.0, 0.9, 1.1, 3)
    published = row("e", "q", "s", measured, Within(factor=2), published=10.0, predicted=1.0)
    assert published.verdict == "differs"
    stand_in = row("e", "q", "s", measured, Within(factor=2), published=10.0, predicted=1.0, has_data=False)
    assert stand_in.verdict == "reproduced" and stand_in.published is None
    assert row("e", "q", "s", measured, Within(factor=2), published=10.0, has_data=False).verdict == "no data"


def test_calibration_smoke_run(tmp_path: Path) -> None:
    """Its rows say what was built in and what was found, half by half, and with what that was made."""
    command = [sys.executable, "-m", "experiments.calibration", "--smoke", "--out", str(tmp_path / "calibration.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads((tmp_path / "calibration.json").read_text())
    assert {row["half"] for row in content["rows"]} == {"building", "trial"} == set(content["summary"])
    assert all(row["right"] == (row["label"] == row["found"]) for row in content["rows"])
    assert sum(map(sum, (c.values() for c in content["summary"]["trial"]["confusion"].values()))) == sum(
        row["half"] == "trial" for row in content["rows"]
    )
    assert {"versions", "commit", "date", "seconds", "seeds"} <= set(content["environment"])


def test_calibration_has_enough_runs_of_every_label() -> None:
    """In each half: fifty healthy ones, six of every fault."""
    from experiments.benches import BENCHES, LABELS

    for half in (0, 1):
        labels = [label for bench in BENCHES[half::2] for label, _ in bench.lanes]
        assert set(labels) == set(LABELS) and labels.count("healthy") >= 50
        assert min(labels.count(label) for label in LABELS) >= 6
