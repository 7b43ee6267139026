"""The plan of a sweep: points that share a program form a group; each group is cut into slices that fit the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vgjax.config import Config, Hypers
from vgjax.data.catalogue import Dataset
from vgjax.network.model import SHORTEST_STACK, is_elastic
from vgjax.statistics import histograms
from vgjax.statistics.families import chosen, statistics_of
from vgjax.sweeps import capacity
from vgjax.sweeps.grid import Point
from vgjax.training import chunk_plan, parallel
from vgjax.training.chunk_plan import Shape, shape
from vgjax.training.optim import make_optimizer

SHARE_OF_MEMORY = 0.8
SECONDS_TO_COMPILE = 10.0  # for one program, on a CPU


class Slice(NamedTuple):
    """Points of one config that run at once; slices that differ only in points and depth share a program."""

    config: Config
    points: tuple[Point, ...]
    lanes: int  # number of lanes that the program is compiled for, replicas included
    deepest: int  # largest number of hidden layers that it is compiled for; 0: only for the depth of this config

    @property
    def program(self) -> tuple[Config, int, int]:
        """The program's key: equal for slices that share it."""
        hidden = self.config.hidden[:1] if self.deepest else self.config.hidden
        return replace(self.config, hidden=hidden), self.lanes, self.deepest

    @property
    def compiled(self) -> Config:
        """The config that the program is compiled for."""
        return replace(self.config, hidden=self.config.hidden[:1] * self.deepest) if self.deepest else self.config


class SweepPlan(NamedTuple):
    """What a sweep will run, and what it needs."""

    points: int  # of the whole grid
    finished: int  # points that were run before
    slices: tuple[Slice, ...]  # in the order in which they run
    bytes_needed: int  # by the largest slice
    bytes_there: int  # free memory
    seconds: float  # estimate, on this machine

    @property
    def programs(self) -> int:
        """How many programs are compiled."""
        return len({one.program for one in self.slices})


def cut(
    points: Iterable[Point],
    most_lanes: Callable[[Config], int],
    shard: parallel.Sharding = "auto",
    devices: int = 1,
) -> list[Slice]:
    """Cut points into slices, in their order; all slices of one program have the same number of lanes.

    Args:
      points: the points to run.
      most_lanes: how many lanes of a config may run at once.
      shard, devices: if the devices share the lanes, the number of lanes is rounded up to a multiple of `devices`.
    """

    def full(lanes: int) -> int:
        share = shard == "lanes" or (shard == "auto" and lanes >= devices)
        return math.ceil(lanes / devices) * devices if share else lanes

    by_config: dict[Config, list[Point]] = {}
    for point in points:
        by_config.setdefault(point.config, []).append(point)
    groups: dict[Config, list[Config]] = {}
    for config in by_config:
        groups.setdefault(_any_depth(config), []).append(config)
    slices = []
    for configs in groups.values():
        deepest = _deepest(configs)
        for family in [configs] if deepest else [[config] for config in configs]:
            slices += _cut_family({config: by_config[config] for config in family}, deepest, most_lanes, full)
    return slices


def halved(one: Slice) -> list[Slice]:
    """The same points in slices of half as many lanes."""
    replicas = one.config.replicas
    at_once = max(1, one.lanes // replicas // 2)
    parts = [one.points[i : i + at_once] for i in range(0, len(one.points), at_once)]
    return [one._replace(points=part, lanes=at_once * replicas) for part in parts]


def _any_depth(config: Config) -> Config:
    """A key that is equal for configs which differ only in depth and may share a program."""
    return replace(config, hidden=config.hidden[:1]) if len(set(config.hidden)) == 1 else config


def _deepest(configs: Sequence[Config]) -> int:
    """The depth to compile one program for all configs; 0 if one program cannot serve them, or there is one config."""
    deepest = max(SHORTEST_STACK + 1, *(len(config.hidden) for config in configs)) if len(configs) > 1 else 0
    return deepest if deepest and is_elastic(replace(configs[0], hidden=configs[0].hidden[:1] * deepest)) else 0


def _cut_family(
    family: dict[Config, list[Point]], deepest: int, most_lanes: Callable[[Config], int], full: Callable[[int], int]
) -> list[Slice]:
    """Slices of configs that share a program."""
    first = next(iter(family))
    replicas = first.replicas
    most = max(1, most_lanes(replace(first, hidden=first.hidden[:1] * deepest) if deepest else first) // replicas)
    pieces = {config: math.ceil(len(points) / most) for config, points in family.items()}
    at_once = max(math.ceil(len(points) / pieces[config]) for config, points in family.items())
    return [
        Slice(config, tuple(points[i : i + at_once]), full(at_once * replicas), deepest)
        for config, points in family.items()
        for i in range(0, len(points), at_once)
    ]


def bytes_of_lane(one: Shape) -> int:
    """Estimate of the memory of one lane: its state before and after two chunks, records, activations."""
    config, floats = one.config, 4
    state = one.products * (1 + _optimizer_copies(config)) * floats
    epochs = chunk_plan.epochs_at_once(one)
    most = chunk_plan.most_records(chunk_plan.plan(config, one.steps_per_epoch, one.steps, epochs), epochs)
    statistics = statistics_of(chosen(config.record))
    numbers = sum(histograms.N_BINS if "bin" in one.dims else 1 for one in statistics)
    records = numbers * (len(config.hidden) + 1) * most * floats
    activations = (
        config.batch_size // config.replicas * one.units * floats * 8 + one.n_validation * one.widest * floats * 3
    )
    return 4 * state + 2 * one.products * floats + 3 * records + activations


def seconds_of_lane(one: Shape) -> float:
    """Estimate of the time of one lane: its matrix products, at the speed measured on this machine."""
    batch_size = one.config.batch_size // one.config.replicas
    speed = capacity.matmul_speed(batch_size, round(math.sqrt(one.products / (len(one.config.hidden) + 1))))
    flops = 6 * batch_size * one.steps + 2 * one.n_validation * math.ceil(one.steps / one.steps_per_epoch)
    return flops * one.products / speed


def make_plan(points: int, finished: int, slices: Sequence[Slice], data: Callable[[Config], Dataset]) -> SweepPlan:
    """The plan, with estimates of memory and time.

    Args:
      points: number of points in the grid.
      finished: how many of them are finished.
      slices: of the other points.
      data: gives the data set of a config.
    """
    needed, seconds = 0, 0.0
    for one in slices:
        dataset = data(one.config)
        shared = dataset.train_inputs.nbytes + 5 * dataset.test_inputs.size * 4
        needed = max(needed, one.lanes * bytes_of_lane(shape(one.compiled, dataset)) + shared)
        seconds += one.lanes * seconds_of_lane(shape(one.config, dataset))
    plan = SweepPlan(points, finished, tuple(slices), needed, capacity.free_bytes(), seconds)
    return plan._replace(seconds=seconds + plan.programs * SECONDS_TO_COMPILE)


def _optimizer_copies(config: Config) -> int:
    """How many numbers the optimizer keeps for each parameter."""
    weight = {"layer_1": {"kernel": jnp.zeros((8, 8))}}
    state = jax.eval_shape(make_optimizer(config, Hypers(), 1).init, weight)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state)) // 64
