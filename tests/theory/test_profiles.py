"""Profiles over the actual layers: closed forms, published values, what is refused."""

from __future__ import annotations

import gzip
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from vgjax import theory
from vgjax.activations import ACTIVATIONS
from vgjax.theory import profiles

MNIST_WIDTHS = [784, 512, 256, 128, 64, 32, 16, 10]
XAVIER = "mxnet_xavier(factor_type=in, magnitude=2.34)"


def printed(text):
    """The number as printed, with half a unit of its last digit as tolerance."""
    decimals = len(text.partition(".")[2])
    return pytest.approx(float(text), rel=0, abs=0.5001 * 10.0**-decimals)


@pytest.mark.parametrize(
    "initializer, widths, expected",
    [
        ("uniform(0.1)", MNIST_WIDTHS, "2.613 1.707 .853 .427 .213 .107 .053"),
        (XAVIER, MNIST_WIDTHS, ".78 .78 .78 .78 .78 .78 .78"),
        ("glorot_uniform", MNIST_WIDTHS, "1.210 1.333 1.333 1.333 1.333 1.333 1.231"),
        ("he_normal", MNIST_WIDTHS, "2.0000 2.0000 2.0000 2.0000 2.0000 2.0000 2.0000"),
        ("lecun_uniform", MNIST_WIDTHS, "1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 1.0000"),
        ("orthogonal(1.5)", MNIST_WIDTHS, "2.2500 2.2500 2.2500 2.2500 2.2500 2.2500 2.2500"),
        ("uniform(0.1)", [2, 128, 64, 64, 3], ".0067 .427 .213 .213"),
        ("glorot_normal", [2, 128, 64, 64, 3], ".0308 1.333 1 1.910"),
        ("orthogonal(2.0)", [2, 128, 64, 64, 3], ".0625 4.0000 4.0000 4.0000"),
    ],
)
def test_layer_variances(initializer, widths, expected):
    found = profiles.layer_variances(widths, initializer)
    assert len(found) == len(widths) - 1
    for value, text in zip(found, expected.split(), strict=True):
        assert value == printed(text)


def test_layer_variances_take_sigma_w_and_the_last_layers_own_initializer():
    found = profiles.layer_variances([5, 8, 4], "he_uniform", "normal(0.1)", sigma_w=3.0)
    np.testing.assert_allclose(found, [18.0, 9 * 8 * 0.01], rtol=1e-12)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(7)
    return rng.standard_normal((6, 12)) + 0.5, np.array([0, 1, 1, 3, 2, 1])


def test_first_layer_closed_form_for_relu(batch):
    """Small logits: RMS² = Σ_ij (1[y_i=y_j] − 1/C) x_i·x_j Π n Var(W) (1 − θ_ij/π)/2, with arccosine correlations."""
    x, labels = batch
    widths, variances = [12, 30, 20, 4], np.array([2 / 12, 2 / 30, 1e-8])
    q = 12 * variances[0] * (x @ x.T) / 12
    gain = np.ones_like(q)
    for n, variance in zip(widths[1:-1], variances[1:], strict=True):
        scale = np.sqrt(np.outer(np.diag(q), np.diag(q)))
        c = np.clip(q / scale, -1, 1)
        gain *= n * variance * (1 - np.arccos(c) / np.pi) / 2
        q = n * variance * scale * (np.sqrt(1 - c**2) + (np.pi - np.arccos(c)) * c) / (2 * np.pi)
    square = np.sum((np.equal.outer(labels, labels) - 1 / 4) * (x @ x.T) * gain) / (12 * 30)
    rms = profiles.predicted_profile(x, labels, widths, "relu", "he_uniform", "normal(1e-4)").gradient_rms
    assert rms[0] / np.sqrt(square) == pytest.approx(1, rel=1e-6)


def test_gradients_of_a_deep_network_vanish_with_chi1():
    widths = [10] + [64] * 150 + [3]
    rms = profiles.predicted_profile(
        np.ones((1, 10)), [1], widths, "tanh", "mean_field", "normal(0.001)", sigma_w=1.0, sigma_b=0.05**0.5
    ).gradient_rms
    slope, _ = np.polyfit(np.arange(30, 140), 2 * np.log(rms[30:140]), 1)
    assert -slope == pytest.approx(np.log(theory.chi1(theory.fixed_point("tanh", 1.0, 0.05).q, 1.0, "tanh")), rel=1e-6)
    assert np.log10(rms[-2] / rms[1]) > 8


def test_mean_is_the_sum_over_the_batch_size(batch):
    x, labels = batch
    given = (x, labels, [12, 20, 4], "tanh", "he_normal")
    by_sum = profiles.predicted_profile(*given).gradient_rms
    by_mean = profiles.predicted_profile(*given, reduction="mean").gradient_rms
    np.testing.assert_allclose(by_sum / by_mean, 6, rtol=1e-12)


def test_a_linear_model_has_one_layer(batch):
    """Closed form: ‖X^T (p − Y)‖_F / √(n₀ n₁) with p = 1/classes."""
    x, labels = batch
    exact = np.linalg.norm(x.T @ (0.25 - np.eye(4)[labels])) / np.sqrt(12 * 4)
    rms = profiles.predicted_profile(x, labels, [12, 4], "tanh", "normal(1e-6)").gradient_rms
    np.testing.assert_allclose(rms, [exact], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_blank_example_has_no_nan(name):
    x = np.array([[0.0, 0.0], [1.0, 2.0]])
    rms = profiles.predicted_profile(x, [0, 1], [2, 8, 8, 2], name, "he_normal").gradient_rms
    assert np.all(np.isfinite(rms)) and np.all(rms > 0)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"labels": [0, 1, 1, 3, 2, 4]}, "from 0 to 3"),
        ({"labels": [0, 1]}, "do not fit"),
        ({"inputs": np.ones((6, 11))}, "do not fit"),
        ({"reduction": "median"}, "'median' is not allowed; allowed: sum, mean"),
    ],
)
def test_what_does_not_fit_is_refused(changed, message, batch):
    given = {"inputs": batch[0], "labels": batch[1], "widths": [12, 5, 4], "activation": "tanh"}
    with pytest.raises(ValueError, match=message):
        profiles.predicted_profile(**(given | {"initializer": "he_normal"} | changed))


@pytest.mark.slow
@pytest.mark.parametrize(
    "initializer, name, published",
    [
        ("uniform(0.1)", "sigmoid", 4.8e-7),
        ("uniform(0.1)", "relu", 2.9e-4),
        (XAVIER, "sigmoid", 9.0e-6),
        (XAVIER, "relu", 5.0e-3),
    ],
)
def test_first_layer_of_the_mnist_tutorial(initializer, name, published):
    """The MXNet tutorial's monitor at step 1: sums over 32 examples of MNIST/256, RMS averaged over batches."""
    folder = Path(os.environ.get("VGJAX_MANUAL_DIR", "")) / "mnist"
    if not (folder / "train-images-idx3-ubyte.gz").exists():
        pytest.skip("MNIST's original files are not in $VGJAX_MANUAL_DIR/mnist")
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        x = np.frombuffer(file.read(16 + 320 * 784), np.uint8, offset=16).reshape(320, 784) / 256
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + 320), np.uint8, offset=8)
    rms = [
        profiles.predicted_profile(x[i : i + 32], labels[i : i + 32], MNIST_WIDTHS, name, initializer).gradient_rms[0]
        for i in range(0, 320, 160)
    ]
    assert np.mean(rms) / published == pytest.approx(1, abs=0.08)  # ±6 % from batch to batch


def test_dead_probability_by_counting():
    """All signs of all units: a layer lives if any is positive, whatever its inputs."""
    widths = [2, 1, 3]
    lives = [[any(signs) for signs in np.ndindex(*[2] * n)] for n in widths]
    through = [np.mean([all(path) for path in itertools.product(*lives[:k])]) for k in range(1, 4)]
    np.testing.assert_allclose(profiles.dead_probability(widths), 1 - np.array(through), rtol=1e-14)
    np.testing.assert_allclose(profiles.dead_probability([60]), 2.0**-60, rtol=1e-14)
