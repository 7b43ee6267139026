"""Networks drawn through their covariances, against real random networks in NumPy and against infinite width."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
from scipy import stats as scipy_stats

from vgjax import theory
from vgjax.config import Config, Hypers
from vgjax.theory import profiles
from vgjax.theory.ensemble import draw_networks

N, BATCH, FEATURES, CLASSES = 150, 24, 10, 4
NETWORKS = {
    "relu": {},
    "tanh": {"activation": "tanh"},
    "sums": {"activation": "sigmoid", "reduction": "sum"},
    "batch norm before": {"norm": "batch"},
    "batch norm after": {"norm": "batch", "norm_at": "post_activation", "activation": "elu"},
    "batch norm of inputs": {"norm": "batch", "norm_at": "layer_inputs", "activation": "tanh"},
    "layer norm before": {"norm": "layer", "activation": "swish"},
    "layer norm after": {"norm": "layer", "norm_at": "post_activation"},
    "layer norm of the network's inputs": {"norm": "layer", "norm_at": "network_input"},
    "residual": {"branch": "residual", "activation": "tanh"},
    "residual with batch norm": {"branch": "residual", "norm": "batch"},
    "narrow": {"hidden": (40, 20, 12)},
    "two initializers, no bias": {"bias": False, "initializer": "lecun_normal", "output_initializer": "normal(0.01)"},
}


def batches(n, size, rng):
    return rng.standard_normal((n, size, FEATURES)) + 0.5, rng.integers(CLASSES, size=(n, size))


def real_gradient_rms(config, hypers, x, labels, rng):
    """Of one network with Gaussian weights, by float64 back-propagation, [L]."""
    widths = (FEATURES, *config.hidden, CLASSES)
    variances = profiles.layer_variances(widths, config.initializer, config.output_initializer or None, hypers.sigma_w)
    params = {}
    for i, (n_in, n_out, variance) in enumerate(zip(widths, widths[1:], variances, strict=False), 1):
        kernel = np.sqrt(variance / n_in) * rng.standard_normal((n_in, n_out))
        params[f"layer_{i}"] = {"kernel": kernel}
        if config.bias:
            params[f"layer_{i}"]["bias"] = hypers.sigma_b * rng.standard_normal(n_out)
        size = {"layer_inputs": n_in}.get(config.norm_at, n_out)
        params[f"norm_{i}"] = {"scale": np.ones(size), "bias": np.zeros(size)}
    params["norm_0"] = {"scale": np.ones(FEATURES), "bias": np.zeros(FEATURES)}
    how = {name: getattr(config, name) for name in ("activation", "norm", "norm_at", "branch", "reduction")}
    _, gradients, _, _ = reference.loss_and_gradients(params, x, labels, **how)
    return [np.sqrt(np.mean(gradients[f"layer_{i}"]["kernel"] ** 2)) for i in range(1, len(widths))]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_draws_are_like_real_networks(name):
    """Mean of the logarithms within 4 standard errors and 5 %, and nine of ten real networks inside the 95 % band."""
    config = Config(**{"hidden": (96,) * 4, "batch_size": BATCH} | NETWORKS[name])
    hypers = Hypers(sigma_w=1.1, sigma_b=0.2)
    rng = np.random.default_rng(1)
    real = np.log([real_gradient_rms(config, hypers, *(a[0] for a in batches(1, BATCH, rng)), rng) for _ in range(N)])
    drawn = np.log(draw_networks(config, hypers, *batches(N, BATCH, rng), CLASSES, BATCH).gradient_rms)
    errors = np.sqrt((real.var(0, ddof=1) + drawn.var(0, ddof=1)) / N)
    assert (np.abs(real.mean(0) - drawn.mean(0)) < 4 * errors + 0.05).all()
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    inside = ((low < real) & (real < high)).sum(0)
    assert (scipy_stats.binom.cdf(inside, N, 0.92) > 1e-4).all() and (inside < N).any()


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["tanh", "relu", "sigmoid"])
def test_wide_networks_tend_to_the_closed_form(name, reduction):
    """Mean squares of the draws are those of infinite width, within 4 standard errors; with wide layers throughout."""
    config = Config(hidden=(2000, 2000, 2000), activation=name, reduction=reduction, output_initializer="normal(0.001)")
    x, labels = batches(1, 6, np.random.default_rng(2))
    given = np.repeat(x, 40, axis=0), np.repeat(labels, 40, axis=0)
    drawn = draw_networks(config, Hypers(sigma_b=0.3), *given, CLASSES, 6)
    widths = (FEATURES, *config.hidden, CLASSES)
    exact = profiles.predicted_profile(
        x[0], labels[0], widths, name, config.initializer, config.output_initializer, sigma_b=0.3, reduction=reduction
    )
    for rms, wanted in zip(drawn[:3], exact, strict=True):
        squares = rms**2 / wanted**2
        errors = squares.std(0, ddof=1) / np.sqrt(40)
        assert (errors < 0.15).all() and (np.abs(squares.mean(0) - 1) < 4 * errors + 1e-5).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_batch_norm_explodes_as_it_should(name):
    """δ² grows per layer as in the limit of large batches and wider layers (Yang et al. 2019).

    Inputs know nothing of each other. Terms of order 1/B, at eight units an example, fall out of 2 f(2B) − f(B).
    """
    config = Config(activation=name, norm="batch", norm_epsilon=0.0)
    growth, errors = [], []
    for size, n in ((32, 48), (64, 24)):
        rng = np.random.default_rng(size)
        x, labels = rng.standard_normal((n, size, 8 * size)), rng.integers(CLASSES, size=(n, size))
        deep = replace(config, hidden=(8 * size,) * 14)
        logs = 2 * np.log(draw_networks(deep, Hypers(), x, labels, CLASSES, size).delta_rms[:, 1:-1])
        slopes = -np.polyfit(np.arange(logs.shape[1]), logs.T, 1)[0]
        growth.append(slopes.mean())
        errors.append(slopes.std(ddof=1) / np.sqrt(n))
    error = np.hypot(2 * errors[1], errors[0])
    assert error < 0.01
    limit = np.log(theory.batch_norm_gradient_gain(name))
    assert 2 * growth[1] - growth[0] == pytest.approx(limit, abs=4 * error)
    assert abs(growth[1] - limit) < abs(growth[0] - limit)


@pytest.mark.slow
def test_a_batch_seen_in_part():
    """Gradients of 128 examples from 32 of them: the same mean square; δ of each example is exactly a fourth."""
    config = Config(hidden=(60, 60), activation="tanh", initializer="lecun_normal")
    rng = np.random.default_rng(4)
    part = draw_networks(config, Hypers(), *batches(400, 32, rng), CLASSES, 128)
    whole = draw_networks(config, Hypers(), *batches(400, 128, rng), CLASSES, 128)
    own = draw_networks(config, Hypers(), *batches(400, 32, rng), CLASSES, 32)
    squares = part.gradient_rms**2, whole.gradient_rms**2
    error = np.sqrt(sum(s.var(0, ddof=1) for s in squares) / 400) / squares[1].mean(0)
    assert (np.abs(squares[0].mean(0) / squares[1].mean(0) - 1) < 4 * error).all() and (error < 0.06).all()
    np.testing.assert_allclose(np.log(own.delta_rms / part.delta_rms).mean(0), np.log(4), atol=0.06)


def test_layers_of_rezero_get_no_gradient():
    """α = 0: hidden layers hand on what they got, and nothing comes back to their weights."""
    config = Config(hidden=(30,) * 4, branch="rezero")
    draws = draw_networks(config, Hypers(), *batches(5, 8, np.random.default_rng(5)), CLASSES, 8)
    np.testing.assert_array_equal(draws.activation_rms[:, :4], draws.activation_rms[:, :1].repeat(4, 1))
    assert not draws.gradient_rms[:, 1:4].any() and (draws.gradient_rms[:, [0, 4]] > 0).all()


def test_lsuv_has_unit_variance():
    config = Config(hidden=(40, 80, 20), activation="linear", initializer="lsuv")
    draws = draw_networks(config, Hypers(), *batches(5, 16, np.random.default_rng(6)), CLASSES, 16)
    np.testing.assert_allclose(draws.activation_rms, 1, rtol=0.1)  # but for the mean, which LSUV leaves alone


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("features", [4, 40])
def test_blank_and_extreme_inputs(features, scale):
    """Nothing is lost or becomes NaN; without any input δ still comes back."""
    rng = np.random.default_rng(7)
    x, labels = scale * rng.standard_normal((3, 8, features)), rng.integers(CLASSES, size=(3, 8))
    config = Config(hidden=(50,) * 3, output_initializer=f"normal({1e-3 / max(scale, 1)})")
    draws = draw_networks(config, Hypers(), x, labels, CLASSES, 8)
    assert all(np.isfinite(column).all() for column in draws)
    assert (draws.gradient_rms[:, 0] > 0).all() == (scale > 0)


def test_the_same_seed_gives_the_same_draws():
    """And so a band does not flicker; another seed gives others."""
    given = (Config(hidden=(20, 20)), Hypers(), *batches(4, 8, np.random.default_rng(8)), CLASSES, 8)
    one, again, other = (draw_networks(*given, seed=seed).gradient_rms for seed in (0, 0, 1))
    assert (one == again).all() and not np.isclose(one, other).any()
