"""What can be recorded at an instrumented step: the table of families of statistics.

A new family is one function and one row of `FAMILIES`: the row declares the name, dimensions, description and unit of
every statistic that the function computes. Histories, tables, TensorBoard, maps and the plan of a sweep read that row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax.activations import activation, steepest_slope
from vgjax.config import Config
from vgjax.names import Entry, nearest
from vgjax.network.layer_names import Group, groups, weight_groups
from vgjax.statistics import histograms, units, weights
from vgjax.statistics.view import View
from vgjax.statistics.weights import Statistics

LAYER = ("layer",)
LAYER_AND_BIN = ("layer", "bin")


@dataclass(frozen=True)
class Statistic:
    """What one variable of a history is."""

    name: str
    dims: tuple[str, ...]
    """Dimensions after (lane, record): `LAYER`, or `LAYER_AND_BIN` for a histogram."""
    description: str
    unit: str = ""
    """Empty: the statistic has no unit."""

    @property
    def long_name(self) -> str:
        """The description with the unit in brackets, as a history stores it."""
        return f"{self.description} [{self.unit}]" if self.unit else self.description


@dataclass(frozen=True)
class Family(Entry):
    """A row of `FAMILIES`; its `make(config, view, stacked)` returns {name of a statistic: array [layers, …]}.

    Args of `make`:
      config: the run's `Config`; None in a watched optimizer.
      view: what the step shows.
      stacked: paths of stacked layers, see `vgjax.network.layer_names.weight_groups`.
    """

    statistics: tuple[Statistic, ...] = ()
    """What `make` returns."""
    from_outside: bool = False
    """`make` reads only the view's gradients, points and parameters, so `vgjax.watch` can record this family."""
    needs_params: bool = False
    """`make` reads the view's parameters, so a watched optimizer must be given them."""


def _activations(config: Config, view: View, _: str) -> Statistics:
    slopes = _slopes(config, view)
    steepest = [*[steepest_slope(config.activation)] * (len(slopes) - 1), 1.0]
    return units.activation_statistics(groups(view.seen.activations), slopes, steepest, view.mask)


def _decay(config: Config, view: View, _: str) -> Statistics:
    above: Any = slice(1, None)
    if view.depth is not None:
        n = len(config.hidden)
        above = jnp.where(jnp.arange(n) == view.depth - 1, n, jnp.arange(1, n + 1))
    return units.decay_statistics(view.params, _slopes(config, view), groups(view.deltas), view.mask, above)


def _slopes(config: Config, view: View) -> list[Group]:
    """φ′ at the input of each layer's activation; 1 in the last layer, which has no activation; 0 outside the mask.

    The slope at NaN is NaN: JAX gives ReLU the slope 0 there, and the unit would count as dead.
    """
    phi = activation(config.activation)

    def slope_at(z: jax.Array) -> jax.Array:
        return jnp.where(jnp.isnan(z), z, jax.jvp(phi, (z,), (jnp.ones_like(z),))[1])

    slopes = {name: slope_at(z) for name, z in view.seen.phi_inputs.items()}
    slopes |= {name: jnp.ones_like(z) for name, z in view.seen.pre_activations.items() if name not in slopes}
    return groups({name: units.counted(slope, view.mask) for name, slope in slopes.items()})


def _weight_histogram(name: str, read: Callable[[View], Any], what: str, needs_params: bool = False) -> Family:
    def make(config: Config, view: View, stacked: str) -> Statistics:
        return {name: histograms.histograms(weight_groups(read(view), stacked))}

    row = Statistic(name, LAYER_AND_BIN, f"{what} per signed log₂ bin", "count")
    return Family(make, row.description, "—", (row,), from_outside=True, needs_params=needs_params)


def _unit_histogram(name: str, read: Callable[[View], dict[str, jax.Array]], what: str) -> Family:
    def make(config: Config, view: View, _: str) -> Statistics:
        return {name: histograms.histograms(groups(read(view)), view.mask)}

    row = Statistic(name, LAYER_AND_BIN, f"{what} per signed log₂ bin", "count")
    return Family(make, row.description, "—", (row,))


FAMILIES: dict[str, Family] = {
    "norms": Family(
        lambda config, view, stacked: weights.norm_statistics(view.gradients, stacked),
        "norm, RMS and log₁₀ RMS of the weight gradient; costs next to nothing",
        "Glorot & Bengio 2010",
        (
            Statistic("gradient_norm", LAYER, "‖g‖₂ of the weight gradient", "loss per weight unit"),
            Statistic("gradient_rms", LAYER, "RMS of the weight gradient, ‖g‖₂/√n", "loss per weight unit"),
            Statistic("gradient_log10_rms", LAYER, "log₁₀ of the RMS of the weight gradient"),
        ),
        from_outside=True,
    ),
    "spread": Family(
        lambda config, view, stacked: weights.gradient_statistics(view.gradients, stacked),
        "mean, std, max, share of zeros, and what float16 and bfloat16 would lose, of the weight gradient",
        "Micikevicius et al. 2018, 1710.03740",
        (
            Statistic("gradient_mean", LAYER, "mean of the weight gradient", "loss per weight unit"),
            Statistic("gradient_std", LAYER, "standard deviation of the weight gradient", "loss per weight unit"),
            Statistic("gradient_max", LAYER, "max |g| of the weight gradient", "loss per weight unit"),
            Statistic("gradient_zero_fraction", LAYER, "share of exact zeros in the weight gradient"),
            Statistic(
                "gradient_float16_underflow",
                LAYER,
                "share of nonzero weight gradients that are zero in float16; NaN: none",
            ),
            Statistic(
                "gradient_bfloat16_underflow",
                LAYER,
                "share of nonzero weight gradients that are zero in bfloat16; NaN: none",
            ),
        ),
        from_outside=True,
    ),
    "weights": Family(
        lambda config, view, stacked: weights.weight_statistics(view.params, view.points.updates, stacked),
        "norm of the weights, and of their update relative to it",
        "—",
        (
            Statistic("weight_norm", LAYER, "‖W‖₂ before the step", "weight units"),
            Statistic("update_ratio", LAYER, "‖ΔW‖₂/‖W‖₂ of the step"),
        ),
        from_outside=True,
        needs_params=True,
    ),
    "points": Family(
        lambda config, view, stacked: weights.point_statistics(
            view.points.raw, view.points.clipped, view.points.updates, stacked
        ),
        "the gradient after clipping and the update made of it: norms, share clipped, cosines",
        "Pascanu et al. 2013, 1211.5063",
        (
            Statistic("clipped_norm", LAYER, "‖·‖₂ of the weight gradient after clipping", "loss per weight unit"),
            Statistic("clipped_fraction", LAYER, "share of the weight gradient's elements that clipping changed"),
            Statistic("clipped_cosine", LAYER, "cosine of the angle between raw and clipped weight gradient"),
            Statistic("update_norm", LAYER, "‖ΔW‖₂ of the step", "weight units"),
            Statistic(
                "update_cosine", LAYER, "cosine of the angle between −gradient and update: 1 is steepest descent"
            ),
        ),
        from_outside=True,
    ),
    "activations": Family(
        _activations,
        "mean and std of the activations, share of dead units, share of saturated ones",
        "Glorot & Bengio 2010",
        (
            Statistic("activation_mean", LAYER, "mean activation over examples and units"),
            Statistic("activation_std", LAYER, "standard deviation of the activations over examples and units"),
            Statistic(
                "activation_dead_fraction", LAYER, "share of units whose slope is 0 on every example of the batch"
            ),
            Statistic(
                "activation_saturated_fraction", LAYER, "share of units and examples with a slope ≤ 0.1 of the steepest"
            ),
        ),
    ),
    "deltas": Family(
        lambda config, view, _: units.delta_statistics(groups(view.deltas), view.mask),
        "norm, RMS and log₁₀ RMS of δ, the gradient of the pre-activations",
        "Schoenholz et al. 2017, 1611.01232",
        (
            Statistic("delta_norm", LAYER, "‖δ‖₂ of the pre-activations' gradient over the batch", "loss"),
            Statistic("delta_rms", LAYER, "RMS of the pre-activations' gradient δ", "loss"),
            Statistic("delta_log10_rms", LAYER, "log₁₀ of the RMS of δ"),
        ),
    ),
    "noise": Family(
        lambda config, view, _: units.noise_statistics(
            view.gradients, groups(view.seen.inputs), groups(view.deltas), view.mask
        ),
        "signal-to-noise ratio of the weight gradient over the batch",
        "McCandlish et al. 2018, 1812.06162",
        (Statistic("gradient_signal_to_noise", LAYER, "‖g‖² over the variance that the batch's examples give it"),),
    ),
    "decay": Family(
        _decay,
        "‖δ_l‖/‖δ_{l+1}‖, split into weight gain, slope of the activation and alignment",
        "Schoenholz et al. 2017, 1611.01232",
        (
            Statistic("decay_ratio", LAYER, "‖δ_l‖/‖δ_{l+1}‖ = weight gain · slope · alignment"),
            Statistic("decay_weight_gain", LAYER, "‖W_{l+1}‖_F/√fan_out: gain of a random δ"),
            Statistic("decay_slope", LAYER, "RMS of φ′(z_l) over examples and units"),
            Statistic("decay_alignment", LAYER, "the rest: 1 where weights, slopes and δ are independent"),
        ),
    ),
    "gradient_histogram": _weight_histogram("gradient_histogram", lambda view: view.gradients, "weight gradients"),
    "weight_histogram": _weight_histogram("weight_histogram", lambda view: view.params, "weights", needs_params=True),
    "update_histogram": _weight_histogram(
        "update_histogram", lambda view: view.points.updates, "updates of the weights"
    ),
    "activation_histogram": _unit_histogram("activation_histogram", lambda view: view.seen.activations, "activations"),
    "delta_histogram": _unit_histogram("delta_histogram", lambda view: view.deltas, "pre-activation gradients δ"),
}


def chosen(record: Collection[str], allowed: Sequence[str] | None = None) -> list[str]:
    """The names of the families to record, in the order of the table.

    Args:
      record: names of families; `all` stands for all allowed ones.
      allowed: names of families; None: the whole table.

    Raises:
      ValueError: a name is not allowed.
    """
    allowed = list(FAMILIES) if allowed is None else allowed
    for name in record:
        if name not in allowed and name != "all":
            raise ValueError(f"unknown family {name!r} in record; {nearest(name, [*allowed, 'all'])}")
    return [name for name in allowed if name in record or "all" in record]


def statistics_of(families: Iterable[str]) -> list[Statistic]:
    """The statistics of these families."""
    return [statistic for name in families for statistic in FAMILIES[name].statistics]


def all_statistics() -> dict[str, Statistic]:
    """The statistics of all families, by name."""
    return {statistic.name: statistic for statistic in statistics_of(FAMILIES)}


def kept(config: Config, names: Sequence[str]) -> list[int]:
    """The indices of the layers that the config records.

    Args:
      config: for `record_layers`.
      names: of all layers.

    Raises:
      ValueError: `record_layers` is empty, or one of its patterns fits no layer.
    """
    if not config.record_layers:
        raise ValueError("record_layers is empty; allowed: names or patterns of layers, as layer_1 or *")
    for pattern in config.record_layers:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"record_layers {pattern!r} fits no layer; {nearest(pattern, names)}")
    return [i for i, name in enumerate(names) if any(fnmatchcase(name, p) for p in config.record_layers)]


def record_of(config: Config, view: View) -> Statistics:
    """The statistics that the config records, for the layers that it records: name → [layers, …]."""
    record: Statistics = {}
    for name in chosen(config.record):
        record |= FAMILIES[name].make(config, view, "")
    rows = np.array(kept(config, [name for group in weight_groups(view.params) for name in group.names]))
    return {name: values if len(rows) == len(values) else values[rows] for name, values in record.items()}
