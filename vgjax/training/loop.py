"""A whole run on the host: chunks dispatched one ahead, history, TensorBoard and checkpoints behind; resume."""

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
    """What a run leaves: its history, and the trained variables with a leading lane axis."""

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
    """Train every lane (hypers × seeds × replicas) as one compiled program, in float32 with JAX_ENABLE_X64 too.

    Args:
      config: what is static.
      hypers: the traced numbers, of one setting or several.
      seeds: how many (0, 1, …) or which.
      paired: each of the hypers with the seed at its place, instead of all with all.
      dataset: a data set at hand; None: `config.dataset` is looked up.
      data_dir, manual_dir: where prepared data lie, and original files for TFDS (see `vgjax.data`).
      variables: start from these (leading lane axis) and not from the initializer.
      folder: write config, history, TensorBoard, log and checkpoints here; None: write nothing.
      resume: go on with the run in `folder` from its last checkpoint.
      tensorboard: which lanes to write: "all", "first", "none".
      shard: what the devices share, "lanes" or "batch"; "auto": lanes where they divide.
      devices: how many devices; None: all.
      lanes, deepest: compile for so many lanes, and for networks of up to so many hidden layers (where all are as
        wide, see `vgjax.network.model.is_elastic`), so that other runs share the program; 0: for these alone.
      progress: called with every finished chunk of the history and the number of steps of the whole run; a
        KeyboardInterrupt from it stops the run, with a checkpoint of what has landed; of several processes, all.

    Returns:
      The history and the trained variables.

    Raises:
      ValueError: what was asked for is impossible; nothing was written.

    Example:
      >>> result = run(Config(dataset="iris", hidden=(8,), epochs=1, batch_size=50), seeds=2)
      >>> result.history["gradient_rms"].dims
      ('lane', 'record', 'layer')
    """
    one = isinstance(hypers, Hypers) or not isinstance(hypers, Sequence)
    settings: list[Any] = [hypers] if one else list(hypers)
    if not settings:
        raise ValueError("no lanes; allowed: at least one setting of the hypers")
    for setting in settings:
        check_hypers(setting)
    seeds = which_seeds(seeds)
    typed("tensorboard", tensorboard, Which)
    if paired and len(settings) != len(seeds):
        raise ValueError(f"{len(settings)} hypers and {len(seeds)} seeds are no pairs; allowed: as many of both")
    check_names(config)
    dataset = dataset or load(config.dataset, data_dir, manual_dir)
    train, validation = batches.arrays(dataset, config)
    pairs = list(zip(settings, seeds, strict=True) if paired else itertools.product(settings, seeds))
    n_lanes = len(pairs) * config.replicas
    lanes = max(lanes, n_lanes)
    where = parallel.layout(shard, lanes, batch_sizes(config, len(train.labels)), devices)
    program = Program(_compiled_for(config, deepest), dataset.classes, len(train.labels), where)
    epochs = epochs_at_once(shape(program.config, dataset))
    chunks = plan(config, program.steps_per_epoch, program.total_steps, epochs)
    all_lanes, coordinates = lanes_of(pairs, config.replicas)
    depth = jnp.int32(len(config.hidden)) if deepest else None
    shared = Shared(train, validation, _plan_arrays(chunks[0], most_records(chunks, epochs), epochs), depth)
    # what can be refused is refused before a file is written
    if variables is None:
        state = programs.first_states(program, shared, _filled(all_lanes, lanes))
    else:
        state = programs.states_of(program, shared, (all_lanes, variables))
    about = as_plain(config, settings, seeds, dataset.source)
    about |= {"paired": True} if paired else {}
    about |= {"variables": "given"} if variables is not None else {}
    about |= {"lanes": lanes, "deepest": deepest} if lanes > n_lanes or deepest else {}
    disk = RunFolder.open(Path(folder), about, resume) if folder is not None else None
    with disk or contextlib.nullcontext():
        with_what = parallel.from_first(lambda: disk.made_with() if disk else json.dumps(environment()))
        made = {"shard": shard, "devices": devices or parallel.device_count(), "environment": with_what}
        job = _Job(config, program, chunks, shared, all_lanes, coordinates, about, made)
        whole, trained = _train(job, state, disk, tensorboard, progress)
    if deepest:
        trained = {kind: jax.device_get(jax.vmap(partial(of_depth, config))(x)) for kind, x in trained.items()}
    return Result(whole, trained)


class _Job(NamedTuple):
    """What is to be trained, and what its history says of it."""

    config: Config  # of the network
    program: Program  # which may be of a deeper one, and of more lanes
    chunks: list[Chunk]
    shared: Shared
    lanes: Lane
    coordinates: dict[str, np.ndarray]
    about: dict[str, Any]
    made: dict[str, Any]

    @property
    def n_lanes(self) -> int:
        """Lanes that there are."""
        return len(self.coordinates["seed"])


class _Flight(NamedTuple):
    """A chunk that the devices are working on."""

    chunk: Chunk
    plan: Plan
    before: State
    after: tuple[State, dict, dict]


class _Landing:
    """What becomes of a finished chunk: history, records, checkpoint, and a closer look where a lane diverged."""

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
        depth, compiled = len(job.config.hidden), len(job.program.config.hidden)
        self.rows = np.array([*range(depth), compiled])  # of the program's layers, those that there are
        shapes = [group.values.shape[-2:] for group in weight_groups(params) for _ in group.names]
        self.all_layers = layer_names(depth + 1)
        of_these = kept(job.config, self.all_layers)
        self.layers = {self.all_layers[i]: shapes[self.rows[i]] for i in of_these}
        self.kept_rows = self.rows[of_these] if depth < compiled else None  # None: the program knew them
        self.divergence = [
            {name: parts[-1][name].values[i] for name in NOWHERE} if parts else NOWHERE for i in range(job.n_lanes)
        ]

    def diverged(self) -> np.ndarray:
        """Which lanes have left the finite numbers, bool [lanes]."""
        return np.array([place["first_bad_step"] >= 0 for place in self.divergence])

    def land(self, flight: _Flight, is_last: bool) -> None:
        """Wait for a chunk, and keep what it brings."""
        job, chunk = self.job, flight.chunk
        state, *found = flight.after
        records, evaluation = self.gather(found)
        if self.kept_rows is not None:
            records = {
                name: x[:, :, self.kept_rows] if "layer" in history.dims_of(name) else x for name, x in records.items()
            }
        suspects = ~evaluation.pop("finite")
        validation = evaluation["validation_loss"][:, : len(chunk.stops)]
        suspects |= ~np.isfinite(validation[:, np.array(chunk.validates)]).all(axis=1)
        suspects &= ~self.diverged()
        if suspects.any():
            self._look_closer(flight, np.flatnonzero(suspects))
        part = history.chunk(
            job.coordinates,
            self.layers,
            chunk.recorded,
            records,
            chunk.stops,
            evaluation,
            job.program.steps_per_epoch,
            self.divergence,
            self.about,
        )
        self.parts.append(part)
        if self.disk:
            self.disk.write(part)
        stop = None
        try:
            if self.progress:
                self.progress(part, job.program.total_steps)
        except KeyboardInterrupt as asked:  # what has landed is kept
            stop = asked
        stops = parallel.anywhere(stop is not None)  # all processes at the same chunk
        if self.disk and (stops or is_last or self.disk.wants_checkpoint()):
            self.disk.save(chunk.stop, self.gather((job.lanes, state)))
        if stops:
            raise stop or KeyboardInterrupt

    def gather(self, tree: Any) -> Any:
        """On the host, the lanes that there are [lanes, …]."""
        return jax.tree.map(lambda x: x[: self.job.n_lanes], parallel.gather(self.job.program.where, tree))

    def _look_closer(self, flight: _Flight, suspects: np.ndarray) -> None:
        closer = programs.divergence_program(self.job.program)
        shared = self.job.shared._replace(plan=flight.plan)
        steps, bad = self.gather(closer(shared, (self.job.lanes, flight.before)))
        for i in suspects:
            self.divergence[i] = describe(steps[i], bad[i][:, self.rows], self.all_layers)


def _train(
    job: _Job,
    state: State,
    disk: RunFolder | None,
    tensorboard: Which,
    progress: Callable[[xr.Dataset, int], None] | None,
) -> tuple[xr.Dataset, Variables]:
    where, lanes = job.program.where, job.lanes
    compiled = jax.tree.leaves(state)[0].shape[0]
    records, epochs = job.shared.plan.recorded.shape[0] - 1, job.shared.plan.validates.shape[0]
    params = jax.tree.map(lambda x: x[0], state.variables["params"])
    done = 0
    parts: list[xr.Dataset] = []
    if disk:
        there = jax.tree.map(lambda x: x[: job.n_lanes], state)
        stops = [stop for chunk in job.chunks for stop in chunk.stops]
        done, (lanes, state), parts = disk.resume((lanes, there), stops, tensorboard)
    shared, (lanes, state) = parallel.place(where, job.shared, _filled((lanes, state), compiled))
    chunk_program = programs.chunk_program(job.program)
    landing = _Landing(job._replace(shared=shared, lanes=lanes), params, disk, parts, progress)
    flight: _Flight | None = None
    for chunk in job.chunks:
        if chunk.start < done:
            continue
        if landing.diverged().all():  # nothing is left that could be learnt
            break
        now, _ = parallel.place(where, _plan_arrays(chunk, records, epochs), ())
        after = chunk_program(shared._replace(plan=now), (lanes, state))
        if flight:  # the devices work on this chunk while the one before lands
            landing.land(flight, is_last=False)
        flight, state = _Flight(chunk, now, state, after), after[0]
    if flight:
        landing.land(flight, is_last=True)
    whole_history = history.join(parts).assign_attrs(job.made)
    if disk:
        disk.finish(whole_history)
    return whole_history, landing.gather(state.variables)


def _compiled_for(config: Config, deepest: int) -> Config:
    """The config of the network that the program is compiled for.

    Raises:
      ValueError: no other depths can share it.
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


def _filled(lanes: Any, n: int) -> Any:
    """Lanes [n_lanes, …] as n of them, the last one repeated."""
    n_lanes = jax.tree.leaves(lanes)[0].shape[0]
    if n == n_lanes:
        return lanes
    return jax.tree.map(lambda x: x[np.minimum(np.arange(n), n_lanes - 1)], lanes)


def _plan_arrays(chunk: Chunk, records: int, epochs: int) -> Plan:
    """The plan of a chunk, in a program of so many records and epochs."""
    recorded, validates = np.full(records + 1, chunk.stop, np.int32), np.zeros(epochs, bool)
    recorded[: len(chunk.recorded)] = chunk.recorded
    validates[: len(chunk.validates)] = chunk.validates
    return Plan(np.int32(chunk.start), np.int32(chunk.stop), recorded, validates)  # type: ignore[arg-type]
