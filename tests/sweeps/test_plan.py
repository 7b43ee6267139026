"""Points are grouped by the program they share, cut into slices that fit, and none is lost or doubled."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from paths import TOP

from vgjax.config import Config
from vgjax.sweeps import capacity
from vgjax.sweeps.grid import Grid, read_grid
from vgjax.sweeps.plan import Slice, bytes_of_lane, cut, halved, make_plan, seconds_of_lane, shape

WIDE = Config(dataset="small", hidden=(8,), batch_size=16)
DEPTHS = Grid(product={"depth": [2, 9, 20], "sigma_w2": [1.0, 2.0, 3.0]}, config=WIDE, seeds=3)
MIXED = Grid(
    product={"activation": ["tanh", "relu"]},
    zip={"depth": [2, 9, 20, 2], "clip": ["none", "none", "none", "layer_norm"]},
    config=WIDE,
    seeds=5,
)


def at_most(n):
    return lambda config: n


@pytest.mark.parametrize("grid", [DEPTHS, MIXED], ids=["depths", "mixed"])
@pytest.mark.parametrize("most", [1, 4, 7, 1000])
@pytest.mark.parametrize("shard", ["auto", "lanes", "batch"])
@pytest.mark.parametrize("devices", [1, 4])
def test_every_point_once(grid, most, devices, shard):
    points = grid.expand()
    slices = cut(points, at_most(most), shard, devices)
    found = [point.identity() for one in slices for point in one.points]
    assert sorted(found) == sorted(point.identity() for point in points)
    for one in slices:
        assert all(point.config == one.config for point in one.points)
        assert len(one.points) <= one.lanes
        assert one.lanes <= max(most, math.ceil(most / devices) * devices)
        assert shard == "batch" or one.lanes % devices == 0 or (shard == "auto" and one.lanes < devices)


def test_depths_share_a_program():
    """One program for all depths; the shallow ones are padded in lanes, not compiled anew."""
    slices = cut(DEPTHS.expand(), at_most(4))
    assert len({one.program for one in slices}) == 1
    assert {one.deepest for one in slices} == {20}
    assert [len(one.config.hidden) for one in slices] == [2] * 3 + [9] * 3 + [20] * 3
    assert {one.lanes for one in slices} == {3}  # nine points in three slices


def test_what_cannot_share_does_not():
    """Activations are compiled apart; so is what is clipped by layer, which stays a network of its own depth."""
    slices = cut(MIXED.expand(), at_most(100))
    by_activation = {one.config.activation: set() for one in slices}
    for one in slices:
        by_activation[one.config.activation].add(one.program)
        assert bool(one.deepest) == (one.config.clip == "none")
    assert [len(programs) for programs in by_activation.values()] == [2, 2]


def test_the_trainability_map_is_one_program():
    """The grid that the repository ships: 8 σ_w² × 6 depths × 4 seeds."""
    grid = read_grid(TOP / "experiments" / "trainability.yaml")
    slices = cut(grid.expand(), at_most(10_000))
    assert (len(grid), len({one.program for one in slices}), max(one.deepest for one in slices)) == (192, 1, 64)
    assert grid.hypers.sigma_b**2 == pytest.approx(0.05)


def test_one_depth_is_compiled_as_it_is():
    slices = cut(Grid(product={"sigma_w2": [1.0, 2.0]}, config=WIDE).expand(), at_most(100))
    assert [(one.deepest, one.lanes) for one in slices] == [(0, 2)]


def test_halved():
    """Half as many lanes at once, until it is one; replicas stay together."""
    points = tuple(Grid(product={"learning_rate": list(np.linspace(0.1, 1, 7))}, config=WIDE).expand())
    parts = halved(Slice(WIDE, points, 7, 0))
    assert [len(one.points) for one in parts] == [3, 3, 1]
    assert [one.lanes for one in parts] == [3, 3, 3]
    assert tuple(itertools.chain(*(one.points for one in parts))) == points


@pytest.mark.parametrize("optimizer, numbers", [("sgd", 1), ("momentum", 2), ("adam", 3)])
def test_bytes(optimizer, numbers):
    """Of a network that is large beside everything else: weights, the optimizer's, gradients and updates."""
    data = small.dataset()
    config = Config(dataset="small", hidden=(3000, 3000), optimizer=optimizer, batch_size=1, record=("norms",))
    weights = 4 * (5 * 3000 + 3000**2 + 3000 * 3)
    assert bytes_of_lane(shape(config, data)) / weights == pytest.approx(4 * numbers + 2, rel=0.02)


def test_estimate(monkeypatch):
    """Twice the points take twice the time, besides compiling; programs are counted."""
    monkeypatch.setattr(capacity, "free_bytes", lambda: 7_000_000_000)
    slices = cut(DEPTHS.expand(), at_most(100))
    plan = make_plan(27, 0, slices, lambda config: small.dataset())
    assert plan.programs == 1 and len(plan.slices) == 3 and plan.points == 27
    assert plan.bytes_there == 7_000_000_000
    assert 0 < plan.bytes_needed < plan.bytes_there
    config = Config(hidden=(64,) * 3, batch_size=16)
    once, twice = (seconds_of_lane(shape(replace(config, epochs=e), small.dataset())) for e in (1, 2))
    assert twice == pytest.approx(2 * once)


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [("5000", "1000", 4000), ("5000", "100", 4900), ("50000", "1000", 9000), ("max", "1", 9000)],
)
def test_free_memory_is_that_of_the_container(tmp_path, monkeypatch, limit, used, free):
    """What the container has left, but no more than the machine has; without a limit, the machine's."""
    for name, text in (("MEMORY_LIMIT", limit), ("MEMORY_USED", used)):
        (tmp_path / name).write_text(f"{text}\n")
        monkeypatch.setattr(capacity, name, tmp_path / name)
    monkeypatch.setattr(capacity.psutil, "virtual_memory", lambda: SimpleNamespace(available=9000))
    assert capacity.free_bytes() == free


def test_speed_of_products(monkeypatch):
    """2 n³ operations a product of n × n, 24 of them in what the clock says are four seconds."""
    clock = iter([100.0, 104.0])
    monkeypatch.setattr(capacity.time, "perf_counter", lambda: next(clock))
    assert capacity.matmul_speed.__wrapped__(128, 128) == 24 * 2 * 128**3 / 4


def test_out_of_memory_is_known_by_what_xla_says():
    with pytest.raises(Exception, match=r"RESOURCE_EXHAUSTED|Out of memory") as found:
        jax.jit(lambda: jnp.zeros((2**24, 2**24)))().block_until_ready()
    assert capacity.is_out_of_memory(found.value)
    assert not capacity.is_out_of_memory(RuntimeError("INTERNAL: something else"))
    assert capacity.is_out_of_memory(MemoryError())
