"""Mean-field theory of a wide random network: predictions of the signal and its gradient, layer by layer.

A network z¹ = W¹x + b¹, z^{l+1} = W^{l+1} φ(z^l) + b^{l+1} with Var(W) = σ_w²/fan_in and Var(b) = σ_b² has Gaussian
pre-activations in the limit of wide layers, so every prediction is an expectation over one or two Gaussians.
Arguments and results are floats or float64 NumPy arrays, whatever JAX's precision.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from vgjax.activations import Activation
from vgjax.theory.gaussian import (
    NOISE,
    SMALLEST,
    Numbers,
    cached_activation,
    derivative,
    evaluated,
    gaussian_pair_mean,
    mean_slope_square,
    mean_square,
    mean_square_growth,
    product,
    slope_product,
)


def _curvature(phi: Activation, q: jax.Array) -> jax.Array:
    return q * mean_slope_square(derivative(phi), q)


@partial(jax.jit, static_argnums=(0, 1))
def _path(layers: int, phi: Activation, c: jax.Array, q: jax.Array, sigma_w2: Any, sigma_b2: Any) -> jax.Array:
    square = sigma_w2 * mean_square(phi, q) + sigma_b2

    def step(c: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        following = (sigma_w2 * gaussian_pair_mean(phi, q, q, c) + sigma_b2) / square
        return following, following

    return jax.lax.scan(step, c, length=layers)[1]


def length_map(q: ArrayLike, sigma_w2: Numbers, sigma_b2: Numbers, activation: str | Activation) -> Numbers:
    """The next layer's mean squared pre-activation, q' = σ_w² E[φ(√q z)²] + σ_b² (Poole et al. 2016, 1606.05340).

    Args:
      q: mean squared pre-activation of this layer, a number or an array.
      sigma_w2, sigma_b2: σ_w² = fan_in · Var(W) and σ_b², numbers or arrays that broadcast with q.
      activation: name, import path or callable.

    >>> round(length_map(3.0, 2.0, 0.0, "relu"), 9)
    3.0
    """
    return sigma_w2 * evaluated(mean_square, activation, q) + sigma_b2


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
    return sigma_w2 * evaluated(mean_slope_square, activation, np.maximum(q, SMALLEST))


def chi(c: ArrayLike, q: ArrayLike, sigma_w2: Numbers, activation: str | Activation) -> Numbers:
    """χ(c) = σ_w² E[φ'(u₁)φ'(u₂)], the same for δ_a·δ_b of two examples; at q*, the slope of the correlation map."""
    q = np.maximum(q, SMALLEST)
    return sigma_w2 * slope_product(q, q, c, activation)


def curvature(q: ArrayLike, sigma_w2: Numbers, activation: str | Activation) -> Numbers:
    """Second derivative at c = 1 of the correlation map at q*, σ_w² q E[φ''(√q z)²]; φ must have no kink.

    As dE[φ(u₁)φ(u₂)]/dc = q E[φ'(u₁)φ'(u₂)], twice. At the edge of chaos 1 − c then falls as 2/(curvature · layer).

    Source: Hayou et al. 2019, 1902.06853.

    >>> curvature(1.0, 1.0, "linear")
    0.0
    """
    return sigma_w2 * evaluated(_curvature, activation, q)


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
        path = partial(_path, layers, cached_activation(activation))
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
    """The limits of length and correlation with depth, and their depth scales; NaN where q* is infinite."""

    q: float  # q*, which the length map reaches from q = 1; 0: lengths die out, inf: they grow for ever
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
    growth = sigma_w2 * float(evaluated(mean_square_growth, activation, max(q, SMALLEST)))
    xi_c = _depth_scale(float(chi(c, q, sigma_w2, activation)))
    return FixedPoint(q, c, x1, _depth_scale(growth), xi_c, _depth_scale(x1))


def _fixed_length(activation: str | Activation, sigma_w2: float, sigma_b2: float) -> float:
    def excess(log_q: ArrayLike) -> Any:
        q = np.exp(log_q)
        return length_map(q, sigma_w2, sigma_b2, activation) / q - 1

    start = excess(0.0)
    if abs(start) < NOISE:
        return 1.0
    path = np.sign(start) * np.linspace(0, -np.log(SMALLEST), 241)
    turned = np.flatnonzero(np.sign(start) * excess(path) < -NOISE)
    if turned.size == 0:
        return np.inf if start > 0 else 0.0
    return float(np.exp(brentq(excess, 0.0, path[turned[0]], xtol=1e-14)))


def _fixed_correlation(activation: str | Activation, sigma_w2: float, sigma_b2: float, q: float, x1: float) -> float:
    def excess(c: float) -> float:  # c = 1 is always a fixed point: divided out, it leaves the other one
        mapped = float(correlation_map(c, q, sigma_w2, sigma_b2, activation))
        return 1 - x1 if c == 1 else (mapped - c) / (1 - c)

    if x1 <= 1 + NOISE:
        return 1.0
    return 0.0 if excess(0.0) < NOISE else float(brentq(excess, 0.0, 1.0, xtol=1e-14))


def _depth_scale(rate: float) -> float:
    return 0.0 if rate <= 0 else np.inf if abs(rate - 1) < NOISE else float(-1 / np.log(rate))
