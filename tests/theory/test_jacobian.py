"""Theory of the Jacobian against closed forms and random matrices drawn in NumPy, float64."""

from __future__ import annotations

import numpy as np
import pytest

from vgjax.theory.jacobian import (
    eigenvalue_density,
    eigenvalue_spread,
    fourth_moment_growth,
    input_gradient_correlation,
    log_length_variance,
)


@pytest.mark.parametrize("active", [0.5, 1.0])
def test_spread_of_lengths_is_that_of_random_layers(active: float) -> None:
    """Sums of squared normals, each there with the probability p."""
    rng = np.random.default_rng(0)
    square = np.sum((rng.random((300_000, 12)) < active) * rng.standard_normal((300_000, 12)) ** 2, axis=1)
    growth = np.mean(square**2) / np.mean(square) ** 2
    assert fourth_moment_growth([12], active)[0] == pytest.approx(growth, rel=0.01)
    assert log_length_variance([12], active)[0] == pytest.approx(np.log(square[square > 0]).var(), rel=0.02)


def test_logarithms_of_wide_layers_spread_as_moments_do() -> None:
    """5/n and, where all units are active, ψ₁(n/2) ≈ 2/n."""
    assert log_length_variance([4000])[0] == pytest.approx(5 / 4000, rel=3e-3)
    assert log_length_variance([4000], 1.0)[0] == pytest.approx(2 / 4000, rel=1e-3)


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("active", [0.5, 1.0])
def test_spread_of_eigenvalues_is_that_of_random_matrices(active: float, orthogonal: bool) -> None:
    """Three layers of five units: far from infinite width."""
    rng = np.random.default_rng(0)
    jacobian = np.broadcast_to(np.eye(5), (100_000, 5, 5))
    measured = []
    for _ in range(3):
        w = rng.standard_normal(jacobian.shape)
        if orthogonal:
            w, r = np.linalg.qr(w)
            w = w * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
        jacobian = (rng.random((100_000, 5, 1)) < active) * (w @ jacobian)
        both = jacobian @ np.swapaxes(jacobian, 1, 2)
        own = np.trace(both, axis1=1, axis2=2) / 5
        measured.append(np.mean(np.sum(both**2, axis=(1, 2)) / 5) / np.mean(own**2))
    np.testing.assert_allclose(1 + eigenvalue_spread(3, active, orthogonal, width=5), measured, rtol=0.03)


@pytest.mark.parametrize(
    ("active", "orthogonal", "a_layer"), [(1, False, 1), (1, True, 0), (0.5, False, 2), (0.5, True, 1)]
)
def test_spread_of_wide_layers_grows_with_depth(active: float, orthogonal: bool, a_layer: float) -> None:
    """L(μ₂/μ₁² − 1 − s₁)."""
    np.testing.assert_allclose(eigenvalue_spread(10, active, orthogonal), a_layer * np.arange(1, 11), rtol=1e-12)


def test_density_of_two_linear_layers_is_fuss_catalan_s() -> None:
    """Its closed form for two Gaussian matrices."""
    x = np.array([0.01, 0.3, 1.0, 4.0, 6.5])
    root = 27 + 3 * np.sqrt(81 - 12 * x)
    exact = np.cbrt(2) * np.sqrt(3) / (12 * np.pi) * (np.cbrt(2) * root ** (2 / 3) - 6 * np.cbrt(x))
    exact /= x ** (2 / 3) * np.cbrt(root)
    np.testing.assert_allclose(eigenvalue_density(x, 2, 1.0, orthogonal=False), exact, rtol=1e-6)
    assert eigenvalue_density([7.0], 2, 1.0, orthogonal=False)[0] < 1e-6  # beyond 27/4


@pytest.mark.slow
@pytest.mark.parametrize(("active", "orthogonal"), [(1.0, False), (0.5, False), (0.5, True)])
def test_density_has_the_moments_of_the_spread(active: float, orthogonal: bool) -> None:
    """Share p, mean 1 and variance over mean squared, by integration over ln x."""
    logs = np.linspace(np.log(1e-13), np.log(20), 1500)
    x = np.exp(logs)
    density = eigenvalue_density(x, 3, active, orthogonal) * x
    moments = [np.trapezoid(density * x**k, logs) for k in (0, 1, 2)]
    expected = [active, 1, 1 + eigenvalue_spread(3, active, orthogonal)[-1]]
    np.testing.assert_allclose(moments, expected, rtol=5e-3)


def test_gradients_of_relu_networks_part_by_their_angles() -> None:
    """Π(1 − θ_l/π) with the closed form of the correlation map."""
    angle = 0.7
    inputs = np.array([[1, 0, 0], [np.cos(angle), np.sin(angle), 0]])
    found = input_gradient_correlation(inputs, "relu", [2.0] * 9)
    product = 1.0
    for layer in range(8):
        product *= 1 - angle / np.pi
        assert found[layer, 1] == pytest.approx(product, rel=1e-7)
        assert found[layer, 0] == pytest.approx(1, rel=1e-12)
        angle = np.arccos((np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_gradients_of_residual_networks_are_those_of_wide_ones(activation: str) -> None:
    """Three blocks h + φ(Wh) of 1500 units, inputs whose means differ; the chain rule in NumPy."""
    phi, slope = {
        "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
        "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    }[activation]
    rng = np.random.default_rng(0)
    n = 1500
    inputs = rng.standard_normal((3, n)) * [[0.6], [0.9], [1.0]] + [[0.5], [0.0], [-0.4]]
    inputs[1] += 0.8 * inputs[0]
    correlations = []
    for _ in range(6):
        h, weights, z = inputs, [], []
        for _ in range(3):
            weights.append(rng.standard_normal((n, n)) * (1.7 / n) ** 0.5)
            z.append(h @ weights[-1].T)
            h = h + phi(z[-1])
        g = np.repeat(rng.standard_normal((1, n)), 3, 0)
        for w, below in zip(weights[::-1], z[::-1], strict=True):
            g = g + (g * slope(below)) @ w
        length = np.linalg.norm(g, axis=1)
        correlations.append(g @ g[0] / (length * length[0]))
    expected = input_gradient_correlation(inputs, activation, [1.7] * 4, residual=True)[-1]
    np.testing.assert_allclose(np.mean(correlations, 0), expected, rtol=0.02)
