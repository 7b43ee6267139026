"""The folder of a sweep: its grid, and one run folder for each slice."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vgjax.names import text_of
from vgjax.settings import Run, run_from
from vgjax.sweeps.grid import Grid, Point, grid_as_plain
from vgjax.sweeps.plan import Slice
from vgjax.training.folder import BEGINNINGS, check_release, claimed, read_plain, write_made_with, write_plain


class StoredSlice(NamedTuple):
    """A slice that has a folder, finished or not."""

    path: Path
    identities: list[str]  # of its points
    dataset: str
    data: str  # where the data came from
    lanes: int
    deepest: int

    @property
    def is_finished(self) -> bool:
        """Whether its history is there."""
        return (self.path / "history.nc").exists()


def identities_of(run: Run) -> list[str]:
    """The identities of the points that a run trained."""
    seeds = run.seeds if isinstance(run.seeds, tuple) else tuple(range(run.seeds))
    return [Point(run.config, *pair, {}).identity() for pair in zip(run.hypers, seeds, strict=True)]


def stored_slices(folder: Path) -> Iterator[StoredSlice]:
    """All slices in the folder of a sweep.

    Raises:
      ValueError: the settings of a slice are damaged.
    """
    for file in sorted(folder.glob("slices/*/config.yaml")):
        try:
            run = run_from(read_plain(file))
            ids, dataset = identities_of(run), text_of(run.config.dataset)
        except (ValueError, AttributeError, KeyError, TypeError):
            raise ValueError(_damaged(file)) from None
        if run.data is None:
            raise ValueError(_damaged(file))
        yield StoredSlice(file.parent, ids, dataset, run.data, run.lanes, run.deepest)


def _damaged(file: Path) -> str:
    return f"{file} is damaged; without its folder {file.parent} the points in it are run again"


def slice_folder(folder: Path, one: Slice) -> Path:
    """The folder of a slice; its name is a hash of the points, so that the same slice finds its folder again."""
    identities = " ".join(point.identity() for point in one.points)
    return folder / "slices" / hashlib.sha256(identities.encode()).hexdigest()[:16]


def can_resume(folder: Path) -> bool:
    """Whether a slice can be resumed in its folder; a folder without settings is deleted."""
    if not (folder / "config.yaml").exists():
        shutil.rmtree(folder, ignore_errors=True)
    return folder.exists()


def open_sweep_folder(folder: Path, grid: Grid, claim: contextlib.ExitStack) -> None:
    """Make the folder of a sweep, or open one, which may hold slices of another grid.

    Args:
      folder: the folder.
      grid: written to it.
      claim: keeps other processes out until it is closed.

    Raises:
      ValueError: the folder holds something else, or another process uses it.
    """
    file = folder / "grid.yaml"
    is_new = not folder.exists() or all(one.name in BEGINNINGS for one in folder.iterdir())
    if not is_new and not file.exists():
        raise ValueError(f"{folder} is not empty and holds no sweep; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    claim.enter_context(claimed(folder))
    if not is_new:
        check_release(folder)
    write_made_with(folder)
    write_plain(file, grid_as_plain(grid))
    for finished in folder.glob("slices/*/history.nc"):  # a process may have been killed before it deleted these
        for rest in ("history", "checkpoints"):
            shutil.rmtree(finished.parent / rest, ignore_errors=True)


def coordinate_value(value: Any) -> Any:
    """The value of a swept field, as a coordinate of the history can hold it."""
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return text_of(value) if callable(value) else value
