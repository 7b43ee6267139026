"""Train every point of a grid, slice after slice; keep each finished slice on disk, and join them into one history."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr

from vgjax.config import Config, Named
from vgjax.data.batches import check_sizes
from vgjax.data.catalogue import Dataset, load
from vgjax.environment import environment
from vgjax.names import text_of
from vgjax.settings import run_of
from vgjax.sweeps import capacity
from vgjax.sweeps.grid import Grid, grid_as_plain
from vgjax.sweeps.plan import SHARE_OF_MEMORY, Slice, SweepPlan, bytes_of_lane, cut, halved, make_plan
from vgjax.sweeps.sweep_folder import (
    StoredSlice,
    can_resume,
    coordinate_value,
    identities_of,
    open_sweep_folder,
    slice_folder,
    stored_slices,
)
from vgjax.training import chunk_plan, history, loop, parallel
from vgjax.training.checks import check_names
from vgjax.training.chunk_plan import shape
from vgjax.training.folder import MADE_WITH
from vgjax.training.loop import run


class Standing(NamedTuple):
    """How far a sweep is; `done` and `total` count points times steps."""

    done: int
    total: int
    number: int  # of the running slice, from 1
    slices: int
    part: xr.Dataset | None = None  # history of the chunk that has just ended


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is run; the fields are the keywords of `sweep`."""

    folder: str | Path | None = None
    dataset: Dataset | None = None
    data_dir: str | Path | None = None
    manual_dir: str | Path | None = None
    lanes: int | None = None
    shard: parallel.Sharding = "auto"
    devices: int | None = None

    def __post_init__(self) -> None:
        if self.lanes is not None and self.lanes < 1:
            raise ValueError(f"lanes {self.lanes} is not allowed; allowed: whole numbers from 1")


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
    """Train every point of a grid; points that share a compiled program are trained together.

    Points that are finished in `folder` are not run again, also if they come from a smaller grid. A slice that was
    interrupted is resumed from its last checkpoint.

    Args:
      grid: what to run.
      folder: for the finished slices and the history of the whole grid; None: nothing is written.
      dataset: the data set; None: the one that each config names.
      data_dir, manual_dir: folders of prepared data and of original files for TFDS (see `vgjax.data`).
      lanes: largest number of lanes that run at once; None: as many as fit into the memory. A slice that runs out of
        memory is run again with half as many.
      shard, devices: as for `vgjax.run`.
      progress: called after every chunk; a KeyboardInterrupt from it stops the sweep in order.
      note: called with a sentence when something does not go as planned.

    Returns:
      The history of all lanes in the grid's order, with every swept field as a coordinate. In lanes with fewer layers
      than others, the missing layers are NaN.

    Raises:
      ValueError: a setting is not possible; nothing was run.

    Example:
      >>> grid = Grid(product={"sigma_w2": [1.0, 2.0]}, config=Config(dataset="iris", hidden=(8,), epochs=1), seeds=2)
      >>> sweep(grid)["sigma_w2"].values
      array([1., 1., 2., 2.])
    """
    options = SweepOptions(folder, dataset, data_dir, manual_dir, lanes, shard, devices)
    return Job(grid, options).run(progress, note)


class Job:
    """One sweep: its points, which of them are finished, and the plan for the rest.

    Args:
      grid: what to run.
      options: how to run it.
    """

    def __init__(self, grid: Grid, options: SweepOptions):
        self.grid, self.points, self.options = grid, grid.expand(), options
        self.folder = Path(options.folder) if options.folder is not None else None
        configs = list(dict.fromkeys(point.config for point in self.points))
        for config in configs:
            check_names(config)
        self._data = {name: self._load(name) for name in dict.fromkeys(config.dataset for config in configs)}
        self._histories: list[xr.Dataset] = []  # of the slices, if there is no folder
        for config in configs:  # what can be refused is refused before anything runs
            data = self.data(config)
            check_sizes(data, config)
            steps = shape(config, data)
            chunk_plan.plan(config, steps.steps_per_epoch, steps.steps)
        self.plan = parallel.from_first_process(self._plan)
        for one in self.plan.slices:
            n_train = len(self.data(one.config).train_labels) - one.config.holdout
            parallel.layout(options.shard, one.lanes, loop.batch_sizes(one.config, n_train), options.devices)

    def data(self, config: Config) -> Dataset:
        """The data set of a config."""
        return self._data[config.dataset]

    def _load(self, name: Named) -> Dataset:
        """Load a data set in every process; the first process prepares it, if it has to be prepared."""
        if self.options.dataset:
            return self.options.dataset
        find = partial(load, name, self.options.data_dir, self.options.manual_dir)
        return parallel.on_first_process(find) or find()

    def run(
        self, progress: Callable[[Standing], None] | None = None, note: Callable[[str], None] | None = None
    ) -> xr.Dataset:
        """Train what the plan says; return the history of the whole grid."""
        with contextlib.ExitStack() as claim:
            if self.folder:
                parallel.on_first_process(partial(open_sweep_folder, self.folder, self.grid, claim))
            self._run_slices(progress, note)
            return parallel.from_first_process(self._whole_history) if self.folder else self._whole_history()

    def _run_slices(self, progress: Callable[[Standing], None] | None, note: Callable[[str], None] | None) -> None:
        waiting = list(self.plan.slices)
        done, total, number = 0, sum(map(self._work, waiting)), 1
        while waiting:
            one = waiting[0]
            standing = Standing(done, total, number, number + len(waiting) - 1)
            try:
                self._run_slice(one, self._progress_of_slice(one, standing, progress))
            except (MemoryError, RuntimeError) as error:
                if not capacity.is_out_of_memory(error) or len(one.points) == 1:
                    raise
                waiting = self._halved(one, waiting)
                if note:
                    note(f"out of memory with {one.lanes} lanes at once; going on with {waiting[0].lanes}")
            else:
                done, number, waiting = done + self._work(one), number + 1, waiting[1:]

    def _work(self, one: Slice) -> int:
        """Points times steps."""
        return len(one.points) * shape(one.config, self.data(one.config)).steps

    def _progress_of_slice(
        self, one: Slice, before: Standing, progress: Callable[[Standing], None] | None
    ) -> Callable[[xr.Dataset, int], None] | None:
        """The `progress` that `vgjax.run` calls after every chunk; it calls that of the sweep."""
        if progress is None:
            return None

        def landed(part: xr.Dataset, steps: int) -> None:
            here = len(one.points) * int(part["evaluated_at"].values[-1])
            progress(before._replace(done=before.done + here, part=part))

        return landed

    def _halved(self, one: Slice, waiting: list[Slice]) -> list[Slice]:
        """The waiting slices, with half as many lanes in all slices that share the program of this one."""
        if self.folder:
            parallel.on_first_process(partial(shutil.rmtree, slice_folder(self.folder, one), ignore_errors=True))
        return [part for each in waiting for part in (halved(each) if each.program == one.program else [each])]

    def _plan(self) -> SweepPlan:
        finished, started = self._finished_and_started()
        taken = finished | {point.identity() for one in started for point in one.points}
        rest = [point for point in self.points if point.identity() not in taken]
        devices = self.options.devices or parallel.device_count()
        slices = [*started, *cut(rest, self._most_lanes, self.options.shard, devices)]
        n_finished = sum(point.identity() in finished for point in self.points)
        return make_plan(len(self.points), n_finished, slices, self.data)

    def _most_lanes(self, config: Config) -> int:
        """How many lanes of a config may run at once."""
        each = bytes_of_lane(shape(config, self.data(config)))
        fitting = max(1, int(SHARE_OF_MEMORY * capacity.free_bytes()) // each)
        fitting = 2 ** int(math.log2(fitting))  # the same number, though the free memory changes a little over time
        return min(fitting, self.options.lanes or fitting)

    def _finished_and_started(self) -> tuple[set[str], list[Slice]]:
        """Identities of the finished points in the folder, and the unfinished slices that can be resumed."""
        wanted = {point.identity(): point for point in self.points}
        finished: set[str] = set()
        started = []
        for stored in self._stored_slices():
            if stored.is_finished:
                finished |= set(stored.identities)
            elif all(name in wanted for name in stored.identities):
                points = tuple(wanted[name] for name in stored.identities)
                started.append(Slice(points[0].config, points, stored.lanes, stored.deepest))
        return finished, [one for one in started if not finished & {point.identity() for point in one.points}]

    def _run_slice(self, one: Slice, progress: Callable[[xr.Dataset, int], None] | None) -> None:
        folder = slice_folder(self.folder, one) if self.folder else None
        result = run(
            one.config,
            [point.hypers for point in one.points],
            [point.seed for point in one.points],
            paired=True,
            dataset=self.data(one.config),
            folder=folder,
            resume=parallel.from_first_process(partial(can_resume, folder)) if folder else False,
            tensorboard="none",
            lanes=one.lanes,
            deepest=one.deepest,
            progress=progress,
            shard=self.options.shard,
            devices=self.options.devices,
        )
        if folder:
            parallel.on_first_process(partial(shutil.rmtree, folder / "checkpoints", ignore_errors=True))
        else:
            self._histories.append(result.history)

    def _stored_slices(self) -> Iterator[StoredSlice]:
        """The slices in the folder that were trained on the same data."""
        sources = {text_of(name): data.source for name, data in self._data.items()}
        for stored in stored_slices(self.folder) if self.folder else []:
            if stored.data == sources.get(stored.dataset):
                yield stored

    def _finished_histories(self) -> Iterator[xr.Dataset]:
        yield from self._histories
        for stored in self._stored_slices():
            if stored.is_finished:
                yield history.load(stored.path)

    def _whole_history(self) -> xr.Dataset:
        """One history of the whole grid, in the grid's order; it is written to the folder too."""
        missing = {point.identity(): i for i, point in enumerate(self.points)}
        parts, order = [], []
        for part in self._finished_histories():
            identities = identities_of(run_of(part))
            replicas = part.sizes["lane"] // len(identities)
            places = np.repeat([missing.pop(name, -1) for name in identities], replicas)
            if (places >= 0).any():
                parts.append(part.isel(lane=places >= 0))
                order.append(places[places >= 0])
        places = np.concatenate(order)
        whole = history.beside(parts).isel(lane=np.argsort(places, kind="stable"))
        lanes = [self.points[i] for i in np.sort(places)]
        for name in dict.fromkeys(name for point in self.points for name in point.coordinates):
            if name not in whole.coords:
                values = np.array([coordinate_value(point.value(name)) for point in lanes])
                whole = whole.assign_coords({name: ("lane", values)})
        whole.attrs["sweep"] = json.dumps(grid_as_plain(self.grid), ensure_ascii=False)
        whole.attrs |= {
            "shard": self.options.shard,
            "devices": self.options.devices or parallel.device_count(),
            "environment": (self.folder / MADE_WITH).read_text() if self.folder else json.dumps(environment()),
        }
        if self.folder:
            history.finish(self.folder, whole)
        return whole
