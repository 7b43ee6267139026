"""Per-layer statistics: pure functions from pytrees of arrays to small arrays with a leading layer axis.

Vanishing gradients live at magnitudes whose squares underflow in float32, so every norm is scaled by the largest
magnitude first, and log₁₀ of the RMS stands beside the raw value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ZERO_BIN = 256
NAN_BIN = 513
N_BINS = 514


def weights_by_layer(tree: Any) -> dict[str, jax.Array]:
    """The weight matrices of a parameter-shaped pytree, by layer path, in natural order (layer_2 before layer_10).

    Args:
      tree: parameters, gradients or updates; leaves of two and more dimensions are weights.

    Returns:
      {"layer_1": [fan_in, fan_out], …}.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if leaf.ndim >= 2:
            found[jax.tree_util.keystr(path[:-1], simple=True, separator="/")] = leaf
    return {name: found[name] for name in sorted(found, key=_natural)}


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def norm(x: jax.Array) -> jax.Array:
    """‖x‖₂ over all elements, right wherever the result is a float32 number: max|x| · √Σ(x / max|x|)²."""
    largest, unit = _scaled(x)
    return largest * jnp.sqrt(_sum(jnp.square(unit)))


def rms(x: jax.Array) -> jax.Array:
    """‖x‖₂ / √n, the tutorial's statistic."""
    largest, unit = _scaled(x)
    return largest * jnp.sqrt(_sum(jnp.square(unit)) / x.size)


def gradient_statistics(gradients: Any) -> dict[str, jax.Array]:
    """What is recorded of the weight gradients, a value a layer.

    Args:
      gradients: pytree like the parameters.

    Returns:
      {"gradient_norm": ‖g‖, "gradient_rms": ‖g‖/√n, "gradient_log10_rms", "gradient_mean", "gradient_std",
      "gradient_max": max|g|, "gradient_zero_fraction": share of exact zeros}, each [layers].
    """
    return _per_layer(_one_gradient, gradients)


def _one_gradient(g: jax.Array) -> dict[str, jax.Array]:
    largest, unit = _scaled(g)
    square = _sum(jnp.square(unit))
    mean = _sum(unit) / g.size
    return {
        "gradient_norm": largest * jnp.sqrt(square),
        "gradient_rms": largest * jnp.sqrt(square / g.size),
        "gradient_log10_rms": jnp.log10(largest) + jnp.log10(square / g.size) / 2,
        "gradient_mean": largest * mean,
        "gradient_std": largest * jnp.sqrt(_sum(jnp.square(unit - mean)) / g.size),
        "gradient_max": largest,
        "gradient_zero_fraction": _sum(_is_zero(_bits(g)).astype(jnp.float32)) / g.size,
    }


def weight_statistics(params: Any, updates: Any) -> dict[str, jax.Array]:
    """‖W‖ before the step and ‖ΔW‖/‖W‖ of the step (Inf where W = 0, NaN where ΔW = 0 too), each [layers].

    Args:
      params: parameters before the step.
      updates: what the optimizer adds to them.
    """

    def one(w: jax.Array, dw: jax.Array) -> dict[str, jax.Array]:
        size = norm(w)
        return {"weight_norm": size, "update_ratio": norm(dw) / size}

    return _per_layer(one, params, updates)


def histograms(tree: Any) -> jax.Array:
    """A signed log₂ histogram of each layer's weights, int32 [layers, N_BINS]; see `log2_bin`."""
    layers = list(weights_by_layer(tree).values())
    # one scatter for all layers: it compiles and runs several times faster than one a layer
    bins = jnp.concatenate([log2_bin(x).ravel() + N_BINS * i for i, x in enumerate(layers)])
    return jnp.bincount(bins, length=N_BINS * len(layers)).reshape(len(layers), N_BINS)


def log2_histogram(x: jax.Array) -> jax.Array:
    """Counts by `log2_bin`, int32 [N_BINS]; they sum to x.size exactly (at most 2³¹ − 1)."""
    return jnp.bincount(log2_bin(x).ravel(), length=N_BINS)


def log2_bin(x: jax.Array) -> jax.Array:
    """The bin of each number, by sign and binary exponent (a bit cast, no search), int32 of x's shape.

    Bins from −∞ up to +∞, then NaN: 256 ± (1 + e) for the biased exponent e = 0 (subnormal), 1 … 254 (normal numbers,
    2^(e−127) ≤ |x| < 2^(e−126)), 255 (infinity); 256 exact zero; 513 NaN.

    Args:
      x: float32.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    magnitude = bits & 0x7FFFFFFF
    exponent = (magnitude >> 23).astype(jnp.int32)
    signed = jnp.where(bits >> 31 == 1, ZERO_BIN - 1 - exponent, ZERO_BIN + 1 + exponent)
    finite_or_infinite = jnp.where(magnitude == 0, ZERO_BIN, signed)
    return jnp.where(magnitude > 0x7F800000, NAN_BIN, finite_or_infinite)


def bin_edges() -> tuple[np.ndarray, np.ndarray]:
    """Left and right edge of every bin, float64 [N_BINS] each; the zero bin is [0, 0], NaN's edges are NaN."""
    exponents = np.arange(1, 255)
    left = np.concatenate([[0.0], 2.0 ** (exponents - 127), [np.inf]])
    right = np.concatenate([[2.0**-126], 2.0 ** (exponents - 126), [np.inf]])
    return (
        np.concatenate([-right[::-1], [0.0], left, [np.nan]]),
        np.concatenate([-left[::-1], [0.0], right, [np.nan]]),
    )


def _per_layer(function: Callable[..., dict[str, jax.Array]], *trees: Any) -> dict[str, jax.Array]:
    columns = [list(weights_by_layer(tree).values()) for tree in trees]
    rows = [function(*layer) for layer in zip(*columns, strict=True)]
    return {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def _is_zero(bits: jax.Array) -> jax.Array:
    """Exact zeros, by their bits: to a CPU that flushes subnormals these compare equal to zero too."""
    return bits & 0x7FFFFFFF == 0


def _scaled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """max|x| and x / max|x| (x itself where all is zero or something is infinite)."""
    largest = jnp.max(jnp.abs(x))
    divisor = jnp.where((largest > 0) & (largest < jnp.inf), largest, jnp.ones_like(largest))
    quarter = jnp.where(divisor > 1, jnp.float32(0.25), jnp.float32(1))  # the reciprocal of 2¹²⁷ would be flushed to 0
    return largest, (x * quarter) / (divisor * quarter)


def _sum(x: jax.Array) -> jax.Array:
    """Σx in two stages, so that float32 rounding grows with the rows and columns and not with their product."""
    return jnp.sum(jnp.sum(x, axis=0)) if x.ndim > 1 else jnp.sum(x)
