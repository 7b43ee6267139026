"""A sweep is its runs: each lane as the run alone, however it was sliced, stopped or grown."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import small
import sweep_run
from forks import Fork
from paths import TOP
from processes import environment

from vgjax import Config, Grid, load, run, sweep
from vgjax.sweeps import sweep as sweep_module
from vgjax.sweeps import tables
from vgjax.sweeps.sweep import Job, SweepOptions

GRID, LANES = sweep_run.GRID, sweep_run.LANES


def train(grid=GRID, folder=None, **options):
    return sweep(grid, folder=folder, dataset=small.dataset(), devices=1, **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The sweep as a whole, and its folder."""
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    return train(folder=folder, lanes=LANES), folder


def lanes_equal(found, expected, rtol=1e-5):
    """Histories of one lane: the recorded numbers of the layers that there are."""
    assert list(found["layer"].values) == list(expected["layer"].values)
    for name, values in expected.data_vars.items():
        if "histogram" in name:
            np.testing.assert_array_equal(found[name].sum("bin"), values.sum("bin"), err_msg=name)
        elif values.dtype.kind == "f":
            np.testing.assert_allclose(
                found[name].values, values.values, rtol=rtol, atol=1e-12 if rtol else 0, err_msg=name
            )
        elif values.dtype.kind in "iU":
            np.testing.assert_array_equal(found[name].values, values.values, err_msg=name)


@pytest.mark.slow
def test_each_lane_is_the_run_alone(undisturbed):
    """Depth 2 in a program for 13, padded lanes, another lane's divergence beside it: all the same."""
    whole, _ = undisturbed
    points = GRID.expand()
    assert whole.sizes["lane"] == len(points) == 24
    for i in (0, 5, 7, 13, 22):
        point = points[i]
        alone = run(point.config, point.hypers, [point.seed], dataset=small.dataset(), devices=1).history
        lane = whole.isel(lane=[i]).isel(layer=slice(len(point.config.hidden) + 1))
        lanes_equal(lane, alone)
        assert {name: lane[name].item() for name in point.coordinates} == point.coordinates
        assert lane["seed"].item() == point.seed


def test_layers_beyond_are_nan(undisturbed):
    """Of the shallow lanes; counts are 0 there, and fans unknown."""
    whole, _ = undisturbed
    assert list(whole["layer"].values) == [f"layer_{i}" for i in range(1, 15)]
    shallow = whole.isel(lane=whole["depth"].values == 2, layer=slice(3, None))
    assert np.isnan(shallow["gradient_rms"].values).all() and np.isnan(shallow["fan_in"].values).all()
    assert not shallow["gradient_histogram"].values.any()
    assert not np.isnan(whole.isel(layer=slice(3))["gradient_rms"].values).any()


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 3, 24])
def test_any_slicing(undisturbed, lanes):
    """Each lane has the bits of every other slicing."""
    whole, _ = undisturbed
    found = train(lanes=lanes)
    for i in (0, 7, 22):
        depth = int(whole["depth"].values[i]) + 1
        lanes_equal(found.isel(lane=[i], layer=slice(depth)), whole.isel(lane=[i], layer=slice(depth)), rtol=0)


def test_what_was_swept_is_told_by_its_own_name(undisturbed):
    """σ_w varies with σ_w², which is what was asked for."""
    assert tables.swept(tables.lanes(undisturbed[0])) == ["learning_rate", "clip_threshold", "sigma_w2", "depth"]


def test_on_disk(undisturbed):
    """What the call gave is what the folder holds, as netCDF and CSV, and says which grid it was."""
    whole, folder = undisturbed
    assert load(folder).identical(whole.drop_encoding())
    table = pd.read_csv(folder / "lanes.csv")
    assert len(table) == 24
    statistics = pd.read_csv(folder / "statistics.csv")
    assert set(statistics["depth"]) == {2, 13} and set(statistics["clip_threshold"]) == {0.1, 0.2}
    assert json.loads(whole.attrs["sweep"])["product"] == {"sigma_w2": [0.8, 1.2], "depth": [2, 13]}
    assert not list(folder.rglob("checkpoints"))


def slices_of(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("slices/*/history.nc")}


@pytest.mark.slow
def test_a_grown_grid_runs_what_is_new(undisturbed, tmp_path):
    """Finished points are not run again: their files stay as they are; the history has the new grid's order."""
    small_grid = Grid(product={"sigma_w2": [1.0, 2.0]}, config=GRID.config, seeds=2)
    train(small_grid, tmp_path / "sweep")
    before = slices_of(tmp_path / "sweep")
    grown = replace(small_grid, product={"sigma_w2": [3.0, 1.0, 2.0]}, seeds=3)
    job = Job(grown, SweepOptions(tmp_path / "sweep", dataset=small.dataset(), devices=1))
    assert (job.plan.points, job.plan.finished) == (9, 4)
    assert sum(len(one.points) for one in job.plan.slices) == 5
    found = job.run()
    after = slices_of(tmp_path / "sweep")
    assert {name: after[name] for name in before} == before
    assert list(found["sigma_w2"].values) == [3.0] * 3 + [1.0] * 3 + [2.0] * 3
    assert list(found["seed"].values) == [0, 1, 2] * 3
    fresh = train(grown)
    for i in range(9):
        lanes_equal(found.isel(lane=[i]), fresh.isel(lane=[i]))


@pytest.mark.slow
def test_a_lane_that_diverges_stays(tmp_path):
    """Its first bad step is recorded; the others go on as if alone."""
    config = replace(GRID.config, activation="relu", initializer="he_normal", clip="none")
    grid = Grid(product={"learning_rate": [0.1, 1e30]}, config=config)
    found = train(grid)
    assert found["first_bad_step"].values[0] == -1 and found["first_bad_step"].values[1] >= 0
    alone = run(grid.config, grid.hypers._replace(learning_rate=0.1), [0], dataset=small.dataset(), devices=1).history
    lanes_equal(found.isel(lane=[0]), alone)


@pytest.mark.slow
def test_out_of_memory_halves_the_slice(monkeypatch):
    """Where so many lanes do not fit, half as many are tried, for all that share the program; nothing is lost."""
    real, tried = sweep_module.run, []

    def with_little_memory(*args, lanes, **kwargs):
        tried.append(lanes)
        if lanes > 3:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123456 bytes.")
        return real(*args, lanes=lanes, **kwargs)

    monkeypatch.setattr(sweep_module, "run", with_little_memory)
    grid, notes = replace(GRID, zip={}, product={"depth": [2, 13], "learning_rate": [0.1, 0.2]}), []
    found = train(grid, note=notes.append)
    assert tried[0] == 6 and set(tried[1:]) == {3} and len(tried) == 5
    assert notes == ["out of memory with 6 lanes at once; going on with 3"]
    monkeypatch.undo()
    whole = train(grid)
    for i in (0, 5, 11):
        depth = int(whole["depth"].values[i]) + 1
        lanes_equal(found.isel(lane=[i], layer=slice(depth)), whole.isel(lane=[i], layer=slice(depth)))


def test_one_lane_that_does_not_fit_is_an_error(monkeypatch):
    def never(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(sweep_module, "run", never)
    with pytest.raises(MemoryError):
        train()


def test_progress_counts_all_lanes():
    """Lane steps from 0 to all of them, slice by slice."""
    seen = []
    train(replace(GRID, zip={}), lanes=3, progress=seen.append)
    done = [standing.done for standing in seen]
    assert done == sorted(done) and done[-1] == seen[-1].total == 12 * 9
    assert [standing.number for standing in seen] == sorted(standing.number for standing in seen)
    assert seen[-1].number == seen[-1].slices == 4


@pytest.mark.slow
def test_a_stop_is_taken_up_again(undisturbed, tmp_path, an_epoch_a_chunk):
    """A KeyboardInterrupt after a chunk: the slice goes on from its checkpoint, to the last bit."""
    whole, _ = undisturbed
    seen = []

    def stop_once(standing):
        seen.append(standing.number)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(folder=tmp_path / "sweep", lanes=LANES, progress=stop_once)
    finished = slices_of(tmp_path / "sweep")
    assert len(finished) == 1
    job = Job(GRID, SweepOptions(tmp_path / "sweep", dataset=small.dataset(), lanes=LANES, devices=1))
    assert job.plan.finished == 4
    again = job.run()
    assert {name: t for name, t in slices_of(tmp_path / "sweep").items() if name in finished} == finished
    assert small.identical(again, whole)


@pytest.mark.slow
@pytest.mark.parametrize("devices, shard", [(2, "lanes"), (4, "batch"), (8, "lanes")])
def test_however_many_devices(undisturbed, tmp_path, devices, shard):
    """Lanes or batch over virtual devices, fewer lanes than devices: the same history."""
    whole, _ = undisturbed
    process = Fork([tmp_path / "sweep", shard], TOP, environment(devices), "import sweep_run; sweep_run.main()")
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    found = load(tmp_path / "sweep")
    for i in (0, 7, 13, 22):
        depth = int(whole["depth"].values[i]) + 1
        lanes_equal(found.isel(lane=[i], layer=slice(depth)), whole.isel(lane=[i], layer=slice(depth)))


@pytest.mark.slow
def test_listed_points_say_what_they_do_not_set():
    """A field that one of them sweeps is the base's in the others."""
    config = replace(GRID.config, hidden=(8, 8))
    found = train(Grid(points=[{"sigma_w2": 4.0}, {"depth": 1}, {"activation": "relu"}], config=config))
    assert found["sigma_w2"].values.tolist() == [4.0, 1.0, 1.0]
    assert found["depth"].values.tolist() == [2, 1, 2]
    assert found["activation"].values.tolist() == ["tanh", "tanh", "relu"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"config: [", b"\xff\xfe", b"[1, 2]", b"config: {hidden: 3}"])
def test_a_damaged_slice_is_named(tmp_path, damage):
    """And nothing is touched; without its folder its points are run again."""
    grid = Grid(product={"learning_rate": [0.1, 0.2]}, config=replace(GRID.config, hidden=(8, 8)))
    train(grid, tmp_path / "sweep", lanes=1)
    file = sorted((tmp_path / "sweep").glob("slices/*/config.yaml"))[0]
    whole = file.read_bytes()
    file.write_bytes(damage)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("*")}
    with pytest.raises(ValueError, match=f"{file} is damaged; without its folder"):
        train(grid, tmp_path / "sweep")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("*")} == before
    file.write_bytes(whole)
    options = SweepOptions(tmp_path / "sweep", dataset=small.dataset(), devices=1)
    assert Job(grid, options).plan.finished == 2


def test_another_folder_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no sweep"):
        train(folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_nothing_is_written_when_a_name_is_wrong(tmp_path):
    grid = Grid(product={"activation": ["tanh", "rellu"]}, config=Config(dataset="small"))
    with pytest.raises(ValueError, match="unknown activation 'rellu'; did you mean 'relu'"):
        train(grid, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
