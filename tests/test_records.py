"""What was written is read back: by TensorBoard's own reader, pandas and xarray; resumed runs double no step."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import small
import xarray as xr
from test_engine import SETTINGS

from vgjax import Hypers, history, load, run
from vgjax.records import tensorboard_histogram
from vgjax.stats import N_BINS, NAN_BIN, ZERO_BIN, bin_edges

EXPLODING = [Hypers(0.1), Hypers(1e38)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of eight lanes, half of which explode: NaN and infinities everywhere."""
    path = tmp_path_factory.mktemp("records") / "run"
    run(small.CONFIG, EXPLODING, 4, dataset=small.dataset(), folder=path)
    return path


def read_events(folder):
    """{lane's name: TensorBoard's accumulator}, nothing left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = {}
        for path in sorted((folder / "tensorboard").iterdir()):
            found[path.name] = EventAccumulator(str(path), size_guidance={"tensors": 0, "scalars": 0, "histograms": 0})
            found[path.name].Reload()
    return found


def values_of(accumulator, tag):
    """[(step, value)] of one tag."""
    from tensorboard.util.tensor_util import make_ndarray

    return [(event.step, make_ndarray(event.tensor_proto)) for event in accumulator.Tensors(tag)]


def test_every_scalar_is_read_back(folder):
    """All lanes, steps, layers and statistics, equal to the last bit of float32, NaN and Inf included."""
    whole, events = load(folder), read_events(folder)
    assert list(events) == [f"lane_{i:03d}_seed_{i % 4}_replica_0" for i in range(8)]
    assert not np.isfinite(whole["gradient_rms"]).all()
    count = 0
    for lane, accumulator in enumerate(events.values()):
        one = whole.isel(lane=lane)
        for name, v in one.data_vars.items():
            family, _, statistic = name.partition("_")
            if v.dims == ("record", "layer"):
                tags = {f"{family}/{statistic}/{layer}": v.sel(layer=layer).values for layer in v["layer"].values}
            elif v.dims == ("record",):
                tags = {f"step/{name}": v.values}
            elif v.dims == ("evaluation",):
                tags = {f"epoch/{name}": v.values}
            else:
                continue
            steps = one["evaluated_at" if v.dims == ("evaluation",) else "step"].values
            for tag, wanted in tags.items():
                read = values_of(accumulator, tag)
                assert [step for step, _ in read] == steps.tolist(), tag
                np.testing.assert_array_equal(np.array([x for _, x in read], np.float32), wanted.astype(np.float32))
                count += 1
    assert count == 8 * (2 + 4 + 9 * 3)


def test_every_histogram_is_read_back(folder):
    """Bins and counts of every layer and step; they sum to the number of weights that are not NaN."""
    whole, events = load(folder), read_events(folder)
    for lane, accumulator in enumerate(events.values()):
        for tag, name in (("weights", "weight_histogram"), ("weight_gradients", "gradient_histogram")):
            for layer in whole["layer"].values:
                assert accumulator.SummaryMetadata(f"{tag}/{layer}").plugin_data.plugin_name == "histograms"
                read = values_of(accumulator, f"{tag}/{layer}")
                counts = whole[name].isel(lane=lane).sel(layer=layer).values
                assert [step for step, _ in read] == whole["step"].values.tolist()
                for (_, bins), count in zip(read, counts, strict=True):
                    assert bins.shape[1] == 3 and np.isfinite(bins).all()
                    assert bins[:, 2].sum() == count.sum() - count[NAN_BIN]
                    assert (bins[:, 0] <= bins[:, 1]).all() and (np.diff(bins[:, 0]) >= 0).all()


def test_hyperparameters_are_there(folder):
    """TensorBoard's HParams page has every lane's numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data
    for lane, accumulator in enumerate(read_events(folder).values()):
        content = accumulator.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
        found = {k: v.number_value for k, v in parse_session_start_info_plugin_data(content).hparams.items()}
        assert found["learning_rate"] == pytest.approx([0.1, 1e38][lane // 4])
        assert found["seed"] == lane % 4 and found["clip_threshold"] == 1 and "sigma_w" in found


def test_the_log_has_every_evaluation(folder):
    """One line each, of the first lane."""
    lines = (folder / "train.log").read_text().splitlines()
    assert len(lines) == 3
    for line, step in zip(lines, (3, 6, 9), strict=True):
        assert f"[{step}]" in line and "epoch/validation_accuracy" in line and "epoch/train_loss" in line


def test_the_folder_holds_nothing_else(folder):
    """Merged history, tables, and no temporary files."""
    names = {path.name for path in folder.iterdir()}
    tables = {"statistics.csv", "evaluations.csv"}
    made = {"config.yaml", "environment.json", "history.nc", "tensorboard", "train.log", "checkpoints"}
    assert names == made | tables


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


def test_resuming_doubles_no_step(tmp_path, monkeypatch):
    """A run that was interrupted after its second chunk goes on, and its records are those of an undisturbed one."""
    path = tmp_path / "run"
    one_chunk = lambda _: len(list((path / "history").glob("*.nc"))) == 1  # noqa: E731
    monkeypatch.setattr("vgjax.folder.RunFolder.wants_checkpoint", one_chunk)  # the second chunk has no checkpoint

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
    assert list(events) == ["lane_000_seed_0_replica_0"]
    (accumulator,) = events.values()
    assert [step for step, _ in values_of(accumulator, "gradient/rms/layer_1")] == [0, 3, 6, 8]
    assert [step for step, _ in values_of(accumulator, "epoch/train_loss")] == [3, 6, 9]
    assert len((path / "train.log").read_text().splitlines()) == 3


def test_a_history_survives_the_disk(folder, tmp_path):
    """netCDF gives back every value, coordinate, type and description."""
    result = run(small.CONFIG, EXPLODING, 4, dataset=small.dataset())
    back = load(folder)
    assert set(back.variables) == set(result.history.variables)
    for name, v in result.history.variables.items():
        np.testing.assert_array_equal(back[name].values, v.values, err_msg=str(name))
        assert back[name].dims == v.dims and back[name].attrs == v.attrs, name
        assert back[name].dtype.kind == v.dtype.kind, name


def test_join_is_one_history(folder):
    """Chunks cut from a history and joined are the history."""
    whole = load(folder)
    parts = [whole.isel(record=slice(a, b), evaluation=slice(c, d)) for a, b, c, d in ((0, 1, 0, 1), (1, 4, 1, 3))]
    xr.testing.assert_equal(history.join(parts), whole)


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


def test_chunk_files_are_whole(folder, tmp_path, monkeypatch):
    """A write that fails in the middle leaves no half file under a history's name."""
    part = load(folder).isel(evaluation=slice(0, 1))

    def break_off(self, path, **_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", break_off)
    with pytest.raises(OSError, match="disk full"):
        history.write_chunk(tmp_path, part)
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
