"""A run's folder: config, environment, history, records and checkpoints, opened, resumed and closed together."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xarray as xr
import yaml

from vgjax import checkpoint, history, parallel
from vgjax.environment import environment
from vgjax.records import Records, Which

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

SECONDS_BETWEEN_CHECKPOINTS = 10.0
LOCK = ".lock"
BEGINNINGS = (LOCK, "environment.tmp", "environment.json", "config.tmp", "grid.tmp")  # before there is a config


class RunFolder:
    """Where a run writes. Everything in it can be read without this package: YAML, JSON, netCDF, CSV, TensorBoard.

    Of several processes the first writes; all of them call the same methods.
    """

    def __init__(self, path: Path, claim: contextlib.ExitStack):
        self.path, self._claim = path, claim
        self._checkpoints = checkpoint.open_checkpoints(path)
        self._records: Records | None = None
        self._saved_at = time.monotonic()

    @classmethod
    def open(cls, path: Path, about: dict[str, Any], resume: bool) -> RunFolder:
        """Make a run folder, or reopen it to resume.

        Args:
          path: the folder.
          about: the run as `vgjax.settings.as_plain` gives it; saved as `config.yaml`.
          resume: whether a run is to go on here.

        Raises:
          ValueError: there is a run already, or another one; nothing was changed.
        """
        return parallel.at_first(lambda: cls._open(path, about, resume)) or _Elsewhere()

    @classmethod
    def _open(cls, path: Path, about: dict[str, Any], resume: bool) -> RunFolder:
        file = path / "config.yaml"
        with contextlib.ExitStack() as claim:
            is_new = not path.exists() or all(one.name in BEGINNINGS for one in path.iterdir())
            if is_new:
                path.mkdir(parents=True, exist_ok=True)
            elif not file.exists():
                raise ValueError(f"{path} is not empty and holds no run; choose another folder")
            claim.enter_context(claimed(path))
            if is_new:
                write_whole(path / "environment.json", json.dumps(environment(), indent=2))
                write_whole(file, yaml.safe_dump(about, sort_keys=False, allow_unicode=True))  # last: now it is a run
            else:
                cls._check(path, about, resume)
            return cls(path, claim.pop_all())

    @staticmethod
    def _check(path: Path, about: dict[str, Any], resume: bool) -> None:
        """Whether the folder's run is this one, to be gone on with."""
        there = _read(path / "config.yaml")
        if _what(there) != _what(about):
            raise ValueError(f"{path} holds another run ({_difference(there, about)}); choose another folder")
        if not resume:
            raise ValueError(f"{path} holds this run already; go on with --resume, or choose another folder")

    def resume(self, tree: Any, tensorboard: Which) -> tuple[int, Any, list[xr.Dataset]]:
        """Where the run stands: steps done, the tree there, the history so far; and begin TensorBoard and the log.

        Args:
          tree: the tree at step 0, [lanes, …].
          tensorboard: which lanes to write.
        """
        done, saved, so_far = parallel.from_first(lambda: self._resume(tree, tensorboard))
        return done, saved if done else tree, so_far

    def _resume(self, tree: Any, tensorboard: Which) -> tuple[int, Any, list[xr.Dataset]]:
        done, tree = checkpoint.restore(self._checkpoints, tree)
        history.forget_after(self.path, done)
        so_far = [history.load(self.path)] if done else []
        self._records = Records(self.path, tensorboard, so_far)
        return done, tree if done else None, so_far

    def write(self, part: xr.Dataset) -> None:
        """A chunk has ended: its history and records."""
        history.write_chunk(self.path, part)
        if self._records:
            self._records.write(part)

    def made_with(self) -> str:
        """The environment in which the run began, as JSON."""
        return (self.path / "environment.json").read_text()

    def save(self, step: int, tree: Any) -> None:
        """Save a checkpoint."""
        checkpoint.save(self._checkpoints, step, tree)
        self._saved_at = time.monotonic()

    def wants_checkpoint(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return parallel.anywhere(time.monotonic() - self._saved_at > SECONDS_BETWEEN_CHECKPOINTS)

    def finish(self, whole: xr.Dataset) -> None:
        """The run is over: one history file and its tables."""
        self._checkpoints.wait_until_finished()
        history.finish(self.path, whole)

    def close(self) -> None:
        """Write what is queued, close every file and let go of the folder."""
        with self._claim:
            self._checkpoints.close()
            if self._records:
                self._records.close()


class _Elsewhere(RunFolder):
    """The folder, to a process that does not write."""

    def __init__(self) -> None:
        self._saved_at = math.inf

    def write(self, part: xr.Dataset) -> None:
        """Elsewhere."""

    def save(self, step: int, tree: Any) -> None:
        """Elsewhere."""

    def finish(self, whole: xr.Dataset) -> None:
        """Elsewhere."""

    def close(self) -> None:
        """Nothing is open."""


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep other processes out of a folder; however this one ends, the system lets them in then.

    Raises:
      ValueError: another process is in it.
    """
    file = path / LOCK
    with file.open("w") as lock:
        if fcntl:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not file.exists() or file.stat().st_ino != os.fstat(lock.fileno()).st_ino:
                    raise BlockingIOError  # of one who has just left, and another may have come
            except BlockingIOError:
                problem = f"{path} is in use by another process; wait for it, or choose another folder"
                raise ValueError(problem) from None
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """The file is there whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _read(file: Path) -> Any:
    """What a config.yaml holds, None where it is damaged."""
    try:
        return yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        return None


def _what(about: Any) -> Any:
    """Less how it runs, which may change."""
    return {name: value for name, value in about.items() if name != "lanes"} if isinstance(about, dict) else about


def _difference(there: Any, wanted: dict[str, Any]) -> str:
    """The first field in which two runs differ."""
    if not isinstance(there, dict) or not isinstance(there.get("config"), dict):
        return "its config.yaml is damaged"
    flat_there, flat_wanted = _flat(there), _flat(wanted)
    for name in flat_wanted:
        if flat_there.get(name) != flat_wanted[name]:
            return f"{name} is {flat_there.get(name)!r} there, {flat_wanted[name]!r} here"
    return "it has fields that are unknown here"


def _flat(about: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in about.items() if name != "config"}
    return {**about.get("config", {}), **rest}
