"""Statistics of activations, slopes and δ over a batch, layer by layer.

The units of all layers lie side by side in one matrix, so that one kernel serves all layers. A record of a network of
seven layers then takes a fifth fewer kernels when measured; the number of small kernels is what a record costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vgjax.activations import SATURATED_SLOPE
from vgjax.network.layer_names import Group, weight_groups
from vgjax.statistics.weights import Statistics, lengths, power_below, prefixed, weight_norms


def activation_statistics(
    activations: Sequence[Group], slopes: Sequence[Group], steepest: Sequence[float], mask: jax.Array | None = None
) -> Statistics:
    """Mean and standard deviation of each layer's activations over a batch, and shares of dead and saturated units.

    Args:
      activations: the outputs of each layer, [B, units] each.
      slopes: φ′ at each unit and example, [B, units] each; for examples that do not count, zeros.
      steepest: sup |φ′| of each group's activation.
      mask: which examples count [B], or None for all.

    Returns:
      {"activation_mean", "activation_std" over examples and units; "activation_dead_fraction": share of units whose
      slope is 0 on every example; "activation_saturated_fraction": share of units and examples with
      |φ′| ≤ SATURATED_SLOPE · sup|φ′|}, each [layers]; both shares are NaN where a slope is.
    """
    tops = [top for _, group, top in zip(activations, slopes, steepest, strict=True) for _ in group.names]
    h, s = _side_by_side(activations), _side_by_side(slopes)
    examples = _examples(h, mask)
    power, unit = _scaled(h._replace(values=counted(h.values, mask)))
    mean = _sums(h, unit) / (examples * h.widths)
    variance = _sums(h, counted(jnp.square(unit - _per_unit(h, mean)), mask)) / (examples * h.widths)
    flat = jnp.abs(s.values)
    most = jnp.max(flat, axis=0)  # NaN where any is
    is_flat = flat <= _per_unit(s, jnp.float32(SATURATED_SLOPE) * jnp.array(tops, jnp.float32))
    saturated = _sums(s, counted(is_flat.astype(jnp.float32), mask)) / (examples * s.widths)
    dead = _per_layer(s, jnp.sum, (most == 0).astype(jnp.float32)) / s.widths
    is_bad = jnp.isnan(_per_layer(s, jnp.max, most))
    return {
        "activation_mean": power * mean,
        "activation_std": power * jnp.sqrt(variance),
        "activation_dead_fraction": jnp.where(is_bad, jnp.nan, dead),
        "activation_saturated_fraction": jnp.where(is_bad, jnp.nan, saturated),
    }


def delta_statistics(deltas: Sequence[Group], mask: jax.Array | None = None) -> Statistics:
    """Norm, RMS and log₁₀ RMS of δ = ∂loss/∂z, the gradient of each layer's pre-activations over a batch.

    Args:
      deltas: [B, units] each; examples that do not count have zeros.
      mask: which examples count [B], or None for all.

    Returns:
      {"delta_norm", "delta_rms", "delta_log10_rms"}, each [layers].
    """
    return prefixed("delta", _lengths(_side_by_side(deltas), mask))


def noise_statistics(
    gradients: Any,
    inputs: Sequence[Group],
    deltas: Sequence[Group],
    mask: jax.Array | None = None,
    stacked: str = "",
) -> Statistics:
    """Signal-to-noise ratio of each layer's weight gradient over the batch, ‖g‖² / (tr Σ / B).

    No gradient of a single example is computed. Example b contributes the outer product x_b δ_bᵀ, of norm ‖x_b‖‖δ_b‖;
    so the estimated variance of the sum g is (B Σ_b ‖x_b‖²‖δ_b‖² − ‖g‖²) / (B − 1). With batch norm, these
    contributions are not the gradients of the single examples.

    Source: Goodfellow 2015, 1510.01799; McCandlish et al. 2018, 1812.06162, appendix A.

    Args:
      gradients: of the loss over the batch, before decay and clipping.
      inputs: what each dense layer multiplies with its weights, [B, fan_in] each.
      deltas: [B, units] each; examples that do not count have zeros.
      mask: which examples count [B], or None for all.
      stacked: paths of stacked layers.

    Returns:
      {"gradient_signal_to_noise": [layers]}; NaN for a batch of one, for 0/0, and where the products x_b δ_bᵀ are too
      small for float32; Inf without noise.
    """
    x, d = _side_by_side(inputs), _side_by_side(deltas)
    (power_x, unit_x), (power_d, unit_d) = _scaled(x), _scaled(d)
    squares = jnp.sum(_sums_by_example(x, jnp.square(unit_x)) * _sums_by_example(d, jnp.square(unit_d)), axis=0)
    signal = jnp.square(weight_norms(gradients, stacked) / power_d / power_x)
    count = _examples(d, mask)
    noise = jnp.maximum(count * squares - signal, 0) / (count - 1)  # the difference may round below 0
    is_defined = (count > 1) & (power_d * power_x >= np.finfo(np.float32).smallest_normal)
    return {"gradient_signal_to_noise": jnp.where(is_defined, signal / noise, jnp.nan)}


def decay_statistics(
    params: Any,
    slopes: Sequence[Group],
    deltas: Sequence[Group],
    mask: jax.Array | None = None,
    above: jax.Array | slice = slice(1, None),
) -> Statistics:
    """Why the gradient decays from layer to layer: ‖δ_l‖/‖δ_{l+1}‖ = weight gain · slope · alignment.

    Weight gain ‖W_{l+1}‖_F/√fan_out is the factor by which the weights lengthen a δ of random direction. Slope is the
    RMS of φ′(z_l). Alignment is the rest: 1 where weights, slopes and δ are independent, and then the square of
    the product is mean-field theory's χ₁. Effects of norms and skip connections count as alignment.

    Args:
      params: parameters before the step.
      slopes: φ′ at each unit and example, [B, units] each; for examples that do not count, zeros.
      deltas: [B, units] each; examples that do not count have zeros.
      mask: which examples count [B], or None for all.
      above: index of the layer above, for each layer but the last [layers − 1]; by default the next.

    Returns:
      {"decay_ratio", "decay_weight_gain", "decay_slope", "decay_alignment"}, each [layers]; NaN in the last layer,
      which has no layer above, and for 0/0.
    """
    power, square = _squares(_side_by_side(deltas))
    rest, end = jnp.sqrt(square), jnp.full(1, jnp.nan, jnp.float32)
    ratio = (power[:-1] / power[above]) * (rest[:-1] / rest[above])
    fan_out = np.array([g.values.shape[-1] for g in weight_groups(params) for _ in g.names], np.float32)
    weight_gain = (weight_norms(params) / np.sqrt(fan_out))[above]
    slope = _lengths(_side_by_side(slopes), mask)["rms"][:-1]
    columns = {"ratio": ratio, "weight_gain": weight_gain, "slope": slope, "alignment": ratio / (weight_gain * slope)}
    return {f"decay_{name}": jnp.concatenate([column, end]) for name, column in columns.items()}


def counted(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """x with zeros for the examples outside the mask [B]; examples are along x's last axis but one."""
    return x if mask is None else jnp.where(jnp.broadcast_to(mask[:, None], x.shape), x, jnp.zeros_like(x))


class _Units(NamedTuple):
    """The units of all layers side by side."""

    values: jax.Array  # [B, units of all layers], float32
    shapes: tuple[tuple[int, int], ...]  # (number of layers, units of each) of every group

    @property
    def widths(self) -> np.ndarray:
        """Units of each layer, float32 [layers]."""
        return np.repeat(*np.array([(width, layers) for layers, width in self.shapes]).T).astype(np.float32)


def _side_by_side(groups: Sequence[Group]) -> _Units:
    shapes = tuple((len(group.names), group.values.shape[-1]) for group in groups)
    parts = [group.values.swapaxes(0, 1) if group.is_stack else group.values for group in groups]
    return _Units(jnp.concatenate([x.reshape(len(x), -1).astype(jnp.float32) for x in parts], axis=1), shapes)


def _per_layer(units: _Units, reduce: Callable[..., jax.Array], columns: jax.Array) -> jax.Array:
    """Reduce one number per unit to one number per layer; `reduce` also sees zeros, which pad narrow layers."""
    widths = units.widths.astype(np.int32)
    number = np.arange(widths.max(), dtype=np.int32)
    is_there = number < widths[:, None]
    places = np.where(is_there, (np.cumsum(widths, dtype=np.int32) - widths)[:, None] + number, 0)
    rows = columns.at[places].get(mode="promise_in_bounds")
    return reduce(jnp.where(is_there, rows, jnp.zeros_like(rows)), axis=1)


def _per_unit(units: _Units, layers: jax.Array) -> jax.Array:
    """Repeat one number per layer for each of the layer's units [1, units]."""
    widths = units.widths.astype(np.int32)
    return layers.at[np.repeat(np.arange(len(widths), dtype=np.int32), widths)].get(mode="promise_in_bounds")[None]


def _sums(units: _Units, x: jax.Array) -> jax.Array:
    """Σx of each layer, over examples and then units: rounding errors grow with B + units, not with B · units."""
    return _per_layer(units, jnp.sum, jnp.sum(x, axis=0))


def _sums_by_example(units: _Units, x: jax.Array) -> jax.Array:
    """Σx over the units of each layer [B, layers]."""
    ends = np.cumsum([layers * width for layers, width in units.shapes])[:-1]
    parts = zip(jnp.split(x, ends, axis=1), units.shapes, strict=True)
    return jnp.concatenate([jnp.sum(part.reshape(-1, *shape), axis=-1) for part, shape in parts], axis=1)


def _scaled(units: _Units) -> tuple[jax.Array, jax.Array]:
    """The power of two below each layer's max|x| [layers], and x divided by it [B, units]."""
    power, inverse = power_below(_per_layer(units, jnp.max, jnp.max(jnp.abs(units.values), axis=0)))
    return power, units.values * _per_unit(units, inverse)


def _squares(units: _Units) -> tuple[jax.Array, jax.Array]:
    power, unit = _scaled(units)
    return power, _sums(units, jnp.square(unit))


def _lengths(units: _Units, mask: jax.Array | None) -> Statistics:
    return lengths(*_squares(units), _examples(units, mask) * units.widths)


def _examples(units: _Units, mask: jax.Array | None) -> Any:
    """The number of examples that count.

    A NumPy number without a mask: XLA then knows the divisor, and results have the same bits on any number of devices.
    """
    return np.float32(len(units.values)) if mask is None else jnp.sum(mask, dtype=jnp.float32)
