"""What can be recorded of an instrumented step: families of statistics by name, each a function of what was seen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import octaves, stats, units
from vgjax.activations import activation, steepest_slope
from vgjax.config import Config
from vgjax.layers import Group, groups, weight_groups
from vgjax.names import Entry, nearest
from vgjax.optim import Points
from vgjax.stats import Statistics


class View(NamedTuple):
    """All that an instrumented step lets one see; what no family looks at costs nothing, since jit leaves it out."""

    gradients: Any  # of the loss, before the optimizer
    points: Points
    params: Any  # before the step
    # What a train step of one's own may not have to show:
    seen: Any = None  # of the model, `Seen`
    deltas: Any = None  # ∂loss/∂z a layer, {name: [B, units]}
    mask: jax.Array | None = None  # which examples count [B], or None for all
    depth: jax.Array | None = None  # hidden layers, where that is traced: the layers between them and the last are none


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
        return {name: octaves.histograms(weight_groups(look(view), stacked))}

    return Family(make, f"{summary} per signed log₂ bin", "—", (name,), from_outside=True)


def _unit_histogram(name: str, look: Callable[[View], dict[str, jax.Array]], summary: str) -> Family:
    def make(config: Config, view: View, _: str) -> Statistics:
        return {name: octaves.histograms(groups(look(view)), view.mask)}

    return Family(make, f"{summary} per signed log₂ bin", "—", (name,))


FAMILIES: dict[str, Family] = {
    "norms": Family(
        lambda config, view, stacked: stats.norm_statistics(view.gradients, stacked),
        "norm, RMS and log₁₀ RMS of the weight gradient; costs next to nothing",
        "Glorot & Bengio 2010",
        ("gradient_norm", "gradient_rms", "gradient_log10_rms"),
        from_outside=True,
    ),
    "spread": Family(
        lambda config, view, stacked: stats.gradient_statistics(view.gradients, stacked),
        "mean, std, max, share of zeros, and what float16 and bfloat16 would lose, of the weight gradient",
        "Micikevicius et al. 2018, 1710.03740",
        (
            *("gradient_mean", "gradient_std", "gradient_max", "gradient_zero_fraction"),
            *("gradient_float16_underflow", "gradient_bfloat16_underflow"),
        ),
        from_outside=True,
    ),
    "weights": Family(
        lambda config, view, stacked: stats.weight_statistics(view.params, view.points.updates, stacked),
        "norm of the weights, and of their update relative to it",
        "—",
        ("weight_norm", "update_ratio"),
        from_outside=True,
    ),
    "points": Family(
        lambda config, view, stacked: stats.point_statistics(
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
