"""Means with intervals, ratios between layers, magnitude histograms: against scipy and by hand."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy import stats as scipy_stats

from vgjax import analysis, stats, theory
from vgjax.config import Config
from vgjax.data import load


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


def history() -> xr.Dataset:
    """Two lanes of one seed and one of another, two records, three layers, known values."""
    log10_rms = np.array([[[-8, -6, -1], [-7, -6, -1]]] * 3, float)
    counts = np.zeros((3, 2, 3, stats.N_BINS), int)
    for value, count in ((3.0, 5), (-3.0, 7), (0.75, 8), (0.0, 4)):
        counts[..., int(stats.log2_bin(np.float32(value)))] = count
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
        of_batch = theory.predicted_weight_gradient_rms(
            scaled[rows], data.train_labels[rows], widths, "tanh", config.initializer
        )
        squares.append(of_batch**2)
    found = analysis.closed_form(config, data, 3)
    np.testing.assert_allclose(found, np.sqrt(sum(squares) / 3), rtol=1e-12 if scaling == "1/256" else 1e-5)
    by_mean = analysis.closed_form(replace(config, reduction="mean"), data, 3)
    np.testing.assert_allclose(found / by_mean, 8, rtol=1e-12)
