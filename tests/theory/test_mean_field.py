"""Mean-field theory against closed forms, published digits and adaptive quadrature."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import ACTIVATIONS as NUMPY
from scipy.integrate import quad

from vgjax import theory
from vgjax.activations import ACTIVATIONS, activation

MNIST_WIDTHS = [784, 512, 256, 128, 64, 32, 16, 10]
XAVIER = "mxnet_xavier(factor_type=in, magnitude=2.34)"


def normal_density(x):
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def adaptive_mean(f, q):
    """E[f(√q z)] by adaptive quadrature, either side of 0."""
    halves = [
        quad(lambda z: f(np.sqrt(q) * z) * normal_density(z), *side, epsabs=0, epsrel=1e-12, limit=200)[0]
        for side in ((-12, 0), (0, 12))
    ]
    return sum(halves)


def pair_mean(f, q1, q2, c, n=160):
    """E[f(u₁) f(u₂)] on a grid over the four quadrants: Cartesian, where the package's rule is polar."""
    x, weight = np.polynomial.legendre.leggauss(n)
    z, weight = np.concatenate([-5 * (x + 1), 5 * (x + 1)]), 5 * np.concatenate([weight, weight])
    a, b = z[:, None], z[None, :]
    density = np.exp(-(a**2 - 2 * c * a * b + b**2) / (2 * (1 - c**2))) / (2 * np.pi * np.sqrt(1 - c**2))
    return (weight * f(np.sqrt(q1) * z)) @ density @ (weight * f(np.sqrt(q2) * z))


def printed(text):
    """The number as printed, with half a unit of its last digit as tolerance."""
    decimals = len(text.partition(".")[2])
    return pytest.approx(float(text), rel=0, abs=0.5001 * 10.0**-decimals)


# Expectations


@pytest.mark.parametrize("q", [1e-3, 0.3, 2.0, 12.0])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mean_squares_agree_with_adaptive_quadrature(name, q):
    phi, slope = NUMPY[name]
    assert theory.length_map(q, 1.0, 0.0, name) == pytest.approx(adaptive_mean(lambda u: phi(u) ** 2, q), rel=1e-10)
    assert theory.chi1(q, 1.0, name) == pytest.approx(adaptive_mean(lambda u: slope(u) ** 2, q), rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("c", [-0.7, 0.2, 0.95])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_pair_means_agree_with_a_cartesian_grid(name, c):
    phi, slope = NUMPY[name]
    with jax.enable_x64(True):
        product = float(theory.gaussian_pair_mean(activation(name), jnp.float64(0.6), jnp.float64(2.0), jnp.float64(c)))
    exact, scale = pair_mean(phi, 0.6, 2.0, c), np.sqrt(pair_mean(phi, 0.6, 0.6, c) * pair_mean(phi, 2.0, 2.0, c))
    assert product / abs(scale) == pytest.approx(exact / abs(scale), rel=0, abs=1e-9)
    assert theory.chi(c, 0.6, 1.0, name) == pytest.approx(pair_mean(slope, 0.6, 0.6, c), rel=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_pair_means_at_the_ends_are_single_means(name, sign):
    phi, slope = NUMPY[name]
    exact = adaptive_mean(lambda u: phi(u) * phi(sign * u), 0.8)
    square = adaptive_mean(lambda u: phi(u) ** 2, 0.8)
    mapped = theory.correlation_map(sign, 0.8, 1.0, 0.0, name)
    assert mapped == pytest.approx(exact / square, rel=1e-10, abs=1e-12)
    product = adaptive_mean(lambda u: slope(u) * slope(sign * u), 0.8)
    assert theory.chi(sign, 0.8, 1.0, name) == pytest.approx(product, rel=1e-10, abs=1e-12)


def test_correlations_that_rounding_put_beyond_one_count_as_one():
    beyond = np.array([1.0, -1.0]) * (1 + 1e-12)
    np.testing.assert_allclose(
        theory.product(0.8, 0.8, beyond, "elu"), theory.product(0.8, 0.8, np.sign(beyond), "elu")
    )


@pytest.mark.parametrize("q", [1e-8, 0.7, 50.0, 1e9])
def test_relu_closed_forms(q):
    c = np.linspace(-1, 1, 21)
    angle = np.arccos(c)
    assert theory.length_map(q, 1.0, 0.0, "relu") == pytest.approx(q / 2, rel=1e-12)
    assert theory.chi1(q, 1.0, "relu") == pytest.approx(0.5, rel=1e-12)
    arccosine = (np.sqrt(1 - c**2) + (np.pi - angle) * c) / np.pi
    np.testing.assert_allclose(theory.correlation_map(c, q, 2.0, 0.0, "relu"), arccosine, rtol=1e-12, atol=1e-14)
    ratio = theory.chi(c, q, 2.0, "relu") / theory.chi1(q, 2.0, "relu")
    np.testing.assert_allclose(ratio, 1 - angle / np.pi, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("q", [1e-4, 0.3, 9.0])
def test_closed_forms_of_leaky_relu_linear_and_erf(q):
    assert theory.length_map(q, 1.0, 0.0, "leaky_relu(0.2)") == pytest.approx(q * 1.04 / 2, rel=1e-7)
    assert theory.chi1(q, 2.0, "leaky_relu(0.2)") == pytest.approx(1.04, rel=1e-7)
    assert theory.chi1(q, 1.7, "linear") == pytest.approx(1.7, rel=1e-12)
    assert theory.length_map(q, 1.7, 0.2, "linear") == pytest.approx(1.7 * q + 0.2, rel=1e-12)
    assert theory.length_map(q, 1.0, 0.0, "erf") == pytest.approx(2 / np.pi * np.arcsin(2 * q / (1 + 2 * q)), rel=1e-12)
    assert theory.chi1(q, 1.0, "erf") == pytest.approx(4 / np.pi / np.sqrt(1 + 4 * q), rel=1e-12)


def test_results_are_double_whatever_the_global_precision():
    results = []
    for wide in (False, True):
        with jax.enable_x64(wide):
            results.append((theory.length_map(0.4, 1.3, 0.1, "tanh"), *theory.fixed_point("tanh", 2.0, 0.05)))
    assert results[0] == results[1]
    assert all(type(value) is float for value in results[0])


def test_maps_broadcast_over_arrays():
    q = np.array([[0.1], [2.0]])
    mapped = theory.correlation_map(np.array([0.0, 0.5, 1.0]), q, 1.5, 0.1, "tanh")
    assert isinstance(mapped, np.ndarray) and mapped.shape == (2, 3)
    assert mapped[1, 1] == pytest.approx(theory.correlation_map(0.5, 2.0, 1.5, 0.1, "tanh"), rel=1e-13)


@pytest.mark.slow
def test_inner_functions_can_be_differentiated_and_vmapped():
    q, c = np.array([0.5, 2.0]), np.array([0.1, 0.6])
    with jax.enable_x64(True):
        half = jnp.asarray(0.5)
        growth = jax.vmap(jax.grad(lambda v: theory.gaussian_mean(lambda u: jnp.square(jax.lax.erf(u)), v)))(q)
        slope = jax.vmap(jax.grad(lambda r: theory.gaussian_pair_mean(jax.lax.erf, half, half, r)))(c)
    exact = 4 / np.pi / ((1 + 2 * q) ** 2 * np.sqrt(1 - (2 * q / (1 + 2 * q)) ** 2))
    np.testing.assert_allclose(growth, exact, rtol=1e-10)
    np.testing.assert_allclose(slope, 1 / np.pi / np.sqrt(1 - (c / 2) ** 2), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_moments_and_their_growth(name):
    phi = NUMPY[name][0]
    for power in (1, 2, 4):
        exact = [adaptive_mean(lambda u, k=power: phi(u) ** k, q) for q in (0.7, 0.7 - 1e-4, 0.7 + 1e-4)]
        scale = abs(exact[0]) + 1e-3
        assert theory.moment(power, 0.7, name) == pytest.approx(exact[0], abs=1e-10 * scale)
        growth = (exact[2] - exact[1]) / 2e-4
        assert theory.moment_growth(power, 0.7, name) == pytest.approx(growth, abs=1e-6 * scale)


@pytest.mark.parametrize("name", ["tanh", "erf", "gelu", "swish"])
def test_curvature_is_that_of_the_correlation_map(name):
    fixed, h = theory.fixed_point(name, 1.3, 0.1), 1e-4
    slopes = [theory.chi(1 - h * k, fixed.q, 1.3, name) for k in (0, 1, 2)]
    second = (3 * slopes[0] - 4 * slopes[1] + slopes[2]) / (2 * h)
    assert theory.curvature(fixed.q, 1.3, name) == pytest.approx(second, rel=1e-5)


@pytest.mark.parametrize(("name", "sigma_w2", "sigma_b2"), [("tanh", 1.3, 0.05), ("relu", 1.5, 0.5), ("elu", 1.6, 0.0)])
def test_correlations_are_the_map_over_and_over(name, sigma_w2, sigma_b2):
    q = theory.fixed_point(name, sigma_w2, sigma_b2).q
    found = theory.correlations([[-0.3, 0.0, 0.9]], q, sigma_w2, sigma_b2, name, 6)
    assert found.shape == (7, 1, 3)
    c = np.array([[-0.3, 0.0, 0.9]])
    for layer in found:
        np.testing.assert_allclose(1 - layer, 1 - c, rtol=1e-9)
        c = theory.correlation_map(c, q, sigma_w2, sigma_b2, name)


@pytest.mark.parametrize(("layers", "slope"), [(20, ".1814"), (30, ".3027"), (50, ".4305"), (100, ".5704")])
def test_tailored_slope(layers, slope):
    """TAT's α, and by quadrature that it does what it is for."""
    alpha = theory.tailored_slope(layers)
    assert alpha == printed(slope)
    c = theory.correlations(0.0, 1.0, 2 / (1 + alpha**2), 0.0, f"leaky_relu({alpha})", layers)
    assert c[-1] == pytest.approx(0.9, rel=1e-7)


@pytest.mark.parametrize(("layers", "target"), [(2, 0.9), (20, 1.0), (20, 0.0), (0, 0.5)])
def test_what_no_tailored_slope_can_do(layers, target):
    with pytest.raises(ValueError, match=f"target {target} is not allowed"):
        theory.tailored_slope(layers, target)


def test_how_far_a_tailored_slope_can_come():
    """Two layers of ReLU map 0 to 1/π, and that to (√(1 − c²) + (π − arccos c) c)/π."""
    c = 1 / np.pi
    most = (np.sqrt(1 - c**2) + (np.pi - np.arccos(c)) * c) / np.pi
    with pytest.raises(ValueError, match=f"target 0.9 is not allowed with 2 layers; allowed: from 0 to {most:.4g}$"):
        theory.tailored_slope(2)


# Fixed points and depth scales


def test_lengths_that_swing_settle_at_once():
    """cos: E[cos²(√q z)] = (1 + e^(−2q))/2 falls with q, so that the length map has a negative slope at q*."""
    fixed = theory.fixed_point(jnp.cos, 1.0)
    assert fixed.q == pytest.approx((1 + np.exp(-2 * fixed.q)) / 2, rel=1e-11)
    assert fixed.xi_q == 0
    assert fixed.chi1 == pytest.approx((1 - np.exp(-2 * fixed.q)) / 2, rel=1e-10)


@pytest.mark.parametrize(
    "sigma_w2, q, chi1, c, xi_c, xi_q",
    [
        (1.0, ".1936", ".7590", "1", "3.63", "1.75"),
        (1.3, ".3153", ".8802", "1", "7.83", "1.79"),
        (1.5, ".4180", ".9386", "1", "15.8", "1.68"),
        (2.0, ".7218", "1.0477", ".744", "25.2", "1.39"),
        (2.5, "1.0640", "1.1335", ".447", "11.8", "1.18"),
        (4.0, "2.1955", "1.3424", ".165", "6.98", ".87"),
    ],
)
def test_tanh_table(sigma_w2, q, chi1, c, xi_c, xi_q):
    fixed = theory.fixed_point("tanh", sigma_w2, 0.05)
    assert fixed.q == printed(q)
    assert fixed.chi1 == printed(chi1)
    assert fixed.c == (1.0 if c == "1" else printed(c))
    assert fixed.xi_c == printed(xi_c)
    assert fixed.xi_q == printed(xi_q)
    assert fixed.xi_gradient == pytest.approx(-1 / np.log(fixed.chi1), rel=1e-12)


@pytest.mark.parametrize(
    "name, sigma_b2, sigma_w2, q",
    [
        ("tanh", 0.05, "1.76095", ".57005"),
        ("tanh", 0.01, "1.42421", None),
        ("tanh", 0.1, "1.98607", None),
        ("tanh", 0.0, "1.000000", "0.000"),
        ("relu", 0.0, "2.000000", None),
        ("leaky_relu(0.2)", 0.0, "1.9231", None),
        ("linear", 0.0, "1.000000", None),
        ("sigmoid", 0.0, "103.008", None),
    ],
)
def test_critical_values(name, sigma_b2, sigma_w2, q):
    found = theory.critical_point(name, sigma_b2)
    assert found[0] == printed(sigma_w2)
    assert q is None or found[1] == printed(q)


@pytest.mark.parametrize("sigma_b2", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_at_a_critical_point_gradients_keep_their_size(name, sigma_b2):
    sigma_w2, q = theory.critical_point(name, sigma_b2)
    if np.isnan(q):
        assert sigma_b2 > 0 and name in ("relu", "leaky_relu", "linear")  # there E[φ²] = q E[φ'²]
        return
    phi, slope = NUMPY[name]
    q = max(q, 1e-20)
    assert sigma_w2 * adaptive_mean(lambda u: slope(u) ** 2, q) == pytest.approx(1, rel=1e-7)
    assert (sigma_w2 * adaptive_mean(lambda u: phi(u) ** 2, q) + sigma_b2) / q == pytest.approx(1, rel=1e-7)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "linear"])
def test_homogeneous_activations_have_no_critical_point_with_biases(name):
    assert np.isnan(theory.critical_point(name, 0.05)).all()


@pytest.mark.parametrize("sigma_w2, q, chi1", [(1.0, ".2647", ".05572"), (0.78, None, ".04450")])
def test_sigmoid_is_a_tanh_network_in_disguise(sigma_w2, q, chi1):
    sigmoid = theory.fixed_point("sigmoid", sigma_w2, 0.2)
    tanh = theory.fixed_point("tanh", sigma_w2 / 16, 0.2 / 4 + sigma_w2 / 16)
    assert sigmoid.q == pytest.approx(4 * tanh.q, rel=1e-11)
    assert sigmoid[1:] == pytest.approx(tanh[1:], rel=1e-9)
    bare = theory.fixed_point("sigmoid", sigma_w2)
    assert bare.chi1 == printed(chi1)
    assert q is None or bare.q == printed(q)


def test_selu_keeps_unit_variance():
    """Klambauer et al. 2017: fixed point 1, slope of the variance .782648, χ₁ = 1.07157."""
    fixed = theory.fixed_point("selu", 1.0)
    assert fixed.q == pytest.approx(1, rel=1e-7)
    assert fixed.chi1 == printed("1.07157")
    assert np.exp(-1 / fixed.xi_q) == printed(".782648")


@pytest.mark.parametrize("sigma_w2, sigma_b2", [(0.7, 0.1), (1.5, 0.05), (3.0, 0.3)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_fixed_points_are_fixed_and_stable(name, sigma_w2, sigma_b2):
    fixed = theory.fixed_point(name, sigma_w2, sigma_b2)
    q = np.logspace(0, 12, 49)
    if np.isinf(fixed.q):
        assert np.all(theory.length_map(q, sigma_w2, sigma_b2, name) > q)
        assert np.isnan(fixed[1:]).all()
        return
    assert theory.length_map(fixed.q, sigma_w2, sigma_b2, name) == pytest.approx(fixed.q, rel=1e-11)
    assert theory.correlation_map(fixed.c, fixed.q, sigma_w2, sigma_b2, name) == pytest.approx(fixed.c, rel=1e-10)
    assert fixed.c == 1 if fixed.chi1 <= 1 else 0 <= fixed.c < 1
    h = 1e-4
    below, above = (float(theory.length_map(fixed.q * (1 + s), sigma_w2, sigma_b2, name)) for s in (-h, h))
    growth = (above - below) / (2 * h * fixed.q)
    assert 0 < growth < 1 and np.exp(-1 / fixed.xi_q) == pytest.approx(growth, rel=1e-6)
    c = min(fixed.c, 1 - h)
    below, above = (float(theory.correlation_map(c + s, fixed.q, sigma_w2, sigma_b2, name)) for s in (-h, h))
    assert np.exp(-1 / fixed.xi_c) == pytest.approx((above - below) / (2 * h), rel=0.02)  # relu: √(1−c) at c = 1
    assert theory.chi(c, fixed.q, sigma_w2, name) == pytest.approx((above - below) / (2 * h), rel=0.02)


def test_relu_lengths_die_stay_or_grow():
    assert theory.fixed_point("relu", 1.9).q == 0
    assert theory.fixed_point("relu", 1.2, 0.3).q == pytest.approx(0.3 / (1 - 0.6), rel=1e-11)
    assert theory.fixed_point("relu", 2.0) == (1.0, 1.0, pytest.approx(1.0), np.inf, np.inf, np.inf)
    assert theory.fixed_point("relu", 2.0, 0.1).q == np.inf
    assert theory.fixed_point("relu", 2.2).q == np.inf
    assert theory.fixed_point("relu", 1.0).xi_gradient == pytest.approx(1 / np.log(2), rel=1e-10)
    assert theory.fixed_point("tanh", 1.0).q == 0


@pytest.mark.parametrize(
    "name, q, gain",
    [
        ("relu", 1.0, "1.4669"),
        ("leaky_relu(0.2)", 1.0, "1.2436"),
        ("tanh", 1.0, "1.1778"),
        ("elu", 1.0, "1.0790"),
        ("selu", 1.0, "1.0716"),
        ("sigmoid", 1.0, "1.0336"),
        ("elu", 2.0, "1.1181"),
    ],
)
def test_batch_norm_gains(name, q, gain):
    assert theory.batch_norm_gradient_gain(name, q) == printed(gain)


@pytest.mark.parametrize("name", ["relu", "tanh", "linear", "sigmoid"])
def test_batch_norm_gain_of_a_finite_batch_is_that_of_a_drawn_layer(name):
    """One layer at the symmetric fixed point: its Jacobian over the batch, by differentiating batch norm itself."""
    b, n = 8, 20_000
    rng = np.random.default_rng(3)
    z, noise = (x - x.mean(1, keepdims=True) for x in rng.standard_normal((2, n, b)))
    phi = activation(name)

    def unit(z):
        return phi((z - z.mean()) / jnp.sqrt(jnp.mean((z - z.mean()) ** 2)))

    with jax.enable_x64(True):
        h, back = map(np.asarray, jax.vmap(lambda z, g: (unit(z), jax.vjp(unit, z)[1](g)[0]))(z, noise))
    gain = np.mean(np.sum(back**2, 1)) / np.mean(np.sum(noise**2, 1)) / np.mean(np.var(h, 1, ddof=1))
    assert theory.finite_batch_norm_gradient_gain(name, b) == pytest.approx(gain, rel=0.04)


@pytest.mark.slow
def test_batch_norm_gain_of_finite_batches_ends():
    """For linear layers in closed form; elsewhere the limit of large batches; below 4 examples there is none."""
    for b in (4, 5, 64):
        assert theory.finite_batch_norm_gradient_gain("linear", b) == pytest.approx((b - 2) / (b - 3), rel=1e-9)
    for name in ("relu", "tanh", "elu"):
        limit = theory.batch_norm_gradient_gain(name)
        assert theory.finite_batch_norm_gradient_gain(name, 4096) == pytest.approx(limit, rel=3e-3)
    with pytest.raises(ValueError, match="batch_size 3 is not allowed"):
        theory.finite_batch_norm_gradient_gain("relu", 3)
