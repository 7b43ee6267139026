"""Mean-field theory against random float64 NumPy networks: every activation, in both phases and between them.

At a finite width n the means differ from theory by O(1/n). So they are measured at n/2 and n, and what is compared is
2 f(n) − f(n/2), with the standard error that the independent networks give. Many numbers are compared at once: all of
a family must lie within the Student t that a right theory exceeds anywhere with a probability of at most LEVEL
(Bonferroni: valid however correlated they are, as all activations and phases see the same draws).
A χ₁ off by 5 % does not pass, nor a length map or a gain of batch norm off by 3 %.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numpy as np
import pytest
from reference import ACTIVATIONS as NUMPY
from reference import leaky_relu
from scipy.stats import t as student
from threadpoolctl import threadpool_limits

from vgjax import theory
from vgjax.activations import ACTIVATIONS
from vgjax.theory import profiles

LEVEL = 0.01
LAYERS = 8
TRIPLE = np.sqrt(2) * np.array([[1, 0], [0.5, 0.75**0.5], [-0.36, 0.48]])  # two inputs of equal length, one shorter
PHASES = {"ordered": 0.65, "critical": 1.0, "chaotic": 1.5}  # σ_w² over the critical one
NETWORKS = {500: 96, 1000: 64}  # how many of each width: least error for their time
COMPARED = {"q": LAYERS, "c": LAYERS, "c_unequal": LAYERS, "chi1": LAYERS - 1}  # the numbers of each
INPUTS, LABELS = np.random.default_rng(7).standard_normal((6, 12)) + 0.5, np.array([0, 1, 1, 3, 2, 1])
BATCHES = {128: 24, 256: 16}  # how many networks of each batch size B, of width 4 B
BEFORE, AFTER = ("norm", "phi", "weights"), ("phi", "norm", "weights")
NORMALISED = [  # activation, where batch norm stands, variance of what φ is applied to
    ("relu", BEFORE, 1.0),
    ("tanh", BEFORE, 1.0),
    ("leaky_relu(0.2)", BEFORE, 1.0),
    ("elu", BEFORE, 1.0),
    ("elu", AFTER, 2.0),
]
PERIODS = 4


@pytest.fixture(scope="module", autouse=True)
def one_thread_a_network():
    """Small matrices gain nothing from a second thread, and two networks at a time keep both cores busy."""
    with threadpool_limits(1):
        yield


def gather(run, networks):
    """Mean of run(size, seed) over independent networks at infinite size, and its standard error."""
    moments = []
    with ThreadPoolExecutor(2) as pool:
        for size, n_networks in networks.items():
            seeds = np.random.SeedSequence(size).spawn(n_networks)
            values = np.array(list(pool.map(partial(run, size), seeds)))
            moments.append((values.mean(axis=0), values.var(axis=0, ddof=1) / n_networks))
    (half, half_variance), (full, full_variance) = moments
    return 2 * full - half, np.sqrt(4 * full_variance + half_variance)


def assert_within_chance(found, error, expected, n_compared, networks):
    limit = student.ppf(1 - LEVEL / 2 / n_compared, min(networks.values()) - 1)
    deviation = (found - expected) / error
    assert np.abs(deviation).max() < limit, f"found {found}, expected {expected}: {deviation} standard errors"


# Lengths, correlations and gradients of two examples


@cache
def phases(name):
    """σ_w² of the three phases, and the σ_b² at which they are: 0 where biases leave no critical point."""
    sigma_b2 = 0.0 if np.isnan(theory.critical_point(name, 0.05)[0]) else 0.05
    return theory.critical_point(name, sigma_b2)[0] * np.array(list(PHASES.values())), sigma_b2


@cache
def predict(name):
    """q and c of the two, c of the first and the short one, at each layer; χ₁ from each to the next, [phase] each."""
    sigma_w2, sigma_b2 = phases(name)
    q, c = [sigma_w2 + sigma_b2], [(sigma_w2 * 0.5 + sigma_b2) / (sigma_w2 + sigma_b2)]
    for _ in range(LAYERS - 1):
        c.append(theory.correlation_map(c[-1], q[-1], sigma_w2, sigma_b2, name))
        q.append(theory.length_map(q[-1], sigma_w2, sigma_b2, name))
    found = [profiles.pair_profile(TRIPLE, name, [s] * LAYERS, sigma_b2**0.5).preactivation for s in sigma_w2]
    unequal = np.transpose([p[:, 0, 2] / np.sqrt(p[:, 0, 0] * p[:, 2, 2]) for p in found])
    chi1 = [theory.chi1(length, sigma_w2, name) for length in q[:-1]]
    return dict(zip(COMPARED, map(np.array, (q, c, unequal, chi1)), strict=True))


def each(which, z):
    """φ or φ' of every activation, on its own block of rows."""
    blocks = np.split(z, len(ACTIVATIONS))
    return np.vstack([NUMPY[name][which](block) for name, block in zip(ACTIVATIONS, blocks, strict=True)])


def measure(width, seed):
    """The same of one draw of a network, scaled for each activation and phase, [number, activation, phase]."""
    rng = np.random.default_rng(seed)
    sigma_w2, sigma_b2 = map(np.array, zip(*map(phases, ACTIVATIONS), strict=True))
    sigma_w, sigma_b = np.sqrt(np.repeat(sigma_w2, 3))[:, None], np.sqrt(np.repeat(sigma_b2, 3 * len(PHASES)))[:, None]
    weights = [rng.standard_normal((n, width)) / np.sqrt(n) for n in [2] + [width] * (LAYERS - 1)]
    z = []
    for w in weights:
        h = each(0, z[-1]) if z else np.tile(TRIPLE, (sigma_w2.size, 1))
        z.append(sigma_w * (h @ w) + sigma_b * rng.standard_normal(width))
    deltas = [np.tile(rng.standard_normal(width), (len(h), 1))]
    for w, below in zip(weights[:0:-1], z[-2::-1], strict=True):
        deltas.insert(0, sigma_w * (deltas[0] @ w.T) * each(1, below))
    z, deltas = np.reshape([z, deltas], (2, LAYERS, *sigma_w2.shape, 3, width))
    q = np.mean(z**2, axis=-1)  # [layer, activation, phase, example]
    c, unequal = (np.mean(z[..., 0, :] * z[..., i, :], axis=-1) / np.sqrt(q[..., 0] * q[..., i]) for i in (1, 2))
    squares = np.mean(deltas[..., :2, :] ** 2, axis=(-2, -1))
    return np.concatenate([q[..., :2].mean(axis=-1), c, unequal, squares[:-1] / squares[1:]])


@pytest.fixture(scope="module")
def random_triples():
    ends = np.cumsum(list(COMPARED.values()))[:-1]
    found, error = (np.split(values, ends) for values in gather(measure, NETWORKS))
    return dict(zip(COMPARED, zip(found, error, strict=True), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("quantity", COMPARED)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_lengths_correlations_and_gradients_of_random_networks(name, phase, quantity, random_triples):
    column = list(PHASES).index(phase)
    found, error = (values[:, list(ACTIVATIONS).index(name), column] for values in random_triples[quantity])
    n_compared = sum(COMPARED.values()) * len(ACTIVATIONS) * len(PHASES)
    assert_within_chance(found, error, predict(name)[quantity][:, column], n_compared, NETWORKS)


# Gradients through batch norm


def gains(name, steps, sigma_w2, batch, seed):
    """Growth of the mean squared δ over each period of the steps, back to the second one, through the batch's moments.

    The first is left out, for its inputs are no network's.
    """
    rng = np.random.default_rng(seed)
    phi, slope = NUMPY[name] if name in NUMPY else leaky_relu(0.2)
    x, tape = rng.standard_normal((batch, 4 * batch)), []
    for step in steps * PERIODS:
        if step == "norm":
            r = 1 / x.std(axis=0)
            x = (x - x.mean(axis=0)) * r
            tape.append(lambda d, u=x, r=r: r * (d - d.mean(axis=0) - u * (d * u).mean(axis=0)))
        elif step == "phi":
            slopes, x = slope(x), phi(x)
            tape.append(lambda d, slopes=slopes: d * slopes)
        else:
            w = rng.standard_normal((4 * batch, 4 * batch)) * np.sqrt(sigma_w2 / (4 * batch))
            tape.append(lambda d, w=w: d @ w.T)
            x = x @ w
    delta = rng.standard_normal(x.shape)
    squares = []
    for i, back in enumerate(reversed(tape)):
        if i % len(steps) == 0:
            squares.append(np.mean(delta**2))
        delta = back(delta)
    return np.divide(squares[1:], squares[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("name, steps, q", NORMALISED)
def test_batch_norms_gains_in_random_networks(name, steps, q):
    found, error = gather(partial(gains, name, steps, q), BATCHES)
    expected = theory.batch_norm_gradient_gain(name, q)
    assert_within_chance(found, error, expected, len(found) * len(NORMALISED), BATCHES)


# Gradients of a batch, of given widths


def random_networks(x, labels, widths, deviations, name, sigma_b, n_networks, seed=0):
    """Mean over random NumPy networks of z_a·z_b/n and of the mean squared gradient of the summed loss, per layer."""
    rng = np.random.default_rng(seed)
    phi, slope = NUMPY[name]
    products, squares = [], []
    for _ in range(n_networks):
        fans = zip(deviations, widths[:-1], widths[1:], strict=True)
        weights = [deviation * rng.standard_normal(shape) for deviation, *shape in fans]
        h, z = [x], []
        for w in weights:
            z.append(h[-1] @ w + sigma_b * rng.standard_normal(w.shape[1]))
            h.append(phi(z[-1]))
        p = np.exp(z[-1] - z[-1].max(axis=1, keepdims=True))
        delta = p / p.sum(axis=1, keepdims=True) - np.eye(widths[-1])[labels]
        square = np.zeros(len(weights))
        for layer in reversed(range(len(weights))):
            square[layer] = np.mean((h[layer].T @ delta) ** 2)
            if layer:
                delta = (delta @ weights[layer].T) * slope(z[layer - 1])
        products.append([v @ v.T / v.shape[1] for v in z])
        squares.append(square)
    return np.mean(products, axis=0), np.mean(squares, axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_profiles_agree_with_random_networks(name):
    widths, sigma_w, sigma_b = [12, 250, 200, 150, 4], 1.2, 0.3
    deviations = sigma_w * np.array([12**-0.5, 250**-0.5, 200**-0.5, 0.01])
    products, squares = random_networks(INPUTS, LABELS, widths, deviations, name, sigma_b, n_networks=150)
    variances = profiles.layer_variances(widths, "mean_field", "normal(0.01)", sigma_w)
    profile = profiles.pair_profile(INPUTS, name, variances, sigma_b)
    sizes = np.sqrt(np.diagonal(profile.preactivation, axis1=1, axis2=2))
    scale = sizes[:, :, None] * sizes[:, None, :]
    np.testing.assert_allclose(products[:-1] / scale[:-1], profile.preactivation[:-1] / scale[:-1], atol=0.04)
    rms = profiles.predicted_profile(
        INPUTS, LABELS, widths, name, "mean_field", "normal(0.01)", sigma_w=sigma_w, sigma_b=sigma_b
    ).gradient_rms
    np.testing.assert_allclose(np.sqrt(squares) / rms, 1, atol=0.05)


@pytest.mark.parametrize("name", ["sigmoid", "relu"])
def test_gradients_agree_where_logits_are_of_order_one(name):
    """Random logits err together: with p = 1/classes alone, sigmoid's gradients would come out much too small."""
    x, labels = np.repeat(INPUTS, 4, axis=0), np.arange(24) % 4
    widths, deviations = [12, 250, 400, 4], np.sqrt(2 / np.array([12, 250, 400]))
    _, squares = random_networks(x, labels, widths, deviations, name, 0.0, n_networks=150)
    rms = profiles.predicted_profile(x, labels, widths, name, "he_normal").gradient_rms
    np.testing.assert_allclose(np.sqrt(squares) / rms, 1, atol=0.08)
