"""Mean-field theory of a wide random network: what the signal and its gradient ought to be, layer by layer.

A network z¹ = W¹x + b¹, z^{l+1} = W^{l+1} φ(z^l) + b^{l+1} with Var(W) = σ_w²/fan_in and Var(b) = σ_b² has Gaussian
pre-activations in the limit of wide layers, so all is expectations over one or two Gaussians. Numbers go in and come
out as floats or float64 NumPy arrays, whatever JAX's precision; nothing is measured on a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from vgjax import activations
from vgjax.activations import Activation

Numbers = float | np.ndarray

_SMALLEST = 1e-30  # stands for q → 0: at q = 0 itself a kinked φ has no derivative
_NOISE = 1e-12  # relative differences below this are rounding

_activation = lru_cache(activations.activation)  # one callable per name, so that JAX compiles once per name


def _rule(n: int, reach: float = 9.0) -> tuple[np.ndarray, np.ndarray]:
    """Nodes r and weights for ∫ dr exp(−r²/2), Gauss–Legendre in √|r| on either side of 0.

    No rule straddles 0, where the activations of the table have their kinks, if any; and the nodes are close together
    near 0, where φ(√q r) turns when q is large.
    """
    x, weight = np.polynomial.legendre.leggauss(n)
    s = (x + 1) / 2
    r = reach * s**2
    weight = reach * s * weight * np.exp(-(r**2) / 2)
    return np.concatenate([-r, r]), np.concatenate([weight, weight])


_Z, _DZ = _rule(128)
_R, _DR = _rule(48)
_T, _DT = np.polynomial.legendre.leggauss(32)


def gaussian_mean(f: Activation, q: jax.Array) -> jax.Array:
    """E[f(√q z)], z ~ N(0, 1): a pure function of a scalar q, to be differentiated or vmapped."""
    return jnp.sum(_DZ * f(jnp.sqrt(q) * _Z)) / math.sqrt(2 * math.pi)


def gaussian_pair_mean(f: Activation, q1: jax.Array, q2: jax.Array, c: jax.Array) -> jax.Array:
    """E[f(u₁) f(u₂)] for Gaussians of variances q1 and q2 and correlation c, in polar coordinates; pure, of scalars.

    With u₁ = √q1 r cos θ, u₂ = √q2 r cos(θ − arccos c), the kinks u₁ = 0 and u₂ = 0 are two lines through the origin:
    split there, the integrand is smooth for every c, ±1 included, whose empty arcs weigh nothing.
    """
    psi = jnp.arccos(jnp.clip(c, -1, 1))
    theta = jnp.concatenate([(psi * _T + psi - jnp.pi) / 2, ((jnp.pi - psi) * _T + psi) / 2])
    d_theta = jnp.concatenate([psi * _DT / 2, (jnp.pi - psi) * _DT / 2])
    u1 = jnp.sqrt(q1) * jnp.outer(_R, jnp.cos(theta))
    u2 = jnp.sqrt(q2) * jnp.outer(_R, jnp.cos(theta - psi))
    return (_DR * np.abs(_R)) @ (f(u1) * f(u2)) @ d_theta / (2 * np.pi)


def derivative(phi: Activation) -> Activation:
    """φ', elementwise, by automatic differentiation."""
    return jax.grad(lambda x: jnp.sum(phi(x)))


def _square(phi: Activation, q: jax.Array) -> jax.Array:
    return gaussian_mean(lambda u: jnp.square(phi(u)), q)


def _slope_square(phi: Activation, q: jax.Array) -> jax.Array:
    return _square(derivative(phi), q)


_square_growth = jax.grad(_square, argnums=1)  # ∂E[φ²]/∂q = E[φ'²] + E[φ φ''], with no φ'' at the kinks


def _slope_pair_mean(phi: Activation, q1: jax.Array, q2: jax.Array, c: jax.Array) -> jax.Array:
    return gaussian_pair_mean(derivative(phi), q1, q2, c)


@lru_cache
def _moment(power: int) -> Callable[..., jax.Array]:
    return lambda phi, q: gaussian_mean(lambda u: phi(u) ** power, q)


_moment_growth = lru_cache(lambda power: jax.grad(_moment(power), argnums=1))


def _bend(phi: Activation, q: jax.Array) -> jax.Array:
    return q * _slope_square(derivative(phi), q)


@partial(jax.jit, static_argnums=(0, 1))
def _path(layers: int, phi: Activation, c: jax.Array, q: jax.Array, sigma_w2: Any, sigma_b2: Any) -> jax.Array:
    square = sigma_w2 * _square(phi, q) + sigma_b2

    def step(c: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        following = (sigma_w2 * gaussian_pair_mean(phi, q, q, c) + sigma_b2) / square
        return following, following

    return jax.lax.scan(step, c, length=layers)[1]


@partial(jax.jit, static_argnums=(0, 1))
def _lanes(inner: Callable[..., jax.Array], phi: Activation, *columns: jax.Array) -> jax.Array:
    return jax.lax.map(lambda row: inner(phi, *row), columns, batch_size=64)  # in blocks: 6144 nodes for each pair


def _evaluate(inner: Callable[..., jax.Array], named: str | Activation, *values: ArrayLike) -> Any:
    """`inner(phi, *values)` over broadcast arrays, in float64: the border between NumPy and the pure functions."""
    columns = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in values))
    with jax.enable_x64(True):
        result = np.asarray(_lanes(inner, _activation(named), *(column.ravel() for column in columns)))
    return result.reshape(columns[0].shape) if columns[0].ndim else result.item()


def length_map(q: ArrayLike, sigma_w2: Numbers, sigma_b2: Numbers, activation: str | Activation) -> Numbers:
    """The next layer's mean squared pre-activation, q' = σ_w² E[φ(√q z)²] + σ_b² (Poole et al. 2016, 1606.05340).

    Args:
      q: mean squared pre-activation of this layer, a number or an array.
      sigma_w2, sigma_b2: σ_w² = fan_in · Var(W) and σ_b², numbers or arrays that broadcast with q.
      activation: name, import path or callable.

    >>> round(length_map(3.0, 2.0, 0.0, "relu"), 9)
    3.0
    """
    return sigma_w2 * _evaluate(_square, activation, q) + sigma_b2


def correlation_map(
    c: ArrayLike, q: ArrayLike, sigma_w2: Numbers, sigma_b2: Numbers, activation: str | Activation
) -> Numbers:
    """The next layer's correlation of two examples of equal length, c' = (σ_w² E[φ(u₁)φ(u₂)] + σ_b²) / q'.

    Args:
      c: correlation of the two pre-activations, in [−1, 1].
      q, sigma_w2, sigma_b2, activation: as in `length_map`; all broadcast.

    Source: Poole et al. 2016, 1606.05340; for ReLU, Cho & Saul 2009.
    """
    return (sigma_w2 * product(q, q, c, activation) + sigma_b2) / length_map(q, sigma_w2, sigma_b2, activation)


def chi1(q: ArrayLike, sigma_w2: Numbers, activation: str | Activation) -> Numbers:
    """χ₁ = σ_w² E[φ'(√q z)²], the growth of E‖δ‖² per layer going back (Schoenholz et al. 2016); q = 0: q → 0.

    >>> round(chi1(0.2647, 1.0, "sigmoid"), 5)
    0.05572
    """
    return sigma_w2 * _evaluate(_slope_square, activation, np.maximum(q, _SMALLEST))


def chi(c: ArrayLike, q: ArrayLike, sigma_w2: Numbers, activation: str | Activation) -> Numbers:
    """χ(c) = σ_w² E[φ'(u₁)φ'(u₂)], the same for δ_a·δ_b of two examples; at q*, the slope of the correlation map."""
    q = np.maximum(q, _SMALLEST)
    return sigma_w2 * slope_product(q, q, c, activation)


def mean(q: ArrayLike, activation: str | Activation) -> Numbers:
    """E[φ(√q z)], z ~ N(0, 1)."""
    return _evaluate(gaussian_mean, activation, q)


def product(q1: ArrayLike, q2: ArrayLike, c: ArrayLike, activation: str | Activation) -> Numbers:
    """E[φ(u₁) φ(u₂)] for Gaussians of variances q1 and q2 and correlation c; all broadcast."""
    return _evaluate(gaussian_pair_mean, activation, q1, q2, c)


def slope_product(q1: ArrayLike, q2: ArrayLike, c: ArrayLike, activation: str | Activation) -> Numbers:
    """E[φ′(u₁) φ′(u₂)] for the same."""
    return _evaluate(_slope_pair_mean, activation, q1, q2, c)


def moment(power: int, q: ArrayLike, activation: str | Activation) -> Numbers:
    """E[φ(√q z)^power]: mean and variance of a layer's activations are moment 1, and moment 2 less its square.

    >>> round(moment(2, 1.0, "selu") - moment(1, 1.0, "selu") ** 2, 6)
    1.0
    """
    return _evaluate(_moment(power), activation, q)


def moment_growth(power: int, q: ArrayLike, activation: str | Activation) -> Numbers:
    """∂E[φ(√q z)^power]/∂q, for q > 0."""
    return _evaluate(_moment_growth(power), activation, q)


def curvature(q: ArrayLike, sigma_w2: Numbers, activation: str | Activation) -> Numbers:
    """Second derivative at c = 1 of the correlation map at q*, σ_w² q E[φ''(√q z)²]; φ must have no kink.

    As dE[φ(u₁)φ(u₂)]/dc = q E[φ'(u₁)φ'(u₂)], twice. At the edge of chaos 1 − c then falls as 2/(curvature · layer).

    Source: Hayou et al. 2019, 1902.06853.

    >>> curvature(1.0, 1.0, "linear")
    0.0
    """
    return sigma_w2 * _evaluate(_bend, activation, q)


def correlations(
    c: ArrayLike, q: float, sigma_w2: float, sigma_b2: float, activation: str | Activation, layers: int
) -> np.ndarray:
    """The correlation map over and over, at one length q (its fixed point, or any where φ is homogeneous).

    Args:
      c: correlation of the pre-activations in the first layer, a number or an array.
      q, sigma_w2, sigma_b2, activation: as in `length_map`.
      layers: how many.

    Returns:
      [layers + 1, …], the first c itself.
    """
    start = np.asarray(c, np.float64)
    with jax.enable_x64(True):
        path = partial(_path, layers, _activation(activation))
        rows = [np.asarray(path(jnp.float64(one), jnp.float64(q), sigma_w2, sigma_b2)) for one in start.ravel()]
    return np.concatenate([start[None], np.transpose(rows).reshape(layers, *start.shape)])


def tailored_slope(layers: int, target: float = 0.9) -> float:
    """The slope α of leaky ReLU with which `layers` layers map correlation 0 to `target`; σ_w² = 2/(1 + α²), σ_b = 0.

    One layer maps c to c + (1 − α)²/(π(1 + α²)) · (√(1 − c²) − c arccos c), in closed form.

    Raises:
      ValueError: even ReLU, α = 0, does not come as far as the target in so many layers.

    Source: Zhang, Botev & Martens 2022, 2203.08120 (TAT), after Martens et al. 2021, 2110.01765.

    >>> round(tailored_slope(20), 4)
    0.1814
    """

    def excess(slope: float) -> float:
        c, weight = 0.0, (1 - slope) ** 2 / (np.pi * (1 + slope**2))
        for _ in range(layers):
            c = min(1.0, c + weight * (math.sqrt(1 - c**2) - c * math.acos(c)))
        return c - target

    if excess(0.0) < 0 or not 0 < target < 1:
        most = excess(0.0) + target
        raise ValueError(f"target {target} is not allowed with {layers} layers; allowed: from 0 to {most:.4g}")
    return float(brentq(excess, 0.0, 1.0, xtol=1e-14))


class FixedPoint(NamedTuple):
    """Where depth leads, and how fast; NaN where q* is infinite."""

    q: float  # q*, which the length map reaches from q = 1; 0 or inf where it dies out or grows for ever
    c: float  # c*, stable fixed point of the correlation map at q*; 1: examples become alike
    chi1: float  # χ₁ at q*
    xi_q: float  # ξ_q = −1/ln(χ₁ + σ_w² E[φφ'']), over which lengths settle [layers]
    xi_c: float  # ξ_c = −1/ln χ(c*), over which correlations settle [layers]
    xi_gradient: float  # ξ_∇ = −1/ln χ₁, over which squared gradients vanish; negative: explode [layers]


def fixed_point(activation: str | Activation, sigma_w2: float, sigma_b2: float = 0.0) -> FixedPoint:
    """The fixed points q*, c* of the length and correlation maps at σ_w², σ_b², χ₁ there, and the depth scales.

    Source: Schoenholz et al. 2016, 1611.01232.

    >>> fixed = fixed_point("tanh", 2.0, 0.05)
    >>> [round(value, 3) for value in (fixed.q, fixed.chi1, fixed.c)]
    [0.722, 1.048, 0.744]
    """
    q = _fixed_length(activation, sigma_w2, sigma_b2)
    if np.isinf(q):
        return FixedPoint(q, *[np.nan] * 5)
    x1 = float(chi1(q, sigma_w2, activation))
    c = _fixed_correlation(activation, sigma_w2, sigma_b2, q, x1)
    growth = sigma_w2 * float(_evaluate(_square_growth, activation, max(q, _SMALLEST)))
    xi_c = _depth_scale(float(chi(c, q, sigma_w2, activation)))
    return FixedPoint(q, c, x1, _depth_scale(growth), xi_c, _depth_scale(x1))


def _fixed_length(activation: str | Activation, sigma_w2: float, sigma_b2: float) -> float:
    def excess(log_q: ArrayLike) -> Any:
        q = np.exp(log_q)
        return length_map(q, sigma_w2, sigma_b2, activation) / q - 1

    start = excess(0.0)
    if abs(start) < _NOISE:
        return 1.0
    path = np.sign(start) * np.linspace(0, -np.log(_SMALLEST), 241)
    turned = np.flatnonzero(np.sign(start) * excess(path) < -_NOISE)
    if turned.size == 0:
        return np.inf if start > 0 else 0.0
    return float(np.exp(brentq(excess, 0.0, path[turned[0]], xtol=1e-14)))


def _fixed_correlation(activation: str | Activation, sigma_w2: float, sigma_b2: float, q: float, x1: float) -> float:
    def excess(c: float) -> float:  # c = 1 is always a fixed point: divided out, it leaves the other one
        mapped = float(correlation_map(c, q, sigma_w2, sigma_b2, activation))
        return 1 - x1 if c == 1 else (mapped - c) / (1 - c)

    if x1 <= 1 + _NOISE:
        return 1.0
    return 0.0 if excess(0.0) < _NOISE else float(brentq(excess, 0.0, 1.0, xtol=1e-14))


def _depth_scale(rate: float) -> float:
    return 0.0 if rate <= 0 else np.inf if abs(rate - 1) < _NOISE else float(-1 / np.log(rate))


def critical_point(activation: str | Activation, sigma_b2: float = 0.0) -> tuple[float, float]:
    """The critical σ_w² at a given σ_b², and q* there: σ_w² = 1/E[φ'²] where σ_b² = q − E[φ²]/E[φ'²].

    Returns:
      (σ_w², q*) of smallest q* ≤ 10⁴ (0: the limit q → 0); NaN where there is none, as for ReLU with σ_b² > 0.

    Source: Schoenholz et al. 2016, 1611.01232; Hayou et al. 2019, 1902.06853.

    >>> round(critical_point("leaky_relu(0.2)")[0], 4)
    1.9231
    """

    def excess(log_q: ArrayLike) -> Any:
        q = np.exp(log_q)
        return 1 - (length_map(q, 1.0, 0.0, activation) / chi1(q, 1.0, activation) + sigma_b2) / q

    path = np.linspace(np.log(_SMALLEST), np.log(1e4), 321)
    values = excess(path)
    if abs(values[0]) < _NOISE:
        return 1 / float(chi1(0.0, 1.0, activation)), 0.0
    turned = np.flatnonzero(np.sign(values[0]) * values < -_NOISE)
    if turned.size == 0:
        return np.nan, np.nan
    q = float(np.exp(brentq(excess, path[0], path[turned[0]], xtol=1e-14)))
    return 1 / float(chi1(q, 1.0, activation)), q


def batch_norm_gradient_gain(activation: str | Activation, q: float = 1.0) -> float:
    """E[(dφ/du)²]/Var[φ], the growth of E‖δ‖² per layer going back through batch norm, in the limit of large batches.

    Args:
      activation: name, import path or callable, applied to √q u with u ~ N(0, 1).
      q: 1 where batch norm stands before φ; σ_w² where it stands after φ, at the next layer's inputs.

    Source: Yang et al. 2019, 1902.08129.

    >>> round(batch_norm_gradient_gain("relu"), 4)  # π / (π − 1)
    1.4669
    """
    variance = moment(2, q, activation) - moment(1, q, activation) ** 2
    return float(chi1(q, q, activation) / variance)


def finite_batch_norm_gradient_gain(activation: str | Activation, batch_size: int, n_numbers: int = 1 << 20) -> float:
    """The growth of E‖δ‖² per layer going back through batch norm before φ, at a finite batch and infinite width.

    Deep in the network all pairs of examples are alike: a unit's normalised batch u is uniform on the sphere of mean 0
    and variance 1, its length before that χ-distributed, and δ has the covariance of centred noise ε. Then the gain is
    B/(B − 3) · E‖Q(φ′(u) ε)‖² / ((B − 1) Var[φ(u)]), where Q takes away the mean and the part along u. For φ(x) = x:
    (B − 2)/(B − 3).

    Args:
      activation: name, import path or callable.
      batch_size: B, at least 4 (below, the mean is infinite) [examples].
      n_numbers: how many are drawn for the mean over u, always the same.

    Raises:
      ValueError: fewer than 4 examples.

    Source: the symmetric fixed point of Yang et al. 2019, 1902.08129.

    >>> round(finite_batch_norm_gradient_gain("linear", 8), 9)
    1.2
    """
    b = batch_size
    if b < 4:
        raise ValueError(f"batch_size {b} is not allowed; allowed: whole numbers from 4")
    z = np.random.default_rng(0).standard_normal((n_numbers // b, b))
    u = (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)
    with jax.enable_x64(True):
        phi = _activation(activation)
        value, slope = (np.asarray(f(jnp.asarray(u))) for f in (phi, derivative(phi)))
    square = np.sum(slope**2, 1)
    along_u = np.sum((slope * u) ** 2, 1)
    of_means = square - np.sum(slope, 1) ** 2 / b - np.sum(slope * u, 1) ** 2 / b  # what Q leaves of the noise's mean
    passed = square - square / b - along_u / b - of_means / b
    return float(b / (b - 3) * passed.mean() / ((b - 1) * value.var(1, ddof=1).mean()))
