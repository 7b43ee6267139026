"""What a result says about the code that made it."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import joblib
from paths import TOP

from vgjax.environment import COMMIT_FILE, environment


def commit_in(folder: Path) -> str | None:
    """The commit as a copy of the package in that folder tells it."""
    (folder / "vgjax").mkdir(exist_ok=True)
    copy = shutil.copy(TOP / "vgjax" / "environment.py", folder / "vgjax")
    return runpy.run_path(str(copy))["commit"]()


def test_outside_a_checkout_the_commit_is_that_of_the_build(tmp_path):
    """Read from the file that `setup.py` writes into wheels and sdists; unknown without it."""
    assert commit_in(tmp_path) is None
    (tmp_path / "vgjax" / COMMIT_FILE).write_text("0123abcd+changes\n")
    assert commit_in(tmp_path) == "0123abcd+changes"


def test_cpus_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 3)
    assert environment()["cpus"] == 3
