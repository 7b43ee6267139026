"""The benchmark runs through its entry point; its rows say what was measured; the README shows the committed ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from paths import TOP

from experiments.goals import GOALS, _median, rows_of, table

NAMES = {
    "norms_every_step",
    "histograms_every_10",
    "histograms_every_step",
    "everything_every_10",
    "one_lane_vs_pytorch",
    "eight_lanes_vs_pytorch_per_lane",
    "iris_runs_vs_pytorch",
    "iris_runs_vs_keras",
    "eight_lanes_vs_one_after_other",
    "iris_64_lanes_vs_one_after_other",
    "iris_256_lanes_vs_one_after_other",
    "matmul_floor_share",
    "compile_depth_240_vs_8",
}


def test_smoke(tmp_path):
    """Every contestant that is installed has its seconds, and every row its fields."""
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "experiments.benchmark", "--smoke", "--out", str(out)]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=600, env={**os.environ, "CI": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads(out.read_text())
    assert NAMES.issubset({row["name"] for row in content["rows"]})
    for row in content["rows"]:
        assert {"name", "ratio", "low", "high", "against", "goal"} <= set(row)
        assert row["ratio"] is None or row["low"] <= row["ratio"] <= row["high"]
    assert {"bare", "norms", "everything_10", "matmul", "lanes", "iris", "deep"} <= set(content["seconds"])
    kilobytes = content["facts"]["bytes_that_leave_the_device_a_record"]
    assert kilobytes["norms"] < kilobytes["default"] < kilobytes["everything"] < 100_000
    assert content["environment"]["commit"] and "| norms of every layer" in done.stdout


def test_ratios_are_taken_turn_by_turn():
    """A machine that becomes slower from turn to turn changes no ratio; a goal is met or missed by its median."""
    drift = np.array([1.0, 2.0, 4.0, 8.0, 3.0])
    seconds = {"bare": list(drift), "norms": list(1.02 * drift), "histograms": list(1.5 * drift), "iris": list(drift)}
    seconds |= {"torch_iris": list(drift / 4)}
    rows = {row["name"]: row for row in rows_of(seconds)}
    assert rows["norms_every_step"]["ratio"] == pytest.approx(1.02) and rows["norms_every_step"]["met"]
    assert not rows["histograms_every_step"]["met"] and rows["one_lane_vs_pytorch"]["ratio"] is None
    assert rows["iris_runs_vs_pytorch"]["ratio"] == pytest.approx(256 / 4) and rows["iris_runs_vs_pytorch"]["met"]
    assert "not installed" in table(list(rows.values())) and "≤ 1.25 (missed)" in table(list(rows.values()))


def test_alternations_are_compared_with_their_neighbours():
    """What alternates within a turn, pair by pair; with what is measured once a turn, by its median there."""
    drift = np.repeat([1.0, 8.0], 3) * [1.0, 2.0, 4.0, 1.0, 2.0, 4.0]
    seconds = {"bare": list(drift), "norms": list(drift * [1.0, 1.1, 1.2, 1.1, 1.2, 1.3]), "torch": [4.0, 32.0]}
    rows = {row["name"]: row for row in rows_of(seconds)}
    assert rows["norms_every_step"]["ratio"] == pytest.approx(1.15)
    assert rows["norms_every_step"]["low"] == 1 and rows["norms_every_step"]["high"] == pytest.approx(1.3)
    assert rows["one_lane_vs_pytorch"]["ratio"] == pytest.approx((2.2 / 4 + 19.2 / 32) / 2)


def test_the_interval_holds_the_median():
    """By order statistics: of nine values, the second and the second last."""
    assert _median(np.arange(9.0)) == (4.0, 1.0, 7.0)
    assert _median(np.array([2.0])) == (2.0, 2.0, 2.0)


def test_the_readme_shows_the_committed_rows():
    """Whatever ratio stands there is the committed one, to the digits that are shown."""
    rows = json.loads((TOP / "experiments" / "results" / "bench.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [goal.name for goal in GOALS]
    readme = (TOP / "README.md").read_text()
    shown = {row["name"]: re.search(rf"^\| {re.escape(row['what'])} \| ([\d.]+) ", readme, re.M) for row in rows}
    assert any(shown.values())
    for row in rows:
        if found := shown[row["name"]]:
            assert float(found[1]) == pytest.approx(row["ratio"], rel=0.01), row["name"]
