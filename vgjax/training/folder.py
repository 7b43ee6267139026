"""The folder of a run: config, environment, history, TensorBoard and checkpoints; opened, resumed and closed."""

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

import filelock
import xarray as xr
import yaml

from vgjax.environment import environment, version
from vgjax.files import read_sealed, whole, write_sealed
from vgjax.settings import is_same_run
from vgjax.training import checkpoint, history, parallel
from vgjax.training.tensorboard import Records, Which

SECONDS_BETWEEN_CHECKPOINTS = 10.0
LOCK = ".lock"
MADE_WITH = "environment.json"
# the files that a process may leave if it is killed before it has written the config: they make no run
BEGINNINGS = (LOCK, MADE_WITH, "environment.tmp", "config.tmp", "grid.tmp")


class RunFolder:
    """The folder that a run writes. Other programs can read all of it: YAML, JSON, netCDF, CSV, TensorBoard.

    All processes of a job call the same methods; the first process alone writes.
    """

    def __init__(self, path: Path, tensorboard: Which, claim: contextlib.ExitStack, check_ours: Callable[[], None]):
        self.path, self._tensorboard, self._claim, self._check_ours = path, tensorboard, claim, check_ours
        self._checkpoints = checkpoint.open_checkpoints(path)
        self._records: Records | None = None
        self._saved_at = time.monotonic()

    @classmethod
    def open(cls, path: Path, about: dict[str, Any], resume: bool, tensorboard: Which = "all") -> RunFolder:
        """Make a run folder, or open an existing one to resume its run.

        Args:
          path: the folder.
          about: the run as `vgjax.settings.as_plain` gives it; saved as `config.yaml`.
          resume: whether to resume the run that the folder holds.
          tensorboard: which lanes to write.

        Raises:
          ValueError: the folder holds this run and `resume` is false, or it holds something else; nothing was changed.
        """
        return parallel.on_first_process(lambda: cls._open(path, about, resume, tensorboard)) or _NotWritten()

    @classmethod
    def _open(cls, path: Path, about: dict[str, Any], resume: bool, tensorboard: Which) -> RunFolder:
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
                write_plain(file, about)  # last: it makes the folder a run
            else:
                cls._check(path, about, resume)
            return cls(path, tensorboard, claim.pop_all(), check_ours)

    @staticmethod
    def _check(path: Path, about: dict[str, Any], resume: bool) -> None:
        """Refuse a folder that holds another run, or this run while `resume` is false."""
        there = read_plain(path / "config.yaml")
        check_release(path)
        if not is_same_run(there, about):
            raise ValueError(f"{path} holds another run ({_difference(there, about)}); choose another folder")
        if not resume:
            raise ValueError(f"{path} holds this run already; go on with --resume, or choose another folder")

    def resume(self, tree: Any, stops: Sequence[int]) -> tuple[int, Any, list[xr.Dataset]]:
        """Read the last checkpoint and its history, and open TensorBoard and the log.

        Args:
          tree: the tree at step 0, [lanes, …].
          stops: the number of steps done at the end of every epoch.

        Returns:
          The number of steps done, the tree at that step, and the history so far (an empty list at step 0).

        Raises:
          ValueError: a checkpoint or the history is damaged.
        """
        done, saved, so_far = parallel.from_first_process(lambda: self._resume(tree, stops))
        return done, saved if done else tree, so_far

    def _resume(self, tree: Any, stops: Sequence[int]) -> tuple[int, Any, list[xr.Dataset]]:
        done, tree = checkpoint.restore(self._checkpoints, tree)
        done = history.forget_after(self.path, done)
        so_far = [history.load(self.path)] if done else []
        if so_far and so_far[0]["evaluated_at"].values.tolist() != [stop for stop in stops if stop <= done]:
            where = self.path / "checkpoints"
            raise ValueError(f"{self.path}: chunks of its history are missing; without {where} the run begins anew")
        if not done:
            checkpoint.forget(self._checkpoints)
        (self.path / "history").mkdir(exist_ok=True)
        self._records = Records(self.path, self._tensorboard, so_far)
        return done, tree if done else None, so_far

    def write(self, part: xr.Dataset) -> None:
        """Write the history of a chunk, to disk and to TensorBoard; raise what has failed in the background."""
        self._check_ours()
        checkpoint.check(self._checkpoints)
        history.write_chunk(self.path, part)
        if self._records:
            self._records.write(part)

    def made_with(self) -> str:
        """The environment that the run began in, as JSON."""
        return (self.path / MADE_WITH).read_text()

    def save(self, step: int, tree: Any) -> None:
        """Save a checkpoint."""
        self._check_ours()
        checkpoint.save(self._checkpoints, step, tree)
        self._saved_at = time.monotonic()

    def wants_checkpoint(self) -> bool:
        """Whether the last checkpoint is so old that another one is due."""
        return parallel.on_any_process(time.monotonic() - self._saved_at > SECONDS_BETWEEN_CHECKPOINTS)

    def finish(self, whole: xr.Dataset) -> None:
        """End the run: write the whole history as one file, and its tables."""
        checkpoint.finish(self._checkpoints)
        self._check_ours()
        history.finish(self.path, whole)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Close the folder; after an error of the disk, ignore those that closing brings: they follow from it."""
        with contextlib.suppress(OSError) if isinstance(error, OSError) else contextlib.nullcontext():
            self.close()

    def close(self) -> None:
        """Write what is queued, close every file and release the folder."""
        with self._claim:
            self._claim.callback(checkpoint.close, self._checkpoints)
            if self._records:
                self._records.close()


class _NotWritten(RunFolder):
    """What the other processes of a job have in place of the folder: every method that writes does nothing."""

    def __init__(self) -> None:
        self._saved_at = math.inf

    def write(self, part: xr.Dataset) -> None:
        """Do nothing."""

    def save(self, step: int, tree: Any) -> None:
        """Do nothing."""

    def finish(self, whole: xr.Dataset) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[Callable[[], None]]:
    """Lock a folder against other processes; the system releases the lock however this process ends.

    Yields:
      A function that raises an OSError if the folder has vanished, even if another one has its name now.

    Raises:
      ValueError: another process has locked it.
    """
    file = path / LOCK
    with file.open("w") as lock:

        def is_ours() -> bool:
            try:
                return os.path.samestat(file.stat(), os.fstat(lock.fileno()))
            except FileNotFoundError:
                return False

        def check_ours() -> None:
            if not is_ours():
                raise FileNotFoundError(errno.ENOENT, "the folder has vanished", str(path))

        # A process that leaves deletes its file: a lock on a deleted file keeps nobody out.
        if not (filelock.lock_descriptor(lock.fileno(), blocking=False) and is_ours()):
            raise ValueError(f"{path} is in use by another process; wait for it, or choose another folder")
        try:
            yield check_ours
        finally:
            with contextlib.suppress(OSError):
                check_ours()
                file.unlink()


def write_plain(file: Path, content: dict[str, Any]) -> None:
    """Write plain data as YAML, with a checksum."""
    write_sealed(file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


def read_plain(file: Path) -> dict[str, Any]:
    """Read what `write_plain` wrote.

    Raises:
      ValueError: the file is damaged.
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
    """Write the environment that the run in a folder begins in."""
    with whole(folder / MADE_WITH) as temporary:
        temporary.write_text(json.dumps(environment(), indent=2))


def check_release(folder: Path) -> None:
    """Refuse to resume in a folder that another release of vgjax made; two commits of one release may share it.

    Raises:
      ValueError: another release made it, or it does not say which one did.
    """
    file, ours = folder / MADE_WITH, version("vgjax")
    try:
        theirs = json.loads(file.read_text())["versions"]["vgjax"]
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError(f"{file} is damaged or missing; it says which release began the run") from None
    if theirs != ours:
        raise ValueError(f"{folder} was made with vgjax {theirs}, this is {ours}; choose another folder")


def _difference(there: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first field in which two runs differ, as text."""
    flat_there, flat_wanted = _flat(there), _flat(wanted)
    for name in flat_wanted:
        if flat_there.get(name) != flat_wanted[name]:
            return f"{name} is {flat_there.get(name)!r} there, {flat_wanted[name]!r} here"
    return "it has fields that are unknown here"


def _flat(about: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in about.items() if name != "config"}
    return {**about.get("config", {}), **rest}
