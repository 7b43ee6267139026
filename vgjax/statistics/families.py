"""What can be recorded of an instrumented step: families of statistics by name, each a function of what was seen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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


@dataclass(frozen=True)
class Family(Entry):
    """A row: `make(config, view, stacked)` gives the statistics, each [layers, …].

    `from_outside`: gradients, points and parameters are all that it looks at, so that any optimizer can be watched.
    """

    gives: tuple[str, ...] = ()
    from_outside: bool = False


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
    """φ′ where each layer's activation was applied, 1 in the last layer, which has none; 0 for what does not count.

    NaN has a NaN slope: JAX gives ReLU the slope 0 there, which would look dead.
    """
    phi = activation(config.activation)

    def slope_at(z: jax.Array) -> jax.Array:
        return jnp.where(jnp.isnan(z), z, jax.jvp(phi, (z,), (jnp.ones_like(z),))[1])

    slopes = {name: slope_at(z) for name, z in view.seen.phi_inputs.items()}
    slopes |= {name: jnp.ones_like(z) for name, z in view.seen.pre_activations.items() if name not in slopes}
    return groups({name: units.counted(slope, view.mask) for name, slope in slopes.items()})


def _weight_histogram(name: str, look: Callable[[View], Any], summary: str) -> Family:
    def make(config: Config, view: View, stacked: str) -> Statistics:
        return {name: histograms.histograms(weight_groups(look(view), stacked))}

    return Family(make, f"{summary} per signed log₂ bin", "—", (name,), from_outside=True)


def _unit_histogram(name: str, look: Callable[[View], dict[str, jax.Array]], summary: str) -> Family:
    def make(config: Config, view: View, _: str) -> Statistics:
        return {name: histograms.histograms(groups(look(view)), view.mask)}

    return Family(make, f"{summary} per signed log₂ bin", "—", (name,))


FAMILIES: dict[str, Family] = {
    "norms": Family(
        lambda config, view, stacked: weights.norm_statistics(view.gradients, stacked),
        "norm, RMS and log₁₀ RMS of the weight gradient; costs next to nothing",
        "Glorot & Bengio 2010",
        ("gradient_norm", "gradient_rms", "gradient_log10_rms"),
        from_outside=True,
    ),
    "spread": Family(
        lambda config, view, stacked: weights.gradient_statistics(view.gradients, stacked),
        "mean, std, max, share of zeros, and what float16 and bfloat16 would lose, of the weight gradient",
        "Micikevicius et al. 2018, 1710.03740",
        (
            *("gradient_mean", "gradient_std", "gradient_max", "gradient_zero_fraction"),
            *("gradient_float16_underflow", "gradient_bfloat16_underflow"),
        ),
        from_outside=True,
    ),
    "weights": Family(
        lambda config, view, stacked: weights.weight_statistics(view.params, view.points.updates, stacked),
        "norm of the weights, and of their update relative to it",
        "—",
        ("weight_norm", "update_ratio"),
        from_outside=True,
    ),
    "points": Family(
        lambda config, view, stacked: weights.point_statistics(
            view.points.raw, view.points.clipped, view.points.updates, stacked
        ),
        "the gradient after clipping and the update made of it: norms, share clipped, cosines",
        "Pascanu et al. 2013, 1211.5063",
        ("clipped_norm", "clipped_fraction", "clipped_cosine", "update_norm", "update_cosine"),
        from_outside=True,
    ),
    "activations": Family(
        _activations,
        "mean and std of the activations, share of dead units, share of saturated ones",
        "Glorot & Bengio 2010",
        ("activation_mean", "activation_std", "activation_dead_fraction", "activation_saturated_fraction"),
    ),
    "deltas": Family(
        lambda config, view, _: units.delta_statistics(groups(view.deltas), view.mask),
        "norm, RMS and log₁₀ RMS of δ, the gradient of the pre-activations",
        "Schoenholz et al. 2017, 1611.01232",
        ("delta_norm", "delta_rms", "delta_log10_rms"),
    ),
    "noise": Family(
        lambda config, view, _: units.noise_statistics(
            view.gradients, groups(view.seen.inputs), groups(view.deltas), view.mask
        ),
        "signal-to-noise ratio of the weight gradient over the batch",
        "McCandlish et al. 2018, 1812.06162",
        ("gradient_signal_to_noise",),
    ),
    "decay": Family(
        _decay,
        "‖δ_l‖/‖δ_{l+1}‖, split into weight gain, slope of the activation and alignment",
        "Schoenholz et al. 2017, 1611.01232",
        ("decay_ratio", "decay_weight_gain", "decay_slope", "decay_alignment"),
    ),
    "gradient_histogram": _weight_histogram("gradient_histogram", lambda view: view.gradients, "weight gradients"),
    "weight_histogram": _weight_histogram("weight_histogram", lambda view: view.params, "weights"),
    "update_histogram": _weight_histogram("update_histogram", lambda view: view.points.updates, "updates"),
    "activation_histogram": _unit_histogram("activation_histogram", lambda view: view.seen.activations, "activations"),
    "delta_histogram": _unit_histogram("delta_histogram", lambda view: view.deltas, "pre-activation gradients δ"),
}


def chosen(record: Collection[str], allowed: Sequence[str] = tuple(FAMILIES)) -> list[str]:
    """The families that are asked for, `all` written out.

    Raises:
      ValueError: no such family among the allowed ones.
    """
    for name in record:
        if name not in allowed and name != "all":
            raise ValueError(f"unknown family {name!r} in record; {nearest(name, [*allowed, 'all'])}")
    return [name for name in allowed if name in record or "all" in record]


def kept(config: Config, names: Sequence[str]) -> list[int]:
    """Which of the layers are recorded.

    Raises:
      ValueError: there is no pattern, or one that fits no layer.
    """
    if not config.record_layers:
        raise ValueError("record_layers is empty; allowed: names or patterns of layers, as layer_1 or *")
    for pattern in config.record_layers:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"record_layers {pattern!r} fits no layer; {nearest(pattern, names)}")
    return [i for i, name in enumerate(names) if any(fnmatchcase(name, p) for p in config.record_layers)]


def record_of(config: Config, view: View) -> Statistics:
    """The statistics that a config asks for, of the layers that it asks for: name → [layers, …]."""
    record: Statistics = {}
    for name in chosen(config.record):
        record |= FAMILIES[name].make(config, view, "")
    rows = np.array(kept(config, [name for group in weight_groups(view.params) for name in group.names]))
    return {name: values if len(rows) == len(values) else values[rows] for name, values in record.items()}


# What is recorded: dimensions beyond (lane, record) or (lane, evaluation), and what it is [unit].
VARIABLES: dict[str, tuple[tuple[str, ...], str]] = {
    "loss": ((), "cross-entropy of the step's batch, mean [nats]"),
    "accuracy": ((), "share of the step's batch classified right; NaN where the loss is"),
    "gradient_norm": (("layer",), "‖g‖₂ of the weight gradient [loss per weight unit]"),
    "gradient_rms": (("layer",), "RMS of the weight gradient, ‖g‖₂/√n [loss per weight unit]"),
    "gradient_log10_rms": (("layer",), "log₁₀ of the RMS of the weight gradient"),
    "gradient_mean": (("layer",), "mean of the weight gradient [loss per weight unit]"),
    "gradient_std": (("layer",), "standard deviation of the weight gradient [loss per weight unit]"),
    "gradient_max": (("layer",), "max |g| of the weight gradient [loss per weight unit]"),
    "gradient_zero_fraction": (("layer",), "share of exact zeros in the weight gradient"),
    "gradient_float16_underflow": (("layer",), "share of nonzero weight gradients that are zero in float16; NaN: none"),
    "gradient_bfloat16_underflow": (
        ("layer",),
        "share of nonzero weight gradients that are zero in bfloat16; NaN: none",
    ),
    "gradient_signal_to_noise": (("layer",), "‖g‖² over the variance that the batch's examples give it"),
    "weight_norm": (("layer",), "‖W‖₂ before the step [weight units]"),
    "update_ratio": (("layer",), "‖ΔW‖₂/‖W‖₂ of the step"),
    "clipped_norm": (("layer",), "‖·‖₂ of the weight gradient after clipping [loss per weight unit]"),
    "clipped_fraction": (("layer",), "share of the weight gradient's elements that clipping changed"),
    "clipped_cosine": (("layer",), "cosine of the angle between raw and clipped weight gradient"),
    "update_norm": (("layer",), "‖ΔW‖₂ of the step [weight units]"),
    "update_cosine": (("layer",), "cosine of the angle between −gradient and update: 1 is steepest descent"),
    "activation_mean": (("layer",), "mean activation over examples and units"),
    "activation_std": (("layer",), "standard deviation of the activations over examples and units"),
    "activation_dead_fraction": (("layer",), "share of units whose slope is 0 on every example of the batch"),
    "activation_saturated_fraction": (("layer",), "share of units and examples with a slope ≤ 0.1 of the steepest"),
    "delta_norm": (("layer",), "‖δ‖₂ of the pre-activations' gradient over the batch [loss]"),
    "delta_rms": (("layer",), "RMS of the pre-activations' gradient δ [loss]"),
    "delta_log10_rms": (("layer",), "log₁₀ of the RMS of δ"),
    "decay_ratio": (("layer",), "‖δ_l‖/‖δ_{l+1}‖ = weight gain · slope · alignment"),
    "decay_weight_gain": (("layer",), "‖W_{l+1}‖_F/√fan_out: gain of a random δ"),
    "decay_slope": (("layer",), "RMS of φ′(z_l) over examples and units"),
    "decay_alignment": (("layer",), "the rest: 1 where weights, slopes and δ are independent"),
    "gradient_histogram": (("layer", "bin"), "weight gradients per signed log₂ bin [count]"),
    "weight_histogram": (("layer", "bin"), "weights per signed log₂ bin [count]"),
    "update_histogram": (("layer", "bin"), "updates of the weights per signed log₂ bin [count]"),
    "activation_histogram": (("layer", "bin"), "activations per signed log₂ bin [count]"),
    "delta_histogram": (("layer", "bin"), "pre-activation gradients δ per signed log₂ bin [count]"),
    "train_loss": ((), "cross-entropy, mean over the epoch's training steps [nats]"),
    "train_accuracy": ((), "share classified right over the epoch's training steps; NaN where the loss is"),
    "validation_loss": ((), "cross-entropy over the validation examples, mean [nats]"),
    "validation_accuracy": ((), "share of the validation examples classified right; NaN where the loss is"),
    "clipped_to_zero": ((), "share of the epoch's steps in which clipping made zeros of a parameter's gradient"),
    "first_bad_step": ((), "first step in which something was NaN or infinite, −1: none"),
    "first_bad_layer": ((), "the layer where that began"),
    "first_bad_in": ((), "in which pass: forward, backward, or update of the weights"),
}
