"""Where the tests of the command stand."""

import pytest


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """Every test stands in an empty folder of its own, before a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
