"""Signed log₂ histograms: one bin per octave and sign, read from the bits of the numbers; counts are exact.

Zero, subnormal numbers, infinities and NaN have bins of their own. The counts of two sets of numbers add up to the
counts of their union.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax.network.layer_names import Group

ZERO_BIN = 256
NAN_BIN = 513
N_BINS = 514

# For `_by_pairs`, on a CPU:
FEWEST_IN_PAIRS = 100_000  # smaller arrays are counted as fast one by one
KEYS = 64  # keys per sign: 0 means zero, 1 … 62 mean one octave each, 63 means any other number
BELOW = 48  # how many octaves of the table lie below the largest number of the sample; the others lie above it
SAMPLE = 1024  # numbers in the sample


@partial(jax.jit, inline=True)  # outside a program `cond` would be compiled at every call
def histograms(groups: Sequence[Group], mask: jax.Array | None = None) -> jax.Array:
    """A signed log₂ histogram of each layer, int32 [layers, N_BINS]; see `log2_bin`.

    Args:
      groups: arrays by layer, as `weight_groups` gives them.
      mask: which rows count (along each layer's first axis), or None for all.
    """
    is_large = [not group.is_stack and _is_large(group.values, mask) for group in groups]
    small = iter(_together([group for group, large in zip(groups, is_large, strict=True) if not large], mask))
    return jnp.concatenate(
        [
            log2_histogram(group.values)[None] if large else next(small)
            for group, large in zip(groups, is_large, strict=True)
        ]
    )


@partial(jax.jit, inline=True)
def log2_histogram(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Counts by `log2_bin`, int32 [N_BINS]; without a mask they sum to x.size exactly (at most 2³¹ − 1).

    Args:
      x: float32, bfloat16 or float16.
      mask: which rows count (along x's first axis), or None for all.

    Raises:
      ValueError: another type.
    """
    if _is_large(x, mask):
        return jax.lax.platform_dependent(x, cpu=_by_pairs, default=_one_by_one)
    return _one_by_one(x, mask)


def log2_bin(x: jax.Array) -> jax.Array:
    """The bin of each number, from its sign and binary exponent, int32 of x's shape.

    A bit cast gives both: no bin edges are searched, and subnormal numbers are not flushed to zero.

    Bins from −∞ up to +∞, then NaN: 256 ± (1 + e) for the biased exponent e = 0 (subnormal), 1 … 254 (normal numbers,
    2^(e−127) ≤ |x| < 2^(e−126)), 255 (infinity); 256 exact zero; 513 NaN.

    Args:
      x: float32, bfloat16 or float16 (its own subnormals are float32's normal numbers).

    Raises:
      ValueError: another type.
    """
    is_negative = bits(x) >> 31 == 1
    magnitude = bits(x) & 0x7FFFFFFF
    exponent = (magnitude >> 23).astype(jnp.int32)
    signed = jnp.where(is_negative, ZERO_BIN - 1 - exponent, ZERO_BIN + 1 + exponent)
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


def magnitude_counts(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts by magnitude, both signs together; zeros, subnormal numbers, infinities and NaN are left out.

    Args:
      counts: of signed log₂ histograms, [..., N_BINS].

    Returns:
      Counts [..., 254], and the exponent e of each of these octaves, 2^e ≤ |x| < 2^(e + 1) [254].
    """
    biased = np.arange(1, 255)
    return counts[..., ZERO_BIN - 1 - biased] + counts[..., ZERO_BIN + 1 + biased], biased - 127


def bits(x: jax.Array) -> jax.Array:
    """The bits of the float32 number of the same value, uint32.

    A bit cast, because CPUs turn subnormal float32 numbers into zeros in arithmetic and comparisons.

    Raises:
      ValueError: x is not float32, bfloat16 or float16.
    """
    if x.dtype == jnp.bfloat16:
        return jax.lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) << 16
    if x.dtype == jnp.float16:
        x = x.astype(jnp.float32)  # subnormal float16 numbers are normal float32 numbers
    if x.dtype != jnp.float32:
        raise ValueError(f"bits of {x.dtype} are not allowed; allowed: float32, bfloat16, float16")
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def _is_large(x: jax.Array, mask: jax.Array | None) -> bool:
    return mask is None and x.size >= FEWEST_IN_PAIRS


def _one_by_one(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    return _together([Group(("",), x, False)], mask)[0][0]


def _together(groups: Sequence[Group], mask: jax.Array | None) -> list[jax.Array]:
    """The histogram of each group [layers, N_BINS]; numbers are counted one by one, in one table for all."""
    borders = np.cumsum([0, *(len(group.names) for group in groups)])
    table = jnp.zeros(N_BINS * borders[-1], jnp.int32)
    for group, first in zip(groups, borders, strict=False):
        layers = group.values if group.is_stack else group.values[None]
        rows = jnp.arange(first, first + len(layers), dtype=jnp.int32).reshape(-1, *[1] * (layers.ndim - 1))
        places = log2_bin(layers) + N_BINS * rows
        if mask is not None:
            is_counted = mask.reshape(1, -1, *[1] * (layers.ndim - 2))
            places = jnp.where(is_counted, places, table.size)  # an index beyond the table, which mode `drop` ignores
        mode = "promise_in_bounds" if mask is None else "drop"
        table = table.at[places.ravel()].add(1, mode=mode)
    return jnp.split(table.reshape(-1, N_BINS), borders[1:-1])


def _by_pairs(x: jax.Array) -> jax.Array:
    """The same counts as `_one_by_one`, from a square table of pairs of keys.

    XLA's CPU scatter adds index after index, and pairs are half as many indices as numbers. The table has 62 octaves
    around the largest number of a sample; if a number lies outside them, all are counted again, one by one. This can go
    once XLA's CPU scatter is parallel.
    """
    x = x.ravel()
    half = x.size // 2
    top = bits(jnp.max(jnp.abs(x[:: x.size // SAMPLE]))) >> 23
    lowest = jnp.clip(top.astype(jnp.int32) - BELOW, 0, 256 - KEYS)
    keys = _keys(x, lowest)
    pairs = 2 * KEYS * keys[:half] + keys[half : 2 * half]
    table = jnp.zeros((2 * KEYS) ** 2, jnp.int32).at[pairs].add(1, mode="promise_in_bounds").reshape(2 * KEYS, -1)
    counts = table.sum(0, dtype=jnp.int32) + table.sum(1, dtype=jnp.int32)  # else int64 with JAX_ENABLE_X64
    if x.size % 2:
        counts = counts.at[keys[-1]].add(1)
    is_inside = counts[KEYS - 1] + counts[-1] == 0

    def unfold() -> jax.Array:
        """The counts of the keys, moved to their bins; +0 and −0 share a bin."""
        octave = jnp.arange(N_BINS, dtype=jnp.int32) - ZERO_BIN
        key = jnp.abs(octave) - 1 - lowest
        found = counts[jnp.clip(key, 0, KEYS - 1) + jnp.where(octave < 0, KEYS, 0)]
        found = jnp.where((key > 0) & (key < KEYS - 1), found, 0)
        return jnp.where(octave == 0, counts[0] + counts[KEYS], found)

    return jax.lax.cond(is_inside, unfold, lambda: _one_by_one(x))


def _keys(x: jax.Array, lowest: jax.Array) -> jax.Array:
    """The key of each number: its biased exponent minus `lowest`, plus KEYS for a negative number."""
    magnitude = bits(x) & 0x7FFFFFFF
    octave = (magnitude >> 23).astype(jnp.int32) - lowest
    key = jnp.where((octave > 0) & (octave < KEYS - 1), octave, KEYS - 1)
    return jnp.where(magnitude == 0, 0, key) + KEYS * (bits(x) >> 31).astype(jnp.int32)


def tensorboard_histogram(counts: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A signed log₂ histogram in TensorBoard's format: float64 [k, 3] of (left, right, count).

    Empty bins at both ends are left out. Infinite edges become the largest finite float32. NaN is not counted.
    """
    limit = float(np.finfo(np.float32).max)
    filled = np.flatnonzero(counts[:-1])
    if not filled.size:
        return np.zeros((0, 3))
    span = slice(filled[0], filled[-1] + 1)
    edges = np.stack([np.clip(left[span], -limit, limit), np.clip(right[span], -limit, limit)])
    return np.concatenate([edges, counts[None, span].astype(np.float64)]).T


def histogram_metadata() -> Any:
    """The metadata that tells TensorBoard that a summary is a histogram whose bins are counted already."""
    from tensorboard.plugins.histogram import metadata

    return metadata.create_summary_metadata(display_name=None, description="signed log₂ bins")
