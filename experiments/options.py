"""The options of `python -m experiments`. This module imports little, so that `--help` starts at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

RECORDED = (
    "norms",
    "spread",
    "weights",
    "gradient_histogram",
    "weight_histogram",
)  # what the figures of the two documents need


@dataclass(frozen=True)
class Options:
    """Reproduce the documents and papers, each quantity with its published value, prediction, interval and verdict."""

    names: Annotated[tuple[str, ...], Positional] = ()
    """Which experiments to run; none named: all."""
    out: Path = Path("reproduction")
    """Where results go [folder]."""
    smoke: bool = False
    """Run every experiment at a tiny size, in seconds: this tests the code and reproduces nothing."""
    full: bool = False
    """Use the sources' own sizes where the default is smaller; train from 8 seeds instead of 3."""
    resume: bool = False
    """Continue an interrupted reproduction; without it, earlier runs of the same experiments in --out are replaced."""
    data_dir: Path | None = None
    """Where prepared data are kept [folder]."""
    manual_dir: Path | None = None
    """Original files of the data sets, a folder each [folder]."""

    @property
    def size(self) -> Literal["smoke", "default", "full"]:
        """The key into an experiment's table of sizes."""
        return "smoke" if self.smoke else "full" if self.full else "default"
