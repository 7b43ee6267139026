"""One, two, four and eight devices give the same history, whether they share the lanes or the batch."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr
from device_runs import CASES
from engine import assert_same_history
from forks import Fork
from paths import TOP
from processes import environment

from vgjax.training import parallel

LANES, LANES_NORM, BATCH, BATCH_NORM = CASES
RUNS = {1: list(CASES), 2: [LANES_NORM, BATCH, BATCH_NORM], 4: [BATCH], 8: [LANES, BATCH_NORM]}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The runs, by number of devices and case; each number in a process of its own, two at a time."""
    folder = tmp_path_factory.mktemp("devices")
    results = {}
    for pair in ((1, 2), (4, 8)):
        processes = {}
        for n in pair:
            program = "import sys, device_runs; device_runs.main(sys.argv[1], sys.argv[2:])"
            processes[n] = Fork([folder / str(n), *RUNS[n]], TOP, environment(n), program)
        for n, process in processes.items():
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors
            results[n] = pickle.loads((folder / str(n)).read_bytes())
    return results


@pytest.mark.slow
@pytest.mark.parametrize(("n", "case"), [(n, case) for n, cases in RUNS.items() if n > 1 for case in cases])
def test_the_same_history_on_more_devices(found, n, case):
    """Every number of the history and every trained variable equals that of one device; shared lanes by every bit."""
    assert found[n]["devices"] == n and found[1]["devices"] == 1
    one, many = (xr.Dataset.from_dict(found[k][case]["history"]) for k in (1, n))
    assert many.sizes["lane"] == one.sizes["lane"] and many["step"].values.tolist() == one["step"].values.tolist()
    assert_same_history(many, one, rtol=0 if case.startswith("lanes") else 1e-4)
    flat = [sorted(_leaves(found[k][case]["variables"])) for k in (1, n)]
    for (name, a), (other, b) in zip(*flat, strict=True):
        assert name == other
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6, err_msg=name)  # biases before batch norm are rounding


def _leaves(tree, name=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}/{key}")
        else:
            yield f"{name}/{key}", value


@pytest.mark.slow
@pytest.mark.parametrize(("n", "case"), [(n, case) for n, cases in RUNS.items() for case in cases])
def test_the_second_chunk_compiles_nothing(found, n, case):
    """Every chunk runs the first one's program, on whatever devices."""
    compiled = found[n][case]["compiled"]
    assert len(compiled) == 3 and compiled[0] > 0 and len(set(compiled)) == 1


@pytest.mark.parametrize(
    ("shard", "lanes", "sizes", "n", "expected"),
    [
        ("auto", 8, (16,), 4, (4, "lanes")),
        ("auto", 6, (16,), 4, (3, "lanes")),
        ("auto", 1, (16,), 4, (1, "lanes")),  # of a CPU
        ("auto", 1, (16, 6), 4, (1, "lanes")),
        ("auto", 1, (16,), 1, (1, "lanes")),
        ("batch", 8, (16, 8), 8, (8, "batch")),
        ("lanes", 8, (15,), 8, (8, "lanes")),
        ("batch", 8, (16,), None, (8, "batch")),
    ],
)
def test_layout(shard, lanes, sizes, n, expected, monkeypatch):
    """Lanes over as many devices as share them evenly; or as asked."""
    monkeypatch.setattr(parallel.jax, "local_devices", lambda: [None] * 8)
    where = parallel.layout(shard, lanes, sizes, n)
    assert where == expected
    assert (where.lane_devices, where.batch_devices) == ((1, where[0]) if where[1] == "batch" else (where[0], 1))
    assert (where.axis_name is None) == (where.batch_devices == 1)


@pytest.mark.parametrize(("backend", "expected"), [("gpu", (4, "batch")), ("cpu", (1, "lanes"))])
def test_a_lone_lane(backend, expected, monkeypatch):
    """Its batch over all devices, but on a CPU, where it is to have the bits that it has beside others."""
    monkeypatch.setattr(parallel.jax, "local_devices", lambda: [None] * 4)
    monkeypatch.setattr(parallel.jax, "default_backend", lambda: backend)
    assert parallel.layout("auto", 1, (16,)) == expected


@pytest.mark.parametrize(
    ("shard", "lanes", "sizes", "n", "message"),
    [
        ("lanes", 6, (16,), 4, "6 lanes do not divide into 4 devices; allowed: a multiple of 4, or shard the batch"),
        ("batch", 8, (18,), 4, "batches of 18 do not divide into 4 devices; allowed: a multiple of 4, or shard lanes"),
        ("batch", 8, (16, 6), 4, "batches of 16 and 6 do not divide into 4 devices"),
        ("auto", 8, (16,), 9, "9 devices asked for; allowed: 1 to 8"),
        ("auto", 8, (16,), -1, "-1 devices asked for; allowed: 1 to 8"),
        ("auto", 8, (16,), 0, "0 devices asked for; allowed: 1 to 8"),
    ],
)
def test_what_does_not_divide(shard, lanes, sizes, n, message, monkeypatch):
    """A layout that cannot be says which numbers would do."""
    monkeypatch.setattr(parallel.jax, "local_devices", lambda: [None] * 8)
    with pytest.raises(ValueError, match=message):
        parallel.layout(shard, lanes, sizes, n)
