"""A whole run, seen from the host: it starts the next chunk on the devices, and meanwhile keeps what the last one gave.

A finished chunk goes into the history, to TensorBoard and into a checkpoint. A run can resume from its folder.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from vgjax.config import Config, Hypers, check_hypers, typed
from vgjax.data import batches
from vgjax.data.batches import batch_sizes
from vgjax.data.catalogue import Dataset, load
from vgjax.environment import environment
from vgjax.network.layer_names import layer_names, weight_groups
from vgjax.network.model import Variables, is_elastic, of_depth
from vgjax.settings import as_plain, which_seeds
from vgjax.statistics.families import kept
from vgjax.training import history, parallel, programs
from vgjax.training.checks import check_names
from vgjax.training.chunk_plan import Chunk, epochs_at_once, most_records, plan, shape
from vgjax.training.divergence import NOWHERE, describe
from vgjax.training.folder import RunFolder
from vgjax.training.step import Lane, Plan, Program, Shared, State, lanes_of
from vgjax.training.tensorboard import Which

DEFAULTS = Hypers()


class Result(NamedTuple):
    """What `run` returns: the history, and the trained variables with a leading lane axis."""

    history: xr.Dataset
    variables: Variables


@parallel.in_float32
def run(
    config: Config,
    hypers: Hypers | Sequence[Hypers] = DEFAULTS,
    seeds: int | Sequence[int] = 1,
    *,
    paired: bool = False,
    dataset: Dataset | None = None,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    variables: Variables | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    tensorboard: Which = "all",
    shard: parallel.Sharding = "auto",
    devices: int | None = None,
    lanes: int = 0,
    deepest: int = 0,
    progress: Callable[[xr.Dataset, int], None] | None = None,
) -> Result:
    """Train every lane (hypers × seeds × replicas) in one compiled program, in float32 even with JAX_ENABLE_X64.

    Args:
      config: everything that is static.
      hypers: the traced numbers, of one setting or several.
      seeds: how many (0, 1, …), or which ones.
      paired: pair hypers[i] with seeds[i]; otherwise every setting is trained with every seed.
      dataset: a data set in memory; None: load `config.dataset`.
      data_dir, manual_dir: the folders of prepared data, and of original files for TFDS (see `vgjax.data`).
      variables: initial variables (leading lane axis) that replace the initializer's.
      folder: write config, history, TensorBoard, log and checkpoints here; None: write nothing.
      resume: continue the run in `folder` from its last checkpoint.
      tensorboard: which lanes to write: "all", "first", "none".
      shard: what the devices divide among themselves, "lanes" or "batch"; "auto": the lanes where they divide evenly.
      devices: how many devices to use; None: all.
      lanes, deepest: compile the program for this many lanes, and for networks of up to this many hidden layers (all of
        one width, see `vgjax.network.model.is_elastic`), so that other runs can use it too; 0: for this run alone.
      progress: called with every finished chunk of the history and the number of steps of the whole run. If it raises
        KeyboardInterrupt, the run saves a checkpoint of all finished chunks and stops, in every process of the job.

    Returns:
      The history and the trained variables.

    Raises:
      ValueError: the run is impossible as asked for; nothing was written.

    Example:
      >>> result = run(Config(dataset="iris", hidden=(8,), epochs=1, batch_size=50), seeds=2)
      >>> result.history["gradient_rms"].dims
      ('lane', 'record', 'layer')
    """
    settings, seeds = _checked_settings(hypers), which_seeds(seeds)
    typed("tensorboard", tensorboard, Which)
    pairs = _pairs(settings, seeds, paired)
    check_names(config)
    dataset = dataset or load(config.dataset, data_dir, manual_dir)
    train, validation = batches.arrays(dataset, config)
    n_lanes = len(pairs) * config.replicas
    lanes = max(lanes, n_lanes)
    where = parallel.layout(shard, lanes, batch_sizes(config, len(train.labels)), devices)
    program = Program(_program_config(config, deepest), dataset.classes, len(train.labels), where)
    epochs = epochs_at_once(shape(program.config, dataset))
    chunks = plan(config, program.steps_per_epoch, program.total_steps, epochs)
    all_lanes, coordinates = lanes_of(pairs, config.replicas)
    depth = jnp.int32(len(config.hidden)) if deepest else None
    shared = Shared(train, validation, _plan_arrays(chunks[0], most_records(chunks, epochs), epochs), depth)
    # everything that can be refused is refused before a file is written
    if variables is None:
        state = programs.first_states(program, shared, _padded(all_lanes, lanes))
    else:
        state = programs.states_of(program, shared, (all_lanes, variables))
    about = as_plain(config, settings, seeds, dataset.source)
    about |= {"paired": True} if paired else {}
    about |= {"variables": "given"} if variables is not None else {}
    about |= {"lanes": lanes, "deepest": deepest} if lanes > n_lanes or deepest else {}
    disk = RunFolder.open(Path(folder), about, resume, tensorboard) if folder is not None else None
    with disk or contextlib.nullcontext():
        made_with = parallel.from_first_process(lambda: disk.made_with() if disk else json.dumps(environment()))
        made = {"shard": shard, "devices": devices or parallel.device_count(), "environment": made_with}
        job = _Job(config, program, chunks, shared, all_lanes, coordinates, about, made)
        whole_history, trained = _train(job, state, disk, progress)
    return Result(whole_history, _of_own_depth(config, trained) if deepest else trained)


def _checked_settings(hypers: Hypers | Sequence[Hypers]) -> list[Hypers]:
    """One setting or several as a list, each of them checked."""
    is_one = isinstance(hypers, Hypers) or not isinstance(hypers, Sequence)
    settings: list[Any] = [hypers] if is_one else list(hypers)
    if not settings:
        raise ValueError("no lanes; allowed: at least one setting of the hypers")
    for setting in settings:
        check_hypers(setting)
    return settings


def _pairs(settings: Sequence[Hypers], seeds: Sequence[int], paired: bool) -> list[tuple[Hypers, int]]:
    """One (setting, seed) for every lane, before replicas."""
    if not paired:
        return list(itertools.product(settings, seeds))
    if len(settings) != len(seeds):
        raise ValueError(f"{len(settings)} hypers and {len(seeds)} seeds cannot be paired; allowed: as many of each")
    return list(zip(settings, seeds, strict=True))


class _Job(NamedTuple):
    """What to train, and what the history says about it."""

    config: Config  # of the network
    program: Program  # perhaps of a deeper network, and of more lanes
    chunks: list[Chunk]
    shared: Shared
    lanes: Lane
    coordinates: dict[str, np.ndarray]
    about: dict[str, Any]
    made: dict[str, Any]

    @property
    def n_lanes(self) -> int:
        """Lanes of the run, without those that only fill up the program."""
        return len(self.coordinates["seed"])


class _Dispatched(NamedTuple):
    """A chunk that the devices are working on."""

    chunk: Chunk
    plan: Plan
    before: State
    after: tuple[State, dict, dict]


class _Collector:
    """Collects finished chunks: history, TensorBoard, checkpoint, and the search for the step where a lane diverged."""

    def __init__(
        self,
        job: _Job,
        params: Any,
        disk: RunFolder | None,
        parts: list[xr.Dataset],
        progress: Callable[[xr.Dataset, int], None] | None,
    ):
        self.job, self.disk, self.parts, self.progress = job, disk, parts, progress
        self.about = json.dumps(job.about, ensure_ascii=False)
        depth, program_depth = len(job.config.hidden), len(job.program.config.hidden)
        self.rows = np.array([*range(depth), program_depth])  # of the program's layers, those that the network has
        shapes = [group.values.shape[-2:] for group in weight_groups(params) for _ in group.names]
        self.all_layers = layer_names(depth + 1)
        recorded = kept(job.config, self.all_layers)
        self.layers = {self.all_layers[i]: shapes[self.rows[i]] for i in recorded}
        # an elastic program records all of its layers: these are the ones to keep
        self.kept_rows = self.rows[recorded] if depth < program_depth else None
        self.divergence = [
            {name: parts[-1][name].values[i] for name in NOWHERE} if parts else NOWHERE for i in range(job.n_lanes)
        ]

    def diverged(self) -> np.ndarray:
        """Which lanes have met a number that is not finite, bool [lanes]."""
        return np.array([place["first_bad_step"] >= 0 for place in self.divergence])

    def collect(self, dispatched: _Dispatched, is_last: bool) -> None:
        """Wait for a chunk, and keep its results."""
        chunk = dispatched.chunk
        state, *results = dispatched.after
        records, evaluations = self.gather(results)
        if self.kept_rows is not None:
            records = {
                name: x[:, :, self.kept_rows] if "layer" in history.dims_of(name) else x for name, x in records.items()
            }
        self._find_divergence(dispatched, evaluations.pop("finite"), evaluations["validation_loss"])
        found = history.ChunkResults(chunk.recorded, records, chunk.stops, evaluations, self.divergence)
        part = history.labelled(self.job.coordinates, self.layers, found, self.job.program.steps_per_epoch, self.about)
        self.parts.append(part)
        if self.disk:
            self.disk.write(part)
        interrupt = None
        try:
            if self.progress:
                self.progress(part, self.job.program.total_steps)
        except KeyboardInterrupt as error:  # a checkpoint comes first
            interrupt = error
        stops = parallel.on_any_process(interrupt is not None)  # all processes stop after the same chunk
        if self.disk and (stops or is_last or self.disk.wants_checkpoint()):
            self.disk.save(chunk.stop, self.gather((self.job.lanes, state)))
        if stops:
            raise interrupt or KeyboardInterrupt

    def gather(self, tree: Any) -> Any:
        """The run's own lanes [lanes, …], on the host."""
        return jax.tree.map(lambda x: x[: self.job.n_lanes], parallel.gather(self.job.program.where, tree))

    def _find_divergence(self, dispatched: _Dispatched, finite: np.ndarray, validation_loss: np.ndarray) -> None:
        """Run the chunk again, step by step, if a lane has just met a number that is not finite."""
        chunk = dispatched.chunk
        validated = validation_loss[:, : len(chunk.stops)][:, np.array(chunk.validates)]
        suspects = ~(finite & np.isfinite(validated).all(axis=1)) & ~self.diverged()
        if not suspects.any():
            return
        program = programs.divergence_program(self.job.program)
        shared = self.job.shared._replace(plan=dispatched.plan)
        steps, bad = self.gather(program(shared, (self.job.lanes, dispatched.before)))
        for i in np.flatnonzero(suspects):
            self.divergence[i] = describe(steps[i], bad[i][:, self.rows], self.all_layers)


def _train(
    job: _Job,
    state: State,
    disk: RunFolder | None,
    progress: Callable[[xr.Dataset, int], None] | None,
) -> tuple[xr.Dataset, Variables]:
    """Run all chunks that are not done yet."""
    where, lanes = job.program.where, job.lanes
    program_lanes = jax.tree.leaves(state)[0].shape[0]
    records, epochs = job.shared.plan.recorded.shape[0] - 1, job.shared.plan.validates.shape[0]
    params = jax.tree.map(lambda x: x[0], state.variables["params"])
    done = 0
    parts: list[xr.Dataset] = []
    if disk:
        own = jax.tree.map(lambda x: x[: job.n_lanes], state)
        stops = [stop for chunk in job.chunks for stop in chunk.stops]
        done, (lanes, state), parts = disk.resume((lanes, own), stops)
    shared, (lanes, state) = parallel.place(where, job.shared, _padded((lanes, state), program_lanes))
    chunk_program = programs.chunk_program(job.program)
    collector = _Collector(job._replace(shared=shared, lanes=lanes), params, disk, parts, progress)
    dispatched: _Dispatched | None = None
    for chunk in job.chunks:
        if chunk.start < done:
            continue
        if collector.diverged().all():  # no lane can learn any more
            break
        now, _ = parallel.place(where, _plan_arrays(chunk, records, epochs), ())
        after = chunk_program(shared._replace(plan=now), (lanes, state))
        if dispatched:  # the devices work on this chunk while the host collects the one before
            collector.collect(dispatched, is_last=False)
        dispatched, state = _Dispatched(chunk, now, state, after), after[0]
    if dispatched:
        collector.collect(dispatched, is_last=True)
    whole_history = history.join(parts).assign_attrs(job.made)
    if disk:
        disk.finish(whole_history)
    return whole_history, collector.gather(state.variables)


def _program_config(config: Config, deepest: int) -> Config:
    """The config that the program is compiled for: its own, or that of the deepest network that may use the program.

    Raises:
      ValueError: networks of other depths cannot use it.
    """
    if not deepest:
        return config
    elastic = replace(config, hidden=config.hidden[:1] * deepest, record_layers=("*",))
    if len(set(config.hidden)) > 1 or len(config.hidden) > deepest or not is_elastic(elastic):
        raise ValueError(
            f"deepest {deepest} is not allowed for this network; allowed: 13 or more hidden layers of one width, and "
            "neither clipping by layer nor an initializer that looks at data"
        )
    return elastic


def _of_own_depth(config: Config, variables: Variables) -> Variables:
    """The network's own variables [lanes, …] among those of a deeper program."""
    return {kind: jax.device_get(jax.vmap(partial(of_depth, config))(tree)) for kind, tree in variables.items()}


def _padded(lanes: Any, n: int) -> Any:
    """Lanes [n_lanes, …] as n lanes: the last one is repeated."""
    n_lanes = jax.tree.leaves(lanes)[0].shape[0]
    if n == n_lanes:
        return lanes
    return jax.tree.map(lambda x: x[np.minimum(np.arange(n), n_lanes - 1)], lanes)


def _plan_arrays(chunk: Chunk, records: int, epochs: int) -> Plan:
    """The plan of a chunk as arrays, for a program whose chunks have at most this many records and epochs."""
    recorded, validates = np.full(records + 1, chunk.stop, np.int32), np.zeros(epochs, bool)
    recorded[: len(chunk.recorded)] = chunk.recorded
    validates[: len(chunk.validates)] = chunk.validates
    return Plan(np.int32(chunk.start), np.int32(chunk.stop), recorded, validates)  # type: ignore[arg-type]
