"""A whole run on the host: chunks dispatched one ahead, history, TensorBoard and checkpoints behind; resume."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from vgjax import batches, history, parallel
from vgjax.batches import Arrays
from vgjax.cadence import steps_of
from vgjax.checks import check_names
from vgjax.config import Config, Hypers, check_hypers
from vgjax.data import Dataset, load
from vgjax.divergence import NOWHERE, describe, first_bad
from vgjax.families import kept
from vgjax.folder import RunFolder
from vgjax.initializers import is_data_dependent
from vgjax.layers import weight_groups
from vgjax.model import Variables
from vgjax.names import text_of
from vgjax.records import Which
from vgjax.settings import as_plain
from vgjax.train import Lane, Plan, Program, Shared, State, fresh_state, initial_state, run_chunk

DEFAULTS = Hypers()


class Result(NamedTuple):
    """What a run leaves: its history, and the trained variables with a leading lane axis."""

    history: xr.Dataset
    variables: Variables


class Chunk(NamedTuple):
    """Steps start … stop − 1, those in `recorded` instrumented."""

    start: int
    stop: int
    recorded: tuple[int, ...]


def run(
    config: Config,
    hypers: Hypers | Sequence[Hypers] = DEFAULTS,
    seeds: int | Sequence[int] = 1,
    *,
    dataset: Dataset | None = None,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    variables: Variables | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    tensorboard: Which = "all",
    shard: parallel.Sharding = "auto",
    devices: int | None = None,
    progress: Callable[[xr.Dataset, int], None] | None = None,
) -> Result:
    """Train every lane (hypers × seeds × replicas) as one compiled program.

    Args:
      config: what is static.
      hypers: the traced numbers, of one setting or several.
      seeds: how many (0, 1, …) or which.
      dataset: a data set at hand; None: `config.dataset` is looked up.
      data_dir, manual_dir: where prepared data lie, and original files for TFDS (see `vgjax.data`).
      variables: start from these (leading lane axis) and not from the initializer.
      folder: write config, history, TensorBoard, log and checkpoints here; None: write nothing.
      resume: go on with the run in `folder` from its last checkpoint.
      tensorboard: which lanes to write: "all", "first", "none".
      shard: what the devices share, "lanes" or "batch"; "auto": lanes where they divide.
      devices: how many devices; None: all.
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
    settings = [hypers] if isinstance(hypers, Hypers) else list(hypers)
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not settings or not seeds:
        raise ValueError("no lanes: at least one setting of the hypers and one seed are needed")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed} is not allowed; allowed: 0 to {2**32 - 1}")
    for setting in settings:
        check_hypers(setting)
    check_names(config)
    dataset = dataset or load(config.dataset, data_dir, manual_dir)
    train, validation = batches.arrays(dataset, config)
    n_lanes = len(settings) * len(seeds) * config.replicas
    where = parallel.layout(shard, n_lanes, _batch_sizes(config, len(train.labels)), devices)
    program = Program(config, dataset.classes, len(train.labels), where)
    chunks = plan(config, program.steps_per_epoch, program.total_steps)
    lanes, coordinates = _lanes(settings, seeds, config.replicas)
    most = max(2, *(len(chunk.recorded) for chunk in chunks))  # no fewer than a last epoch's two
    shared = Shared(train, validation, _plan_arrays(chunks[0], most))
    state = _first_state(program, shared, lanes, variables)  # what can be refused is refused before a file is written
    about = as_plain(config, settings, seeds, dataset.source)
    disk = RunFolder.open(Path(folder), about, resume) if folder is not None else None
    try:
        return _train(program, chunks, shared, lanes, state, coordinates, about, disk, tensorboard, progress)
    finally:
        if disk:
            disk.close()


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
        program: Program,
        shared: Shared,
        lanes: Lane,
        coordinates: dict[str, np.ndarray],
        about: dict[str, Any],
        params: Any,
        lane_bytes: int,
        disk: RunFolder | None,
        parts: list[xr.Dataset],
        progress: Callable[[xr.Dataset, int], None] | None,
    ):
        self.program, self.shared, self.lanes, self.coordinates = program, shared, lanes, coordinates
        self.disk, self.parts, self.progress = disk, parts, progress
        self.about = json.dumps(about, ensure_ascii=False)
        self.lane_bytes = lane_bytes
        self.all_layers = [name for group in weight_groups(params) for name in group.names]
        self.layers = layer_shapes(program.config, params)
        self.divergence = [
            {name: parts[-1][name].values[i] for name in NOWHERE} if parts else NOWHERE
            for i in range(len(coordinates["seed"]))
        ]

    def diverged(self) -> np.ndarray:
        """Which lanes have left the finite numbers, bool [lanes]."""
        return np.array([place["first_bad_step"] >= 0 for place in self.divergence])

    def land(self, flight: _Flight, is_last: bool) -> None:
        """Wait for a chunk, and keep what it brings."""
        program, chunk = self.program, flight.chunk
        state, *found = flight.after
        records, evaluation = parallel.gather(program.where, found)
        suspects = ~np.isfinite(evaluation["train_loss"] + evaluation["validation_loss"]) & ~self.diverged()
        if suspects.any():
            self._look_closer(flight, np.flatnonzero(suspects))
        part = history.chunk(
            self.coordinates,
            self.layers,
            chunk.recorded,
            records,
            chunk.stop,
            evaluation,
            program.steps_per_epoch,
            self.divergence,
            self.about,
        )
        self.parts.append(part)
        if self.disk:
            self.disk.write(part)
        stop = None
        try:
            if self.progress:
                self.progress(part, program.total_steps)
        except KeyboardInterrupt as asked:  # what has landed is kept
            stop = asked
        stops = parallel.anywhere(stop is not None)  # all processes at the same chunk
        if self.disk and (stops or is_last or self.disk.wants_checkpoint()):
            self.disk.save(chunk.stop, parallel.gather(program.where, (self.lanes, state)))
        if stops:
            raise stop or KeyboardInterrupt

    def _look_closer(self, flight: _Flight, suspects: np.ndarray) -> None:
        closer = _divergence_program(_without_start(self.program), self.lane_bytes)
        found = closer(self.shared._replace(plan=flight.plan), (self.lanes, flight.before))
        steps, bad = parallel.gather(self.program.where, found)
        for i in suspects:
            self.divergence[i] = describe(steps[i], bad[i], self.all_layers)


def _train(
    program: Program,
    chunks: list[Chunk],
    shared: Shared,
    lanes: Lane,
    state: State,
    coordinates: dict[str, np.ndarray],
    about: dict[str, Any],
    disk: RunFolder | None,
    tensorboard: Which,
    progress: Callable[[xr.Dataset, int], None] | None,
) -> Result:
    where = program.where
    most = shared.plan.gaps.shape[0] - 1
    params, lane_bytes = jax.tree.map(lambda x: x[0], state.variables["params"]), _lane_bytes(state)
    done = 0
    parts: list[xr.Dataset] = []
    if disk:
        done, (lanes, state), parts = disk.resume((lanes, state), tensorboard)
    shared, (lanes, state) = parallel.place(where, shared, (lanes, state))
    chunk_program = _chunk_program(_without_start(program), lane_bytes)
    landing = _Landing(program, shared, lanes, coordinates, about, params, lane_bytes, disk, parts, progress)
    flight: _Flight | None = None
    for chunk in chunks:
        if chunk.start < done:
            continue
        if landing.diverged().all():  # nothing is left that could be learnt
            break
        now, _ = parallel.place(where, _plan_arrays(chunk, most), ())
        after = chunk_program(shared._replace(plan=now), (lanes, state))
        if flight:  # the devices work on this chunk while the one before lands
            landing.land(flight, is_last=False)
        flight, state = _Flight(chunk, now, state, after), after[0]
    if flight:
        landing.land(flight, is_last=True)
    whole_history = history.join(parts)
    if disk:
        disk.finish(whole_history)
    return Result(whole_history, parallel.gather(where, state.variables))


def plan(config: Config, steps_per_epoch: int, total_steps: int) -> list[Chunk]:
    """Cut the run into chunks that end with their epoch, and say which steps are instrumented.

    Raises:
      ValueError: the cadence names no step of the run.
    """
    recorded = steps_of(config.cadence, steps_per_epoch, total_steps)
    if not recorded or not 0 <= recorded[0] <= recorded[-1] < total_steps:
        raise ValueError(
            f"cadence {text_of(config.cadence)!r} names no step of this run; allowed: 0 to {total_steps - 1}"
        )
    starts = range(0, total_steps, steps_per_epoch)
    stops = [min(start + steps_per_epoch, total_steps) for start in starts]
    borders = [bisect.bisect_left(recorded, step) for step in [0, *stops]]
    return [
        Chunk(start, stop, tuple(recorded[a:b]))
        for start, stop, (a, b) in zip(starts, stops, itertools.pairwise(borders), strict=True)
    ]


def layer_shapes(config: Config, params: Any) -> dict[str, tuple[int, int]]:
    """(fan_in, fan_out) of every layer that is recorded, by name."""
    all_layers = {
        name: (group.values.shape[-2], group.values.shape[-1])
        for group in weight_groups(params)
        for name in group.names
    }
    names = list(all_layers)
    return {names[i]: all_layers[names[i]] for i in kept(config, names)}


def _plan_arrays(chunk: Chunk, most: int) -> Plan:
    borders = [chunk.start - 1, *chunk.recorded, chunk.stop]
    gaps = [after - before - 1 for before, after in itertools.pairwise(borders)]
    gaps += [0] * (most + 1 - len(gaps))
    return Plan(*(jnp.asarray(np.array(x, np.int32)) for x in (chunk.start, gaps, len(chunk.recorded))))


def _lanes(settings: list[Hypers], seeds: list[int], replicas: int) -> tuple[Lane, dict[str, np.ndarray]]:
    rows = [(setting, seed, replica) for setting in settings for seed in seeds for replica in range(replicas)]
    columns = {name: np.array([float(getattr(s, name)) for s, _, _ in rows]) for name in Hypers._fields}
    coordinates = {
        "seed": np.array([seed for _, seed, _ in rows]),
        "replica": np.array([replica for _, _, replica in rows]),
        **columns,
    }
    lanes = Lane(
        Hypers(*(columns[name].astype(np.float32) for name in Hypers._fields)),  # type: ignore[arg-type]
        jax.vmap(jax.random.key)(coordinates["seed"].astype(np.uint32)),
        coordinates["replica"].astype(np.int32),  # type: ignore[arg-type]
    )
    return lanes, coordinates


def _first_state(program: Program, shared: Shared, lanes: Lane, variables: Variables | None) -> State:
    """On the host, [lanes, …]."""
    if variables is not None:
        return jax.device_get(_start_program(program, fresh_state)(shared, (lanes, variables)))
    replicas = program.config.replicas
    starts = jax.tree.map(lambda x: x[::replicas], lanes)  # replicas start alike
    program, train = _start_only(program, shared.train)
    unseen: Any = None
    state = jax.device_get(_start_program(program, initial_state)(Shared(train, unseen, unseen), starts))
    return jax.tree.map(lambda x: x.repeat(replicas, axis=0), state)


@functools.lru_cache(maxsize=64)
def _start_program(program: Program, start: Callable[..., State]) -> Callable[..., Any]:
    return parallel.start_program(functools.partial(start, program))


def _start_only(program: Program, train: Arrays) -> tuple[Program, Arrays]:
    """Program and data less what does not matter to the first state, so that runs which start alike share a compile."""
    config = program.config
    later: dict[str, Any] = {
        "dataset": "",
        "scaling": "auto",
        "holdout": 0,
        "epochs": 1,
        "steps": 0,
        "shuffle": config.shuffle if config.shuffle == "never" else "once",  # epoch 0 is the same
        "replicas": 1,
        "reduction": "mean",
        "cadence": "epoch",
        "record": (),
        "record_layers": ("*",),
    }
    if not any(map(is_data_dependent, (config.initializer, config.output_initializer or config.initializer))):
        later |= {"batch_size": 1, "shuffle": "never", "last_batch": "drop"}  # one blank example gives the shapes
        later |= {"activation": "linear", "norm_epsilon": 1e-5, "norm_momentum": 0.99}
        train = jax.tree.map(lambda x: np.zeros((1, *x.shape[1:]), x.dtype), train)
    config, where = dataclasses.replace(config, **later), parallel.Layout(1, "lanes")
    return Program(config, program.classes, len(train.labels), where), train


@functools.lru_cache(maxsize=64)
def _chunk_program(program: Program, lane_bytes: int) -> Callable[..., Any]:
    return parallel.program(program.where, functools.partial(run_chunk, program), lane_bytes)


@functools.lru_cache(maxsize=64)
def _divergence_program(program: Program, lane_bytes: int) -> Callable[..., Any]:
    return parallel.program(program.where, functools.partial(first_bad, program), lane_bytes)


def _without_start(program: Program) -> Program:
    """The program less what matters to data, first state or plan alone: settings that differ there share a compile."""
    start: dict[str, Any] = {
        "dataset": "",
        "scaling": "auto",
        "holdout": 0,
        "cadence": "epoch",
        "output_initializer": "",
    }
    if not is_data_dependent(program.config.initializer):  # which keeps layers apart
        start |= {"initializer": "lecun_normal"}
    if program.config.schedule == "constant":  # of any length
        start |= {"epochs": 1, "steps": 0}
    return program._replace(config=dataclasses.replace(program.config, **start))


def _lane_bytes(state: State) -> int:
    """Of shapes [lanes, …]."""
    return sum(math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _batch_sizes(config: Config, n: int) -> tuple[int, ...]:
    """How many examples a step of one lane can have."""
    full, rest = config.batch_size // config.replicas, n % config.batch_size
    return (full, rest) if config.last_batch == "keep" and rest else (full,)
