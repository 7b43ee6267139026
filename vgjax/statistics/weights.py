"""Statistics of weights, gradients and updates: pure functions from pytrees to small arrays [layers, …].

The squares of vanishing gradients underflow in float32. Norms are therefore computed from numbers divided by a power of
two where needed, and log₁₀ of the RMS is recorded beside the RMS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax.network.layer_names import Group, weight_groups
from vgjax.statistics.histograms import bits

SAFE_SQUARES = (1e-24, 1e37)  # a sum of squares between these has not underflowed or overflowed
# The bits of the largest magnitude that each type rounds to zero: 0, 2⁻²⁵ and 2⁻¹³⁴.
LARGEST_LOST = {"always": 0, "float16": 0x33000000, "bfloat16": 0x00008000}

Statistics = dict[str, jax.Array]


def norm(x: jax.Array) -> jax.Array:
    """‖x‖₂ over all elements, 2ᵏ · √Σ(x / 2ᵏ)² with 2ᵏ ≤ max|x| < 2ᵏ⁺¹; correct wherever float32 can hold the result.

    CPUs take subnormal elements, below 1.2·10⁻³⁸, for zeros; so do all statistics except shares and histograms.
    """
    return _norm(_scaled, x)


def rms(x: jax.Array) -> jax.Array:
    """‖x‖₂ / √n, the tutorial's statistic."""
    return _lengths(_scaled, x)["rms"]


def norm_statistics(gradients: Any, stacked: str = "") -> Statistics:
    """‖g‖, ‖g‖/√n and log₁₀(‖g‖/√n) of each layer's weight gradient; one pass if no square under- or overflows.

    Args:
      gradients: pytree like the parameters.
      stacked: paths of stacked layers, see `vgjax.network.layer_names.weight_groups`.

    Returns:
      {"gradient_norm", "gradient_rms", "gradient_log10_rms"}, each [layers].
    """
    return prefixed("gradient", _scaled_where_needed(_lengths, weight_groups(gradients, stacked)))


def weight_norms(tree: Any, stacked: str = "") -> jax.Array:
    """‖x‖ of each layer, of parameters or of a tree of the same shapes [layers]."""
    return _scaled_where_needed(_lengths, weight_groups(tree, stacked))["norm"]


def gradient_statistics(gradients: Any, stacked: str = "") -> Statistics:
    """How the elements of each layer's weight gradient are spread.

    Args:
      gradients: pytree like the parameters.
      stacked: paths of stacked layers, see `vgjax.network.layer_names.weight_groups`.

    Returns:
      {"gradient_mean", "gradient_std", "gradient_max": max|g|, "gradient_zero_fraction": share of exact zeros,
      "gradient_float16_underflow", "gradient_bfloat16_underflow": share of the other elements that would become zero
      in that type, NaN where there are no others}, each [layers].
    """
    groups = weight_groups(gradients, stacked)
    spread = _scaled_where_needed(_spread, groups)
    return prefixed("gradient", spread | _small_numbers(groups))


def weight_statistics(params: Any, updates: Any, stacked: str = "") -> Statistics:
    """‖W‖ before the step and ‖ΔW‖/‖W‖ of the step (Inf where W = 0, NaN where ΔW = 0 too), each [layers].

    Args:
      params: parameters before the step.
      updates: what the optimizer adds to them.
      stacked: paths of stacked layers.
    """
    return _scaled_where_needed(_weights, weight_groups(params, stacked), weight_groups(updates, stacked))


def point_statistics(raw: Any, clipped: Any, updates: Any, stacked: str = "") -> Statistics:
    """The gradient at three points of the optimizer's chain: raw, after clipping, and the update made of it.

    Args:
      raw: gradients as they come to the clipping.
      clipped: as they leave it.
      updates: what the optimizer adds to the parameters.
      stacked: paths of stacked layers.

    Returns:
      {"clipped_norm": ‖c‖, "clipped_fraction": share of elements that clipping changed, "clipped_cosine": of the angle
      between raw and clipped gradient, "update_norm": ‖ΔW‖, "update_cosine": of the angle between −raw and the
      update: 1 is steepest descent}, each [layers]; cosines with a vector of zeros are NaN.
    """

    def changed(g: jax.Array, c: jax.Array) -> Statistics:
        if g is c:  # no clipping: do not let XLA compare every number with itself
            return {"clipped_fraction": jnp.float32(0)}
        return {"clipped_fraction": _sum((bits(g) != bits(c)).astype(jnp.float32)) / g.size}

    points = [weight_groups(tree, stacked) for tree in (raw, clipped, updates)]
    return _scaled_where_needed(_points, *points) | _per_layer(changed, *points[:2])


def any_bad(groups: Sequence[Group]) -> jax.Array:
    """Whether anything is NaN or infinite in each layer, bool [layers]."""
    return _each(lambda x: ~jnp.all(jnp.isfinite(x)), groups)


def prefixed(family: str, statistics: Statistics) -> Statistics:
    """The statistics by their full names."""
    return {f"{family}_{name}": value for name, value in statistics.items()}


def power_below(top: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest power of two that is at most `top`, and its inverse, both normal numbers; 1 for zero, Inf and NaN.

    Made from the bits of the exponent: exact, and multiplying by it loses nothing.
    """
    exponent = (bits(top) >> 23).astype(jnp.int32)  # biased
    exponent = jnp.where((exponent == 0) | (exponent == 255), 127, jnp.minimum(exponent, 253))
    power, inverse = (jax.lax.bitcast_convert_type(e << 23, jnp.float32) for e in (exponent, 254 - exponent))
    return power, inverse


def lengths(power: jax.Array, square: jax.Array, count: Any) -> Statistics:
    """Norm, RMS and log₁₀ RMS of `count` numbers, from the sum of squares of the numbers over `power`."""
    return {
        "norm": power * jnp.sqrt(square),
        "rms": power * jnp.sqrt(square / count),
        "log10_rms": _log10(power, square / count),
    }


Scale = Callable[[jax.Array], tuple[Any, jax.Array]]  # x → a power of two, and x divided by it


def _unscaled(x: jax.Array) -> tuple[Any, jax.Array]:
    return jnp.float32(1), x.astype(jnp.float32)


@partial(jax.jit, static_argnums=0, inline=True)  # else `cond` compiles at every call outside `jit`: .4 s a step
def _scaled_where_needed(function: Callable[..., Statistics], *columns: Sequence[Group]) -> Statistics:
    """`function(scale, *arrays)` over all layers; scaled only if a layer's sum of squares under- or overflows."""
    low, high = SAFE_SQUARES
    squares = _of_all(lambda x: _square(x.astype(jnp.float32)), columns)
    plain = _per_layer(partial(function, _unscaled), *columns)
    is_safe = (squares > low) & (squares < high)
    # A layer of zeros, as in a dead network, needs no scaling. Look for such layers only if some sum is not safe.
    is_safe |= jax.lax.cond(jnp.all(is_safe), lambda: is_safe, lambda: _of_all(_is_zero, columns))
    return jax.lax.cond(jnp.all(is_safe), lambda: plain, lambda: _per_layer(partial(function, _scaled), *columns))


def _of_all(function: Callable[[jax.Array], jax.Array], columns: Sequence[Sequence[Group]]) -> jax.Array:
    return jnp.concatenate([_each(function, column) for column in columns])


def _is_zero(x: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x)) == 0


def _weights(scale: Scale, w: jax.Array, dw: jax.Array) -> Statistics:
    (power, w), (power_of_update, dw) = scale(w), scale(dw)
    size, moved = jnp.sqrt(_square(w)), jnp.sqrt(_square(dw))
    return {"weight_norm": power * size, "update_ratio": (power_of_update / power) * (moved / size)}


def _points(scale: Scale, g: jax.Array, c: jax.Array, dw: jax.Array) -> Statistics:
    return {
        "clipped_norm": _norm(scale, c),
        "clipped_cosine": _cosine(scale, g, c),
        "update_norm": _norm(scale, dw),
        "update_cosine": -_cosine(scale, g, dw),
    }


def _spread(scale: Scale, g: jax.Array) -> Statistics:
    power, unit = scale(g)
    mean = _sum(unit) / g.size
    return {
        "mean": power * mean,
        "std": power * jnp.sqrt(_sum(jnp.square(unit - mean)) / g.size),
        "max": jnp.max(jnp.abs(g)).astype(jnp.float32),
    }


def _small_numbers(groups: Sequence[Group]) -> Statistics:
    """Shares of zeros, and of the other elements that low precision rounds to zero.

    Counted by the bits, because CPUs take subnormal numbers for zeros.
    """
    lost = _per_layer(_lost, groups)
    zeros, sizes = lost["always"], _sizes(groups)

    def share(part: jax.Array, whole: jax.Array | np.ndarray) -> jax.Array:
        return part.astype(jnp.float32) / whole.astype(jnp.float32)

    return {
        "zero_fraction": share(zeros, sizes),
        "float16_underflow": share(lost["float16"] - zeros, sizes - zeros),
        "bfloat16_underflow": share(lost["bfloat16"] - zeros, sizes - zeros),
    }


def _lost(g: jax.Array) -> Statistics:
    """How many elements each type of `LARGEST_LOST` rounds to zero.

    One int32 holds three counters of ten bits, so one sum counts for all three types. Each counter sums 512 rows, so it
    cannot overflow into the next. Three sums would be simpler, and read the gradient three times on a CPU.
    """
    magnitude = (bits(g) & 0x7FFFFFFF).ravel()
    columns = jnp.pad(magnitude, (0, -g.size % 512), constant_values=0x7FFFFFFF).reshape(512, -1)
    flags = [(columns <= bound).astype(jnp.int32) << 10 * i for i, bound in enumerate(LARGEST_LOST.values())]
    counters = jnp.sum(sum(flags), axis=0)
    return {kind: jnp.sum(counters >> 10 * i & 1023) for i, kind in enumerate(LARGEST_LOST)}


def _norm(scale: Scale, x: jax.Array) -> jax.Array:
    power, unit = scale(x)
    return power * jnp.sqrt(_square(unit))


def _cosine(scale: Scale, a: jax.Array, b: jax.Array) -> jax.Array:
    """⟨a, b⟩/(‖a‖‖b‖); NaN where one of them is zero."""
    (_, a), (_, b) = scale(a), scale(b)
    cosine = _dot(a, b) / (jnp.sqrt(_square(a)) * jnp.sqrt(_square(b)))
    return jnp.clip(cosine, -1, 1)  # rounding can give more than 1, where arccos is not defined


def _lengths(scale: Scale, x: jax.Array) -> Statistics:
    power, unit = scale(x)
    return lengths(power, _square(unit), x.size)


def _per_layer(function: Callable[..., Statistics], *columns: Sequence[Group]) -> Statistics:
    """`function` of each layer's arrays, joined along the layer axis; the layers of a stack go through `vmap`."""
    rows = [
        jax.vmap(function)(*(g.values for g in layer))
        if layer[0].is_stack
        else {name: value[None] for name, value in function(*(g.values for g in layer)).items()}
        for layer in zip(*columns, strict=True)
    ]
    return {name: jnp.concatenate([row[name] for row in rows]) for name in rows[0]}


def _each(function: Callable[[jax.Array], jax.Array], groups: Sequence[Group]) -> jax.Array:
    return _per_layer(lambda x: {"": function(x)}, groups)[""]


def _sizes(groups: Sequence[Group]) -> np.ndarray:
    """Elements of each layer, int32 [layers]."""
    return np.array([g.values.size // len(g.names) for g in groups for _ in g.names], np.int32)


def _scaled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The power of two below max|x|, and x divided by it, exactly; 1 and x if x is all zeros or not all finite."""
    x = x.astype(jnp.float32)
    power, inverse = power_below(jnp.max(jnp.abs(x)))
    return power, x * inverse


def _log10(power: jax.Array, mean_square: jax.Array) -> jax.Array:
    """log₁₀(2ᵏ √mean_square) for `power` = 2ᵏ.

    log₁₀ 2 is split into 1233/4096 and a small rest: k · 1233/4096 is exact in float32, so only the sum is rounded.
    """
    k = ((bits(power) >> 23).astype(jnp.int32) - 127).astype(jnp.float32)
    exact = jnp.float32(1233 / 4096)
    return k * exact + (k * jnp.float32(np.log10(2) - 1233 / 4096) + jnp.log10(mean_square) / 2)


def _square(x: jax.Array) -> jax.Array:
    """‖x‖², float32."""
    return _dot(x, x)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Σ a·b over all elements, float32.

    A product of two vectors behind a barrier, because XLA's CPU compiler cuts a plain sum of squares over a gradient
    into windows of 32 × 32, at twice the cost when measured. Both can go when `jnp.sum(a * b)` is as fast.
    """
    return jnp.vdot(jax.lax.optimization_barrier(a.ravel()), b, precision=jax.lax.Precision.HIGHEST)


def _sum(x: jax.Array) -> jax.Array:
    """Σx, first over rows and then over columns: rounding errors grow with rows + columns, not with rows · columns."""
    return jnp.sum(jnp.sum(x, axis=0)) if x.ndim > 1 else jnp.sum(x)
