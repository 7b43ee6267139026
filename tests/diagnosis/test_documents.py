"""The networks of the two documents have the diagnosis that their authors gave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from diagnosed import DECAY, history_of, rules_of

from experiments.keras_notebook import ADAM, IRIS
from experiments.mxnet_mnist import CLEAN, GRID, HYPERS
from vgjax.data.catalogue import load
from vgjax.diagnosis.rules import diagnose
from vgjax.training.loop import run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "cause"),
    [
        ("uniform, sigmoid", "weight gain, slope of the activation"),
        ("xavier, sigmoid", "slope of the activation"),
        ("uniform, relu", None),
    ],
)
def test_the_tutorials_networks_have_its_authors_diagnosis(setting, cause):
    """Small uniform weights and the sigmoid's slope; with Xavier's weights the slope alone; nothing with ReLU."""
    config = replace(CLEAN, dataset="digits", scaling="1/255", record=DECAY, steps=1, **GRID[setting])
    data = _as_wide_as_mnist(load("digits"))
    found = [f for f in diagnose(run(config, HYPERS, 2, dataset=data).history, data).findings if f.rule == "vanishing"]
    assert [finding.cause for finding in found] == ([cause] if cause else [])


def _as_wide_as_mnist(digits):
    """8×8 images as 28×28 ones, so that the first layer's fan_in is MNIST's."""

    def widened(x):
        square = np.kron(x.reshape(-1, 8, 8), np.ones((1, 3, 3), np.uint8))
        return np.pad(square, ((0, 0), (2, 2), (2, 2))).reshape(len(x), 784)

    return replace(
        digits, train_inputs=widened(digits.train_inputs), test_inputs=widened(digits.test_inputs), shape=(28, 28)
    )


@pytest.mark.slow
def test_the_notebooks_networks_have_its_authors_diagnosis():
    """Sigmoid with Glorot: the slope; leaky ReLU with He: nothing."""
    config = replace(IRIS, record=("weights", "deltas", "decay"), steps=1)
    found = diagnose(history_of(config, ADAM, seeds=3)).findings
    assert (found[0].rule, found[0].cause) == ("vanishing", "slope of the activation")
    assert "use tanh or relu with he_normal" in found[0].advice
    leaky = replace(config, activation="leaky_relu(0.2)", initializer="he_normal")
    assert "vanishing" not in rules_of(history_of(leaky, ADAM, seeds=3))
