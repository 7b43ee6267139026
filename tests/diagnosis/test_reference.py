"""What a history is compared with: networks of the same widths at criticality."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from diagnosed import HE, RELU, history_of

from vgjax import theory
from vgjax.data.catalogue import load
from vgjax.diagnosis.reference import critical_draws
from vgjax.theory.criticality import critical_variance
from vgjax.training.loop import run


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "gelu", "softsign"])
def test_critical_variance_neither_shrinks_nor_grows(activation):
    """The product of χ₁ over the layers is 1, layer by layer from the theory."""
    variance, q, product = critical_variance(activation, 8), None, 1.0
    for _ in range(8):
        q = variance if q is None else theory.length_map(q, variance, 0.0, activation)
        product *= theory.chi1(q, variance, activation)
    assert product == pytest.approx(1, rel=0.02)


@pytest.mark.slow
def test_reference_draws_are_like_runs_at_criticality():
    """Their dead, saturated and decaying parts against the engine's, from many seeds."""
    config = replace(RELU, hidden=(40,) * 6, batch_size=64, steps=1)
    config = replace(config, record=("deltas", "activations"))
    reference = critical_draws(config, history_of(config, HE), load("digits"))
    assert reference.sigma_w2 == pytest.approx(2, rel=0.01) and "digits" in reference.inputs
    real = run(config, HE, 24, devices=1).history.isel(record=0)
    dead = real["activation_dead_fraction"].mean("lane").values
    assert reference.draws["dead_fraction"].mean("draw").values[1:6] == pytest.approx(dead[1:6], abs=0.06)
    slopes = [
        np.polyfit(range(6), x[:, :6].T, 1)[0].mean()
        for x in (real["delta_log10_rms"].values, reference.draws["delta_log10_rms"].values)
    ]
    assert slopes[0] == pytest.approx(slopes[1], abs=0.03)
