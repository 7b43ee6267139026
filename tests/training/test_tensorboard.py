"""What was written is read back: by TensorBoard's own reader, pandas and xarray; resumed runs double no step."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import small
import xarray as xr
from engine import SETTINGS
from event_files import read_events, values_of

from vgjax import Hypers, load, run
from vgjax.statistics.families import all_statistics
from vgjax.statistics.histograms import N_BINS, NAN_BIN, ZERO_BIN, bin_edges, tensorboard_histogram
from vgjax.training import history, tensorboard
from vgjax.training.tensorboard import FIRST_PAGE, Records

EXPLODING = [Hypers(0.1), Hypers(1e38)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of eight lanes, half of which explode: NaN and infinities everywhere."""
    path = tmp_path_factory.mktemp("records") / "run"
    run(small.CONFIG, EXPLODING, 4, dataset=small.dataset(), folder=path)
    return path


def runs_of(whole, events):
    """(the history of one lane, or of one layer of it; its accumulator), every one of a run's events."""
    for lane in range(whole.sizes["lane"]):
        one, name = whole.isel(lane=lane), f"lane_{lane:03d}_seed_{int(whole['seed'][lane])}"
        yield one.drop_dims("layer"), events.pop(name)
        for layer in whole["layer"].values:
            layered = one[[variable for variable, v in one.data_vars.items() if "layer" in v.dims]]
            yield layered.sel(layer=layer), events.pop(f"{name}/{layer}")
    assert not events


def tags_of(accumulator, plugin):
    """The tags of scalars or histograms."""
    tags = accumulator.Tags()["tensors"]
    return {tag for tag in tags if accumulator.SummaryMetadata(tag).plugin_data.plugin_name == plugin}


@pytest.mark.slow
def test_every_scalar_is_read_back(folder):
    """All lanes, steps, layers and statistics, equal to the last bit of float32, NaN and Inf included."""
    whole = load(folder)
    assert not np.isfinite(whole["gradient_rms"]).all()
    for one, accumulator in runs_of(whole, read_events(folder)):
        scalars = {name: v for name, v in one.data_vars.items() if v.dims in (("record",), ("evaluation",))}
        found = set()
        for tag in tags_of(accumulator, "scalars"):
            group, _, name = tag.partition("/")
            if name in ("nan_count", "infinity_count"):
                continue
            name = name if name in scalars else f"{group}_{name}"
            steps = one["evaluated_at" if scalars[name].dims == ("evaluation",) else "step"].values
            read = values_of(accumulator, tag)
            assert [step for step, _ in read] == steps.tolist(), tag
            wanted = scalars[name].values.astype(np.float32)
            np.testing.assert_array_equal(np.array([x for _, x in read], np.float32), wanted, err_msg=tag)
            assert name not in found
            found.add(name)
        assert found == set(scalars) and found


@pytest.mark.slow
def test_every_histogram_is_read_back(folder):
    """Bins and counts of every layer and step; with NaN's count beside they sum to the number of values."""
    whole = load(folder)
    assert (whole["gradient_histogram"][..., NAN_BIN] > 0).any()
    for one, accumulator in runs_of(whole, read_events(folder)):
        histograms = {name: v.values for name, v in one.data_vars.items() if "bin" in v.dims}
        assert tags_of(accumulator, "histograms") == set(histograms)
        assert histograms or "layer" not in one.coords
        for name, counts in histograms.items():
            read = values_of(accumulator, name)
            assert [step for step, _ in read] == whole["step"].values.tolist()
            for (_, bins), count in zip(read, counts, strict=True):
                assert bins.shape[1] == 3 and np.isfinite(bins).all()
                assert bins[:, 2].sum() == count.sum() - count[NAN_BIN]
                assert (bins[:, 0] <= bins[:, 1]).all() and (np.diff(bins[:, 0]) >= 0).all()
            nan = f"{name.removesuffix('_histogram')}/nan_count"
            wanted = [(int(s), c[NAN_BIN]) for s, c in zip(whole["step"], counts, strict=True) if c[NAN_BIN]]
            assert (values_of(accumulator, nan) if nan in tags_of(accumulator, "scalars") else []) == wanted


def a_history(**variables):
    """A history of two lanes and two steps, of nothing but these variables."""
    left, right = bin_edges()
    of_lanes = {"seed": ("lane", [3, 3]), "replica": ("lane", [0, 1]), "learning_rate": ("lane", [0.5, 0.25])}
    clocks = {"step": ("record", [0, 7]), "evaluated_at": ("evaluation", [8])}
    binned = any("bin" in dims for dims, _ in variables.values())
    edges = {"bin_left": ("bin", left), "bin_right": ("bin", right)} if binned else {}
    layers = {"layer": ["a", "b"]} if any("layer" in dims for dims, _ in variables.values()) else {}
    return xr.Dataset(variables, {**of_lanes, **clocks, **edges, **layers})


def write_events(path, part):
    """What TensorBoard reads of one chunk."""
    path.mkdir(exist_ok=True)
    writing = Records(path)
    writing.write(part)
    writing.close()
    return read_events(path)


def test_planted_nan_and_infinities(tmp_path):
    """They are counted beside the histogram, at the steps that have any."""
    counts = np.zeros((2, 2, 2, N_BINS), np.int64)
    counts[..., ZERO_BIN] = 4
    counts[1, 1, 0, [0, 512, NAN_BIN]] = 1, 2, 5
    part = a_history(update_histogram=(("lane", "record", "layer", "bin"), counts))
    events = write_events(tmp_path, part)
    names = [f"lane_00{i}_seed_3_replica_{i}" for i in (0, 1)]
    assert list(events) == [f"{name}{layer}" for name in names for layer in ("", "/a", "/b")]
    damaged = events[f"{names[1]}/a"]
    assert values_of(damaged, "update/nan_count") == [(7, 5)]
    assert values_of(damaged, "update/infinity_count") == [(7, 3)]
    assert [bins[:, 2].sum() for _, bins in values_of(damaged, "update_histogram")] == [4, 7]
    assert not any(tags_of(one, "scalars") for name, one in events.items() if one is not damaged)


def test_any_variable_goes_by_its_dimensions(tmp_path):
    """Without layers or histograms too; what has no step is left out."""
    part = a_history(
        learning_rate_now=(("lane", "record"), [[1.0, np.nan], [3.0, -np.inf]]),
        wall_time=(("lane", "evaluation"), [[5.0], [6.0]]),
        whole_histogram=(("lane", "record", "bin"), np.ones((2, 2, N_BINS), np.int64)),
        first_bad_step=("lane", [7, -1]),
        first_bad_layer=("lane", ["a", ""]),
    )
    first, second = write_events(tmp_path / "flat", part).values()
    assert tags_of(first, "scalars") == {
        "step/learning_rate_now",
        "epoch/wall_time",
        "whole/nan_count",
        "whole/infinity_count",
    }
    np.testing.assert_equal(values_of(first, "step/learning_rate_now"), [(0, 1.0), (7, np.nan)])
    np.testing.assert_equal(values_of(second, "step/learning_rate_now"), [(0, 3.0), (7, -np.inf)])
    assert values_of(second, "epoch/wall_time") == [(8, 6.0)]
    assert len(values_of(first, "whole_histogram")) == 2
    part = a_history(delta_rms=(("lane", "record", "layer"), np.ones((2, 2, 2))))
    assert [sorted(tags_of(one, "scalars")) for one in write_events(tmp_path / "layers", part).values()] == [
        [],
        ["delta/rms"],
        ["delta/rms"],
    ] * 2


@pytest.mark.slow
def test_more_files_than_the_system_allows(tmp_path):
    """Every run has a file: the limit is raised to as many as are needed."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lanes = 120
    part = a_history(delta_rms=(("lane", "record", "layer"), np.ones((2, 2, 2)))).isel(lane=[0] * lanes)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        assert len(write_events(tmp_path, part)) == 3 * lanes
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_first_page_is_first():
    """Ten charts of things there are, in two groups that sort before any other."""
    names = [name for group in FIRST_PAGE.values() for name in group]
    assert len(names) <= 10 and set(names) <= {*history.RUN_VARIABLES, *all_statistics()}
    others = {name.partition("_")[0] for name in all_statistics()} | {"epoch", "step"}
    assert sorted({*FIRST_PAGE, *others})[:2] == list(FIRST_PAGE)


@pytest.mark.slow
def test_hyperparameters_are_there(folder):
    """TensorBoard's HParams page has every lane's numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data
    lanes = [accumulator for name, accumulator in read_events(folder).items() if "/" not in name]
    for lane, accumulator in enumerate(lanes):
        content = accumulator.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
        found = {k: v.number_value for k, v in parse_session_start_info_plugin_data(content).hparams.items()}
        assert found["learning_rate"] == pytest.approx([0.1, 1e38][lane // 4])
        assert found["seed"] == lane % 4 and found["clip_threshold"] == 1 and "sigma_w" in found


@pytest.mark.slow
def test_the_log_has_every_evaluation(folder):
    """One line each, of the first lane."""
    lines = (folder / "train.log").read_text().splitlines()
    assert len(lines) == 3
    for line, step in zip(lines, (3, 6, 9), strict=True):
        assert f"[{step}]" in line and "validation_accuracy" in line and "train_loss" in line


@pytest.mark.slow
def test_the_folder_holds_nothing_else(folder):
    """Merged history, tables, and no temporary files."""
    names = {path.name for path in folder.iterdir()}
    tables = {"statistics.csv", "evaluations.csv", "lanes.csv"}
    made = {"config.yaml", "environment.json", "history.nc", "tensorboard", "train.log", "checkpoints"}
    assert names == made | tables


@pytest.mark.slow
def test_tables_are_read_by_pandas(folder):
    """A row a lane, step and layer, and a row a lane and evaluation, with the history's numbers."""
    whole = load(folder)
    statistics, evaluations = (pd.read_csv(folder / f"{name}.csv") for name in ("statistics", "evaluations"))
    assert len(statistics) == 8 * 4 * 3 and len(evaluations) == 8 * 3
    assert {"lane", "seed", "learning_rate", "step", "layer", "fan_in", "gradient_rms", "loss"} <= set(statistics)
    assert {"lane", "seed", "evaluated_at", "validation_accuracy", "train_loss"} <= set(evaluations)
    row = statistics[(statistics.lane == 2) & (statistics.step == 6) & (statistics.layer == "layer_2")].iloc[0]
    wanted = whole.isel(lane=2, record=2, layer=1)
    for name in ("gradient_rms", "weight_norm", "loss", "epoch", "learning_rate"):
        assert row[name] == pytest.approx(float(wanted[name]), rel=1e-6)


@pytest.mark.slow
def test_tables_and_history_need_nothing_of_ours(folder):
    """pandas and xarray read them where this package and JAX cannot be imported, and they say the same."""
    program = """
import sys
sys.modules.update(vgjax=None, jax=None)
import numpy as np, pandas as pd, xarray as xr
history = xr.open_dataset(sys.argv[1] + "/history.nc")
steps, epochs = (pd.read_csv(sys.argv[1] + f"/{name}.csv") for name in ("statistics", "evaluations"))
keys = ["lane", "record", "layer"]
table = steps.set_index(keys).to_xarray()
for name in ("gradient_rms", "weight_norm"):
    np.testing.assert_array_equal(table[name].transpose(*keys).astype("f4"), history[name].astype("f4"))
table = epochs.set_index(["lane", "evaluation"]).to_xarray()["validation_loss"]
np.testing.assert_array_equal(table.astype("f4"), history["validation_loss"].astype("f4"))
print(history.sizes["lane"], history["gradient_histogram"].attrs["long_name"])
"""
    read = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True)
    assert read.stdout == f"8 {all_statistics()['gradient_histogram'].long_name}\n", read.stderr


@pytest.mark.slow
def test_threads_read_and_write_at_once(folder, tmp_path):
    """netCDF's library crashes where two threads are in it; in a process of its own, to be told from outside."""
    program = """
import pathlib, sys
from concurrent.futures import ThreadPoolExecutor
from vgjax.training import history
folder, other = map(pathlib.Path, sys.argv[1:])
first = history.load(folder)
def again(i):
    (other / str(i)).mkdir()
    history.finish(other / str(i), history.load(folder))
    return history.load(other / str(i)).identical(first)
with ThreadPoolExecutor(4) as pool:
    print(sum(pool.map(again, range(60))))
"""
    threads = subprocess.run([sys.executable, "-c", program, folder, tmp_path], capture_output=True, text=True)
    assert threads.stdout == "60\n", (threads.returncode, threads.stderr)


@pytest.mark.slow
def test_a_folder_that_vanishes_between_two_files(folder, tmp_path, monkeypatch):
    """It is said, and the next file does not make it again."""
    path, opened, open_writer = tmp_path / "run", [], tensorboard._open_writer
    path.mkdir()
    monkeypatch.setattr(tensorboard, "_open_writer", lambda place: opened.append(open_writer(place)) or opened[-1])
    monkeypatch.setattr(tensorboard, "_events", lambda run: shutil.rmtree(path, ignore_errors=True) or [])
    writing = Records(path)
    writing.write(load(folder))
    with pytest.raises(FileNotFoundError, match=str(path)):
        writing.close()
    assert len(opened) == 1 and not path.exists()


@pytest.mark.slow
def test_resuming_doubles_no_step(tmp_path, monkeypatch, an_epoch_a_chunk):
    """A run that was interrupted after its second chunk goes on, and its records are those of an undisturbed one."""
    path = tmp_path / "run"
    one_chunk = lambda _: len(list((path / "history").glob("*.nc"))) == 1  # noqa: E731
    monkeypatch.setattr(
        "vgjax.training.folder.RunFolder.wants_checkpoint", one_chunk
    )  # the second chunk has no checkpoint

    def interrupt(part, total):
        if int(part["evaluated_at"].values[0]) == 6:
            raise KeyboardInterrupt

    options = {"dataset": small.dataset(), "folder": path, "tensorboard": "first"}
    with pytest.raises(KeyboardInterrupt):
        run(small.CONFIG, SETTINGS, 4, **options, progress=interrupt)
    assert len(list((path / "history").glob("*.nc"))) == 2 and not (path / "history.nc").exists()
    assert load(path).sizes["evaluation"] == 2
    result = run(small.CONFIG, SETTINGS, 4, **options, resume=True)
    undisturbed = run(small.CONFIG, SETTINGS, 4, dataset=small.dataset())
    xr.testing.assert_identical(result.history, load(path))
    for name in undisturbed.history.data_vars:
        np.testing.assert_array_equal(result.history[name], undisturbed.history[name], err_msg=name)
    events = read_events(path)
    assert list(events) == ["lane_000_seed_0", *(f"lane_000_seed_0/layer_{i}" for i in (1, 2, 3))]
    assert [step for step, _ in values_of(events["lane_000_seed_0/layer_1"], "gradient/rms")] == [0, 3, 6, 8]
    assert [step for step, _ in values_of(events["lane_000_seed_0"], "accuracy_and_loss/train_loss")] == [3, 6, 9]
    assert len((path / "train.log").read_text().splitlines()) == 3


@pytest.mark.slow
def test_a_history_survives_the_disk(folder, tmp_path):
    """netCDF gives back every value, coordinate, type and description."""
    result = run(small.CONFIG, EXPLODING, 4, dataset=small.dataset())
    back = load(folder)
    assert set(back.variables) == set(result.history.variables)
    for name, v in result.history.variables.items():
        np.testing.assert_array_equal(back[name].values, v.values, err_msg=str(name))
        assert back[name].dims == v.dims and back[name].attrs == v.attrs, name
        assert back[name].dtype.kind == v.dtype.kind, name


@pytest.mark.slow
def test_join_is_one_history(folder):
    """Chunks cut from a history and joined are the history."""
    whole = load(folder)
    parts = [whole.isel(record=slice(a, b), evaluation=slice(c, d)) for a, b, c, d in ((0, 1, 0, 1), (1, 4, 1, 3))]
    xr.testing.assert_equal(history.join(parts), whole)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_damaged_files_are_reported(folder, tmp_path, damage):
    """A file that was cut, overwritten or emptied: one line that names it."""
    whole = (folder / "history.nc").read_bytes()
    content = {"cut": whole[: len(whole) // 2], "other": b"no history at all\n" * 100, "empty": b""}[damage]
    (tmp_path / "history.nc").write_bytes(content)
    with pytest.raises(ValueError, match=r"history\.nc is damaged") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_history_at_all(tmp_path):
    """An empty folder, or none."""
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="has no history"):
            load(path)


@pytest.mark.slow
def test_chunk_files_are_whole(folder, tmp_path, monkeypatch):
    """A write that fails in the middle leaves no half file under a history's name."""
    part = load(folder).isel(evaluation=slice(0, 1))

    def break_off(*_):
        raise OSError(28, "disk full")

    monkeypatch.setattr("os.replace", break_off)
    (tmp_path / "history").mkdir()
    with pytest.raises(OSError, match="No space left"):
        history.write_chunk(tmp_path, part)
    assert not list((tmp_path / "history").iterdir())
    with pytest.raises(ValueError, match="has no history"):
        load(tmp_path)


def test_tensorboard_histograms_of_special_values():
    """Infinities go to the outermost finite edges, zeros have a bin of no width, NaN none."""
    counts = np.zeros(N_BINS, np.int64)
    assert tensorboard_histogram(counts, *bin_edges()).shape == (0, 3)
    counts[NAN_BIN] = 9
    assert tensorboard_histogram(counts, *bin_edges()).shape == (0, 3)
    counts[[0, ZERO_BIN, 512]] = 1, 2, 3
    bins = tensorboard_histogram(counts, *bin_edges())
    limit = np.finfo(np.float32).max
    assert bins[0].tolist() == [-limit, -limit, 1] and bins[-1].tolist() == [limit, limit, 3]
    assert bins[256].tolist() == [0, 0, 2] and bins[:, 2].sum() == 6
    one = np.bincount([ZERO_BIN + 1 + 127], minlength=N_BINS)
    assert tensorboard_histogram(one, *bin_edges()).tolist() == [[1, 2, 1]]
