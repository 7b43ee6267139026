"""Means with intervals, ratios between layers, magnitude histograms: against scipy and by hand."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy import stats as scipy_stats

import experiments.keras_notebook as notebook
import experiments.mxnet_mnist as tutorial
from vgjax import analysis, run
from vgjax.config import Config, Hypers
from vgjax.data.catalogue import DataUnavailable, load
from vgjax.statistics import histograms
from vgjax.theory import profiles


def test_interval_is_students() -> None:
    """The 95 % interval is scipy's own t interval."""
    values = np.random.default_rng(0).normal(3, 2, 7)
    found = analysis.estimate(values)
    low, high = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose([found.value, found.low, found.high], [values.mean(), low, high], rtol=1e-12)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 2000 samples of 5, the interval holds the mean in 95 % (within 4 standard errors)."""
    draws = np.random.default_rng(1).normal(1, 3, (2000, 5))
    held = np.mean([e.low <= 1 <= e.high for e in map(analysis.estimate, draws)])
    assert abs(held - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)


def test_single_value_has_no_interval() -> None:
    """One seed gives a value and no interval, rather than an interval of zero width."""
    found = analysis.estimate(np.array([2.0]))
    assert found.value == 2 and np.isnan(found.low) and np.isnan(found.high)


def test_geometric_mean_of_magnitudes() -> None:
    """Tiny values are averaged on the scale of their logarithms."""
    found = analysis.geometric_estimate(np.array([1e-30, 1e-20, 1e-10]))
    assert found.value == pytest.approx(1e-20, rel=1e-9) and found.low < found.value < found.high


@pytest.mark.parametrize(
    ("values", "ends"), [([0.1, 0.98, 0.98], (0, 1)), ([0.4, 0.5, 0.6], None), ([0.9], (np.nan,) * 2)]
)
def test_interval_of_an_accuracy_ends_at_0_and_1(values: list[float], ends: tuple[float, float] | None) -> None:
    """Of three seeds of which one does not learn, Student's interval goes from −.58 to 1.95: the rest cannot be."""
    whole, found = analysis.estimate(np.array(values)), analysis.share_estimate(np.array(values))
    assert (found.value, found.n) == (whole.value, whole.n)
    np.testing.assert_array_equal(found[1:3], ends or whole[1:3])


def history() -> xr.Dataset:
    """Two lanes of one seed and one of another, two records, three layers, known values."""
    log10_rms = np.array([[[-8, -6, -1], [-7, -6, -1]]] * 3, float)
    counts = np.zeros((3, 2, 3, histograms.N_BINS), int)
    for value, count in ((3.0, 5), (-3.0, 7), (0.75, 8), (0.0, 4)):
        counts[..., int(histograms.log2_bin(np.float32(value)))] = count
    return xr.Dataset(
        {
            "gradient_log10_rms": (("lane", "record", "layer"), log10_rms),
            "weight_histogram": (("lane", "record", "layer", "bin"), counts),
            "loss": (("lane", "record"), np.array([[1.0, 2], [3, 4], [10, 20]])),
        },
        {"seed": ("lane", [0, 0, 1])},
    )


def test_layer_ratio_is_first_over_last_hidden() -> None:
    """The output layer is left out unless asked for."""
    np.testing.assert_allclose(analysis.layer_ratio(history()), 1e-2, rtol=1e-12)
    np.testing.assert_allclose(analysis.layer_ratio(history(), record=1), 1e-1, rtol=1e-12)
    np.testing.assert_allclose(analysis.layer_ratio(history(), last_hidden=False), 1e-7, rtol=1e-12)


def test_layer_spread_is_over_hidden_layers() -> None:
    """Decades −8 and −6 have a standard deviation of one decade."""
    np.testing.assert_allclose(analysis.layer_spread(history()), 1.0, rtol=1e-12)


def test_replicas_of_a_seed_are_averaged() -> None:
    """Two lanes of seed 0 become one."""
    np.testing.assert_allclose(analysis.by_seed(history()["loss"]), [[2, 3], [10, 20]])


def test_magnitude_histogram_adds_both_signs_and_leaves_zero_out() -> None:
    """Shares by octave: ±3 lie in [2, 4), 0.75 in [½, 1), zeros count in the total alone."""
    shares = analysis.magnitude_histogram(history(), "weight_histogram").isel(lane=0, record=0, layer=0)
    by_exponent = dict(zip(shares["exponent"].values.tolist(), shares.values, strict=True))
    assert by_exponent[1] == pytest.approx(12 / 24) and by_exponent[-1] == pytest.approx(8 / 24)
    assert shares.sum() == pytest.approx(20 / 24)


@pytest.mark.slow
@pytest.mark.parametrize("scaling", ["1/256", "standardised"])
def test_closed_form_is_the_mean_square_over_batches_of_a_replica(scaling: str) -> None:
    """On digits: the theory's own function, batch by batch, on inputs scaled here."""
    data = load("digits")
    config = Config("digits", scaling, hidden=(12, 8), activation="tanh", batch_size=32, replicas=4, reduction="sum")
    inputs = data.train_inputs.astype(np.float64)
    std = inputs.std(0)
    scaled = inputs / 256 if scaling == "1/256" else (inputs - inputs.mean(0)) / np.where(std > 0, std, 1)
    rng, squares = np.random.default_rng(0), []
    for _ in range(3):
        rows = rng.choice(len(inputs), 8, replace=False)
        widths = (64, 12, 8, 10)
        of_batch = profiles.predicted_profile(
            scaled[rows], data.train_labels[rows], widths, "tanh", config.initializer
        ).gradient_rms
        squares.append(of_batch**2)
    found = analysis.closed_form(config, data, 3)
    np.testing.assert_allclose(found, np.sqrt(sum(squares) / 3), rtol=1e-12 if scaling == "1/256" else 1e-5)
    by_mean = analysis.closed_form(replace(config, reduction="mean"), data, 3)
    np.testing.assert_allclose(found / by_mean, 8, rtol=1e-12)


# Prediction beside measurement


DEEP = Config(dataset="digits", hidden=(40,) * 5, activation="tanh", initializer="glorot_uniform", batch_size=64)


@pytest.fixture(scope="module")
def deep():
    """Six lanes of a network on digits, a few records; and what is predicted of it."""
    config = replace(DEEP, steps=40, cadence="every(20)", record=("norms", "deltas", "activations"))
    settings = [Hypers(0.1), Hypers(0.1, sigma_w=0.5, sigma_b=0.1)]
    return run(config, settings, 3, dataset=load("digits")).history


@pytest.mark.slow
def test_step_0_is_as_predicted(deep: xr.Dataset) -> None:
    """Every layer's activations, δ and gradient lie in the band of their σ_w, and another's is elsewhere."""
    rows = analysis.signals(deep, load("digits"))
    assert list(rows) == ["σ_w 1, σ_b 0", "σ_w 0.5, σ_b 0.1"]
    for row in rows.values():
        start = row.isel(record=0)
        assert start.sizes == {"signal": 3, "layer": 6}
        assert ((start["predicted_low"] < start["measured"]) & (start["measured"] < start["predicted_high"])).all()
        assert start["predicted_decay_low"] < start["decay"] < start["predicted_decay_high"]
        assert start["decay_low"] < start["decay"] < start["decay_high"]
    one, other = (row["predicted"].sel(signal="delta_rms", layer="layer_1") for row in rows.values())
    assert one / other > 10


def test_compared_by_hand(deep: xr.Dataset) -> None:
    """The measurement is the geometric mean of the lanes of that start, the band the draws' quantiles."""
    lanes = deep.isel(lane=slice(3, 6))
    predicted = analysis.prediction(DEEP, Hypers(sigma_w=0.5, sigma_b=0.1), load("digits"), n_draws=16)
    row = analysis.compared(lanes, predicted)
    wanted = {
        "activation_rms": np.hypot(lanes["activation_mean"], lanes["activation_std"]).values.astype(float),
        "delta_rms": lanes["delta_rms"].values.astype(float),
        "gradient_rms": lanes["gradient_rms"].values.astype(float),
    }
    for name, values in wanted.items():
        one = row.sel(signal=name)
        np.testing.assert_allclose(one["measured"], scipy_stats.gmean(values), rtol=1e-5)
        np.testing.assert_allclose(one["measured_low"], values.min(0), rtol=1e-5)
        np.testing.assert_allclose(one["predicted_high"], np.quantile(predicted[name], 0.975, axis=0), rtol=1e-9)
    slopes = [scipy_stats.linregress(np.arange(5), np.log10(lane[:5])).slope for lane in wanted["delta_rms"][:, 0]]
    assert float(row["decay"][0]) == pytest.approx(np.mean(slopes), rel=1e-4)
    assert float(row["decay_high"][0]) == pytest.approx(analysis.estimate(np.array(slopes)).high, rel=1e-4)
    far = analysis.departure(row).sel(signal="gradient_rms").values
    decades = np.log10(scipy_stats.gmean(wanted["gradient_rms"]) / np.median(predicted["gradient_rms"], axis=0))
    np.testing.assert_allclose(far, np.sqrt(np.mean(decades**2, axis=-1)), rtol=1e-4)


def test_decay_is_a_slope() -> None:
    """Of known decades a layer, without the last layer; infinite where one layer is 0, undefined where all are."""
    rms = xr.DataArray(10.0 ** np.array([[-9, -7, -5, -3, 0], [1, 0, -1, -2, 9]]), dims=("lane", "layer"))
    np.testing.assert_allclose(analysis.decay(rms), [2, -1], rtol=1e-12)
    assert analysis.decay(rms.where(rms > 1e-8, 0.0))[0] == np.inf and np.isnan(analysis.decay(0 * rms)).all()
    assert np.isnan(analysis.decay(rms[:, :2])).all()


@pytest.mark.slow
def test_predictions_of_wide_networks_are_chi1() -> None:
    """At criticality δ keeps its size; one σ_w² below, it decays by ½ log₁₀ χ₁ a layer."""
    config = replace(DEEP, hidden=(300,) * 12, activation="relu", initializer="mean_field")
    for sigma_w2 in (2.0, 1.0):
        predicted = analysis.prediction(config, Hypers(sigma_w=sigma_w2**0.5), load("digits"), n_draws=16)
        decay = analysis.decay(predicted["delta_rms"])
        assert float(decay.mean()) == pytest.approx(-np.log10(sigma_w2 / 2) / 2, abs=4 * float(decay.std()) / 4)
        infinite = analysis.infinite_width(config, Hypers(sigma_w=sigma_w2**0.5), load("digits"))
        np.testing.assert_allclose(infinite["chi1"][:-1], sigma_w2 / 2, rtol=1e-9)
        np.testing.assert_allclose(infinite["q"][1:] / infinite["q"][:-1].values, sigma_w2 / 2, rtol=1e-9)


def test_what_norms_do_to_q_is_left_open() -> None:
    infinite = analysis.infinite_width(replace(DEEP, norm="batch"), Hypers(sigma_w=2.0), load("digits"))
    assert np.isnan(infinite["q"]).all() and np.isnan(infinite["chi1"]).all()
    np.testing.assert_allclose(infinite["sigma_w2"][1:-1], 4, rtol=1e-12)


def test_histories_that_cannot_be_compared(deep: xr.Dataset) -> None:
    """One that does not say what was run, and one without any of the signals."""
    with pytest.raises(ValueError, match="does not say which run it is; allowed"):
        analysis.signals(deep.drop_attrs(), load("digits"))
    with pytest.raises(ValueError, match="no predicted quantity was recorded; allowed"):
        analysis.compared(deep[["loss"]], analysis.prediction(DEEP, Hypers(), load("digits"), n_draws=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "setting"), [*(("mnist", setting) for setting in tutorial.GRID), ("fashion_mnist", "xavier, relu")]
)
def test_the_tutorials_first_step_is_predicted(name: str, setting: str) -> None:
    """First-layer RMS of eight seeds within 35 %, its ratio to every other layer inside the band, in all settings."""
    try:
        data = load(name)
    except DataUnavailable:
        pytest.skip(f"{name} is not at hand")
    config = replace(tutorial.FAITHFUL, **tutorial.GRID[setting], dataset=name, record=("norms",))
    config = replace(config, steps=1, cadence="at(0)")
    measured = 10 ** run(config, tutorial.HYPERS, 8, dataset=data).history["gradient_log10_rms"].isel(record=0)
    predicted = analysis.prediction(config, tutorial.HYPERS, data)["gradient_rms"]
    squares = by_square(measured, "lane"), by_square(predicted, "draw")
    assert float(squares[0][0] / squares[1][0]) == pytest.approx(1, abs=0.35)
    ratios = xr.ufuncs.log(measured.isel(layer=0) / measured).mean("lane")
    low, high = xr.ufuncs.log(predicted.isel(layer=0) / predicted).quantile([0.025, 0.975], "draw")
    assert ((low <= ratios) & (ratios <= high)).all()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [notebook.SIGMOID, notebook.LEAKY])
def test_the_notebooks_first_step_is_predicted(stage: str) -> None:
    """Every layer's gradient and its ratio to the first one's inside the band, on Iris."""
    config, hypers = notebook.GRID[stage]
    config = replace(config, record=("norms",), steps=1, epochs=1, cadence="at(0)")
    measured = run(config, hypers, 8, dataset=load("iris_petal")).history["gradient_log10_rms"].isel(record=0)
    predicted = np.log10(analysis.prediction(config, hypers, load("iris_petal"))["gradient_rms"])
    for logs, draws in ((measured, predicted), *((x - x.isel(layer=0) for x in (measured, predicted)),)):
        low, high = draws.quantile([0.025, 0.975], "draw")
        assert ((low <= logs.mean("lane")) & (logs.mean("lane") <= high)).all()


def by_square(values: xr.DataArray, dimension: str) -> xr.DataArray:
    return (values.astype(float) ** 2).mean(dimension) ** 0.5
