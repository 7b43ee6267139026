"""Maps of a sweep: cells against loops over the lanes, theory against known numbers, figures against their tables."""

from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.collections import QuadMesh
from matplotlib.patches import Rectangle
from scipy import stats as scipy_stats

from vgjax import run
from vgjax.command import sweep
from vgjax.config import Config, Hypers
from vgjax.data.catalogue import load
from vgjax.sweeps import map_figures, tables
from vgjax.sweeps.theory_curves import Curve, theory_curve

CONFIG = Config("iris", hidden=(9, 9), activation="relu", initializer="mean_field", batch_size=16, epochs=2)
CONFIG = replace(CONFIG, record=("norms", "deltas"))
RATES, SIGMAS, DEPTHS, SEEDS = (0.03, 0.3, 1e12), (1.0, 1.5), (2, 4), (0, 1, 2)


def of_depth(depth: int) -> xr.Dataset:
    """Lanes of one depth, as a sweep labels them: the last learning rate makes all of them diverge."""
    settings = [Hypers(rate, sigma_w=sigma) for rate in RATES for sigma in SIGMAS]
    history = run(replace(CONFIG, hidden=(9,) * depth), settings, SEEDS, dataset=load("iris")).history
    n = history.sizes["lane"]
    fans = {name: (("lane", "layer"), np.tile(history[name].values, (n, 1))) for name in ("fan_in", "fan_out")}
    history = history.drop_vars(["bin_left", "bin_right"]).assign_coords(fans)
    return history.assign_coords(depth=("lane", np.full(n, depth)), sigma_w2=("lane", history["sigma_w"].values ** 2))


@pytest.fixture(scope="module")
def history() -> xr.Dataset:
    """Two depths × three learning rates × two σ_w × three seeds, padded along the layers."""
    layers = [f"layer_{i}" for i in range(1, max(DEPTHS) + 2)]
    parts = [of_depth(depth).reindex(layer=layers) for depth in DEPTHS]
    return xr.concat(parts, "lane", data_vars="all", coords="different", compat="equals")


@pytest.fixture(scope="module")
def slow(history: xr.Dataset) -> xr.Dataset:
    """Its lanes of one learning rate, none of which diverged."""
    return history.isel(lane=history["learning_rate"].values == RATES[0])


def of_cell(history: xr.Dataset, numbers: np.ndarray, **point: float) -> np.ndarray:
    """What the lanes of a cell have, lane by lane."""
    return np.array(
        [numbers[i] for i in range(len(numbers)) if all(float(history[k][i]) == v for k, v in point.items())]
    )


# Cells


@pytest.mark.slow
def test_cells_are_means_over_seeds(slow: xr.Dataset) -> None:
    """Every cell against its own lanes: mean, scipy's interval, counts; sorted by x, then y."""
    found = tables.cells(slow, ("sigma_w", "depth"), "validation_loss")
    assert list(zip(found["sigma_w"], found["depth"], strict=True)) == [(s, d) for s in SIGMAS for d in DEPTHS]
    for row in found.itertuples():
        values = of_cell(slow, slow["validation_loss"].values[:, -1], sigma_w=row.sigma_w, depth=row.depth)
        low, high = scipy_stats.ttest_1samp(values.astype(float), 0).confidence_interval(0.95)
        np.testing.assert_allclose([row.value, row.low, row.high], [values.mean(), low, high], rtol=1e-6)
        assert (row.n, row.diverged, row.lanes) == (3, 0, 3) and len(values) == 3


def test_accuracies_lie_between_0_and_1(slow: xr.Dataset) -> None:
    """Two of a cell's three seeds learn all and one nothing."""
    one = slow.isel(lane=slice(0, 3)).copy()
    one["validation_accuracy"] = xr.full_like(one["validation_accuracy"], 1).where(one["seed"] > 0, 0)
    row = tables.cells(one, ["sigma_w"], "validation_accuracy").iloc[0]
    assert (row["low"], row["value"], row["high"]) == (0, pytest.approx(2 / 3), 1)


def test_decay_of_every_depth(slow: xr.Dataset) -> None:
    """The slope over the hidden layers of each lane, however its row is padded."""
    slopes = []
    for lane in range(slow.sizes["lane"]):
        depth = int(slow["depth"][lane])
        logs = np.log10(slow["delta_rms"].values[lane, 0, :depth].astype(float))
        slopes.append(np.polyfit(np.arange(depth), logs, 1)[0])
    np.testing.assert_allclose(tables.lane_values(slow, "decay"), slopes, rtol=1e-4)
    found = tables.cells(slow, ["depth", "sigma_w2"], "decay")
    assert found["value"][0] == pytest.approx(of_cell(slow, np.array(slopes), depth=2, sigma_w2=1).mean(), rel=1e-4)
    with pytest.raises(ValueError, match="decay cannot be computed from layer_2, layer_3 alone; allowed: all layers"):
        tables.lane_values(slow.isel(layer=slice(1, 3)), "decay")


def test_statistics_are_of_the_first_layer_and_record(slow: xr.Dataset) -> None:
    """Unless another layer is said, which lanes that have none do not count in."""
    np.testing.assert_array_equal(tables.lane_values(slow, "gradient_rms"), slow["gradient_rms"].values[:, 0, 0])
    found = tables.cells(slow, ["depth", "sigma_w"], "gradient_rms[layer_4]")
    assert found["n"].tolist() == [0, 0, 3, 3] and found["value"].isna().tolist() == [True, True, False, False]
    values = of_cell(slow, slow["gradient_rms"].values[:, 0, 3], depth=4, sigma_w=1.5)
    assert found["value"][3] == pytest.approx(values.mean(), rel=1e-6)
    assert tables.description(slow, "gradient_rms[layer_4]").endswith("weight unit], layer_4, step 0")
    assert tables.description(slow, "decay").endswith("way back, step 0")
    assert tables.description(slow, "train_accuracy").endswith("over the epoch's training steps")
    assert tables.description(slow, "validation_loss") == "cross-entropy over the validation examples, mean [nats]"


def test_replicas_are_no_independent_draws(slow: xr.Dataset) -> None:
    """The replicas of a seed count as one."""
    lanes = slow.isel(lane=slice(0, 3)).assign_coords(seed=("lane", [5, 5, 6]), replica=("lane", [0, 1, 0]))
    found = tables.cells(lanes, ["sigma_w"], "train_loss").iloc[0]
    a, b, c = lanes["train_loss"].values[:, -1].astype(float)
    assert found["value"] == pytest.approx(((a + b) / 2 + c) / 2) and (found["n"], found["lanes"]) == (2, 3)


def test_lanes_that_diverged_are_counted_not_averaged(history: xr.Dataset) -> None:
    """Neither NaN nor the accuracy of a network of NaN goes into a mean; what was before it diverged does."""
    deep = history.isel(lane=(history["depth"].values == 4) & (history["sigma_w"].values == 1))
    assert (deep["first_bad_step"].values[-3:] >= 0).all()
    accuracy = tables.cells(deep, ["learning_rate"], "validation_accuracy")
    assert accuracy["diverged"].tolist() == [0, 0, 3] and accuracy["n"].tolist() == [3, 3, 0]
    assert accuracy["value"].isna().tolist() == [False, False, True]
    assert tables.cells(deep, ["learning_rate"], "gradient_rms")["n"].tolist() == [3, 3, 3]
    bad = tables.cells(deep, ["learning_rate"], "first_bad_step")
    assert bad["n"].tolist() == [0, 0, 3] and bad["value"][2] == deep["first_bad_step"].values[-3:].mean()
    one = deep.copy()
    one["first_bad_step"] = ("lane", np.where(np.arange(9) == 4, 7, -1))
    kept = deep["validation_accuracy"].values[[3, 5], -1].mean()
    row = tables.cells(one, ["learning_rate"], "validation_accuracy").iloc[1]
    assert row["value"] == pytest.approx(kept) and (row["n"], row["diverged"]) == (2, 1)


def test_a_shorter_lane_ends_where_it_ends(slow: xr.Dataset) -> None:
    """Lanes of fewer evaluations are padded with NaN; their last one counts."""
    padded = slow[["validation_loss", "first_bad_step"]].copy(deep=True)
    padded["validation_loss"][0, -1] = np.nan
    assert tables.lane_values(padded, "validation_loss")[0] == slow["validation_loss"].values[0, -2]


def test_a_cell_does_not_mix(history: xr.Dataset) -> None:
    """Coordinates that differ within a cell are refused by name; what follows from x and y is not."""
    with pytest.raises(ValueError) as refused:
        tables.cells(history, ["sigma_w", "depth"], "train_loss")
    assert str(refused.value) == (
        "a cell of sigma_w, depth would mix learning_rate (0.03, 0.3, 1e+12); allowed: plot over it, or keep one, "
        "history.isel(lane=history['learning_rate'] == 0.03)"
    )
    with pytest.raises(ValueError, match=r"would mix depth \(2, 4\), sigma_w2 \(1, 2.25\)"):
        tables.cells(history, ["learning_rate"], "train_loss")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("depth", "plot 'depth' is not allowed; allowed: X,VALUE or X,Y,VALUE"),
        ("depth,sigma_w,seed,decay", "allowed: X,VALUE or X,Y,VALUE"),
        ("depth,depth,decay", "allowed: X,VALUE or X,Y,VALUE"),
        ("depth,sgima_w,decay", "no lane has a 'sgima_w'; did you mean 'sigma_w'? allowed: seed"),
        ("depth,sigma_w,validation_acuracy", "unknown value 'validation_acuracy'; did you mean 'validation_accuracy'"),
        ("depth,sigma_w,gradient_histogram", "unknown value 'gradient_histogram'"),
        ("depth,sigma_w,weight_norm", "unknown value 'weight_norm'"),
        ("depth,sigma_w,delta_rms[layer_9]", "'delta_rms[layer_9]' is not allowed; did you mean 'layer_5'? allowed:"),
        ("depth,sigma_w,train_loss[layer_1]", "'train_loss[layer_1]' is not allowed; allowed: train_loss"),
        ("depth,sigma_w,", "unknown value ''"),
    ],
)
def test_plots_that_cannot_be_had(slow: xr.Dataset, tmp_path: Path, spec: str, message: str) -> None:
    """One line, with the nearest name; nothing is written."""
    with pytest.raises(ValueError) as refused:
        map_figures.write_plot(tmp_path / "map", slow, spec, CONFIG, Hypers())
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_best(history: xr.Dataset, capsys: pytest.CaptureFixture) -> None:
    """The largest mean accuracy, or the least loss, over all that was swept."""
    points = {(r, d, s**2): [] for r in RATES[:2] for s in SIGMAS for d in DEPTHS}
    for lane in range(history.sizes["lane"]):
        one = history.isel(lane=lane)
        if (key := (float(one["learning_rate"]), int(one["depth"]), float(one["sigma_w2"]))) in points:
            points[key].append(float(one["validation_loss"][-1]))
    ranked = sorted(points, key=lambda key: np.mean(points[key]))
    found = tables.best(history, "validation_loss", 3)
    assert list(zip(found["learning_rate"], found["depth"], found["sigma_w2"], strict=True)) == ranked[:3]
    np.testing.assert_allclose(found["value"], [np.mean(points[key]) for key in ranked[:3]], rtol=1e-6)
    accuracy = tables.best(history, n=100)
    kept = int((accuracy["n"] > 0).sum())
    assert len(accuracy) == 12 and 8 <= kept < 12
    assert accuracy["value"][:kept].is_monotonic_decreasing and accuracy["value"][kept:].isna().all()
    with pytest.raises(ValueError, match="there is no best 'decay'; allowed: validation_accuracy, validation_loss"):
        tables.best(history, "decay")
    sweep.print_best(found, "validation_loss")
    _, head, first, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["learning_rate", "depth", "sigma_w2", "validation", "loss"]
    assert [float(word) for word in first.split()[:3]] == list(ranked[0])
    assert float(first.split()[3]) == pytest.approx(np.mean(points[ranked[0]]), rel=1e-3)


# Axes


def test_scales_of_axes() -> None:
    """Powers are log-spaced, equal steps are not; borders lie between neighbours on that scale."""
    for values in ([1e-3, 1e-2, 1e-1], [2, 4, 8, 16], [0.01, 0.03, 0.1, 0.3], [1, 10]):
        assert tables.is_log_spaced(values)
    for values in ([1, 2, 3], [10, 20, 30, 40], [0, 1, 10], [-1, 1, 3], [5], [1, 2], [1, 2, 4.5, 5]):
        assert not tables.is_log_spaced(values)
    np.testing.assert_allclose(tables.edges([1, 2, 4]), 2.0 ** np.array([-0.5, 0.5, 1.5, 2.5]), rtol=1e-12)
    np.testing.assert_allclose(tables.edges([1, 2, 4.5, 5]), [0.5, 1.5, 3.25, 4.75, 5.25], rtol=1e-12)
    np.testing.assert_allclose(tables.edges([3]), [2.5, 3.5], rtol=1e-12)


# Theory: numbers from a computation of its own

DEPTH_SCALES = {1.0: 3.63, 1.3: 7.83, 1.5: 15.8, 2.0: 25.2, 2.5: 11.8, 4.0: 6.98}  # tanh, σ_b² = 0.05: σ_w² → ξ_c
CRITICAL = {0.01: 1.42421, 0.05: 1.76095, 0.1: 1.98607}  # tanh: σ_b² → σ_w²
TANH = replace(CONFIG, activation="tanh")


def grid(widths: tuple[int, ...] = (4, 9, 9, 3), **coordinates: np.ndarray | list) -> xr.Dataset:
    """Lanes with nothing but coordinates."""
    n = len(next(iter(coordinates.values())))
    fans = {"fan_in": ("layer", list(widths[:-1])), "fan_out": ("layer", list(widths[1:]))}
    lanes = {name: ("lane", np.asarray(values)) for name, values in coordinates.items()}
    return xr.Dataset(coords={"seed": ("lane", np.zeros(n, int)), **fans, **lanes})


@pytest.mark.slow
@pytest.mark.parametrize(("x", "power"), [("sigma_w", 2), ("sigma_w2", 1)])
@pytest.mark.parametrize(("initializer", "gain"), [("mean_field", 1), ("he_normal", 2), ("glorot_uniform", 1)])
def test_trainable_depth(x: str, power: int, initializer: str, gain: int) -> None:
    """6 ξ_c of σ_w² = gain · σ_w², infinite at criticality, whichever way round it is asked for."""
    values = (np.linspace(1, 4, 7) / gain) ** (1 / power)
    config, hypers = replace(TANH, initializer=initializer), Hypers(sigma_b=0.05**0.5)
    history = grid(**{x: values, "depth": np.full(7, 3)})
    curve = theory_curve(history, x, "depth", config, hypers)
    assert curve is not None and "6" in curve.label
    sigma_w2 = gain * curve.x**power
    assert len(sigma_w2) > 100 and (np.diff(sigma_w2) > 0).all()
    for at, scale in DEPTH_SCALES.items():
        assert 1 / np.interp(at, sigma_w2, 1 / curve.y) == pytest.approx(6 * scale, rel=0.004)
    np.testing.assert_allclose(sigma_w2[np.isinf(curve.y)], [CRITICAL[0.05]], rtol=1e-5)
    swapped = theory_curve(history, "depth", x, config, hypers)
    assert swapped is not None
    np.testing.assert_array_equal(swapped.x, curve.y)
    np.testing.assert_array_equal(swapped.y, curve.x)


@pytest.mark.parametrize(("y", "power"), [("sigma_b", 2), ("sigma_b2", 1)])
def test_critical_line(y: str, power: int) -> None:
    history = grid(**{"sigma_w": np.linspace(1, 2, 5), y: np.linspace(0, 0.5, 5)})
    curve = theory_curve(history, "sigma_w", y, replace(TANH, initializer="he_normal"), Hypers())
    assert curve is not None
    for sigma_b2, sigma_w2 in CRITICAL.items():
        assert 2 * np.interp(sigma_b2, curve.y**power, curve.x) ** 2 == pytest.approx(sigma_w2, rel=2e-3)
    assert theory_curve(history, "sigma_w", y, replace(TANH, bias=False), Hypers()) is None


def test_lanes_overrule_the_base_of_a_sweep() -> None:
    """What the lanes were run with counts, where they agree."""
    plane = {"sigma_w2": np.linspace(1, 3, 4), "depth": np.full(4, 3)}
    tanh = grid(**plane, activation=["tanh"] * 4, sigma_b=np.full(4, 0.05**0.5))
    curve = theory_curve(tanh, "sigma_w2", "depth", CONFIG, Hypers())
    assert curve is not None and curve.x[np.isinf(curve.y)] == pytest.approx(CRITICAL[0.05], rel=1e-5)
    mixed = grid(**plane, activation=["tanh", "relu"] * 2)
    assert theory_curve(mixed, "sigma_w2", "depth", CONFIG, Hypers()) is None


def test_where_theory_is_silent() -> None:
    """ReLU above criticality, or with biases; norms, branches and batches that rescale; other planes."""
    plane = grid(sigma_w2=np.linspace(1, 3, 4), depth=np.full(4, 3), learning_rate=[0.1] * 4)
    curve = theory_curve(plane, "sigma_w2", "depth", CONFIG, Hypers())
    assert curve is not None and np.isfinite(curve.y[curve.x < 1.99]).all() and np.isnan(curve.y[curve.x > 2.01]).all()
    relu = grid(sigma_w2=np.linspace(1, 3, 4), sigma_b2=np.linspace(0, 1, 4))
    assert theory_curve(relu, "sigma_w2", "sigma_b2", CONFIG, Hypers()) is None
    for change in ({"norm": "batch"}, {"branch": "residual"}, {"initializer": "lsuv"}):
        assert theory_curve(plane, "sigma_w2", "depth", replace(TANH, **change), Hypers()) is None
    assert theory_curve(plane, "learning_rate", "depth", TANH, Hypers()) is None
    assert theory_curve(plane, "depth", "learning_rate", TANH, Hypers()) is None
    narrowing = grid((4, 9, 6, 3, 3), sigma_w2=np.linspace(1, 3, 4), depth=np.full(4, 3))
    assert theory_curve(narrowing, "sigma_w2", "depth", replace(TANH, initializer="uniform"), Hypers()) is None
    assert theory_curve(narrowing, "sigma_w2", "depth", TANH, Hypers()) is not None


# Figures


def table(x: str, y: str) -> pd.DataFrame:
    """Six cells, one of which all lanes left and one of which some did."""
    rows = [(a, b) for a in (1, 10, 100) for b in (2.0, 3.0)]
    found = pd.DataFrame(rows, columns=[x, y])
    found["value"] = [0.1, 0.2, 0.3, 0.4, 0.5, np.nan]
    return found.assign(low=found["value"] - 0.01, high=found["value"] + 0.02, n=3, diverged=[0, 0, 0, 1, 0, 3])


def test_heat_map_shows_the_table() -> None:
    """Every cell around its point with its value, on the scale of x; hatches where lanes diverged; theory inside."""
    curve = Curve(np.array([1.0, 10.0, 100.0]), np.array([2.0, np.inf, np.nan]), "critical")
    figure = map_figures.heat_map(table("depth", "sigma_w"), "depth", "sigma_w", "value [unit]", curve)
    axes, bar = figure.axes
    (mesh,) = [one for one in axes.collections if isinstance(one, QuadMesh)]
    np.testing.assert_array_equal(np.ma.filled(mesh.get_array(), -1), [[0.1, 0.3, 0.5], [0.2, 0.4, -1]])
    corners = mesh.get_coordinates()
    np.testing.assert_allclose(corners[0, :, 0], 10.0 ** np.array([-0.5, 0.5, 1.5, 2.5]), rtol=1e-12)
    np.testing.assert_allclose(corners[:, 0, 1], [1.5, 2.5, 3.5], rtol=1e-12)
    hatched = [one.get_xy() for one in axes.patches if isinstance(one, Rectangle) and one.get_hatch()]
    np.testing.assert_allclose(hatched, [(10**0.5, 2.5), (10**1.5, 2.5)], rtol=1e-12)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert bar.get_ylabel() == "value [unit]" and "3 seeds" in axes.get_title(loc="left")
    (line,) = axes.get_lines()
    assert line.get_ydata()[1] > axes.get_ylim()[1] and np.isfinite(line.get_ydata()[:2]).all()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["critical", "lanes diverged"]


def test_curves_show_the_table() -> None:
    """A line a name, with interval bars as long as the table says, and crosses where lanes diverged."""
    rows = table("learning_rate", "sigma_w")
    rows["optimizer"] = rows.pop("sigma_w").map({2.0: "sgd", 3.0: "adam"})
    figure = map_figures.curves(rows, "learning_rate", "optimizer", "share of something")
    (axes,) = figure.axes
    found = {bar.get_label(): bar for bar in axes.containers}
    assert list(found) == ["adam", "sgd"]
    points, _, (bars,) = found["sgd"].lines
    np.testing.assert_allclose(points.get_ydata(), [0.1, 0.3, 0.5], rtol=1e-12)
    np.testing.assert_allclose(points.get_xdata(), [1, 10, 100], rtol=0.1)
    np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()][1], [0.29, 0.32], rtol=1e-9)
    crosses = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert [len(line.get_xdata()) for line in crosses] == [2, 0]
    assert axes.get_xscale() == "log" and axes.get_ylim()[1] <= 1.02


@pytest.mark.parametrize("y", [[2.0, np.inf], [False, True], ["sgd", "adam"]])
def test_what_is_no_axis_of_numbers(y: list) -> None:
    """Infinity, truth and text stand side by side, in cells of one size."""
    rows = table("sigma_w", "y")
    rows["y"] = rows["y"].map({2.0: y[0], 3.0: y[1]})
    mesh = map_figures.heat_map(rows, "sigma_w", "y", "value").axes[0].collections[0]
    np.testing.assert_array_equal(mesh.get_coordinates()[:, 0, 1], [-0.5, 0.5, 1.5])
    assert np.isfinite(mesh.get_coordinates()).all()


def test_plots_are_written_beside_their_numbers(history: xr.Dataset, tmp_path: Path) -> None:
    """Numbers make a heat map with theory, names make curves; picture, vector graphic and table are there."""
    slow = history.isel(lane=history["learning_rate"].values < 1)
    rate = slow["learning_rate"].values
    slow = slow.assign_coords(optimizer=("lane", np.where(rate == RATES[0], "sgd", "adam")), learning_rate=0.1)
    with pytest.raises(ValueError, match=r"would mix optimizer \(sgd, adam\)"):
        map_figures.write_plot(tmp_path / "a" / "map", slow, "depth,sigma_w,decay", CONFIG, Hypers())
    one = slow.isel(lane=rate == RATES[0])
    path = map_figures.write_plot(tmp_path / "a" / "map", one, "depth,sigma_w,train_accuracy", CONFIG, Hypers())
    assert path == tmp_path / "a" / "map.png" and matplotlib.image.imread(path).std() > 0.05
    assert "ξ" in path.with_suffix(".svg").read_text() or "xi" in path.with_suffix(".svg").read_text()
    written = pd.read_csv(path.with_suffix(".csv"))
    cells = tables.cells(one, ["depth", "sigma_w"], "train_accuracy")
    np.testing.assert_allclose(written[written["what"] == "train_accuracy"]["value"], cells["value"], rtol=1e-12)
    assert (written["what"] == "theory").sum() > 100
    shallow = slow.isel(lane=slow["depth"].values == 2)
    path = map_figures.write_plot(tmp_path / "curves", shallow, "sigma_w,optimizer,train_loss", CONFIG, Hypers())
    assert set(pd.read_csv(path.with_suffix(".csv"))["optimizer"]) == {"sgd", "adam"}
    alone = map_figures.write_plot(tmp_path / "one", one.isel(lane=slice(0, 6)), "sigma_w,decay", CONFIG, Hypers())
    assert list(pd.read_csv(alone.with_suffix(".csv"))["n"]) == [3, 3]


@pytest.mark.parametrize("spec", ["learning_rate,sigma_w,train_loss", "learning_rate,train_loss", "seed,sigma_w,loss"])
def test_a_sweep_that_diverged_altogether_is_drawn(history: xr.Dataset, tmp_path: Path, spec: str) -> None:
    """Hatches and crosses, and no warning; so is a single seed, which has no interval."""
    lost = history.isel(lane=(history["learning_rate"].values > 1) & (history["depth"].values == 4))
    lost = lost if "sigma_w" in spec else lost.isel(lane=lost["sigma_w"].values == 1)
    assert map_figures.write_plot(tmp_path / "lost", lost, spec, CONFIG, Hypers()).is_file()
