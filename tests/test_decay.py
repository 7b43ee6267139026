"""The decay of δ in deep networks, measured by the engine at step 0, against the predicted band."""

from __future__ import annotations

import numpy as np
import pytest

from vgjax import analysis, run, theory
from vgjax.config import Config, Hypers
from vgjax.data.catalogue import Dataset

DEPTH, SEEDS = 30, 10
PHASES = {"ordered": 0.7, "critical": 1.0, "chaotic": 1.5}  # times the critical σ_w²


def dataset():
    """Correlated numbers of unit variance."""
    rng = np.random.default_rng(0)
    inputs = ((rng.standard_normal((300, 32)) + rng.standard_normal(32)) / np.sqrt(2)).astype(np.float32)
    labels = rng.integers(5, size=300).astype(np.int32)
    return Dataset("drawn", inputs[:200], labels[:200], inputs[200:], labels[200:], 5, (32,), "drawn by the test")


def config(activation, width=128):
    return Config(
        dataset="drawn",
        hidden=(width,) * DEPTH,
        activation=activation,
        initializer="mean_field",
        batch_size=32,
        steps=1,
        cadence="at(0)",
        record=("deltas", "norms"),
    )


def settings(activation):
    """One in each phase, with biases where there is a critical point that has them."""
    sigma_b2 = 0.0 if np.isnan(theory.critical_point(activation, 0.05)[0]) else 0.05
    critical = theory.critical_point(activation, sigma_b2)[0]
    return [Hypers(sigma_w=np.sqrt(share * critical), sigma_b=np.sqrt(sigma_b2)) for share in PHASES.values()]


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])  # theory/test_monte_carlo.py has every activation
def test_decay_is_in_the_predicted_band(activation):
    """The mean over ten seeds is inside the band of single networks, for δ as for every layer's RMS."""
    history = run(config(activation), settings(activation), SEEDS, dataset=dataset()).history.isel(record=0)
    for which, hypers in enumerate(settings(activation)):
        measured = history.isel(lane=slice(which * SEEDS, (which + 1) * SEEDS))
        predicted = analysis.prediction(config(activation), hypers, dataset(), most_examples=32)
        decay = analysis.decay(measured["delta_rms"])
        low, high = analysis.decay(predicted["delta_rms"]).quantile([0.025, 0.975])
        assert low < decay.mean() < high
        rms = np.log(measured["gradient_rms"].astype(float)).mean("lane")
        band = np.log(predicted["gradient_rms"]).quantile([0.025, 0.975], "draw")
        assert ((band[0] < rms) & (rms < band[1])).all()
