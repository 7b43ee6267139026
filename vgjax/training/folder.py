"""A run's folder: config, environment, history, records and checkpoints, opened, resumed and closed together."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
import yaml

from vgjax.environment import environment, version
from vgjax.files import read_sealed, whole, write_sealed
from vgjax.settings import is_same_run
from vgjax.training import checkpoint, history, parallel
from vgjax.training.tensorboard import Records, Which

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

SECONDS_BETWEEN_CHECKPOINTS = 10.0
LOCK = ".lock"
MADE_WITH = "environment.json"
# what a process leaves that is killed before its run has a config
BEGINNINGS = (LOCK, MADE_WITH, "environment.tmp", "config.tmp", "grid.tmp")


class RunFolder:
    """Where a run writes. Everything in it can be read without this package: YAML, JSON, netCDF, CSV, TensorBoard.

    Of several processes the first writes; all of them call the same methods.
    """

    def __init__(self, path: Path, claim: contextlib.ExitStack, check_ours: Callable[[], None]):
        self.path, self._claim, self._check_ours = path, claim, check_ours
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
            check_ours = claim.enter_context(claimed(path))
            if is_new:
                write_made_with(path)
                write_plain(file, about)  # last: now it is a run
            else:
                cls._check(path, about, resume)
            return cls(path, claim.pop_all(), check_ours)

    @staticmethod
    def _check(path: Path, about: dict[str, Any], resume: bool) -> None:
        """Whether the folder's run is this one, to be gone on with."""
        there = read_plain(path / "config.yaml")
        check_made_with(path)
        if not is_same_run(there, about):
            raise ValueError(f"{path} holds another run ({_difference(there, about)}); choose another folder")
        if not resume:
            raise ValueError(f"{path} holds this run already; go on with --resume, or choose another folder")

    def resume(self, tree: Any, stops: Sequence[int], tensorboard: Which) -> tuple[int, Any, list[xr.Dataset]]:
        """Where the run stands: steps done, the tree there, the history so far; and begin TensorBoard and the log.

        Args:
          tree: the tree at step 0, [lanes, …].
          stops: the steps after which an epoch ends.
          tensorboard: which lanes to write.

        Raises:
          ValueError: a checkpoint or the history is damaged.
        """
        done, saved, so_far = parallel.from_first(lambda: self._resume(tree, stops, tensorboard))
        return done, saved if done else tree, so_far

    def _resume(self, tree: Any, stops: Sequence[int], tensorboard: Which) -> tuple[int, Any, list[xr.Dataset]]:
        done, tree = checkpoint.restore(self._checkpoints, tree)
        done = history.forget_after(self.path, done)
        so_far = [history.load(self.path)] if done else []
        if so_far and so_far[0]["evaluated_at"].values.tolist() != [stop for stop in stops if stop <= done]:
            where = self.path / "checkpoints"
            raise ValueError(f"{self.path}: chunks of its history are missing; without {where} the run begins anew")
        if not done:
            checkpoint.forget(self._checkpoints)
        (self.path / "history").mkdir(exist_ok=True)
        self._records = Records(self.path, tensorboard, so_far)
        return done, tree if done else None, so_far

    def write(self, part: xr.Dataset) -> None:
        """A chunk has ended: its history and records. What went wrong in the background is raised."""
        self._check_ours()
        checkpoint.check(self._checkpoints)
        history.write_chunk(self.path, part)
        if self._records:
            self._records.write(part)

    def made_with(self) -> str:
        """The environment in which the run began, as JSON."""
        return (self.path / "environment.json").read_text()

    def save(self, step: int, tree: Any) -> None:
        """Save a checkpoint."""
        self._check_ours()
        checkpoint.save(self._checkpoints, step, tree)
        self._saved_at = time.monotonic()

    def wants_checkpoint(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return parallel.anywhere(time.monotonic() - self._saved_at > SECONDS_BETWEEN_CHECKPOINTS)

    def finish(self, whole: xr.Dataset) -> None:
        """The run is over: one history file and its tables."""
        checkpoint.finish(self._checkpoints)
        self._check_ours()
        history.finish(self.path, whole)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Close; where the disk has failed already, what fails now is a consequence."""
        with contextlib.suppress(OSError) if isinstance(error, OSError) else contextlib.nullcontext():
            self.close()

    def close(self) -> None:
        """Write what is queued, close every file and let go of the folder."""
        with self._claim:
            self._claim.callback(checkpoint.close, self._checkpoints)
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
def claimed(path: Path) -> Iterator[Callable[[], None]]:
    """Keep other processes out of a folder; however this one ends, the system lets them in then.

    Returns:
      What raises an OSError where the folder has vanished since, even if there is another in its place.

    Raises:
      ValueError: another process is in it.
    """
    file = path / LOCK
    with file.open("w") as lock:

        def check_ours() -> None:
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                    return
            raise FileNotFoundError(errno.ENOENT, "the folder has vanished", str(path))

        if fcntl:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                check_ours()  # and not of one who has just left, so that another may have come
            except (BlockingIOError, FileNotFoundError):
                problem = f"{path} is in use by another process; wait for it, or choose another folder"
                raise ValueError(problem) from None
        try:
            yield check_ours
        finally:
            with contextlib.suppress(OSError):
                check_ours()
                file.unlink()


def write_plain(file: Path, content: dict[str, Any]) -> None:
    """Plain data as YAML, with its checksum."""
    write_sealed(file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


def read_plain(file: Path) -> dict[str, Any]:
    """What `write_plain` wrote.

    Raises:
      ValueError: it is damaged.
    """
    content = read_sealed(file)
    try:
        plain = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError):
        plain = None
    if not isinstance(plain, dict):
        raise ValueError(f"{file} is damaged: it holds no settings")
    return plain


def write_made_with(folder: Path) -> None:
    """With what the run in a folder is made."""
    with whole(folder / MADE_WITH) as temporary:
        temporary.write_text(json.dumps(environment(), indent=2))


def check_made_with(folder: Path) -> None:
    """Whether this version may go on in a folder.

    Raises:
      ValueError: it was made with another.
    """
    file, ours = folder / MADE_WITH, version("vgjax")
    try:
        theirs = json.loads(file.read_text())["versions"]["vgjax"]
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError(f"{file} is damaged or missing; it tells with which version the run was begun") from None
    if theirs != ours:
        raise ValueError(f"{folder} was made with vgjax {theirs}, this is {ours}; choose another folder")


def _difference(there: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first field in which two runs differ."""
    flat_there, flat_wanted = _flat(there), _flat(wanted)
    for name in flat_wanted:
        if flat_there.get(name) != flat_wanted[name]:
            return f"{name} is {flat_there.get(name)!r} there, {flat_wanted[name]!r} here"
    return "it has fields that are unknown here"


def _flat(about: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in about.items() if name != "config"}
    return {**about.get("config", {}), **rest}
