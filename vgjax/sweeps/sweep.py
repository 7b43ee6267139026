"""Many runs from one grid: slices of lanes trained one after the other, on disk as they finish, and one history."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from vgjax.config import Config
from vgjax.data.batches import check_sizes
from vgjax.data.catalogue import Dataset, load
from vgjax.environment import environment
from vgjax.names import text_of
from vgjax.settings import settings_from
from vgjax.sweeps import capacity
from vgjax.sweeps import grid as grids
from vgjax.sweeps.grid import Grid, Point
from vgjax.sweeps.plan import SHARE_OF_MEMORY, Plan, Slice, bytes_of_lane, cut, estimate, halved
from vgjax.training import chunk_plan, history, loop, parallel
from vgjax.training.checks import check_names
from vgjax.training.chunk_plan import shape
from vgjax.training.folder import BEGINNINGS, check_release, claimed, read_plain, write_made_with, write_plain
from vgjax.training.loop import run


class Standing(NamedTuple):
    """How far a sweep is; counts are of lanes times steps."""

    done: int
    total: int
    number: int  # of the slice, counted from 1
    slices: int
    part: xr.Dataset | None = None  # what the slice's last chunk brought


def sweep(
    grid: Grid,
    *,
    folder: str | Path | None = None,
    dataset: Dataset | None = None,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    lanes: int | None = None,
    shard: parallel.Sharding = "auto",
    devices: int | None = None,
    progress: Callable[[Standing], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Train every point of a grid, those that share a program at once, and give one history.

    What is in `folder` already is not run again, of this grid or of a smaller one; a slice that was interrupted goes
    on from its last checkpoint.

    Args:
      grid: what to run.
      folder: where slices are kept as they finish, and the history at the end; None: write nothing.
      dataset: a data set at hand; None: each config's is looked up.
      data_dir, manual_dir: where prepared data lie, and original files for TFDS (see `vgjax.data`).
      lanes: most lanes that run at once; None: as many as the memory holds. Half as many, wherever it does not.
      shard, devices: as `vgjax.run` takes them.
      progress: called after every chunk; a KeyboardInterrupt from it stops the sweep in order.
      note: told, in a sentence, when something does not go as planned.

    Returns:
      The history of all lanes in the grid's order, with every swept field as a coordinate; lanes of fewer layers are
      NaN beyond.

    Raises:
      ValueError: what was asked for is impossible; nothing was run.

    Example:
      >>> grid = Grid(product={"sigma_w2": [1.0, 2.0]}, config=Config(dataset="iris", hidden=(8,), epochs=1), seeds=2)
      >>> sweep(grid)["sigma_w2"].values
      array([1., 1., 2., 2.])
    """
    job = Job(grid, folder, dataset, data_dir, manual_dir, lanes, shard, devices)
    return job.run(progress, note)


class Job:
    """One sweep: its points, what is there of them, and the plan for the rest.

    Args: as those of `sweep`.
    """

    def __init__(
        self,
        grid: Grid,
        folder: str | Path | None = None,
        dataset: Dataset | None = None,
        data_dir: str | Path | None = None,
        manual_dir: str | Path | None = None,
        lanes: int | None = None,
        shard: parallel.Sharding = "auto",
        devices: int | None = None,
    ):
        if lanes is not None and lanes < 1:
            raise ValueError(f"lanes {lanes} is not allowed; allowed: whole numbers from 1")
        self.grid, self.points = grid, grid.expand()
        self.folder = Path(folder) if folder is not None else None
        self._lanes, self._shard, self._devices = lanes, shard, devices
        configs = list(dict.fromkeys(point.config for point in self.points))
        for config in configs:
            check_names(config)
        names = dict.fromkeys(config.dataset for config in configs)
        self._data = {name: dataset or _loaded(partial(load, name, data_dir, manual_dir)) for name in names}
        self._histories: dict[str, xr.Dataset] = {}  # by slice, where there is no folder
        for config in configs:  # what can be refused is refused before anything runs
            data = self.data(config)
            check_sizes(data, config)
            steps = shape(config, data)
            chunk_plan.plan(config, steps.steps_per_epoch, steps.steps)
        self.plan = parallel.from_first_process(self._plan)
        for one in self.plan.slices:
            n_train = len(self.data(one.config).train_labels) - one.config.holdout
            parallel.layout(shard, one.lanes, loop.batch_sizes(one.config, n_train), devices)

    def data(self, config: Config) -> Dataset:
        """The data set of a config."""
        return self._data[config.dataset]

    def run(
        self, progress: Callable[[Standing], None] | None = None, note: Callable[[str], None] | None = None
    ) -> xr.Dataset:
        """Do what the plan says; the history of the whole grid."""
        with contextlib.ExitStack() as claim:
            if self.folder:
                parallel.on_first_process(partial(_keep, self.folder, self.grid, claim))
            self._run_slices(progress, note)
            return parallel.from_first_process(self._whole) if self.folder else self._whole()

    def _run_slices(self, progress: Callable[[Standing], None] | None, note: Callable[[str], None] | None) -> None:
        waiting = list(self.plan.slices)
        done, total, number = 0, sum(map(self._work, waiting)), 1
        while waiting:
            one = waiting[0]
            standing = Standing(done, total, number, number + len(waiting) - 1)
            try:
                self._run_slice(one, self._teller(one, standing, progress))
            except (MemoryError, RuntimeError) as error:
                if not capacity.is_out_of_memory(error) or len(one.points) == 1:
                    raise
                waiting = self._halved(one, waiting)
                if note:
                    note(f"out of memory with {one.lanes} lanes at once; going on with {waiting[0].lanes}")
            else:
                done, number, waiting = done + self._work(one), number + 1, waiting[1:]

    def _work(self, one: Slice) -> int:
        return len(one.points) * shape(one.config, self.data(one.config)).steps

    def _teller(
        self, one: Slice, before: Standing, progress: Callable[[Standing], None] | None
    ) -> Callable[[xr.Dataset, int], None] | None:
        """What a run calls after every chunk, from what a sweep calls."""
        if progress is None:
            return None

        def landed(part: xr.Dataset, steps: int) -> None:
            here = len(one.points) * int(part["evaluated_at"].values[-1])
            progress(before._replace(done=before.done + here, part=part))

        return landed

    def _halved(self, one: Slice, waiting: list[Slice]) -> list[Slice]:
        """Where one was too large: half as many lanes at once, for it and all that share its program."""
        if folder := self._slice_folder(one):
            parallel.on_first_process(partial(shutil.rmtree, folder, ignore_errors=True))
        return [part for each in waiting for part in (halved(each) if each.program == one.program else [each])]

    def _plan(self) -> Plan:
        finished, started = self._there()
        taken = finished | {point.identity() for one in started for point in one.points}
        rest = [point for point in self.points if point.identity() not in taken]
        slices = [*started, *cut(rest, self._most_lanes, self._shard, self._devices or parallel.device_count())]
        here = sum(point.identity() in finished for point in self.points)
        return estimate(len(self.points), here, slices, self.data)

    def _most_lanes(self, config: Config) -> int:
        each = bytes_of_lane(shape(config, self.data(config)))
        fitting = max(1, int(SHARE_OF_MEMORY * capacity.free_bytes()) // each)
        fitting = 2 ** int(math.log2(fitting))  # the same, though what is free changes a little from hour to hour
        return min(fitting, self._lanes or fitting)

    def _there(self) -> tuple[set[str], list[Slice]]:
        """Which points are finished in the folder, and the slices that were begun and can go on."""
        wanted = {point.identity(): point for point in self.points}
        finished: set[str] = set()
        started = []
        for path, there in self._slices():
            ids = there.identities
            if (path / "history.nc").exists():
                finished |= set(ids)
            elif all(name in wanted for name in ids):
                points = tuple(wanted[name] for name in ids)
                started.append(Slice(points[0].config, points, there.lanes, there.deepest))
        return finished, [one for one in started if not finished & {point.identity() for point in one.points}]

    def _run_slice(self, one: Slice, landed: Callable[[xr.Dataset, int], None] | None) -> None:
        dataset, folder = self.data(one.config), self._slice_folder(one)
        result = run(
            one.config,
            [point.hypers for point in one.points],
            [point.seed for point in one.points],
            paired=True,
            dataset=dataset,
            folder=folder,
            resume=parallel.from_first_process(partial(_is_begun, folder)) if folder else False,
            tensorboard="none",
            lanes=one.lanes,
            deepest=one.deepest,
            progress=landed,
            shard=self._shard,
            devices=self._devices,
        )
        if folder:
            parallel.on_first_process(partial(shutil.rmtree, folder / "checkpoints", ignore_errors=True))
        else:
            self._histories[_name(one)] = result.history

    def _slice_folder(self, one: Slice) -> Path | None:
        return self.folder / "slices" / _name(one) if self.folder else None

    def _slices(self) -> Iterator[tuple[Path, _There]]:
        """Those in the folder, of the same data."""
        sources = {text_of(name): data.source for name, data in self._data.items()}
        for file in sorted(self.folder.glob("slices/*/config.yaml")) if self.folder else []:
            there = _read(file)
            if there.data == sources.get(there.dataset):
                yield file.parent, there

    def _finished(self) -> Iterator[xr.Dataset]:
        yield from self._histories.values()
        for path, _ in self._slices():
            if (path / "history.nc").exists():
                yield history.load(path)

    def _whole(self) -> xr.Dataset:
        """One history of the whole grid, in its order; in the folder too."""
        missing = {point.identity(): i for i, point in enumerate(self.points)}
        parts, order = [], []
        for part in self._finished():
            there = _There.of(json.loads(part.attrs["run"]))
            replicas = part.sizes["lane"] // len(there.identities)
            places = np.repeat([missing.pop(name, -1) for name in there.identities], replicas)
            if (places >= 0).any():
                parts.append(part.isel(lane=places >= 0))
                order.append(places[places >= 0])
        places = np.concatenate(order)
        whole = history.beside(parts).isel(lane=np.argsort(places, kind="stable"))
        lanes = [self.points[i] for i in np.sort(places)]
        for name in dict.fromkeys(name for point in self.points for name in point.coordinates):
            if name not in whole.coords:
                whole = whole.assign_coords({name: ("lane", np.array([_plain(point.value(name)) for point in lanes]))})
        whole.attrs["sweep"] = json.dumps(grids.as_plain(self.grid), ensure_ascii=False)
        whole.attrs |= {"shard": self._shard, "devices": self._devices or parallel.device_count()}
        made = (self.folder / "environment.json").read_text() if self.folder else json.dumps(environment())
        whole.attrs["environment"] = made
        if self.folder:
            history.finish(self.folder, whole)
        return whole


class _There(NamedTuple):
    """A slice that was begun, by its config.yaml."""

    identities: list[str]  # of its points
    dataset: str
    data: str  # where it came from
    lanes: int
    deepest: int

    @classmethod
    def of(cls, about: dict[str, Any]) -> _There:
        run = settings_from(about)
        seeds = run.seeds if isinstance(run.seeds, tuple) else tuple(range(run.seeds))
        ids = [Point(run.config, *pair, {}).identity() for pair in zip(run.hypers, seeds, strict=True)]
        return cls(ids, text_of(run.config.dataset), about["data"], about.get("lanes", 0), about.get("deepest", 0))


def _read(file: Path) -> _There:
    """The config.yaml of a slice.

    Raises:
      ValueError: it is damaged.
    """
    try:
        return _There.of(read_plain(file))
    except (ValueError, AttributeError, KeyError, TypeError):
        problem = f"{file} is damaged; without its folder {file.parent} the points in it are run again"
        raise ValueError(problem) from None


def _loaded(find: Callable[[], Dataset]) -> Dataset:
    """Found by every process, and prepared, where it has to be, by the first."""
    return parallel.on_first_process(find) or find()


def _is_begun(folder: Path) -> bool:
    """Whether a slice can go on in its folder; one that was only just made is made again."""
    if not (folder / "config.yaml").exists():
        shutil.rmtree(folder, ignore_errors=True)
    return folder.exists()


def _name(one: Slice) -> str:
    """What its folder is called: by its points, so that the same slice is found again."""
    return hashlib.sha256(" ".join(point.identity() for point in one.points).encode()).hexdigest()[:16]


def _keep(folder: Path, grid: Grid, claim: contextlib.ExitStack) -> None:
    """Make a sweep's folder, or take the one that is there: it may hold another grid's slices.

    Raises:
      ValueError: the folder holds something else, or another process is in it.
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
    write_plain(file, grids.as_plain(grid))
    for finished in folder.glob("slices/*/history.nc"):  # perhaps by a process that was killed before it tidied up
        for rest in ("history", "checkpoints"):
            shutil.rmtree(finished.parent / rest, ignore_errors=True)


def _plain(value: Any) -> Any:
    """As a coordinate can hold it."""
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return text_of(value) if callable(value) else value
