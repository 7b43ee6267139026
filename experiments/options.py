"""What `python -m experiments` can be asked for; light, so that its `--help` waits for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

RECORDED = ("norms", "spread", "weights", "gradient_histogram", "weight_histogram")  # what the documents' figures show


@dataclass(frozen=True)
class Options:
    """Reproduce the documents and papers, each quantity with its published value, prediction, interval and verdict."""

    names: Annotated[tuple[str, ...], Positional] = ()
    """Which experiments; none: all of them."""
    out: Path = Path("reproduction")
    """Where results go [folder]."""
    smoke: bool = False
    """Every step of every experiment in seconds: tests the code, reproduces nothing."""
    full: bool = False
    """The sources' own sizes where the default takes smaller ones; training from 8 seeds instead of 3."""
    resume: bool = False
    """Go on with an interrupted reproduction; otherwise earlier runs of the same experiments in --out are replaced."""
    data_dir: Path | None = None
    """Where prepared data are kept [folder]."""
    manual_dir: Path | None = None
    """Original files of the data sets, a folder each [folder]."""

    @property
    def size(self) -> Literal["smoke", "default", "full"]:
        """How much is done: the key of an experiment's sizes."""
        return "smoke" if self.smoke else "full" if self.full else "default"
