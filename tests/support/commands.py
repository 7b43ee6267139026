"""The command `vgjax` for the tests: a small run, and how a refusal looks."""

from __future__ import annotations

import sys
from pathlib import Path

from vgjax.command.cli import main

COMMAND = [sys.executable, "-m", "vgjax"]


SMALL = ["train", "--dataset", "iris", "--hidden", "5", "--batch-size", "50", "--tensorboard", "none"]


def refused(capsys, argv):
    """The one line with which the command refuses; nothing else is printed, and nothing written."""
    before = sorted(Path().rglob("*"))
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vgjax: ") and err.count("\n") == 1 and err.endswith("\n")
    assert sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts) == before
    return err
